//! Doing a fault to a cluster, and undoing it.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::chaos::damage;
use crate::chaos::hardware;
use crate::chaos::interrupted;
use crate::chaos::liveness::Hand;
use crate::chaos::operator;
use crate::chaos::plan::{Fault, Kind, Target};
use crate::chaos::random::Random;
use crate::chaos::reign::{Blow, NEVER};
use crate::chaos::watch::Watch;
use crate::cluster::Cluster;
use crate::network::CLIENT;
use crate::node::{Node, StopMode};
use crate::process;

/// A limit for what takes a fraction of a second.
pub const SOON: Duration = Duration::from_secs(10);
/// A limit for what may include an election, a rewind and a checkpoint.
pub const LATER: Duration = Duration::from_secs(60);

/// What undoes a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: it heals by itself.
    None,
    /// The node is started again.
    Start(Vec<u32>),
    /// The node runs on.
    Thaw(u32),
    /// All links are mended.
    Heal,
    /// The node is removed: it was refused while another was down.
    Remove(u32),
    /// A node is removed and made anew.
    MakeAnew(Hand),
    /// What fills the disk is removed.
    Room(u32),
    /// The disk answers again.
    Answer(u32),
    /// The nodes are ended, their disks checked, and they are started again.
    Mend(Vec<u32>),
    /// The wall clock is set right.
    Clock(u32),
}

/// A fault that was done.
#[derive(Debug)]
pub struct Struck {
    /// To which node, if to one.
    pub node: Option<u32>,
    /// How it is undone.
    pub remedy: Remedy,
    /// What it did to whoever may have led.
    pub blows: Vec<Blow>,
    /// Sees what ends of it meanwhile.
    pub watch: Option<Watch>,
    /// When the last blow of it had fallen, where that was before it was all done.
    pub fell: Option<Instant>,
    /// Clients may get answers late that were given before.
    pub cuts_clients: bool,
    /// A disk was sick, which may have ended a server, or hindered a rewind.
    pub sick_disk: bool,
    /// It came too late to happen.
    pub missed: bool,
    /// What the cluster promised to keep, as a query in biha_db that must say true.
    pub promised: Option<String>,
    /// What came of it, for the protocol.
    pub told: String,
}

impl Struck {
    fn new(node: u32, remedy: Remedy) -> Struck {
        Struck {
            node: Some(node),
            remedy,
            blows: Vec::new(),
            watch: None,
            fell: None,
            cuts_clients: false,
            sick_disk: false,
            missed: false,
            promised: None,
            told: String::new(),
        }
    }

    fn dead(mut self, at: i64) -> Struck {
        self.blows.extend(self.node.map(|node| Blow { node, at, woke: None }));
        self
    }

    fn told(mut self, text: impl Into<String>) -> Struck {
        self.told = text.into();
        self
    }
}

/// Microseconds since 1970, by the machine's clock, as `biha.history()` has them.
pub fn wall() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Whom a fault hits: never a node that another one of the step has hit already.
fn target(cluster: &Cluster, leader: u32, fault: &Fault, spared: &[u32]) -> Result<Node> {
    let free: Vec<&Node> = cluster.nodes().iter().filter(|node| !spared.contains(&node.id)).collect();
    let followers: Vec<&Node> = free.iter().copied().filter(|node| node.id != leader).collect();
    let chosen = match fault.target {
        Target::Leader => free.iter().copied().find(|node| node.id == leader).or(followers.first().copied()),
        Target::Follower(number) => followers.get(number % followers.len().max(1)).copied(),
    };
    chosen.or(free.first().copied()).cloned().context("no node is left to hit")
}

