//! Which faults, in which order: worked out from a seed before anything is done.

use std::fmt;

use crate::chaos::random::Random;

/// What is done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of the postmaster; started again.
    KillPostmaster,
    /// kill -9 of biha's controller.
    KillController,
    /// kill -9 of biha's agent.
    KillAgent,
    /// kill -9 of any other process of the server.
    KillBackend,
    /// kill -9 of all processes of a node; started again.
    KillNode,
    /// kill -9 of everything; all started again.
    KillAll,
    /// SIGSTOP for less than the lease.
    FreezeShort,
    /// SIGSTOP for more than the lease.
    FreezeLong,
    /// Nothing of what the node sends to the others arrives; it hears them.
    CutOneWay,
    /// A node and one other do not reach each other.
    CutPair,
    /// A node is cut off from the others; clients reach it.
    Partition,
    /// A node is cut off from all, clients included.
    Silence,
    /// The cable is pulled: the node's kernel sees it.
    LinkDown,
    /// Packets between nodes are lost.
    Loss,
    /// Packets between nodes arrive late, and in another order.
    Delay,
    /// What a node is sent queues up in front of a slow link, and what does not fit is dropped.
    SlowLink,
    /// `biha.set_leader()`.
    Switchover,
    /// Settings of the cluster are changed.
    Settings,
    /// A node is added, and another one removed.
    Membership,
    /// `pg_ctl stop -m fast`; started again.
    StopFast,
    /// `pg_ctl stop -m immediate`; started again.
    StopImmediate,
    /// A diverged leader is being rewound, and pg_rewind is killed.
    RewindKilled,
    /// `biha.state` is cut short while its node is down.
    StateTruncated,
    /// A bit of `biha.state` changes while its node is down.
    StateFlipped,
    /// `biha.state` is replaced by another node's while its node is down.
    StateSwapped,
    /// Nothing more fits on a node's disk.
    DiskFull,
    /// A node's disk refuses writes, until the node is down, its file system checked, and the node started again.
    DiskRefuses,
    /// A node's disk does not answer.
    DiskHangs,
    /// A node's disk answers slowly.
    DiskSlow,
    /// A node loses its power, and what it had not synced; started again.
    PowerLoss,
    /// All nodes lose their power; all started again.
    PowerLossAll,
    /// `bihactl add` or its pg_basebackup is killed half-way; done again.
    AddKilled,
    /// A node is stopped, killed and started many times in quick succession.
    RestartStorm,
    /// A node's wall clock is set, by minutes to weeks.
    ClockStep,
}

use Kind::{
    AddKilled, ClockStep, CutOneWay, CutPair, Delay, DiskFull, DiskHangs, DiskRefuses, DiskSlow, FreezeLong,
    FreezeShort, KillAgent, KillAll, KillBackend, KillController, KillNode, KillPostmaster, LinkDown, Loss,
    Membership, Partition, PowerLoss, PowerLossAll, RestartStorm, RewindKilled, Settings, Silence, SlowLink,
    StateFlipped, StateSwapped, StateTruncated, StopFast, StopImmediate, Switchover,
};

/// All of them.
pub const KINDS: [Kind; 34] = [
    KillPostmaster,
    KillController,
    KillAgent,
    KillBackend,
    KillNode,
    KillAll,
    FreezeShort,
    FreezeLong,
    CutOneWay,
    CutPair,
    Partition,
    Silence,
    LinkDown,
    Loss,
    Delay,
    SlowLink,
    Switchover,
    Settings,
    Membership,
    StopFast,
    StopImmediate,
    RewindKilled,
    StateTruncated,
    StateFlipped,
    StateSwapped,
    DiskFull,
    DiskRefuses,
    DiskHangs,
    DiskSlow,
    PowerLoss,
    PowerLossAll,
    AddKilled,
    RestartStorm,
    ClockStep,
];

/// What is over in an instant: any two of them can be done at once.
const INSTANT: [Kind; 21] = [
    KillPostmaster,
    KillController,
    KillAgent,
    KillBackend,
    KillNode,
    FreezeShort,
    FreezeLong,
    CutOneWay,
    CutPair,
    Partition,
    Silence,
    LinkDown,
    StopImmediate,
    Loss,
    Delay,
    DiskFull,
    DiskRefuses,
    DiskHangs,
    DiskSlow,
    PowerLoss,
    ClockStep,
];
/// What leaves no node that is there but does not answer: an operator's commands are tried under it.
const FIRE: [Kind; 12] = [
    KillPostmaster,
    KillController,
    KillAgent,
    KillBackend,
    KillNode,
    StopImmediate,
    Loss,
    Delay,
    SlowLink,
    DiskSlow,
    PowerLoss,
    ClockStep,
];
/// An operator's commands.
const COMMANDS: [Kind; 4] = [Switchover, Settings, Membership, StopFast];

impl Kind {
    /// Does it need nodes with disks of their own?
    pub fn needs_disk(self) -> bool {
        matches!(self, DiskFull | DiskRefuses | DiskHangs | DiskSlow | PowerLoss | PowerLossAll)
    }

    /// Does a leader that gives up its office for it lose nothing that it acknowledged, also without synchronous
    /// standbys?
    pub fn loses_nothing(self) -> bool {
        matches!(self, Switchover | StopFast | Settings | Membership | AddKilled)
    }

