//! What a node has promised is put back to an older copy behind its back: the others remember more of it, tell it so,
//! and go on without it until it is made anew.

use std::fs;

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines, make_anew};

#[test]
fn a_node_that_was_put_back_is_refused() {
    run("a_node_that_was_put_back_is_refused", Cluster::builder(), &failover_lines(), |cluster, _| {
        let leader = cluster.leader()?;
        let node = cluster.others(leader.id)[0];
        let (state, copy) = (node.data.join("pg_biha/biha.state"), cluster.directory.join("older"));
        node.stop(StopMode::Fast)?;
        fs::copy(&state, &copy)?;
        node.start()?;
        cluster.wait_healthy(A_MINUTE)?;

        let oracle = Oracle::start(cluster, Load::default())?;
        node.stop(StopMode::Fast)?;
        // The file keeps its owner.
        fs::write(&state, fs::read(&copy)?)?;
        node.start()?;
        node.wait_state(&["NODE_ERROR"], TEN_SECONDS)?;
        let kind = node.biha_value("SELECT type FROM biha.error_details()")?;
        ensure!(kind == "MEMORY_OLDER", "the error is {kind}");
        // By itself it never gets better, however often it starts.
        for _ in 0..3 {
            node.restart(StopMode::Fast)?;
            node.wait_state(&["NODE_ERROR"], TEN_SECONDS)?;
        }
        oracle.wait_acks(100, TEN_SECONDS)?;
        ensure!(cluster.leader_among(&cluster.others(node.id))?.id == leader.id, "the leader changed");

        make_anew(cluster, leader, node)?;
        cluster.wait_healthy(A_MINUTE)?;
        judge(cluster, &oracle.stop()?)?.expect_nothing_lost()
    });
}
