//! `SELECT biha.set_leader(n)` from every node: no acknowledged row lost, no rewind, and the old leader follows
//! with the same postmaster.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use biha_cluster_tests::client::{Session, sqlstate};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

#[test]
fn switchover_from_each_node_no_row_lost_same_pid() {
    let name = "switchover_from_each_node_no_row_lost_same_pid";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let ids: Vec<u32> = cluster.nodes().iter().map(|node| node.id).collect();
        let before: Vec<Option<i32>> = cluster.nodes().iter().map(Node::postmaster).collect();
        let marks: Vec<u64> = cluster.nodes().iter().map(Node::log_mark).collect();
        let oracle = Oracle::start(cluster, Load { patient: ids.clone(), ..Load::default() })?;
        let mut asked = Vec::new();
        // Asked of the leader, of the target, and of the third node.
        for (at, step) in cluster.nodes().iter().flat_map(|at| [(at, 1), (at, 2)]) {
            let leader = cluster.wait_healthy(A_MINUTE)?;
            let target = ids[(ids.iter().position(|id| *id == leader.id).unwrap_or(0) + step) % ids.len()];
            asked.push(Instant::now());
            cluster.set_leader(at, target)?;
            ensure!(cluster.wait_healthy(A_MINUTE)?.id == target, "another node leads than asked for");
            oracle.wait_acks(50, TEN_SECONDS)?;
        }
        let record = oracle.stop()?;
        for (index, from) in asked.iter().enumerate() {
            let to = asked.get(index + 1).copied().unwrap_or(record.ended);
            figures.time("outage", record.outage_between(*from, to));
        }
        judge(cluster, &record)?.expect_nothing_lost()?;
        let after: Vec<Option<i32>> = cluster.nodes().iter().map(Node::postmaster).collect();
        ensure!(before == after, "postmasters before {before:?}, after {after:?}");
        for (node, mark) in cluster.nodes().iter().zip(marks) {
            ensure!(!node.log_since(mark)?.contains("pg_rewind"), "node {} was rewound", node.id);
        }
        Ok(())
    });
}

fn refusal(node: &Node, target: u32) -> Result<String> {
    match node.biha(&format!("SELECT biha.set_leader({target})")) {
        Ok(rows) => anyhow::bail!("set_leader({target}) answered {rows:?}"),
        Err(error) => Ok(sqlstate(&error).unwrap_or_else(|| format!("no SQLSTATE: {error:#}"))),
    }
}

/// What can't be done is refused at once, with an SQLSTATE, and changes nothing.
#[test]
fn switchover_to_nobody_is_refused() {
    let mut expected = failover_lines();
    expected.push(biha_cluster_tests::logs::expect("ERROR:  ", "what the refusals say"));
    run("switchover_to_nobody_is_refused", Cluster::builder(), &expected, |cluster, figures| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        let dead = cluster.others(leader.id)[0];
        dead.kill_all()?;
        for node in [leader, cluster.others(leader.id)[1]] {
            figures.note("unknown node", refusal(node, 99)?);
            figures.note("dead node", refusal(node, dead.id)?);
        }
        ensure!(leader.own_status()? == before, "a refused switchover changed something");
        leader.query("CREATE TABLE still_writable ()")?;
        dead.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// What says that a commit was left without an answer.
const IN_DOUBT: &str = "lost its leadership during a commit";

/// A change of leader that was asked for leaves nobody in doubt: commits under way come through before the gate is
/// shut. Under all the load that eight clients can make, and one that commits in two phases.
fn nobody_is_left_in_doubt(name: &str, builder: Builder) {
    let builder = builder.setting("max_prepared_transactions", "20");
    run(name, builder, &failover_lines(), |cluster, figures| {
        let marks: Vec<u64> = cluster.nodes().iter().map(Node::log_mark).collect();
        cluster.leader()?.query("CREATE TABLE prepared (n int)")?;
        let oracle = Oracle::start(cluster, Load { workers: 8, rate: None, ..Load::default() })?;
        let done = AtomicBool::new(false);
        let (changed, phases) = thread::scope(|scope| {
            let phases = scope.spawn(|| commit_in_two_phases(cluster, &done));
            let changed = change_leaders(cluster, &oracle);
            done.store(true, Relaxed);
            (changed, phases.join())
        });
        changed?;
        judge(cluster, &oracle.stop()?)?.expect_nothing_lost()?;
        let in_doubt =
            |(node, mark): (&Node, u64)| node.log_since(mark).map(|log| log.matches(IN_DOUBT).count());
        let left = cluster.nodes().iter().zip(marks).map(in_doubt).sum::<Result<usize>>()?;
        let phases = phases.map_err(|_| anyhow!("the client that commits in two phases panicked"))?;
        figures.note("in two phases", phases);
        figures.note("in doubt", left);
        ensure!(left == 0, "{left} commits were left without an answer");
        ensure!(phases > 100, "only {phases} commits in two phases");
        Ok(())
    });
}

/// Switchovers and clean stops.
fn change_leaders(cluster: &Cluster, oracle: &Oracle) -> Result<()> {
    for round in 0..6 {
        oracle.wait_acks(200, TEN_SECONDS)?;
        let leader = cluster.wait_healthy(A_MINUTE)?;
        if round % 3 == 2 {
            leader.stop(StopMode::Fast)?;
            cluster.wait_leader_other_than(leader.id, TEN_SECONDS)?;
            leader.start()?;
        } else {
            cluster.set_leader(leader, cluster.others(leader.id)[round % 2].id)?;
            cluster.wait_leader_other_than(leader.id, TEN_SECONDS)?;
        }
    }
    oracle.wait_acks(200, TEN_SECONDS)?;
    cluster.wait_healthy(A_MINUTE).map(drop)
}

/// One client of whoever leads, until it is told to stop; gives the number of its commits.
fn commit_in_two_phases(cluster: &Cluster, done: &AtomicBool) -> u32 {
    let mut number = 0;
    while !done.load(Relaxed) {
        let session =
            cluster.leader().and_then(|leader| Session::open(&leader.address, "postgres", TEN_SECONDS));
        let Ok(session) = session else { continue };
        let commit = |number: u32| {
            session
                .query(&format!("BEGIN; INSERT INTO prepared VALUES (1); PREPARE TRANSACTION '{number}'"))?;
            session.query(&format!("COMMIT PREPARED '{number}'"))
        };
        // One that was left prepared keeps its name.
        while !done.load(Relaxed) && commit(number).is_ok() {
            number += 1;
        }
        number += 1;
    }
    number
}

#[test]
fn planned_changes_leave_no_commit_in_doubt() {
    nobody_is_left_in_doubt("planned_changes_leave_no_commit_in_doubt", Cluster::builder());
}

#[test]
fn planned_changes_leave_no_synchronous_commit_in_doubt() {
    let name = "planned_changes_leave_no_synchronous_commit_in_doubt";
    nobody_is_left_in_doubt(name, Cluster::builder().sync_standbys(1));
}
