//! Nodes join and leave under load: writes go on, votes are counted anew, slots come and go.

use std::time::Instant;

use anyhow::{Context, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

const VOTERS: &str = "SELECT count(*) FROM biha.config() WHERE can_vote AND NOT joining";

#[test]
fn membership_add_remove_under_load() {
    run("membership_add_remove_under_load", Cluster::builder(), &failover_lines(), |cluster, figures| {
        let oracle = Oracle::start(cluster, Load::default())?;
        let from = Instant::now();
        cluster.add_node()?;
        figures.time("added after", from.elapsed());
        let leader = cluster.wait_healthy(A_MINUTE)?.id;
        wait_until("four voters", TEN_SECONDS, || {
            let voters = cluster.node(leader).biha_value(VOTERS)?;
            ensure!(voters == "4", "there are {voters}");
            Ok(())
        })?;
        let leaving = cluster.others(leader).first().context("no follower")?.id;
        // From a node that neither leads nor leaves.
        let at = cluster.node(cluster.others(leader)[1].id);
        at.biha_value(&format!("SELECT biha.remove_node({leaving})"))?;
        let removed = cluster.forget(leaving)?;
        cluster.wait_healthy(A_MINUTE)?;
        for node in cluster.nodes() {
            wait_until(&format!("no trace of node {leaving} on node {}", node.id), TEN_SECONDS, || {
                let voters = node.biha_value(VOTERS)?;
                let slots = node.value(&format!(
                    "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'biha_node_{leaving}'"
                ))?;
                ensure!(voters == "3" && slots == "0", "{voters} voters, {slots} slots");
                Ok(())
            })?;
        }
        ensure!(removed.in_recovery()?, "a removed node must not take writes");
        removed.kill_all()?;
        oracle.wait_acks(100, TEN_SECONDS)?;
        let record = oracle.stop()?;
        figures.time("longest pause", record.outage(from));
        judge(cluster, &record)?.expect_nothing_lost()
    });
}
