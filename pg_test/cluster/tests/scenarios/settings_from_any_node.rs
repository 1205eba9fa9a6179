//! Common settings can be set on any node, are the same on all, survive a failover, and nonsense is refused.

use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use biha_cluster_tests::client::sqlstate;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

const SETTINGS: &str =
    "SELECT DISTINCT concat_ws(' ', heartbeat_send_period, heartbeat_max_lost, nquorum, minnodes)
    FROM biha.config()";

fn wait_settings(cluster: &Cluster, wanted: &str) -> anyhow::Result<()> {
    cluster.nodes().iter().try_for_each(|node| {
        wait_until(&format!("settings {wanted} on node {}", node.id), TEN_SECONDS, || {
            let seen = node.biha_value(SETTINGS)?;
            ensure!(seen == wanted, "they are {seen}");
            Ok(())
        })
    })
}

#[test]
fn settings_from_any_node() {
    let mut expected = failover_lines();
    expected.push(expect("ERROR:  ", "the nonsense that is refused"));
    expected.push(expect("WARNING:  ", "a quorum that lets two leaders be elected warns"));
    run("settings_from_any_node", Cluster::builder(), &expected, |cluster, figures| {
        wait_settings(cluster, "200 10 2 2")?;
        cluster.node(1).biha_value("SELECT biha.set_heartbeat_send_period(100)")?;
        cluster.node(2).biha_value("SELECT biha.set_heartbeat_max_lost(15)")?;
        cluster.node(3).biha_value("SELECT biha.set_nquorum_and_minnodes(3, 1)")?;
        wait_settings(cluster, "100 15 3 1")?;
        cluster.node(2).biha_value("SELECT biha.set_nquorum(2)")?;
        cluster.node(3).biha_value("SELECT biha.set_minnodes(2)")?;
        wait_settings(cluster, "100 15 2 2")?;
        for nonsense in ["set_heartbeat_send_period(0)", "set_heartbeat_max_lost(-1)", "set_nquorum(99)"] {
            for node in cluster.nodes() {
                let error = node.biha(&format!("SELECT biha.{nonsense}")).err();
                let error = error.with_context(|| format!("{nonsense} was taken"))?;
                figures.note(nonsense, sqlstate(&error).context("no SQLSTATE")?);
            }
        }
        let old = cluster.leader()?;
        old.kill_all()?;
        cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        old.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        wait_settings(cluster, "100 15 2 2")
    });
}

/// What biha writes, an operator can't set past it.
#[test]
fn managed_settings_are_guarded() {
    let mut expected = failover_lines();
    expected.push(expect("ERROR:  ", "what is refused"));
    run("managed_settings_are_guarded", Cluster::builder(), &expected, |cluster, figures| {
        for node in cluster.nodes() {
            for name in ["primary_conninfo", "primary_slot_name", "synchronous_standby_names"] {
                let error = node.query(&format!("ALTER SYSTEM SET {name} = 'x'")).err();
                let error = error.with_context(|| format!("ALTER SYSTEM SET {name} was taken"))?;
                figures.note(name, sqlstate(&error).context("no SQLSTATE")?);
            }
            node.query("ALTER SYSTEM SET work_mem = '5MB'").context("all else must be free")?;
        }
        Ok(())
    });
}

/// A leader cannot write `synchronous_standby_names` for a moment: the change waits for it, and nothing else has to come by.
#[test]
fn names_that_could_not_be_written_are_written_again() {
    let mut expected = failover_lines();
    expected.push(expect("WARNING:  could not write \"pg_biha/server.conf\"", "it cannot"));
    let name = "names_that_could_not_be_written_are_written_again";
    run(name, Cluster::builder(), &expected, |cluster, figures| {
        let leader = cluster.leader()?;
        let mark = leader.log_mark();
        // Neither a spare file nor a new one can take its place.
        let blocks: Vec<String> = (1..=16).map(|n| format!("spare{n}")).chain(["tmp".to_owned()]).collect();
        let path = |block: &String| leader.data.join(format!("pg_biha/server.conf.{block}"));
        for block in &blocks {
            fs::remove_file(path(block)).ok();
            fs::create_dir(path(block))?;
        }
        let began = Instant::now();
        let answer = thread::scope(|scope| {
            let asked = scope.spawn(|| leader.biha_value("SELECT biha.set_sync_standbys(1)"));
            leader.wait_log(mark, "could not write \"pg_biha/server.conf\"", TEN_SECONDS)?;
            for block in &blocks {
                fs::remove_dir(path(block))?;
            }
            asked.join().map_err(|_| anyhow!("the thread that asked panicked"))?
        })?;
        figures.time("settled after", began.elapsed());
        ensure!(answer == "t", "the change answered {answer}");
        let names = leader.value("SHOW synchronous_standby_names")?;
        ensure!(names.starts_with("ANY 1 ("), "the names are {names}");
        Ok(())
    });
}
