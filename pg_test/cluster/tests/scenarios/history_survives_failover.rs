//! `biha.history()` tells of failover and switchover with the milliseconds of each step, the same on all
//! nodes, and goes on doing so after further failovers.

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// Every node must come to know an event of this kind; gives what they say of it.
fn wait_event(cluster: &Cluster, kind: &str) -> anyhow::Result<Vec<String>> {
    let tell = |node: &biha_cluster_tests::node::Node| {
        wait_until(&format!("{kind} in the history of node {}", node.id), TEN_SECONDS, || {
            let rows: Vec<String> = node.history()?.into_iter().flatten().flatten().collect();
            let found: Vec<String> = rows.iter().filter(|row| row.contains(kind)).cloned().collect();
            ensure!(!found.is_empty(), "it has {rows:?}");
            Ok(found)
        })
    };
    let first = tell(cluster.node(1))?;
    for node in cluster.nodes() {
        wait_until("the same history everywhere", TEN_SECONDS, || {
            let theirs = tell(node)?;
            ensure!(theirs == first, "node {} tells {theirs:?}, node 1 {first:?}", node.id);
            Ok(())
        })?;
    }
    Ok(first)
}

#[test]
fn history_survives_failover() {
    run("history_survives_failover", Cluster::builder(), &failover_lines(), |cluster, _| {
        let old = cluster.leader()?;
        let target = cluster.others(old.id)[0];
        cluster.set_leader(old, target.id)?;
        cluster.wait_healthy(A_MINUTE)?;
        let switchover = wait_event(cluster, "SWITCHOVER")?;
        target.kill_postmaster()?;
        cluster.wait_leader_other_than(target.id, TEN_SECONDS)?;
        target.wait_gone(TEN_SECONDS)?;
        target.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        let failover = wait_event(cluster, "FAILOVER")?;
        for node in cluster.nodes() {
            node.kill_all()?;
        }
        for node in cluster.nodes() {
            node.start()?;
        }
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(wait_event(cluster, "SWITCHOVER")?.starts_with(&switchover), "the switchover is forgotten");
        let after = wait_event(cluster, "FAILOVER")?;
        ensure!(failover.iter().all(|event| after.contains(event)), "{failover:?} became {after:?}");
        Ok(())
    });
}
