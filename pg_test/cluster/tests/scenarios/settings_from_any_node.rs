//! Common settings can be set on any node, are the same on all, survive a failover, and nonsense is refused.

use anyhow::{Context, ensure};
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
