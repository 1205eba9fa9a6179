//! What a host's hardware does: its disk, its power, its clock.

use anyhow::{Context, Result, ensure};

use crate::chaos::inject::{LATER, Remedy, Struck, struck, wall};
use crate::chaos::plan::{Fault, Kind};
use crate::chaos::random::Random;
use crate::chaos::reign::Blow;
use crate::chaos::watch::Watch;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::wait::wait_until;

/// A disk that is full, hangs or is slow: it will be well again by itself. One that refuses writes has to be mended.
pub fn disk(cluster: &Cluster, node: &Node, fault: &Fault) -> Result<Struck> {
    let (disk, id, at) = (cluster.disk(node.id)?, node.id, wall());
    let watch = Watch::start(node);
    let remedy = match fault.kind {
        Kind::DiskFull => {
            disk.fill(0)?;
            Remedy::Room(id)
        }
        Kind::DiskRefuses => {
            disk.refuse_writes()?;
            Remedy::Mend(vec![id])
        }
        Kind::DiskHangs => {
            disk.hang()?;
            Remedy::Answer(id)
        }
        _ => {
            disk.slow_down()?;
            Remedy::Answer(id)
        }
    };
    let mut struck = struck(id, remedy, None, "");
    struck.sick_disk = true;
    // What it notes of its end it may not be able to write.
    struck.blows.push(Blow { node: id, at, woke: Some(i64::MAX) });
    struck.watch = Some(watch);
    Ok(struck)
}

/// What was not synced is lost, of one node or of all.
pub fn power(cluster: &Cluster, node: &Node, fault: &Fault) -> Result<Struck> {
    let at = wall();
    let ids: Vec<u32> = match fault.kind {
        Kind::PowerLossAll => cluster.nodes().iter().map(|node| node.id).collect(),
        _ => vec![node.id],
    };
    // First all of them stop, then what they had in memory is gone.
    for id in &ids {
        cluster.disk(*id)?.thaw();
        cluster.node(*id).kill_all()?;
    }
    ids.iter().try_for_each(|id| cluster.disk(*id)?.lose_power())?;
    let mut struck = struck(node.id, Remedy::Mend(ids.clone()), None, "");
    struck.blows = ids.into_iter().map(|node| Blow { node, at, woke: None }).collect();
    Ok(struck)
}

/// Sets a node's wall clock; in half of all cases it is set right afterwards.
pub fn clock(cluster: &Cluster, node: &Node, chance: u64) -> Result<Struck> {
    let mut random = Random::new(chance);
    let ahead = match random.below(4) {
        0 => random.between(60, 600),
        1 | 2 => random.between(600, 6 * 3600),
        _ => random.between(86_400, 30 * 86_400),
    };
    let ahead = i64::try_from(ahead)?;
    let ahead = if random.below(2) == 0 { ahead } else { -ahead };
    cluster.clock(node.id).context("a node without a clock")?.set(wall(), ahead)?;
    let remedy = if random.below(2) == 0 { Remedy::Clock(node.id) } else { Remedy::None };
    Ok(struck(node.id, remedy, None, format!("{ahead} s ahead")))
}

/// Waits until a node answers whose disk was sick. If that has ended it, it is started again, as a service manager does.
pub fn revive(node: &Node) -> Result<()> {
    wait_until(&format!("node {} to answer again", node.id), LATER, || {
        if node.postmaster().is_none() && node.processes().is_empty() {
            node.start_unawaited()?;
        }
        ensure!(node.value("SELECT 1")? == "1", "it does not");
        Ok(())
    })
}
