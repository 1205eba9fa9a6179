//! What a node must remember over a crash, written before any word that depends on it leaves the node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ClusterId, Incarnation, Lsn, Millis, NodeId, Position, Term, Timeline};

/// Who opened a timeline, and where it left its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// Term of the leader that opened it; 0 if a promotion that nobody elected did.
    pub term: Term,
    /// The leader that opened it.
    pub leader: NodeId,
    /// Where it begins: the end of its parent's part of the history.
    pub fork: Lsn,
}

/// A promotion that was begun: the timeline, and the numbers below it that get placeholder history files.
/// If the next start finds this without the promotion, the placeholders are removed before recovery begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PromotionIntent {
    /// The timeline to be opened; equal to the winner's term.
    pub timeline: Timeline,
    /// First timeline number that gets a placeholder (none if equal to `timeline`).
    pub first_placeholder: Timeline,
}

/// Why a node is in NODE_ERROR.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeError {
    /// What kind of error.
    pub kind: NodeErrorKind,
    /// What happened, for the operator.
    pub text: String,
    /// The node's last position when it was found, if known.
    pub position: Option<Position>,
    /// The leader against which it was found.
    pub leader: Option<NodeId>,
}

/// The kinds of [`NodeError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeErrorKind {
    /// WAL has parted from the leader's and a rewind is not allowed (`biha.autorewind = off`).
    Diverged,
    /// pg_rewind failed.
    RewindFailed,
    /// WAL that this node needs is gone from the leader.
    WalRemoved,
    /// The local WAL ends before the position that this node is known to have flushed.
    WalShorter,
    /// Two leaders opened a timeline of the same number.
    TimelineConflict,
    /// The node was removed from the cluster.
    Removed,
}

impl NodeErrorKind {
    /// The name that `biha.error_details()` shows.
    pub fn name(self) -> &'static str {
        match self {
            NodeErrorKind::Diverged => "WAL_DIVERGED",
            NodeErrorKind::RewindFailed => "REWIND_FAILED",
            NodeErrorKind::WalRemoved => "WAL_REMOVED",
            NodeErrorKind::WalShorter => "WAL_SHORTER",
            NodeErrorKind::TimelineConflict => "TIMELINE_CONFLICT",
            NodeErrorKind::Removed => "NODE_REMOVED",
        }
    }

    /// What an operator can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            NodeErrorKind::Diverged => {
                "Set biha.autorewind to on and call biha.reset_node_error() to rewind this node; WAL that only \
                 this node has is lost then."
            }
            NodeErrorKind::RewindFailed => {
                "The file pg_biha/rewind.log says why. Mend that and call biha.reset_node_error(), or make this \
                 node anew: \"bihactl remove\" on another node, empty this data directory, \"bihactl add\"."
            }
            NodeErrorKind::WalRemoved | NodeErrorKind::WalShorter | NodeErrorKind::TimelineConflict => {
                "Make this node anew: \"bihactl remove\" on another node, empty this data directory, \"bihactl add\"."
            }
            NodeErrorKind::Removed => {
                "Stop this node, or take biha out of it with \"bihactl remove --pgdata\"."
            }
        }
    }
}

/// Where a rewind of this node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum RewindState {
    /// None is needed.
    #[default]
    None,
    /// Asked for; the restart that does it has not come back yet. Such a node neither votes nor stands.
    Requested,
    /// Done in this term. To find the WAL parted again in the same term is an error, not a reason to try for
    /// ever.
    Done(Term),
}

/// The durable state of a node (`pg_biha/biha.state`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    /// The cluster this memory belongs to.
    pub cluster: ClusterId,
    /// PostgreSQL's system identifier of the data directory this memory belongs to.
    pub system_identifier: u64,
    /// The node this memory belongs to.
    pub node: NodeId,
    /// Raised at each start of the controller.
    pub incarnation: Incarnation,
    /// Newest term this node has taken part in.
    pub term: Term,
    /// The candidate that got this node's vote in `term`.
    pub voted_for: Option<NodeId>,
    /// The longest stickiness promise ever given, in ms: how long a restarted controller stays silent.
    pub longest_promise: Millis,
    /// Who opened which timeline.
    pub timelines: BTreeMap<Timeline, TimelineEntry>,
    /// A position this node is known to have flushed. Its WAL must never end before it.
    pub lower_bound: Option<Position>,
    /// Set while the node is in NODE_ERROR.
    pub error: Option<NodeError>,
    /// Where a rewind stands.
    pub rewind: RewindState,
    /// A promotion that was begun.
    pub promotion: Option<PromotionIntent>,
}

impl HardState {
    /// The memory of a node that has never taken part in anything.
    pub fn new(cluster: ClusterId, system_identifier: u64, node: NodeId) -> Self {
        HardState {
            cluster,
            system_identifier,
            node,
            incarnation: Incarnation(0),
            term: Term(0),
            voted_for: None,
            longest_promise: 0,
            timelines: BTreeMap::new(),
            lower_bound: None,
            error: None,
            rewind: RewindState::None,
            promotion: None,
        }
    }
}
