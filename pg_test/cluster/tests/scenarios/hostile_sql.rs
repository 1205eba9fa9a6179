//! Whatever the SQL functions are called with, and by whom: a clear error, and nothing changes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use biha_cluster_tests::client::sqlstate;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::scenario::run;

use crate::common::TEN_SECONDS;

/// The functions that only read.
const READING: [&str; 6] = ["config", "error_details", "history", "lost_transactions", "nodes", "status"];
/// Those without arguments that do something, or tell secrets.
const WITHOUT_ARGUMENTS: [&str; 3] = ["get_magic_string", "reclone", "reset_node_error"];

/// No node has these numbers.
const NO_NODE: &[&str] = &["0", "-1", "2147483647", "-2147483648", "99"];
const NO_PORT: &[&str] = &["0", "-1", "65536", "2147483647"];

/// An argument: one that is right, and some that are not.
type Argument = (&'static str, &'static [&'static str]);

/// The functions with arguments. What each of the wrong ones gets is SQLSTATE 22023; NULL gets 22004.
const FUNCTIONS: &[(&str, &[Argument])] = &[
    ("set_leader", &[("2", NO_NODE)]),
    ("remove_node", &[("2", NO_NODE)]),
    ("set_priority", &[("2", NO_NODE), ("-1", &["-2", "60001", "-2147483648"])]),
    ("set_can_vote", &[("2", NO_NODE), ("true", &[])]),
    ("set_can_be_leader", &[("2", NO_NODE), ("true", &[])]),
    (
        "add_node",
        &[
            // Number 2 is another member's.
            ("4", &["0", "-1", "-2147483648", "2"]),
            (
                "'db4'",
                &[
                    "''",
                    "'a b'",
                    "E'a\\nb'",
                    "'a,b'",
                    "'/tmp'",
                    "'a''b'",
                    "repeat('x', 256)",
                    "repeat('x', 100000)",
                ],
            ),
            ("5432", NO_PORT),
            ("5433", NO_PORT),
            ("'regular'", &["''", "'king'", "repeat('x', 100000)"]),
        ],
    ),
    ("set_heartbeat_max_lost", &[("10", &["0", "-1", "1", "1001", "2147483647"])]),
    ("set_heartbeat_send_period", &[("200", &["0", "-1", "9", "60001", "2147483647"])]),
    ("set_no_wal_on_follower", &[("20000", &["0", "-1", "999", "86400001"])]),
    ("set_nquorum", &[("2", &["-1", "4", "2147483647"])]),
    ("set_minnodes", &[("2", &["-1", "4", "2147483647"])]),
    ("set_nquorum_and_minnodes", &[("2", &["-1", "4", "2147483647"]), ("2", &["-1", "4", "2147483647"])]),
    ("set_sync_standbys", &[("0", &["-1", "3", "2147483647"])]),
    ("set_lossless", &[("'warn'", &["''", "'perhaps'", "repeat('x', 100000)"])]),
];

/// What looks wrong, but asks for what is there already.
const AS_IT_IS: [&str; 2] = ["set_nquorum(0)", "set_minnodes(0)"];

/// Names of the functions of schema biha, and how many arguments each has.
fn functions(node: &Node) -> Result<Vec<(String, usize)>> {
    let sql = "SELECT proname, pronargs FROM pg_proc WHERE pronamespace = 'biha'::regnamespace ORDER BY 1";
    let rows = node.biha(sql)?;
    let pair = |row: &Vec<Option<String>>| Some((row[0].clone()?, row[1].as_ref()?.parse().ok()?));
    rows.iter().map(|row| pair(row).context("a name and a number")).collect()
}

/// A call of this function with its right arguments, but for the one at `changed`.
fn call(function: &str, arguments: &[Argument], changed: usize, value: &str) -> String {
    let values: Vec<&str> = arguments
        .iter()
        .enumerate()
        .map(|(at, (right, _))| if at == changed { value } else { right })
        .collect();
    format!("{function}({})", values.join(", "))
}

/// The call fails, with this SQLSTATE.
fn refused(node: &Node, role: &str, call: &str, state: &str) -> Result<()> {
    let short: String = call.chars().take(60).collect();
    let error = match node.biha(&format!("SET ROLE {role}; SELECT * FROM biha.{call}")) {
        Ok(rows) => bail!("{short} on node {} as {role} was done: {rows:?}", node.id),
        Err(error) => error,
    };
    let found = sqlstate(&error).with_context(|| format!("{short}: {error:#}"))?;
    ensure!(found == state, "{short} on node {} as {role}: {found} instead of {state}: {error:#}", node.id);
    Ok(())
}

/// Wrong arguments, on any node: refused where they are given or by the leader.
fn wrong_arguments(node: &Node) -> Result<usize> {
    let mut calls = 0;
    for (function, arguments) in FUNCTIONS {
        for (at, (_, wrong)) in arguments.iter().enumerate() {
            for value in *wrong {
                refused(node, "postgres", &call(function, arguments, at, value), "22023")?;
                calls += 1;
            }
            refused(node, "postgres", &call(function, arguments, at, "NULL"), "22004")?;
            calls += 1;
        }
    }
    refused(node, "postgres", "add_node(4, 'db4', 1, 2, 'referee')", "0A000")?;
    for call in AS_IT_IS {
        ensure!(node.biha_value(&format!("SELECT biha.{call}"))? == "t", "{call} on node {}", node.id);
    }
    Ok(calls + 1 + AS_IT_IS.len())
}

/// Roles that may do less: `nobody` and the replication's role nothing, `watcher` only what reads.
fn lesser_roles(node: &Node, functions: &[(String, usize)]) -> Result<usize> {
    let mut calls = 0;
    for (function, arguments) in functions {
        // All are refused before the arguments are looked at.
        let right = match FUNCTIONS.iter().find(|(name, _)| name == function) {
            Some((_, right)) => call(function, right, usize::MAX, ""),
            None => format!("{function}()"),
        };
        ensure!(right.contains(',') || *arguments < 2, "{right} has {arguments} arguments");
        for role in ["nobody", "\"BIHA_REPLICATION_ROLE\""] {
            refused(node, role, &right, "42501")?;
            calls += 1;
        }
        if READING.contains(&function.as_str()) {
            node.biha(&format!("SET ROLE watcher; SELECT * FROM biha.{right}"))?;
        } else {
            refused(node, "watcher", &right, "42501")?;
        }
        calls += 1;
    }
    for view in ["status_v", "nodes_v"] {
        refused(node, "nobody", view, "42501")?;
        node.biha(&format!("SET ROLE watcher; SELECT * FROM biha.{view}"))?;
        calls += 2;
    }
    Ok(calls)
}

/// The configuration that every node shows, the leader, and its term.
fn seen(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let sql = "SELECT (SELECT string_agg(c::text, E'\\n' ORDER BY id) FROM biha.config() c)
        || (SELECT DISTINCT concat(' leader ', leader_id, ' term ', term) FROM biha.status())";
    cluster.nodes().iter().map(|node| node.biha_value(sql)).collect()
}

#[test]
fn hostile_sql() {
    let expected = [expect("ERROR:  ", "what is refused")];
    run("hostile_sql", Cluster::builder(), &expected, |cluster, figures| {
        let leader = cluster.wait_healthy(TEN_SECONDS)?;
        leader.biha("CREATE ROLE nobody; CREATE ROLE watcher IN ROLE biha_monitoring")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let before = seen(cluster)?;
        ensure!(before.len() == 1, "the nodes see different things: {before:?}");
        let functions = functions(leader)?;
        let named = FUNCTIONS.iter().map(|(name, _)| *name).chain(READING).chain(WITHOUT_ARGUMENTS);
        let named: BTreeSet<&str> = named.collect();
        let there: BTreeSet<&str> = functions.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(named == there, "the table does not fit: {:?}", named.symmetric_difference(&there));
        for node in [leader, cluster.others(leader.id)[0]] {
            figures.note(&format!("calls refused on node {}", node.id), wrong_arguments(node)?);
            figures
                .note(&format!("calls of lesser roles on node {}", node.id), lesser_roles(node, &functions)?);
        }
        let after = seen(cluster)?;
        ensure!(after == before, "something changed:\n{before:?}\n{after:?}");
        Ok(())
    });
}
