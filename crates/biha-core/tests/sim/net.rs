//! The simulated network: cut links, latency, connections between controllers.

use std::collections::{BTreeMap, BTreeSet};

use biha_core::*;

use super::{Cluster, LATENCY, RETRY_CONNECT, What, say};

/// Links and connections.
#[derive(Debug, Default)]
pub struct Net {
    /// Directions in which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// And those in which only the control channel's frames do not.
    cut_control: BTreeSet<(NodeId, NodeId)>,
    /// Those in which only WAL does not: controllers talk.
    cut_wal: BTreeSet<(NodeId, NodeId)>,
    /// Connections between controllers, with the life of each side's controller.
    connections: BTreeMap<(NodeId, NodeId), (u64, u64)>,
    /// Attempts to connect that are to come, and when: one for each direction is enough.
    dialling: BTreeMap<(NodeId, NodeId), Millis>,
}

impl Net {
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// A firewall lets PostgreSQL's port through, and not biha's.
    pub fn cut_control(&mut self, a: NodeId, b: NodeId) {
        self.cut_control.extend([(a, b), (b, a)]);
    }

    /// A standby still talks, and receives nothing.
    pub fn cut_wal(&mut self, a: NodeId, b: NodeId) {
        self.cut_wal.extend([(a, b), (b, a)]);
    }

    /// Does WAL pass?
    pub fn streams(&self, a: NodeId, b: NodeId) -> bool {
        self.open(a, b) && !self.cut_wal.contains(&(a, b))
    }

    /// Can controllers talk, both ways?
    pub fn control_open(&self, a: NodeId, b: NodeId) -> bool {
        self.open(a, b) && !self.cut_control.contains(&(a, b))
    }

    pub fn heal(&mut self, from: NodeId, to: NodeId) {
        self.cut.remove(&(from, to));
    }

    pub fn heal_all(&mut self) {
        self.cut.clear();
        self.cut_control.clear();
        self.cut_wal.clear();
    }

    /// Does anything pass in this direction?
    pub fn passes(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.is_empty() || !self.cut.contains(&(from, to))
    }

    /// Can the two talk, both ways?
    pub fn open(&self, a: NodeId, b: NodeId) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    pub fn connect(&mut self, a: (NodeId, u64), b: (NodeId, u64)) {
        let (a, b) = if a.0 < b.0 { (a, b) } else { (b, a) };
        self.connections.insert((a.0, b.0), (a.1, b.1));
    }

    /// Is there a connection between these very lives?
    pub fn connected(&self, a: (NodeId, u64), b: (NodeId, u64)) -> bool {
        let (a, b) = if a.0 < b.0 { (a, b) } else { (b, a) };
        self.connections.get(&(a.0, b.0)) == Some(&(a.1, b.1))
    }

    pub fn exists(&self, a: NodeId, b: NodeId) -> bool {
        self.connections.contains_key(&(a.min(b), a.max(b)))
    }

    pub fn drop_connection(&mut self, a: NodeId, b: NodeId) {
        self.connections.remove(&(a.min(b), a.max(b)));
    }
}

impl Cluster {
    pub(super) fn send(&mut self, id: NodeId, envelope: Box<Envelope>) {
        self.check_word(id, &envelope);
        let to = envelope.to;
        self.trace_message(id, &envelope);
        let Some(peer) = self.hosts.get(&to) else { return };
        let lives = ((id, self.host(id).life), (to, peer.life));
        let passes = self.net.passes(id, to) && !self.net.cut_control.contains(&(id, to));
        if !passes || !self.net.connected(lives.0, lives.1) {
            return;
        }
        let chaos = self.chaos;
        if self.rng.of_1000(chaos.loss) {
            return;
        }
        if self.rng.of_1000(chaos.duplicates) {
            let again = envelope.clone();
            self.deliver(lives.1.1, again);
        }
        self.deliver(lives.1.1, envelope);
    }

    fn deliver(&mut self, life: u64, envelope: Box<Envelope>) {
        let jitter = self.chaos.jitter;
        let late = if jitter > 0 { self.rng.below(jitter) } else { 0 };
        self.after(LATENCY + late, What::Deliver(life, envelope));
    }

    /// Lets `id` try to reach `peer`, unless it is about to.
    pub(super) fn dial(&mut self, id: NodeId, peer: NodeId, delay: Millis) {
        let (now, due) = (self.now, self.now + delay);
        let known = self.net.dialling.get(&(id, peer));
        if known.is_none_or(|known| *known < now || *known > due) {
            self.net.dialling.insert((id, peer), due);
            self.after(delay, What::Connect(id, peer));
        }
    }

    /// An attempt of `id` to reach `peer`.
    pub(super) fn connect(&mut self, id: NodeId, peer: NodeId) {
        if self.net.dialling.get(&(id, peer)).is_none_or(|due| *due > self.now) {
            return;
        }
        self.net.dialling.remove(&(id, peer));
        let (mine, its) = (self.host(id), self.host(peer));
        if mine.controller.is_none() || self.net.connected((id, mine.life), (peer, its.life)) {
            return;
        }
        let (from, to) = ((id, mine.life), (peer, its.life));
        if !its.power || its.frozen || !self.net.control_open(id, peer) {
            return;
        }
        if its.controller.is_none() {
            self.after(LATENCY, What::Lost(id, peer, Disconnect::Refused));
            self.dial(id, peer, RETRY_CONNECT);
            return;
        }
        if its.hangs() {
            if its.writing.is_some() {
                self.dial(id, peer, RETRY_CONNECT);
            }
            return;
        }
        self.net.connect(from, to);
        for (a, b) in [(from, to), (to, from)] {
            if let Some(node) = &self.host(a.0).controller {
                let hello = node.hello(b.0);
                self.check_word(a.0, &hello);
                self.after(LATENCY, What::Deliver(b.1, Box::new(hello)));
            }
        }
    }

    /// Everybody tries to reach `id`, and it everybody.
    pub fn reconnect(&mut self, id: NodeId) {
        for peer in self.ids() {
            if peer != id {
                self.dial(id, peer, LATENCY);
                self.dial(peer, id, LATENCY);
            }
        }
    }

    /// Both sides see the connection end, and make a new one.
    pub fn reset_connection(&mut self, a: NodeId, b: NodeId) {
        if !self.net.exists(a, b) {
            return;
        }
        self.net.drop_connection(a, b);
        self.after(LATENCY, What::Lost(a, b, Disconnect::Closed));
        self.after(LATENCY, What::Lost(b, a, Disconnect::Closed));
        self.dial(a, b, RETRY_CONNECT);
    }

    /// A link works again: what was received in vain goes on, connections of former lives are replaced.
    pub fn healed(&mut self, a: NodeId, b: NodeId) {
        let lives = ((a, self.host(a).life), (b, self.host(b).life));
        if self.net.exists(a, b) && !self.net.connected(lives.0, lives.1) {
            self.net.drop_connection(a, b);
            self.after(LATENCY, What::Lost(a, b, Disconnect::Closed));
            self.after(LATENCY, What::Lost(b, a, Disconnect::Closed));
        }
        self.dial(a, b, LATENCY + 1);
        self.dial(b, a, LATENCY + 1);
        self.after(LATENCY, What::Pull(a));
        self.after(LATENCY, What::Pull(b));
    }
}
