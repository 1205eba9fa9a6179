//! A voter receives nothing more from the old leader, also where its replay is held and the old leader goes on
//! writing; and what holds replay does not hold up the election.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::{Session, query, sqlstate};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::node::Node;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::signal;
use biha_cluster_tests::scenario::{Figures, judge, run};
use biha_cluster_tests::wait::wait_until;
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, expect_little_lost, failover_lines};

fn builder() -> Builder {
    Cluster::builder()
        .sync_standbys(1)
        .setting("max_standby_streaming_delay", "-1")
        // As little as possible that conflicts by itself.
        .setting("autovacuum", "off")
}

fn expected() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.extend([
        expect("ERROR:  canceling statement due to conflict with recovery", "it held replay"),
        expect("FATAL:  canceling statement due to conflict with recovery", "a login at that moment"),
        expect("FATAL:  terminating connection due to conflict with recovery", "a login at that moment"),
        expect("WARNING:  canceling the wait for synchronous replication", "the deposed leader restarts"),
    ]);
    lines
}

/// Waits until the node has WAL that it does not replay.
fn wait_held(node: &Node) -> Result<()> {
    wait_until(&format!("replay of node {} to be held", node.id), TEN_SECONDS, || {
        let sql = "SELECT pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn() > 1000";
        ensure!(node.value(sql)? == "t", "it is not");
        Ok(())
    })
}

/// What an old leader may still do without any commit: WAL that would reach whoever goes on receiving.
fn write_on(leader: &Node, stop: &AtomicBool) -> Result<()> {
    let session = Session::open(&leader.address, "postgres", TEN_SECONDS)?;
    while !stop.load(Ordering::Relaxed) {
        session.query("SELECT pg_logical_emit_message(false, 'old', repeat('x', 1000)), pg_sleep(0.002)")?;
    }
    Ok(())
}

/// The leader's controller stands still, so that its lease runs out and the others elect; its walsenders, and a
/// session that writes, go on until the new leader serves.
fn depose(cluster: &Cluster, old: &Node, figures: &mut Figures) -> Result<u32> {
    let controller = old.processes_titled("biha controller").pop().context("there is no controller")?;
    let stop = AtomicBool::new(false);
    let new = thread::scope(|scope| -> Result<u32> {
        let writer = scope.spawn(|| write_on(old, &stop));
        let from = Instant::now();
        signal(controller.pid, Signal::STOP)?;
        let elected = cluster.wait_leader_other_than(old.id, TEN_SECONDS).map(|new| new.id);
        figures.time("another leader after", from.elapsed());
        // The voters' connections must be gone, though the old leader has more for them all the time.
        let left = old.value("SELECT count(*) FROM pg_stat_replication");
        stop.store(true, Ordering::Relaxed);
        writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?
            .context("the old leader's writer")?;
        let left = left?;
        ensure!(left == "0", "{left} nodes still receive from the old leader");
        elected
    })?;
    signal(controller.pid, Signal::CONT)?;
    Ok(new)
}

/// No voter has taken WAL past the point where the new timeline leaves the old one.
fn expect_no_rewind(cluster: &Cluster, old: u32, mark: &[(u32, u64)]) -> Result<()> {
    for (id, mark) in mark.iter().filter(|(id, _)| *id != old) {
        let rewound = cluster.node(*id).wait_log(*mark, "rewinding", std::time::Duration::ZERO).is_ok();
        ensure!(!rewound, "node {id} had to be rewound: it received after its vote");
    }
    Ok(())
}

fn marks(cluster: &Cluster) -> Vec<(u32, u64)> {
    cluster.nodes().iter().map(|node| (node.id, node.log_mark())).collect()
}

