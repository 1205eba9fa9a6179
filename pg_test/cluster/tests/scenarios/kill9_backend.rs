//! kill -9 of one process of the leader, a backend or biha's controller: the postmaster restarts its children,
//! and the node comes back as a follower or as the re-elected leader, never as a second one.

use std::time::Instant;

use anyhow::{Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::signal;
use biha_cluster_tests::scenario::{judge, run};
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, expect_little_lost, failover_lines};

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
