//! The whole cluster is stopped, or killed, and started in any order: a leader without hands, and nothing
//! acknowledged is lost when all nodes return.

use anyhow::Result;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// Stops all nodes in one order, starts them in another, under a load that ends just before.
fn cycle(
    cluster: &Cluster,
    stop: impl Fn(&Node) -> Result<()>,
    stop_order: [usize; 3],
    start_order: [usize; 3],
) -> Result<()> {
    cluster.wait_healthy(A_MINUTE)?;
    let oracle = Oracle::start(cluster, Load::default())?;
    oracle.wait_acks(100, TEN_SECONDS)?;
    let nodes = cluster.nodes();
    let stopped: Result<()> = stop_order.iter().try_for_each(|index| stop(&nodes[*index]));
    let record = oracle.stop()?;
    stopped?;
    start_order.iter().try_for_each(|index| nodes[*index].start())?;
    judge(cluster, &record)?.expect_nothing_lost()
}

#[test]
fn whole_cluster_stopped_and_started_in_any_order() {
    let name = "whole_cluster_stopped_and_started_in_any_order";
    run(name, Cluster::builder(), &failover_lines(), |cluster, _| {
        let fast = |node: &Node| node.stop(StopMode::Fast);
        cycle(cluster, fast, [0, 1, 2], [0, 1, 2])?;
        cycle(cluster, fast, [2, 0, 1], [2, 1, 0])?;
        cycle(cluster, fast, [1, 2, 0], [1, 0, 2])
    });
}

#[test]
fn whole_cluster_killed_and_started_in_any_order() {
    let name = "whole_cluster_killed_and_started_in_any_order";
    run(name, Cluster::builder(), &failover_lines(), |cluster, _| {
        let leader = cluster.leader()?.id;
        let first = usize::try_from(leader)? - 1;
        let (second, third) = ((first + 1) % 3, (first + 2) % 3);
        // The followers first: the leader may have rows that they lack, and must win when it returns.
        cycle(cluster, Node::kill_all, [second, third, first], [first, second, third])?;
        cycle(cluster, Node::kill_all, [0, 1, 2], [2, 1, 0])?;
        cycle(cluster, Node::kill_all, [1, 0, 2], [1, 2, 0])
    });
}
