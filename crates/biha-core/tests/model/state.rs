//! What a state of the model consists of, and what can happen next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use biha_core::*;

use super::host::Host;
use super::shared::Shared;

/// Something that will happen, in the order of the queue unless a fault changes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A frame arrives at this life of its receiver.
    Deliver(u32, Shared<Envelope>),
    /// A deadline of the controller has come.
    Tick(NodeId, u32),
    /// The agent has carried out this order of the controller's life.
    Done(NodeId, u32, OrderId),
    /// WAL arrives.
    Pull(NodeId),
    /// Server and controller start, after a rewind against this node.
    Start(NodeId, u32, Option<NodeId>),
}

/// For people.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Deliver(_, frame) => {
                let text = format!("{:?}", frame.message);
                let kind = text.split(['(', ' ']).next().unwrap_or_default();
                write!(f, "n{} to n{}: {kind} in {}", frame.from, frame.to, frame.term)
            }
            Item::Tick(id, _) => write!(f, "n{id}: deadline"),
            Item::Done(id, _, number) => write!(f, "n{id}: order {} done", number & 0xffff_ffff),
            Item::Pull(id) => write!(f, "n{id}: WAL"),
            Item::Start(id, _, rewind) => write!(f, "n{id}: start, rewound against {rewind:?}"),
        }
    }
}

impl Item {
    /// It does not happen on this host.
    pub fn is_not_for(&self, id: NodeId) -> bool {
        self.host() != id
    }

    /// The host on which it happens.
    fn host(&self) -> NodeId {
        match self {
            Item::Deliver(_, envelope) => envelope.to,
            Item::Tick(id, _) | Item::Done(id, ..) | Item::Pull(id) | Item::Start(id, ..) => *id,
        }
    }
}

/// What the scheduler of the model may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// What is first in the queue happens; nothing left: time passes.
    Next,
    /// What is first in the queue is late: from now on it may happen at any time, or never.
    Hold,
    /// What is first in the queue happens, and may happen once more at any time.
    Twice,
    /// What is first in the queue happens; its host crashes after so many outputs.
    Crash(usize),
    /// Something that was held happens.
    Release(usize),
    /// Time passes before everything in the queue has happened.
    Early,
    /// A postmaster is killed; its controller says its last word.
    Kill(NodeId),
    /// A host can reach nobody and nobody it.
    Isolate(NodeId),
    /// Two hosts cannot reach each other.
    Part(NodeId, NodeId),
    /// Nothing runs on a host; what comes for it waits.
    Freeze(NodeId),
    /// It runs again.
    Thaw,
    /// All links work again.
    Heal,
    /// A client commits.
    Commit(NodeId),
    /// The scenario's next command is given at this node.
    Command(NodeId),
    /// A host is told that a living node's host refuses connections.
    Refuse(NodeId, NodeId),
    /// The nodes of this set (a bit each) and the others cannot reach each other.
    Split(u8),
    /// Only the controller dies and starts anew; the server goes on.
    Respawn(NodeId),
    /// Somebody promotes this server by hand.
    Promote(NodeId),
    /// A host comes back with the state files it had at the beginning.
    PutBack(NodeId),
}

/// How much of each may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    pub instants: u32,
    pub faults: u8,
    pub commits: u8,
    pub commands: u8,
}

/// What was seen so far: the properties look at this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The leaders of each term, each with the life of its controller.
    pub leaders: BTreeMap<Term, BTreeSet<(NodeId, u32)>>,
    /// Who wrote on each timeline, and in which term.
    pub written: BTreeMap<Timeline, BTreeSet<(NodeId, Term)>>,
    /// The highest term that each node has told.
    pub terms: BTreeMap<NodeId, Term>,
    /// The votes told, by voter and term.
    pub votes: BTreeMap<(NodeId, Term), BTreeSet<NodeId>>,
    /// Something was told that was not on disk.
    pub unwritten: bool,
    /// Acknowledged commits, with the term of the leader that acknowledged.
    pub acknowledged: BTreeMap<u64, Term>,
    /// Acknowledged changes by their place in the scenario, with the term of the leader that acknowledged.
    pub settled: BTreeMap<usize, Term>,
    /// A step of the core ended in a panic.
    pub panicked: bool,
    /// A server streams from one whose WAL has parted from its own.
    pub parted: bool,
    /// Reached so far: see `properties::reachable`.
    pub lease_ended: bool,
    pub handed_over: bool,
    pub rewound: bool,
}

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Instants since the beginning.
    pub now: u32,
    pub hosts: Vec<Shared<Host>>,
    pub queue: VecDeque<Item>,
    pub late: Vec<Item>,
    /// Directions in which nothing passes.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub frozen: Option<NodeId>,
    pub left: Left,
    pub seen: Shared<Seen>,
}

impl State {
    pub fn host(&self, id: NodeId) -> &Host {
        &self.hosts[id.0 as usize - 1]
    }

    pub fn host_mut(&mut self, id: NodeId) -> &mut Host {
        self.hosts[id.0 as usize - 1].change()
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.hosts.iter().map(|h| h.id).collect()
    }

    /// Can the two reach each other?
    pub fn linked(&self, a: NodeId, b: NodeId) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    /// Where in the queue the next item is that can happen.
    pub fn head(&self) -> Option<usize> {
        self.queue.iter().position(|item| self.frozen.is_none_or(|frozen| item.host() != frozen))
    }

    /// Takes the next item that can happen out of the queue.
    pub fn take_head(&mut self) -> Option<Item> {
        self.head().and_then(|at| self.queue.remove(at))
    }

    pub fn push(&mut self, item: Item) {
        self.queue.push_back(item);
    }

    /// Keeps the held items in an order that does not tell which was held first.
    pub fn hold(&mut self, item: Item) {
        self.late.push(item);
        self.late.sort_by_cached_key(|item| Shared::new(item.clone()).fingerprint());
    }
}