    /// Is a disk or a link slow, or does it lose something, so that nothing can be said of how long anything takes?
    pub fn slows(self) -> bool {
        matches!(self, Loss | Delay | SlowLink | DiskHangs | DiskSlow)
    }

    /// May whoever leads lose its office at any time until the fault is over, and acknowledge till then?
    pub fn lasts(self) -> bool {
        matches!(self, Loss | Delay | SlowLink | DiskFull | DiskRefuses | DiskSlow)
    }

    /// Is there perhaps no room to keep WAL aside?
    pub fn keeps_nothing(self) -> bool {
        matches!(self, DiskFull | DiskRefuses)
    }

    /// Is the fault there for a time, and how long, in ms? For what is killed or stopped: how long it is down.
    fn duration(self, random: &mut Random) -> u64 {
        match self {
            FreezeShort => random.between(50, 250),
            FreezeLong => random.between(600, 1500),
            CutOneWay | CutPair | Partition | Silence | LinkDown => random.between(300, 1500),
            Loss | Delay | SlowLink => random.between(1000, 2500),
            KillPostmaster | KillNode | KillAll | StopFast | StopImmediate | PowerLoss | PowerLossAll => {
                random.between(0, 800)
            }
            DiskFull | DiskRefuses | DiskHangs => random.between(300, 3500),
            DiskSlow => random.between(1000, 3000),
            ClockStep => random.between(200, 1500),
            _ => 0,
        }
    }
}

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The leader.
    Leader,
    /// A follower: the one with this index, counted round.
    Follower(usize),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub target: Target,
    /// For how long, in ms.
    pub duration: u64,
    /// What else is left to chance, such as which process is killed.
    pub chance: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Leader => write!(f, "{:?} of the leader", self.kind)?,
            Target::Follower(_) => write!(f, "{:?} of a follower", self.kind)?,
        }
        if self.duration > 0 { write!(f, " ({} ms)", self.duration) } else { Ok(()) }
    }
}

/// Faults that are there at the same time; the second strikes `gap` ms after the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// One or two, of different nodes.
    pub faults: Vec<Fault>,
    /// See there.
    pub gap: u64,
}

impl Step {
    /// Under which name it is counted.
    pub fn name(&self) -> String {
        match self.faults.as_slice() {
            [one] => format!("{:?}", one.kind),
            _ => "two at once".to_owned(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(Fault::to_string).collect();
        write!(f, "{}", faults.join(&format!(" and, {} ms later, ", self.gap)))
    }
}

/// Works out steps with `faults` faults in all: every kind comes as often as any other, give or take one, and
/// every fourth step is of two faults more. Only what can be done here, by `can`, is in it.
pub fn plan(seed: u64, faults: usize, can: impl Fn(Kind) -> bool) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut bag: Vec<Kind> = Vec::new();
    let (mut steps, mut planned) = (Vec::new(), 0);
    while planned < faults {
        let pair = steps.len() % 4 == 3 && planned + 2 <= faults;
        let kinds = if pair {
            two(&mut random, &can)
        } else {
            if bag.is_empty() {
                bag = possible(&KINDS, &can);
                random.shuffle(&mut bag);
            }
            bag.pop().into_iter().collect()
        };
        planned += kinds.len();
        let faults = kinds.into_iter().map(|kind| fault(kind, &mut random)).collect();
        steps.push(Step { faults, gap: random.between(0, 300) });
    }
    steps
}

fn possible(kinds: &[Kind], can: impl Fn(Kind) -> bool) -> Vec<Kind> {
    kinds.iter().copied().filter(|kind| can(*kind)).collect()
}

fn two(random: &mut Random, can: impl Fn(Kind) -> bool) -> Vec<Kind> {
    let (instant, fire) = (possible(&INSTANT, &can), possible(&FIRE, &can));
    let mut any = |list: &[Kind]| list[random.index(list.len())];
    let first = any(&instant);
    match any(&[KillAll, Loss, Settings, Settings]) {
        KillAll => vec![first, KillAll],
        Loss => vec![first, any(&instant)],
        _ => match (any(&fire), any(&COMMANDS)) {
            // A base backup through a thin link takes minutes.
            (SlowLink, Membership) => vec![Loss, Membership],
            (fire, command) => vec![fire, command],
        },
    }
}

fn fault(kind: Kind, random: &mut Random) -> Fault {
    let follower = Target::Follower(random.index(16));
    let target = if random.below(10) < 6 { Target::Leader } else { follower };
    Fault { kind, target, duration: kind.duration(random), chance: random.draw() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_one_plan_and_holds_every_kind() {
        let steps = plan(1, 60, |_| true);
        assert_eq!(steps, plan(1, 60, |_| true));
        assert_ne!(steps, plan(2, 60, |_| true));
        assert_eq!(steps.iter().map(|step| step.faults.len()).sum::<usize>(), 60);
        let kinds: BTreeSet<Kind> =
            steps.iter().flat_map(|step| &step.faults).map(|fault| fault.kind).collect();
        assert_eq!(kinds.len(), KINDS.len(), "{kinds:?}");
    }
}
