//! How long the client could not write: switchover, crash, silent loss; and how long a node needs to be back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::ms;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::oracle::{Load, Oracle};
use crate::scenario::judge;

const SOON: Duration = Duration::from_secs(20);
const LATER: Duration = Duration::from_secs(120);

/// Runs a fault under load and gives the outage in ms. `undo` makes the cluster whole again.
fn outage(
    cluster: &Cluster,
    fault: impl Fn(&Cluster, &Node) -> Result<()>,
    undo: impl Fn(&Cluster, &Node) -> Result<()>,
) -> Result<f64> {
    let old = cluster.wait_healthy(LATER)?;
    let oracle = Oracle::start(cluster, Load::default())?;
    oracle.wait_acks(200, SOON)?;
    let from = Instant::now();
    fault(cluster, old)?;
    cluster.wait_leader_other_than(old.id, SOON)?;
    oracle.wait_acks(200, SOON)?;
    let record = oracle.stop()?;
    undo(cluster, old)?;
    let verdict = judge(cluster, &record)?;
    verdict.expect_one_leader()?;
    if cluster.builder.sync_standbys > 0 {
        verdict.expect_nothing_lost()?;
    }
    Ok(ms(record.outage(from)))
}

/// A planned switchover; nothing may be lost.
pub fn switchover(cluster: &Cluster) -> Result<f64> {
    let fault =
        |cluster: &Cluster, leader: &Node| cluster.set_leader(leader, cluster.others(leader.id)[0].id);
    outage(cluster, fault, |_, _| Ok(()))
}

/// kill -9 of the leader's postmaster.
pub fn crash(cluster: &Cluster) -> Result<f64> {
    outage(
        cluster,
        |_, leader| leader.kill_postmaster(),
        |_, old| {
            old.wait_gone(SOON)?;
            old.start()
        },
    )
}

/// The leader's link is cut, nothing is closed.
pub fn silent_loss(cluster: &Cluster) -> Result<f64> {
    outage(cluster, |cluster, leader| cluster.silence(leader.id), |cluster, _| cluster.heal())
}

/// From the start of a crashed leader with 64 MB of WAL of its own until it streams again, in ms.
pub fn rejoin_diverged(cluster: &Cluster) -> Result<f64> {
    const DIVERGED: u64 = 64 << 20;
    let old = cluster.wait_healthy(LATER)?;
    old.freeze_walsenders()?;
    let start: u64 = old.value("SELECT pg_current_wal_insert_lsn() - '0/0'")?.parse()?;
    let mut end = start;
    old.query("CREATE TABLE only_here (n int, filler text)")?;
    while end - start < DIVERGED {
        old.query("INSERT INTO only_here SELECT n, repeat('x', 1000) FROM generate_series(1, 4000) n")?;
        end = old.value("SELECT pg_current_wal_insert_lsn() - '0/0'")?.parse()?;
    }
    old.kill_all()?;
    let new = cluster.wait_leader_other_than(old.id, SOON)?;
    ensure!(new.value("SELECT to_regclass('only_here') IS NULL")? == "t", "the WAL has not diverged");
    let from = Instant::now();
    old.start()?;
    cluster.wait_healthy(LATER)?;
    Ok(ms(from.elapsed()))
}
