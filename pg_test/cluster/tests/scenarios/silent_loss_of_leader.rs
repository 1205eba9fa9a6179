//! The leader's link is cut and nothing is closed: a new leader; when the link is back, one leader and three
//! streaming nodes without hands.

use std::time::Instant;

use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::network::Network;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, expect_little_lost, failover_lines};

fn silent_loss(name: &str, builder: Builder) {
    run(name, builder.network(Network::Namespaces), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        let fault = Instant::now();
        cluster.silence(old.id)?;
        cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        cluster.heal()?;
        let healed = Instant::now();
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("back after healing", healed.elapsed());
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_little_lost(&verdict)
    });
}

#[test]
fn silent_loss_of_leader() {
    silent_loss("silent_loss_of_leader", Cluster::builder());
}

#[test]
fn silent_loss_of_leader_with_short_heartbeats() {
    silent_loss("silent_loss_of_leader_with_short_heartbeats", Cluster::builder().heartbeat(50, 8));
}
