//! What will happen, and in which order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use biha_core::*;

/// Something that will happen. Numbers of lives tell whose it is: what was meant for a life that has ended does
/// not happen.
#[derive(Clone, Debug, Hash)]
pub enum What {
    Deliver(u64, Box<Envelope>),
    Lost(NodeId, NodeId, Disconnect),
    Tick(NodeId),
    Connect(NodeId, NodeId),
    Pull(NodeId),
    Flushed(NodeId, u64),
    Agent(NodeId, u64, OrderId),
    AwaitEnds(NodeId, u64, OrderId),
    Up(NodeId, u64),
    Start(NodeId, u64, Option<NodeId>),
    Checkpointed(NodeId, u64),
    Exit(NodeId, u64, Millis, After),
    Written(NodeId, u64),
    Reloaded(NodeId, u64),
}

/// What follows the end of a server.
#[derive(Clone, Copy, Debug, Hash)]
pub enum After {
    Stay,
    Start(Option<NodeId>),
}

impl What {
    /// Where it happens, and whether it is the controller's to see.
    pub fn host(&self) -> (NodeId, bool) {
        match self {
            What::Deliver(_, envelope) => (envelope.to, true),
            What::Lost(at, ..) | What::Tick(at) | What::Connect(at, _) => (*at, true),
            What::Agent(at, ..) | What::AwaitEnds(at, ..) => (*at, true),
            What::Pull(at) | What::Up(at, _) | What::Start(at, ..) | What::Flushed(at, _) => (*at, false),
            What::Checkpointed(at, _) | What::Exit(at, ..) => (*at, false),
            What::Written(at, _) | What::Reloaded(at, _) => (*at, false),
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: Millis,
    number: u64,
    what: What,
}

/// Events by time, and by the order of their making within a millisecond.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Entry>,
    made: u64,
}

impl Queue {
    pub fn push(&mut self, at: Millis, what: What) {
        self.made += 1;
        self.heap.push(Entry { at, number: self.made, what });
    }

    /// The next event, if it is due until `end`.
    pub fn pop(&mut self, end: Millis) -> Option<(Millis, What)> {
        self.heap.peek().filter(|entry| entry.at <= end)?;
        self.heap.pop().map(|entry| (entry.at, entry.what))
    }

    /// How many have been made.
    pub fn made(&self) -> u64 {
        self.made
    }
}

impl Ord for Entry {
    /// The greatest comes first out of the heap.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
