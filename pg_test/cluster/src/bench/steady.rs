//! What biha costs while nothing happens: throughput beside plain streaming replication, and idle CPU.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::run::run;

/// Connections of pgbench; the same as the oracle's.
const CLIENTS: &str = "4";
/// pgbench's scale factor: 150 MB, more than shared_buffers, less than the page cache.
const SCALE: &str = "10";

fn pgbench(cluster: &Cluster) -> Result<Command> {
    let leader = cluster.leader()?;
    let mut command = Command::new(leader.bindir.join("pgbench"));
    command.args(["-h", &leader.address.host, "-p", &leader.address.port.to_string(), "-U", "postgres"]);
    Ok(command)
}

/// Makes pgbench's tables.
pub fn prepare(cluster: &Cluster) -> Result<()> {
    run(pgbench(cluster)?.args(["-i", "-q", "-s", SCALE, "postgres"]))?;
    cluster.wait_caught_up(Duration::from_secs(60))
}

/// What some seconds of pgbench gave.
#[derive(Default)]
pub struct Round {
    /// Transactions a second.
    pub tps: f64,
    /// CPU time of all servers of the cluster for one transaction, in microseconds.
    pub cpu: f64,
}

/// Some seconds of pgbench.
pub fn throughput(cluster: &Cluster, seconds: u32) -> Result<Round> {
    cluster.leader()?.query("CHECKPOINT")?;
    let seconds = seconds.to_string();
    let before = server_cpu(cluster);
    let told =
        run(pgbench(cluster)?.args(["-n", "-N", "-c", CLIENTS, "-j", "2", "-T", &seconds, "postgres"]))?;
    cluster.wait_caught_up(Duration::from_secs(60))?;
    let used = server_cpu(cluster).saturating_sub(before);
    let figure = |label: &str| -> Result<f64> {
        let word = told.lines().find_map(|line| line.strip_prefix(label)?.split_whitespace().next());
        let word = word.with_context(|| format!("pgbench told no \"{label}\""))?;
        word.parse().with_context(|| format!("pgbench told {word}"))
    };
    let transactions = figure("number of transactions actually processed:")?;
    Ok(Round { tps: figure("tps =")?, cpu: used.as_secs_f64() * 1e6 / transactions })
}

fn server_cpu(cluster: &Cluster) -> Duration {
    cluster.nodes().iter().map(|node| node.server_cpu()).sum()
}

/// CPU seconds a minute of biha's workers, for each node, over `time` without load.
pub fn idle_cpu(cluster: &Cluster, time: Duration) -> Result<Vec<f64>> {
    cluster.wait_healthy(Duration::from_secs(60))?;
    let before: Vec<Duration> = cluster.nodes().iter().map(|node| node.worker_cpu()).collect();
    sleep(time);
    let minutes = time.as_secs_f64() / 60.0;
    let used = cluster.nodes().iter().zip(before);
    Ok(used.map(|(node, before)| node.worker_cpu().saturating_sub(before).as_secs_f64() / minutes).collect())
}
