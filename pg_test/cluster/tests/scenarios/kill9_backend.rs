//! kill -9 of one process of the leader, a backend or biha's controller: the postmaster restarts its children,
//! and the node comes back as a follower or as the re-elected leader, never as a second one.

use std::time::Instant;

use anyhow::{Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::signal;
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::wait::{wait_for, wait_until};
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, diverge, expect_little_lost, failover_lines};

fn crash_restart(name: &str, kill: impl Fn(&Node) -> Result<()> + Sync) {
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let pid = old.postmaster();
        let patient = cluster.nodes().iter().map(|node| node.id).collect();
        let oracle = Oracle::start(cluster, Load { patient, ..Load::default() })?;
        let mark = old.log_mark();
        let fault = Instant::now();
        kill(old)?;
        old.wait_log(mark, "all server processes terminated; reinitializing", TEN_SECONDS)?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        let new = cluster.wait_healthy(A_MINUTE)?;
        ensure!(old.postmaster() == pid, "the postmaster is another one");
        figures.note("leader before and after", format!("{} {}", old.id, new.id));
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_little_lost(&verdict)
    });
}

#[test]
fn kill9_backend_crash_restart() {
    crash_restart("kill9_backend_crash_restart", |leader| {
        let sql = "SELECT pid FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND query LIKE 'INSERT%' LIMIT 1";
        signal(leader.value(sql)?.parse()?, Signal::KILL)
    });
}

#[test]
fn kill9_controller_crash_restart() {
    crash_restart("kill9_controller_crash_restart", |leader| leader.kill_titled("biha controller"));
}

/// One node of three is away, and only the leader holds its last WAL: nobody else can lead. It does as soon as it is
/// back, and does not wait for the absent one as a cluster that starts would.
#[test]
fn kill9_controller_while_a_node_is_away() {
    let name = "kill9_controller_while_a_node_is_away";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let leader = cluster.leader()?;
        let away = cluster.others(leader.id)[0];
        away.kill_all()?;
        diverge(leader, 1000)?;
        let mark = leader.log_mark();
        let fault = Instant::now();
        leader.kill_titled("biha controller")?;
        // The checkpointer is told to quit after all WAL senders: none of them sends anything more.
        wait_for("the checkpointer to quit", TEN_SECONDS, || {
            leader.processes_titled("checkpointer").is_empty()
        })?;
        for sender in leader.processes_titled("walsender") {
            signal(sender.pid, Signal::CONT)?;
        }
        leader.wait_log(mark, "all server processes terminated; reinitializing", TEN_SECONDS)?;
        let new = cluster.wait_leader(A_MINUTE)?;
        figures.time("until it leads", fault.elapsed());
        ensure!(new.id == leader.id, "node {} leads, which has less", new.id);
        ensure!(leader.value("SELECT count(*) FROM only_here")? == "1000", "rows are lost");
        let back =
            "SELECT count(*) FROM biha.history() WHERE event = 'FAILOVER' AND cause = 'the leader is back'";
        wait_until("its election in its history", TEN_SECONDS, || {
            ensure!(leader.biha_value(back)? == "1", "it was elected otherwise");
            Ok(())
        })?;
        away.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        Ok(())
    });
}
