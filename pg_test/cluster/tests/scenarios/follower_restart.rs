//! A follower is restarted, stopped hard, killed: the leader stays, writes go on, the follower streams again.

use std::time::{Duration, Instant};

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, failover_lines};

#[test]
fn follower_restart_disturbs_nobody() {
    run("follower_restart_disturbs_nobody", Cluster::builder(), &failover_lines(), |cluster, figures| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        let follower = cluster.others(leader.id)[0];
        let oracle = Oracle::start(cluster, Load::default())?;
        let from = Instant::now();
        for mode in [StopMode::Fast, StopMode::Smart, StopMode::Immediate] {
            follower.restart(mode)?;
            cluster.wait_healthy(A_MINUTE)?;
        }
        follower.kill_all()?;
        follower.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(leader.own_status()? == before, "the leader or its term changed");
        let record = oracle.stop()?;
        let pause = record.outage(from);
        figures.time("longest pause", pause);
        ensure!(pause < Duration::from_secs(1), "writes stood still");
        judge(cluster, &record)?.expect_nothing_lost()
    });
}