/// Does a fault. `leader` is who led when the step began.
pub fn strike(cluster: &mut Cluster, leader: u32, fault: &Fault, spared: &[u32]) -> Result<Struck> {
    let node = target(cluster, leader, fault, spared)?;
    let at = wall();
    let id = node.id;
    let struck = match fault.kind {
        Kind::KillPostmaster => {
            node.kill_postmaster()?;
            Struck::new(id, Remedy::Start(vec![id])).dead(at)
        }
        Kind::KillController => kill_worker(&node, "biha controller")?.dead(at),
        Kind::KillAgent => kill_worker(&node, "biha agent")?.dead(at),
        Kind::KillBackend => kill_backend(&node, fault.chance)?.dead(at),
        Kind::KillNode => {
            node.kill_all()?;
            Struck::new(id, Remedy::Start(vec![id])).dead(at)
        }
        Kind::KillAll => kill_everything(cluster, id)?,
        Kind::FreezeShort | Kind::FreezeLong => {
            // From before: on a busy machine it takes a while, and the controller may be the first that stands still.
            node.freeze()?;
            let mut struck = Struck::new(id, Remedy::Thaw(id));
            struck.blows.push(Blow { node: id, at, woke: Some(i64::MAX) });
            struck
        }
        Kind::CutOneWay
        | Kind::CutPair
        | Kind::Partition
        | Kind::Silence
        | Kind::LinkDown
        | Kind::Loss
        | Kind::Delay
        | Kind::SlowLink => network(cluster, &node, fault)?,
        Kind::Switchover => operator::switchover(cluster, &node, leader, spared)?,
        Kind::Settings => operator::settings(cluster, &node, fault.chance)?,
        Kind::Membership => operator::membership(cluster, &node, spared)?,
        Kind::StopFast => stop(&node, StopMode::Fast)?.dead(at),
        Kind::StopImmediate => stop(&node, StopMode::Immediate)?.dead(at),
        Kind::RewindKilled => damage::rewind_killed(cluster, leader, fault)?,
        Kind::StateTruncated | Kind::StateFlipped | Kind::StateSwapped => {
            damage::state_file(cluster, &node, fault)?.dead(at)
        }
        Kind::DiskFull | Kind::DiskRefuses | Kind::DiskHangs | Kind::DiskSlow => {
            hardware::disk(cluster, &node, fault)?
        }
        Kind::PowerLoss | Kind::PowerLossAll => hardware::power(cluster, &node, fault)?,
        Kind::ClockStep => hardware::clock(cluster, &node, fault.chance)?,
        Kind::AddKilled => interrupted::add_killed(cluster, &node, fault)?,
        Kind::RestartStorm => interrupted::storm(&node, fault.chance)?.dead(at),
    };
    Ok(struck)
}

/// Builds what [`strike`] gives, for the other modules.
pub fn struck(node: u32, remedy: Remedy, dead_at: Option<i64>, told: impl Into<String>) -> Struck {
    let struck = Struck::new(node, remedy).told(told);
    match dead_at {
        Some(at) => struck.dead(at),
        None => struck,
    }
}

fn kill_worker(node: &Node, title: &str) -> Result<Struck> {
    // It may be starting, after what came before.
    crate::wait::wait_until(&format!("'{title}' of node {}", node.id), SOON, || node.kill_titled(title))?;
    Ok(Struck::new(node.id, Remedy::None))
}

/// kill -9 of any process of the server but the postmaster and biha's own.
fn kill_backend(node: &Node, chance: u64) -> Result<Struck> {
    let postmaster = node.postmaster();
    let mut children = node.processes();
    children.retain(|process| {
        Some(process.pid) != postmaster && process.command == "postgres" && !process.title.contains(": biha ")
    });
    ensure!(!children.is_empty(), "node {} has no processes but its postmaster", node.id);
    let victim = &children[Random::new(chance).index(children.len())];
    process::signal(victim.pid, Signal::KILL)?;
    // Without a startup process a standby ends.
    let ends = victim.title.contains(": startup ");
    let remedy = if ends { Remedy::Start(vec![node.id]) } else { Remedy::None };
    Ok(Struck::new(node.id, remedy).told(victim.title.clone()))
}

fn kill_everything(cluster: &Cluster, id: u32) -> Result<Struck> {
    let at = wall();
    let ids: Vec<u32> = cluster.nodes().iter().map(|node| node.id).collect();
    cluster.thaw_disks();
    cluster.nodes().iter().try_for_each(Node::kill_all)?;
    let mut struck = Struck::new(id, Remedy::Start(ids.clone()));
    struck.blows = ids.into_iter().map(|node| Blow { node, at, woke: None }).collect();
    Ok(struck)
}

