//! The simulated network: cut links, latency, connections between controllers.

use std::collections::{BTreeMap, BTreeSet};

use biha_core::NodeId;

/// Links and connections.
#[derive(Debug, Default)]
pub struct Net {
    /// Directions in which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Connections between controllers, with the life of each side's controller.
    connections: BTreeMap<(NodeId, NodeId), (u64, u64)>,
}

impl Net {
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    pub fn heal(&mut self, from: NodeId, to: NodeId) {
        self.cut.remove(&(from, to));
    }

    pub fn heal_all(&mut self) {
        self.cut.clear();
    }

    /// Does anything pass in this direction?
    pub fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
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