/// Runs `body` while a query on each of the nodes keeps it from replaying a VACUUM's record.
fn with_conflict<T>(cluster: &Cluster, nodes: &[&Node], body: impl FnOnce() -> Result<T>) -> Result<T> {
    let leader = cluster.leader()?;
    leader.query("CREATE TABLE victim AS SELECT n FROM generate_series(1, 1000) n")?;
    cluster.wait_caught_up(TEN_SECONDS)?;
    let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM victim; SELECT pg_sleep(120)";
    thread::scope(|scope| {
        let mut holders = Vec::new();
        for &node in nodes {
            holders.push(scope.spawn(move || query(&node.address, "postgres", hold, 2 * A_MINUTE)));
            wait_until("the query that holds replay", TEN_SECONDS, || {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
                ensure!(node.value(sql)? == "1", "it does not run yet");
                Ok(())
            })?;
        }
        leader.query("DELETE FROM victim")?;
        leader.query("VACUUM victim")?;
        for &node in nodes {
            wait_until("a recovery conflict", TEN_SECONDS, || {
                let sql = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'";
                let event = node.value(sql)?;
                ensure!(event == "RecoveryConflictSnapshot", "the startup process waits for {event}");
                Ok(())
            })?;
        }
        let result = body();
        if result.is_err() {
            // So that the scenario's end does not wait for the holders.
            cluster.end()?;
        }
        for holder in holders {
            let answer = holder.join().map_err(|_| anyhow::anyhow!("the query panicked"))?;
            let error = answer.err().context("the query that held replay was not cancelled");
            if result.is_ok() {
                let error = error?;
                ensure!(sqlstate(&error).as_deref() == Some("40001"), "it ended otherwise: {error:#}");
            }
        }
        result
    })
}

#[test]
fn voter_stops_receiving_while_a_conflict_holds_replay() {
    let name = "voter_stops_receiving_while_a_conflict_holds_replay";
    run(name, builder(), &expected(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        let marks = marks(cluster);
        let others = cluster.others(old.id);
        let new = with_conflict(cluster, &others, || {
            others.iter().try_for_each(|node| wait_held(node))?;
            depose(cluster, old, figures)
        })?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new, "the deposed leader led again");
        expect_no_rewind(cluster, old.id, &marks)?;
        judge(cluster, &oracle.stop()?)?.expect_nothing_lost()
    });
}

/// The same with the leader gone at once: the voters hold WAL that is not replayed yet, and it counts.
#[test]
fn conflict_does_not_hold_up_an_election_nor_lose_wal() {
    let name = "conflict_does_not_hold_up_an_election_nor_lose_wal";
    run(name, builder(), &expected(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        let others = cluster.others(old.id);
        with_conflict(cluster, &others, || {
            others.iter().try_for_each(|node| wait_held(node))?;
            let from = Instant::now();
            old.kill_all()?;
            cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
            figures.time("another leader after", from.elapsed());
            Ok(())
        })?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        old.start()?;
        judge(cluster, &oracle.stop()?)?.expect_nothing_lost()
    });
}

/// The pause is the operator's: it ends on the node that is promoted, and nowhere else. Asynchronous: PostgreSQL
/// receives nothing from a new leader while replay is paused, so that no standby could acknowledge.
#[test]
fn voter_stops_receiving_while_replay_is_paused() {
    let name = "voter_stops_receiving_while_replay_is_paused";
    run(name, builder().sync_standbys(0), &expected(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        let marks = marks(cluster);
        let others = cluster.others(old.id);
        for node in &others {
            node.query("SELECT pg_wal_replay_pause()")?;
            wait_until("the pause", TEN_SECONDS, || {
                let state = node.value("SELECT pg_get_wal_replay_pause_state()")?;
                ensure!(state == "paused", "it is {state}");
                Ok(())
            })?;
            wait_held(node)?;
        }
        let new = depose(cluster, old, figures)?;
        for node in others.iter().filter(|node| node.id != new) {
            let state = node.value("SELECT pg_get_wal_replay_pause_state()")?;
            ensure!(state == "paused", "the operator's pause ended on node {}: it is {state}", node.id);
            node.query("SELECT pg_wal_replay_resume()")?;
        }
        oracle.wait_acks(200, TEN_SECONDS)?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new, "the deposed leader led again");
        expect_no_rewind(cluster, old.id, &marks)?;
        expect_little_lost(&judge(cluster, &oracle.stop()?)?)
    });
}
