//! Damage that a node must notice by itself: an interrupted rewind, and another memory than its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::chaos::inject::{LATER, Remedy, SOON, Struck, hold, struck, wall};
use crate::chaos::plan::{Fault, Kind};
use crate::chaos::random::Random;
use crate::client::query;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::process;
use crate::wait::wait_until;

/// Mode of a data directory whose rewind broke off half-way.
const CLOSED: u32 = 0o701;
/// What a node says that has no memory of its own.
const REFUSAL: &str = "biha cannot take part in the cluster";

/// The leader writes what nobody gets, dies, comes back and is rewound; pg_rewind is killed.
pub fn rewind_killed(cluster: &Cluster, leader: u32, fault: &Fault) -> Result<Struck> {
    let old = cluster.node(leader);
    old.freeze_walsenders()?;
    // Enough to make a rewind take some time. Where commits wait for standbys it is not answered.
    let rows = "CREATE TABLE only_here AS SELECT n, repeat('x', 100) FROM generate_series(1, 50000) n";
    query(&old.address, "postgres", rows, Duration::from_secs(1)).ok();
    let at = wall();
    old.kill_all()?;
    cluster.wait_leader_other_than(leader, SOON)?;
    old.start_unawaited()?;
    let Some(rewind) = seen(old, "pg_rewind")? else {
        return Ok(struck(leader, Remedy::None, Some(at), "no pg_rewind was seen"));
    };
    hold(fault.duration);
    process::signal(rewind, Signal::KILL)?;
    let mut told = String::new();
    let remedy =
        wait_until(&format!("what becomes of node {leader}"), LATER, || after_rewind(old, &mut told))?;
    Ok(struck(leader, remedy, Some(at), told))
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

/// It was too late, or the node says that it needs a word, or it is lost.
fn after_rewind(node: &Node, told: &mut String) -> Result<Remedy> {
    if half_rewound(node)? {
        let refused = node.start().is_err();
        ensure!(refused, "node {} was started on a half-rewound directory", node.id);
        *told = "broke off".into();
        return Ok(Remedy::MakeAnew(node.id));
    }
    match node.own_status()?.state.as_str() {
        "FOLLOWER" => *told = "was done already".into(),
        "NODE_ERROR" => {
            node.biha("SELECT biha.reset_node_error()")?;
            *told = "had changed nothing".into();
        }
        state => anyhow::bail!("it is {state}"),
    }
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
    Ok(struck(node.id, Remedy::MakeAnew(node.id), None, told))
}
