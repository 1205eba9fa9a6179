//! Damage that a node must notice by itself: an interrupted rewind, and another memory than its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::chaos::inject::{LATER, Remedy, SOON, Struck, struck, wall};
use crate::chaos::liveness::Hand;
use crate::chaos::plan::{Fault, Kind};
use crate::chaos::random::Random;
use crate::client::query;
use crate::cluster::Cluster;
use crate::node::{CHANGES, CLOSED, Node, REWIND};
use crate::process;
use crate::wait::wait_until;

/// Rows of what a leader changes that is rewound, some 5 MB.
pub const SHARED_ROWS: u32 = 20_000;
/// What the server says of a rewind that was killed, and for short.
const SAID: [(&str, &str); 2] = [
    ("the data directory was replaced by a copy", "broke off, and it copied the leader"),
    ("the rewind was hindered, and is tried again", "had changed nothing, and was done again"),
];
/// What a node says that has no memory of its own.
const REFUSAL: &str = "biha cannot take part in the cluster";

/// The leader changes what all have, and nobody gets it; it dies, comes back and is rewound, and pg_rewind is killed:
/// at first sight, or past the point of no return.
pub fn rewind_killed(cluster: &Cluster, leader: u32, fault: &Fault) -> Result<Struck> {
    let old = cluster.node(leader);
    old.query(&format!(
        "CREATE TABLE IF NOT EXISTS shared AS
         SELECT n, repeat('x', 200) AS text FROM generate_series(1, {SHARED_ROWS}) n"
    ))?;
    cluster.wait_caught_up(SOON)?;
    old.freeze_walsenders()?;
    // Where commits wait for standbys it is not answered.
    query(&old.address, "postgres", "UPDATE shared SET n = -n", Duration::from_secs(1)).ok();
    let at = wall();
    old.kill_all()?;
    let fell = Some(Instant::now());
    cluster.wait_leader_other_than(leader, SOON)?;
    let mark = old.log_mark();
    old.start_unawaited()?;
    let changed = past_return(fault);
    let rewind = seen(old, if changed { REWIND } else { "pg_rewind" })?;
    let (missed, met) = match rewind {
        None => (true, "no pg_rewind was seen"),
        Some(pid) if changed && !stopped_when_changing(pid)? => (true, "pg_rewind had ended"),
        Some(pid) => {
            process::signal(pid, Signal::KILL)?;
            (false, if changed { "pg_rewind killed past return" } else { "pg_rewind killed at sight" })
        }
    };
    let mut told = String::new();
    let remedy =
        wait_until(&format!("what becomes of node {leader}"), LATER, || after_rewind(old, &mut told))?;
    if told.is_empty() {
        let log = old.log_since(mark)?;
        let said = SAID.iter().find(|(words, _)| log.contains(words));
        told = said.map_or("was done already", |(_, told)| *told).to_owned();
    }
    Ok(Struck { fell, missed, ..struck(leader, remedy, Some(at), format!("{met}: {told}")) })
}

/// Is pg_rewind to be killed only when it has begun to change files?
pub fn past_return(fault: &Fault) -> bool {
    !fault.chance.is_multiple_of(4)
}

/// Leaves pg_rewind stopped once it has begun to change files; false if it ended before that was seen.
fn stopped_when_changing(pid: i32) -> Result<bool> {
    process::step_until(pid, LATER, || process::said(pid).contains(CHANGES))
}

/// A short-lived process; none if the node streams without it.
fn seen(node: &Node, title: &str) -> Result<Option<i32>> {
    let start = Instant::now();
    let mut looks = 0;
    while start.elapsed() < LATER {
        if let Some(process) = node.processes_titled(title).pop() {
            return Ok(Some(process.pid));
        }
        looks += 1;
        let follows =
            |node: &Node| node.value("SELECT count(*) FROM pg_stat_wal_receiver").is_ok_and(|n| n == "1");
        if looks % 100 == 0 && follows(node) {
            return Ok(None);
        }
        yield_now();
    }
    anyhow::bail!("node {} neither streams nor was it rewound", node.id)
}

/// It follows, by itself, or it is lost.
fn after_rewind(node: &Node, told: &mut String) -> Result<Remedy> {
    if half_rewound(node)? {
        let refused = node.start().is_err();
        ensure!(refused, "node {} was started on a half-rewound directory", node.id);
        *told = "broke off".into();
        return Ok(Remedy::MakeAnew(Hand::HalfRewound(node.id)));
    }
    let state = node.own_status()?.state;
    ensure!(state == "FOLLOWER", "it is {state}");
    Ok(Remedy::None)
}

/// Was the node's rewind cut short after the point of no return? PostgreSQL does not start there.
pub fn half_rewound(node: &Node) -> Result<bool> {
    let mode = fs::metadata(&node.data)?.permissions().mode() & 0o7777;
    Ok(mode == CLOSED && node.processes().is_empty())
}

/// The node's state file is damaged while it is down; started again it must refuse to take part.
pub fn state_file(cluster: &Cluster, node: &Node, fault: &Fault) -> Result<Struck> {
    node.kill_all()?;
    let path = node.data.join("pg_biha/biha.state");
    let mut bytes = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut random = Random::new(fault.chance);
    let told = match fault.kind {
        Kind::StateTruncated => {
            bytes.truncate(random.index(bytes.len()));
            format!("to {} bytes", bytes.len())
        }
        Kind::StateFlipped => {
            let (byte, bit) = (random.index(bytes.len()), random.below(8));
            bytes[byte] ^= 1 << bit;
            format!("bit {bit} of byte {byte}")
        }
        _ => {
            let others = cluster.others(node.id);
            let other = others[random.index(others.len())];
            bytes = fs::read(other.data.join("pg_biha/biha.state"))?;
            format!("with node {}'s", other.id)
        }
    };
    fs::write(&path, bytes)?;
    let mark = node.log_mark();
    node.start_unawaited()?;
    node.wait_log(mark, REFUSAL, SOON)?;
    let leader = cluster.wait_leader_other_than(node.id, LATER)?;
    wait_until("nobody to count it", SOON, || {
        let counted = leader.status()?.into_iter().any(|status| status.id == node.id && status.online);
        ensure!(!counted, "node {} hears node {}", leader.id, node.id);
        Ok(())
    })?;
    Ok(struck(node.id, Remedy::MakeAnew(Hand::Memory(node.id)), None, told))
}
