//! `make demo`: three servers on this machine, a write load, a killed leader, a switchover; real figures.

use std::fmt::Display;
use std::path::Path;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use biha_cluster_tests::client::runtime;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::network::Network;
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::kill_all;
use biha_cluster_tests::run::{base_directory, both_streams, output};
use biha_cluster_tests::scenario::judge;

const SOON: Duration = Duration::from_secs(20);
const LATER: Duration = Duration::from_secs(60);

#[expect(clippy::print_stdout, reason = "the demonstration is the program's output")]
fn say(text: impl Display) {
    println!("{text}");
}

/// What was acknowledged and how long nothing was, since `from`, when the cluster is whole again.
fn tell_outage(cluster: &Cluster, oracle: Oracle, from: Instant) -> Result<()> {
    let record = oracle.stop()?;
    let verdict = judge(cluster, &record)?;
    verdict.expect_one_leader()?;
    say(format!(
        "  longest pause between two acknowledged writes: {} ms; {} rows acknowledged, {} of them lost",
        record.outage(from).as_millis(),
        verdict.acknowledged,
        verdict.lost.len()
    ));
    Ok(())
}

fn show_status(cluster: &Cluster, node: &Node) -> Result<()> {
    let mut command = node.runner.command(&cluster.bihactl);
    command.args(["status", "--host", &node.address.host, "--port", &node.address.port.to_string()]);
    command.args(["--username", "postgres"]);
    say("$ bihactl status");
    say(both_streams(&output(&mut command)?));
    Ok(())
}

fn crash(cluster: &Cluster) -> Result<&Node> {
    let old = cluster.leader()?;
    let oracle = Oracle::start(cluster, Load::default())?;
    oracle.wait_acks(200, SOON)?;
    let pid = old.postmaster().context("the leader does not run")?;
    let from = Instant::now();
    say(format!("$ kill -9 {pid}    # the leader's postmaster, node {}", old.id));
    old.kill_postmaster()?;
    let new = cluster.wait_leader_other_than(old.id, SOON)?;
    oracle.wait_acks(200, SOON)?;
    say(format!("  node {} leads, in term {}", new.id, new.own_status()?.term));
    old.wait_gone(SOON)?;
    let started = Instant::now();
    say(format!("$ pg_ctl start    # node {} again", old.id));
    old.start()?;
    cluster.wait_healthy(LATER)?;
    let rewound = old.biha_value(&format!(
        "SELECT CASE WHEN count(*) > 0 THEN ', rewound: its WAL had parted from the new leader''s' ELSE '' END
        FROM biha.history() WHERE event = 'REWIND' AND node_id = {}",
        old.id
    ))?;
    let ms = started.elapsed().as_millis();
    say(format!("  it follows node {} and streams after {ms} ms{rewound}", new.id));
    tell_outage(cluster, oracle, from)?;
    Ok(old)
}

fn switch_back(cluster: &Cluster, target: &Node) -> Result<()> {
    let old = cluster.leader()?;
    let pid = old.postmaster().context("the leader does not run")?;
    let at = cluster.others(old.id).into_iter().find(|node| node.id != target.id).unwrap_or(old);
    let oracle = Oracle::start(cluster, Load::default())?;
    oracle.wait_acks(200, SOON)?;
    let from = Instant::now();
    say(format!("SELECT biha.set_leader({});    -- on node {}", target.id, at.id));
    cluster.set_leader(at, target.id)?;
    cluster.wait_healthy(LATER)?;
    oracle.wait_acks(200, SOON)?;
    old.expect_postmaster(pid)?;
    say(format!("  node {} leads; node {} follows it, still as process {pid}", target.id, old.id));
    tell_outage(cluster, oracle, from)
}

fn show_history(node: &Node) -> Result<()> {
    let what = "event IN ('FAILOVER', 'SWITCHOVER', 'LEADER_LOST', 'REWIND')";
    say(format!("SELECT * FROM biha.history() WHERE {what};"));
    let rows = node.biha(&format!(
        "SELECT to_char(at, 'HH24:MI:SS.MS'), 'node ' || node_id, 'term ' || term, rpad(event, 11), cause,
            (SELECT string_agg(concat_ws(' ', s ->> 'step', s ->> 'ms', 'ms'), ', ')
             FROM jsonb_array_elements(steps) s)
        FROM biha.history() WHERE {what} ORDER BY at"
    ))?;
    for row in rows {
        say(format!("  {}", row.into_iter().flatten().collect::<Vec<_>>().join("  ")));
    }
    Ok(())
}

fn demonstrate(directory: &Path) -> Result<()> {
    say(format!("Making three servers with bihactl init and bihactl add, in {}", directory.display()));
    let started = Instant::now();
    let cluster = Cluster::builder().network(Network::Loopback).directory(directory).start()?;
    say(format!(
        "  {}, after {:.1} s",
        cluster.node(1).value("SELECT split_part(version(), ' on ', 1)")?,
        started.elapsed().as_secs_f64()
    ));
    show_status(&cluster, cluster.node(1))?;
    say("Write load: 4 connections, 200 one-row transactions a second, multi-host, read-write");
    let old = crash(&cluster)?;
    switch_back(&cluster, old)?;
    show_status(&cluster, old)?;
    show_history(old)?;
    for node in cluster.others(old.id) {
        node.stop(StopMode::Fast)?;
    }
    old.stop(StopMode::Fast)?;
    say(format!("All stopped. Data directories and logs: {}", directory.display()));
    Ok(())
}

/// Ends the servers on Ctrl-C.
fn watch_interrupt(directory: std::path::PathBuf) {
    thread::spawn(move || {
        let interrupted = runtime().map(|runtime| runtime.block_on(tokio::signal::ctrl_c()));
        if matches!(interrupted, Ok(Ok(()))) {
            for node in 1..=3 {
                kill_all(&directory.join(format!("n{node}"))).ok();
            }
            process::exit(130);
        }
    });
}

fn main() -> ExitCode {
    let directory = base_directory().join(format!("biha-demo-{}", process::id()));
    watch_interrupt(directory.clone());
    match demonstrate(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
