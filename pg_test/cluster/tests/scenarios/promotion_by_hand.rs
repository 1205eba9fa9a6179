//! A superuser promotes a follower behind biha's back: its gate stays shut, the elected leader stays leader, and
//! the node is rewound and follows again without hands.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::{Session, server_message, sqlstate};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::signal;
use biha_cluster_tests::run::output;
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::wait::wait_until;
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines, make_anew};

fn by_hand(name: &str, promote: impl Fn(&Node) -> Result<()> + Sync) {
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        let promoted = cluster.others(leader.id)[0];
        let pid = promoted.postmaster().context("the follower does not run")?;
        // A commit on the new timeline would count as one of a newer leader.
        let oracle = Oracle::start(cluster, Load { patient: vec![promoted.id], ..Load::default() })?;
        let mark = promoted.log_mark();
        let from = Instant::now();
        promote(promoted)?;
        promoted.wait_log(mark, "selected new timeline ID: ", TEN_SECONDS)?;
        promoted.wait_log(mark, "rewinding before the restart in place", A_MINUTE)?;
        let now = cluster.wait_healthy(A_MINUTE)?;
        figures.time("follows again after", from.elapsed());
        ensure!(now.id == leader.id && now.own_status()? == before, "the leader or its term changed");
        promoted.expect_postmaster(pid)?;
        ensure!(
            promoted.timeline()? == before.term,
            "the follower streams another timeline than the leader's"
        );
        oracle.wait_acks(200, TEN_SECONDS)?;
        let record = oracle.stop()?;
        figures.time("longest pause", record.outage(from));
        judge(cluster, &record)?.expect_nothing_lost()?;
        expect_next_number_is_free(cluster, leader, before.term)
    });
}

/// The number that was taken by hand is never an elected leader's.
fn expect_next_number_is_free(cluster: &Cluster, leader: &Node, term: u32) -> Result<()> {
    leader.kill_all()?;
    let next = cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
    let timeline = next.timeline()?;
    ensure!(timeline > term + 1, "timeline {timeline} was opened for a second time");
    ensure!(timeline == next.own_status()?.term, "the timeline's number is not the term");
    leader.start()?;
    cluster.wait_healthy(A_MINUTE).map(drop)
}

#[test]
fn pg_ctl_promote_makes_no_second_leader() {
    by_hand("pg_ctl_promote_makes_no_second_leader", |node| {
        // Whoever waits for the promotion may miss it.
        let asked = output(node.program("pg_ctl").args(["promote", "-W", "-D"]).arg(&node.data))?;
        ensure!(asked.status.success(), "pg_ctl promote failed: {asked:?}");
        Ok(())
    });
}

/// As above, and the promoted server is held in production for as long as it takes to try its gate.
#[test]
fn pg_promote_opens_no_gate() {
    by_hand("pg_promote_opens_no_gate", |node| {
        let session = Session::open(&node.address, "postgres", TEN_SECONDS)?;
        let agent = node.processes_titled("biha agent").pop().context("there is no agent")?;
        // It would restart the server.
        signal(agent.pid, Signal::STOP)?;
        let tried = try_gate(node, &session);
        signal(agent.pid, Signal::CONT)?;
        tried
    });
}

fn try_gate(node: &Node, session: &Session) -> Result<()> {
    session.query("SELECT pg_promote(false)")?;
    wait_until("the promotion by hand", TEN_SECONDS, || {
        ensure!(!node.in_recovery()?, "still in recovery");
        Ok(())
    })?;
    for sql in [
        "CREATE TABLE by_hand (n int)",
        "INSERT INTO oracle VALUES (0, 0)",
        "CREATE DATABASE by_hand",
        // Refused at its end only.
        "BEGIN READ WRITE; SELECT seq FROM oracle LIMIT 1 FOR UPDATE; COMMIT",
    ] {
        let error = session.query(sql).err().with_context(|| format!("taken: {sql}"))?;
        let (message, _, _) = server_message(&error).with_context(|| format!("{sql}: {error:#}"))?;
        let code = sqlstate(&error).unwrap_or_default();
        ensure!(
            ["25006", "40000"].contains(&code.as_str()) && message.ends_with("does not accept writes now"),
            "{sql} was refused otherwise: {code} {message}"
        );
    }
    session.query("SELECT count(*) FROM oracle").map(drop)
}

