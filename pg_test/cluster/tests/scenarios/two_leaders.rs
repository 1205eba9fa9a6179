//! nquorum 1 of 2 nodes: each may elect itself while they do not hear each other, in one term. When they do again, what one
//! of them holds must not be taken for a part of what the other has.

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::network::Network;
use biha_cluster_tests::scenario::run;

use crate::common::{A_MINUTE, failover_lines};

#[test]
fn two_leaders_of_one_term_are_found_out() {
    let builder = Cluster::builder().nodes(2).network(Network::Namespaces).heartbeat(100, 5);
    let mut expected = failover_lines();
    expected.push(expect("WARNING:  nquorum is not above half of the voters", "it is asked for"));
    run("two_leaders_of_one_term_are_found_out", builder, &expected, |cluster, _| {
        let first = cluster.leader()?;
        let second = cluster.others(first.id)[0];
        first.biha_value("SELECT biha.set_nquorum_and_minnodes(1, 1)")?;
        let term = first.own_status()?.term + 1;
        cluster.partition(first.id)?;
        first.kill_titled("biha controller")?;
        for node in [first, second] {
            node.wait_state(&["LEADER_RW"], A_MINUTE)?;
            ensure!(node.own_status()?.term == term, "node {} leads another term than {term}", node.id);
            node.query(&format!("CREATE TABLE of_{} (n int)", node.id))?;
        }
        // The second opens another timeline: its newest is not the one of which there are two.
        second.kill_titled("biha controller")?;
        second.wait_state(&["CANDIDATE"], A_MINUTE)?;
        second.wait_state(&["LEADER_RW"], A_MINUTE)?;
        ensure!(second.timeline()? == term + 1, "it leads on timeline {}", second.timeline()?);

        cluster.heal()?;
        first.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        let kind = first.biha_value("SELECT type FROM biha.error_details()")?;
        ensure!(kind == "TIMELINE_CONFLICT", "the error is {kind}");
        // What it holds can be saved before it copies the other.
        ensure!(
            first.value(&format!("SELECT count(*) FROM of_{}", first.id))? == "0",
            "it holds something else"
        );

        first.biha("SELECT biha.reclone()").ok();
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(first.value(&format!("SELECT count(*) FROM of_{}", second.id))? == "0", "it is no copy");
        Ok(())
    });
}
