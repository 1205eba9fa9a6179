//! A leader with fewer than minnodes live nodes becomes LEADER_RO: reads go on, writes fail with SQLSTATE
//! 25006 and a hint; it comes back by itself.

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::{server_message, sqlstate};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::node::Node;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

fn expected() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.push(expect(" 25006 ERROR:  ", "the write that must be refused"));
    lines
}

fn expect_read_only(leader: &Node) -> Result<()> {
    leader.wait_state(&["LEADER_RO"], TEN_SECONDS)?;
    wait_until("a server that looks read-only to libpq", TEN_SECONDS, || {
        ensure!(leader.value("SHOW transaction_read_only")? == "on", "it looks writable");
        Ok(())
    })?;
    ensure!(leader.value("SELECT count(*) FROM t")? == "1", "reads must go on");
    let error = leader.query("INSERT INTO t VALUES (2)").err().context("a write was taken")?;
    ensure!(sqlstate(&error).as_deref() == Some("25006"), "the write failed otherwise: {error:#}");
    let (message, _, hint) = server_message(&error).context("no message")?;
    ensure!(!hint.is_empty(), "no hint comes with: {message}");
    Ok(())
}

fn expect_writable(leader: &Node) -> Result<()> {
    leader.wait_state(&["LEADER_RW"], A_MINUTE)?;
    wait_until("a server that looks writable to libpq", TEN_SECONDS, || {
        ensure!(leader.value("SHOW transaction_read_only")? == "off", "it looks read-only");
        Ok(())
    })?;
    wait_until("a write", TEN_SECONDS, || leader.query("UPDATE t SET n = n").map(drop))
}

#[test]
fn minnodes_falls_to_read_only_and_back() {
    run("minnodes_falls_to_read_only_and_back", Cluster::builder(), &expected(), |cluster, figures| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t AS SELECT 1 AS n")?;
        let term = leader.own_status()?.term;
        leader.biha_value("SELECT biha.set_minnodes(3)")?;
        let lost = cluster.others(leader.id)[0];
        lost.kill_all()?;
        expect_read_only(leader)?;
        lost.start()?;
        expect_writable(leader)?;
        ensure!(leader.own_status()?.term == term, "back in the same term, without an election");
        cluster.wait_healthy(A_MINUTE)?;
        figures.note("term", term);
        Ok(())
    });
}

/// The majority is gone, and with it the lease.
#[test]
fn leader_alone_is_read_only() {
    run("leader_alone_is_read_only", Cluster::builder(), &expected(), |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t AS SELECT 1 AS n")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        for lost in cluster.others(leader.id) {
            lost.kill_all()?;
        }
        expect_read_only(leader)?;
        cluster.others(leader.id)[0].start()?;
        let leader = cluster.wait_leader(A_MINUTE)?;
        expect_writable(leader)?;
        for node in cluster.nodes().iter().filter(|node| node.postmaster().is_none()) {
            node.start()?;
        }
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}