/// A follower is in production for a moment while nothing of biha's looks: its number is another leader's by the time it
/// is back. Two WALs of one number must not be taken for one.
fn behind_bihas_back(name: &str, reign: impl Fn(&Node) -> Result<()> + Sync) {
    let mut expected = failover_lines();
    expected.push(expect("WARNING:  the server was in production without an election", "it was"));
    run(name, Cluster::builder(), &expected, |cluster, _| {
        let leader = cluster.leader()?;
        let (node, other) = (cluster.others(leader.id)[0], cluster.others(leader.id)[1]);
        let before = leader.own_status()?.term;
        reign(node)?;
        // The first checkpoint on it may not have been finished.
        let told = ["Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline"];
        let timeline = told.map(|what| control(node, what)).into_iter().collect::<Result<Vec<_>>>()?;
        let timeline = timeline.into_iter().max().unwrap_or(0);
        if timeline > before {
            // Nobody knows that the number is taken.
            leader.biha_value(&format!("SELECT biha.set_leader({})", other.id))?;
            wait_until("the switchover", A_MINUTE, || {
                ensure!(other.own_status()?.state == "LEADER_RW", "not yet");
                Ok(())
            })?;
        }
        let leader = cluster.leader_among(&cluster.others(node.id))?;
        ensure!(leader.timeline()? == timeline, "the leader's timeline is not {timeline}");

        let mark = node.log_mark();
        node.start()?;
        node.wait_log(mark, "in production", TEN_SECONDS)?;
        node.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        let kind = node.biha_value("SELECT type FROM biha.error_details()")?;
        ensure!(kind == "TIMELINE_CONFLICT", "the error is {kind}");
        ensure!(node.value("SELECT count(*) FROM pg_stat_wal_receiver")? == "0", "it streams");

        make_anew(cluster, leader, node)?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// A line of pg_controldata, as a number.
fn control(node: &Node, what: &str) -> Result<u32> {
    let told = output(node.program("pg_controldata").arg("-D").arg(&node.data))?;
    let told = String::from_utf8(told.stdout)?;
    let line =
        told.lines().find_map(|line| line.strip_prefix(what)).context("pg_controldata says nothing of it")?;
    Ok(line.trim_start_matches(':').trim().parse()?)
}

#[test]
fn a_promotion_that_no_controller_saw_is_remembered() {
    behind_bihas_back("a_promotion_that_no_controller_saw_is_remembered", |node| {
        let session = Session::open(&node.address, "postgres", TEN_SECONDS)?;
        for title in ["biha agent", "biha controller"] {
            let worker =
                node.processes_titled(title).pop().with_context(|| format!("there is no {title}"))?;
            signal(worker.pid, Signal::STOP)?;
        }
        session.query("SELECT pg_promote(false)")?;
        wait_until("the promotion by hand", A_MINUTE, || {
            ensure!(!node.in_recovery()?, "still in recovery");
            Ok(())
        })?;
        node.kill_all()
    });
}

/// Somebody takes biha out of a follower and starts it as a primary, on its leader's timeline.
#[test]
fn a_reign_without_biha_is_noticed() {
    behind_bihas_back("a_reign_without_biha_is_noticed", |node| {
        node.stop(StopMode::Fast)?;
        fs::remove_file(node.data.join("standby.signal"))?;
        node.start_with_setting("shared_preload_libraries=")?;
        node.query("CREATE TABLE without_biha (n int)")?;
        node.stop(StopMode::Fast)
    });
}
