//! nquorum that is no majority. Of two nodes each may elect itself while they do not hear each other, in one term: when
//! they do again, what one of them holds must not be taken for a part of what the other has. And that this is over is said
//! when it is.

use std::time::Instant;

use anyhow::{Context, bail, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::network::Network;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

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
        // Else what it was before it is killed could be taken for what it is afterwards.
        first.wait_state(&["CANDIDATE"], A_MINUTE)?;
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

#[test]
fn one_leader_at_most_when_every_member_knows() {
    let builder = Cluster::builder().heartbeat(100, 10);
    let mut expected = failover_lines();
    expected.push(expect("WARNING:  nquorum is not above half of the voters", "it is asked for"));
    expected.push(expect("WARNING:  two leaders are possible until", "one node is away"));
    expected.push(expect("ERROR:  lossless is \"require\", but", "it is not over"));
    run("one_leader_at_most_when_every_member_knows", builder, &expected, |cluster, figures| {
        let why = |node: &Node| node.biha_value("SELECT DISTINCT lossless_why FROM biha.config()");
        let first = cluster.leader()?;
        let [second, away] = cluster.others(first.id)[..] else { bail!("three nodes") };
        first.biha_value("SELECT biha.set_nquorum_and_minnodes(1, 1)")?;
        ensure!(why(first)?.contains("nquorum 1 of 3 voters"), "{}", why(first)?);
        // All are there: when it is answered it is over.
        first.biha_value("SELECT biha.set_nquorum(2)")?;
        ensure!(!why(first)?.contains("two leaders"), "{}", why(first)?);

        first.biha_value("SELECT biha.set_nquorum_and_minnodes(1, 1)")?;
        away.kill_all()?;
        first.biha_value("SELECT biha.set_nquorum_and_minnodes(2, 2)")?;
        let missing = "not every member has the new nquorum";
        ensure!(why(first)?.contains(missing), "{}", why(first)?);
        first.biha(&format!("SELECT biha.set_leader({})", second.id))?;
        second.wait_state(&["LEADER_RW"], A_MINUTE)?;
        ensure!(why(second)?.contains(missing), "{}", why(second)?);
        let begin = Instant::now();
        second.biha_value("SELECT biha.set_nquorum(2)")?;
        figures.note("set_nquorum with a member away", format!("{} ms", begin.elapsed().as_millis()));
        let refused =
            second.biha("SELECT biha.set_lossless('require')").err().context("it is not refused")?;
        ensure!(format!("{refused:#}").contains(missing), "{refused:#}");

        away.start()?;
        wait_until("one leader at most", A_MINUTE, || {
            let said = why(second)?;
            ensure!(!said.contains("two leaders"), "{said}");
            Ok(())
        })?;
        cluster.wait_healthy(A_MINUTE)?;
        Ok(())
    });
}