fn stop(node: &Node, mode: StopMode) -> Result<Struck> {
    node.stop(mode)?;
    Ok(Struck::new(node.id, Remedy::Start(vec![node.id])))
}

fn network(cluster: &Cluster, node: &Node, fault: &Fault) -> Result<Struck> {
    let (network, id) = (cluster.network()?, node.id);
    let mut random = Random::new(fault.chance);
    let mut struck = Struck::new(id, Remedy::Heal);
    match fault.kind {
        Kind::CutOneWay if random.below(2) == 0 => {
            cluster.others(id).iter().try_for_each(|other| network.cut_one_way(id, other.id))?;
            struck.told = "from it".into();
        }
        Kind::CutOneWay => {
            cluster.others(id).iter().try_for_each(|other| network.cut_one_way(other.id, id))?;
            struck.told = "towards it".into();
        }
        Kind::CutPair => {
            let others = cluster.others(id);
            let other = others[random.index(others.len())].id;
            network.cut(id, other)?;
            struck.told = format!("and node {other}");
        }
        Kind::Partition => cluster.partition(id)?,
        Kind::Silence => {
            cluster.silence(id)?;
            struck.cuts_clients = true;
        }
        Kind::LinkDown => {
            network.set_link(id, false)?;
            struck.cuts_clients = true;
        }
        Kind::Loss => {
            let percent = random.between(2, 30);
            network.lose(id, percent)?;
            struck.told = format!("{percent} %");
        }
        Kind::Delay => {
            let longest = random.between(5, 100);
            network.delay(id, longest, random.draw())?;
            struck.told = format!("up to {longest} ms");
        }
        _ => {
            let rate = random.between(300, 3000);
            network.slow_down(id, rate)?;
            struck.told = format!("{rate} kbit/s");
        }
    }
    debug_assert!(id != CLIENT, "the client's side is no node");
    Ok(struck)
}

/// Undoes what is transient: links, disks, clocks and frozen nodes first, then what is down is started.
pub fn undo(cluster: &Cluster, done: &mut [Struck]) -> Result<()> {
    if done.iter().any(|struck| struck.remedy == Remedy::Heal) {
        cluster.heal()?;
    }
    let (mut down, mut sick): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    for struck in done.iter_mut() {
        if let (Some(watch), Some(node)) = (struck.watch.take(), struck.node) {
            let ended = watch.ended().into_iter();
            struck.blows.extend(ended.map(|at| Blow { node, at, woke: None }));
        }
        let slept = struck.blows.iter_mut().filter(|blow| blow.woke.is_some());
        for blow in slept {
            // What has ended, as servers do whose disk is sick, or is ended here, does not go on.
            let runs = cluster.nodes().iter().any(|node| node.id == blow.node && node.postmaster().is_some());
            let goes_on = runs && !matches!(struck.remedy, Remedy::Mend(_));
            blow.woke = Some(if goes_on { wall() } else { NEVER });
        }
        match &struck.remedy {
            Remedy::Thaw(id) => cluster.node(*id).thaw()?,
            Remedy::Room(id) => cluster.disk(*id)?.empty()?,
            Remedy::Answer(id) => cluster.disk(*id)?.thaw(),
            Remedy::Mend(ids) => {
                for id in ids {
                    cluster.node(*id).kill_all()?;
                    cluster.disk(*id)?.mend()?;
                }
                down.extend(ids);
            }
            Remedy::Clock(id) => cluster.clock(*id).context("a node without a clock")?.set(wall(), 0)?,
            Remedy::Start(ids) => down.extend(ids),
            Remedy::None | Remedy::Heal | Remedy::Remove(_) | Remedy::MakeAnew(_) => {}
        }
        if let Remedy::Room(id) | Remedy::Answer(id) = struck.remedy {
            sick.push(id);
        }
    }
    down.sort_unstable();
    down.dedup();
    for id in down {
        let node = cluster.node(id);
        // Its children see by themselves that a killed postmaster is gone.
        node.wait_gone(SOON)?;
        node.start_unawaited()?;
    }
    sick.into_iter().try_for_each(|id| hardware::revive(cluster.node(id)))
}

/// Lets a fault be for so long.
pub fn hold(ms: u64) {
    sleep(Duration::from_millis(ms));
}
