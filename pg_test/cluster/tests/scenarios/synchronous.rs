//! One synchronous standby: whatever single fault hits the leader, no acknowledged row is lost.

use std::time::Instant;

use anyhow::Result;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

fn nothing_lost(name: &str, fault: impl Fn(&Cluster, &Node) -> Result<()> + Sync) {
    let builder = Cluster::builder().sync_standbys(1);
    run(name, builder, &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        let from = Instant::now();
        fault(cluster, old)?;
        cluster.wait_leader_other_than(old.id, A_MINUTE)?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        if old.postmaster().is_none() {
            old.wait_gone(TEN_SECONDS)?;
            old.start()?;
        }
        cluster.wait_healthy(A_MINUTE)?;
        let record = oracle.stop()?;
        figures.time("outage", record.outage(from));
        judge(cluster, &record)?.expect_nothing_lost()
    });
}

#[test]
fn synchronous_crash_loses_nothing() {
    nothing_lost("synchronous_crash_loses_nothing", |_, leader| leader.kill_postmaster());
}

#[test]
fn synchronous_kill_of_everything_loses_nothing() {
    nothing_lost("synchronous_kill_of_everything_loses_nothing", |_, leader| leader.kill_all());
}

#[test]
fn synchronous_switchover_loses_nothing() {
    nothing_lost("synchronous_switchover_loses_nothing", |cluster, leader| {
        cluster.set_leader(leader, cluster.others(leader.id)[0].id)
    });
}
