//! Things worth remembering (`biha.history()`).

use serde::{Deserialize, Serialize};

use crate::{Incarnation, Millis, NodeId, Position, Term};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// The controller started.
    Started,
    /// This node was elected and became writable after a failure of the one before it.
    Failover,
    /// This node was elected and became writable by hand-over.
    Switchover,
    /// The leader was lost: not heard, or proven dead.
    LeaderLost,
    /// The leader stopped taking writes, or takes them again, without an election.
    Fenced,
    /// See [`EventKind::Fenced`].
    Unfenced,
    /// The leader gave up its leadership.
    Demoted,
    /// The node asked for a rewind.
    Rewind,
    /// The node follows a new leader.
    Follow,
    /// The node went to NODE_ERROR, or left it.
    NodeError,
    /// The configuration changed.
    Config,
    /// The node asked for a new copy of the leader's data.
    Reclone,
}

impl EventKind {
    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Started => "STARTED",
            EventKind::Failover => "FAILOVER",
            EventKind::Switchover => "SWITCHOVER",
            EventKind::LeaderLost => "LEADER_LOST",
            EventKind::Fenced => "FENCED",
            EventKind::Unfenced => "UNFENCED",
            EventKind::Demoted => "DEMOTED",
            EventKind::Rewind => "REWIND",
            EventKind::Follow => "FOLLOW",
            EventKind::NodeError => "NODE_ERROR",
            EventKind::Config => "CONFIG",
            EventKind::Reclone => "RECLONE",
        }
    }
}

/// One timed step of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long it took, in ms.
    pub ms: Millis,
}

/// Something that happened, as the core tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The term in which it happened.
    pub term: Term,
    /// The leader it concerns.
    pub leader: Option<NodeId>,
    /// The node's position, if known.
    pub position: Option<Position>,
    /// Why, in a sentence for the operator.
    pub cause: String,
    /// Its steps in order, if it was timed.
    pub steps: Vec<Step>,
}

/// An [`Event`] with where and when it happened: what is kept, and told to the other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventRecord {
    /// Where it happened.
    pub node: NodeId,
    /// In which life of that node.
    pub incarnation: Incarnation,
    /// Counts that life's events: (node, incarnation, seq) names an event in the whole cluster.
    pub seq: u32,
    /// When, by that node's wall clock: microseconds since 1970-01-01 UTC.
    pub at: i64,
    /// What happened.
    pub event: Event,
}
