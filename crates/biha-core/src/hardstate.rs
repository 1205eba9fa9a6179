//! What a node must remember over a crash, written before any word that depends on it leaves the node.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::message::HistoryEntry;
use crate::{ClusterId, Incarnation, Lsn, Millis, NodeId, Position, Term, Timeline};

/// The term of a timeline that no term opened.
const NOT_ELECTED: Term = Term(0);

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

impl TimelineEntry {
    /// Was its leader elected to open the timeline of this number?
    pub fn is_elected(&self, timeline: Timeline) -> bool {
        self.term == Term(timeline)
    }
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
    /// Two servers have written WAL on a timeline of the same number.
    TimelineConflict,
    /// The node was removed from the cluster.
    Removed,
    /// Others know of a later life of this node, or of words of this one that it does not remember.
    Forgetful,
    /// A new copy of the leader's data could not be made (`biha.autoreclone`).
    RecloneFailed,
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
            NodeErrorKind::Forgetful => "MEMORY_OLDER",
            NodeErrorKind::RecloneFailed => "RECLONE_FAILED",
        }
    }

    /// What an operator can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            NodeErrorKind::Diverged => {
                "Set biha.autorewind to on and call biha.reset_node_error() to rewind this node. WAL that only this \
                 node has is kept aside then (biha.keep_lost_wal), and biha.lost_transactions() lists it."
            }
            NodeErrorKind::RewindFailed => {
                "The file pg_biha/rewind.log says why. Mend that and call biha.reset_node_error(), or have this node \
                 copy the leader: biha.reclone(), or biha.autoreclone = on. By hand: \"bihactl remove\" on another \
                 node, empty this data directory, \"bihactl add\"."
            }
            NodeErrorKind::WalShorter => {
                "Have this node copy the leader: biha.reclone(), or biha.autoreclone = on. The file pg_biha/reclone.log \
                 says more of one that failed. By hand: \"bihactl remove\" on another node, empty this data directory, \
                 \"bihactl add\"."
            }
            NodeErrorKind::WalRemoved => {
                "Have this node copy the leader: biha.reclone(), or biha.autoreclone = on. By hand: \"bihactl remove\" \
                 on another node, empty this data directory, \"bihactl add\"."
            }
            NodeErrorKind::RecloneFailed => {
                "The file pg_biha/reclone.log says more. Mend that and call biha.reclone(); with biha.autoreclone it is \
                 tried again under the next leader. By hand: \"bihactl remove\" on another node, empty this data \
                 directory, \"bihactl add\"."
            }
            NodeErrorKind::TimelineConflict => {
                "Save what only this node has, which can be read now; not all of it may be kept aside. Then have this node \
                 copy the leader: biha.reclone(). The file pg_biha/reclone.log says more of one that failed."
            }
            NodeErrorKind::Forgetful => {
                "Make this node anew: \"bihactl remove\" on another node, empty this data directory, \"bihactl add\"."
            }
            NodeErrorKind::Removed => {
                "Stop this node, or take biha out of it with \"bihactl remove --pgdata\"."
            }
        }
    }

    /// Has this node lost what others count on, or has it WAL that would be taken for another's? Then it must not go on as
    /// if nothing had been.
    pub fn is_for_good(self) -> bool {
        self.rank() > 0
    }

    /// An error of a lower rank must not hide one of a higher: it could be reset, or mended by what does not mend that.
    fn rank(self) -> u8 {
        match self {
            NodeErrorKind::Forgetful => 3,
            NodeErrorKind::TimelineConflict => 2,
            NodeErrorKind::WalShorter => 1,
            _ => 0,
        }
    }

    /// Is a new copy of the leader's data, which brings this node back, one that need not be asked for?
    pub fn is_healed_by_itself(self) -> bool {
        use NodeErrorKind::*;
        matches!(self, RewindFailed | WalRemoved | WalShorter | RecloneFailed)
    }

    /// Has a rewind, or a new copy of the leader's data, mended it?
    pub fn is_healed_by(self, mended: Mended) -> bool {
        self.is_healed_by_itself()
            || self == NodeErrorKind::Diverged
            || self == NodeErrorKind::TimelineConflict && mended == Mended::Copied
    }
}

/// What a start of the server was preceded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    /// A rewind.
    Rewound,
    /// A new copy of the leader's data; also where a rewind was asked for.
    Copied,
}

/// Why a rewind or a re-clone has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// In words.
    pub text: String,
    /// It may pass by itself: a source that was not there, a program that was killed. Another attempt is worth it.
    pub passing: bool,
}

/// Where a rewind of this node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum RewindState {
    /// None is needed.
    #[default]
    None,
    /// Asked for in this term; the restart that does it has not come back yet. Such a node neither votes nor stands.
    Requested(Term),
    /// Done in the term in which it was asked for. To find the WAL parted again in the same term, though nobody has
    /// promoted the server since, is an error and not a reason to try for ever.
    Done(Term),
    /// A re-clone was asked for; as [`RewindState::Requested`].
    Recloning,
    /// A re-clone was tried in this term, and has succeeded unless there is an error: as [`RewindState::Done`].
    Recloned(Term),
    /// A rewind or re-clone was hindered in this term, for a reason that may pass: it is tried again under the next
    /// leader, and under the same one after a pause.
    PutOff(Term),
}

/// What a node has last said of its own memory. It must never say less, or it is not that node's memory any more: a
/// data directory that was put back to an older copy, or one of two copies (Ongaro 2014, §3.8: a server that loses
/// what it stored can't take part any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Met {
    /// Its life.
    pub incarnation: Incarnation,
    /// Drawn at random for each life: two lives of the same number are not the same.
    pub tag: u32,
    /// Its newest term.
    pub term: Term,
    /// Its vote in that term.
    pub voted_for: Option<NodeId>,
}

impl Met {
    /// Can a node that has said `before` say this, whenever it did?
    pub fn remembers(&self, before: &Met) -> bool {
        let knows = self.term > before.term
            || self.term == before.term && (before.voted_for.is_none() || self.voted_for == before.voted_for);
        match self.incarnation.cmp(&before.incarnation) {
            Ordering::Less => false,
            Ordering::Equal => self.tag == before.tag,
            Ordering::Greater => knows || self.incarnation.made() > before.incarnation.made(),
        }
    }

    /// This, and what was said earlier or later in the same life.
    fn and(self, other: Met) -> Met {
        match other.term.cmp(&self.term) {
            Ordering::Greater => other,
            Ordering::Equal => Met { voted_for: self.voted_for.or(other.voted_for), ..self },
            Ordering::Less => self,
        }
    }

    /// Both, of which the second [`remembers`](Met::remembers) the first.
    pub fn then(self, later: Met) -> Met {
        if later.incarnation == self.incarnation { self.and(later) } else { later }
    }
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
    /// What the other members have said of their memory.
    pub met: BTreeMap<NodeId, Met>,
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
            met: BTreeMap::new(),
        }
    }

    /// Notes an error. False if that is known, or hidden by a worse one.
    pub fn fail(&mut self, error: NodeError) -> bool {
        let (kind, rank) = (error.kind, error.kind.rank());
        let hidden = |known: &NodeError| known.kind == kind || known.kind.rank() > rank;
        if self.error.as_ref().is_some_and(hidden) {
            return false;
        }
        self.error = Some(error);
        true
    }

    /// Who was elected to open the timelines of this history, as far as this node knows.
    pub fn openers(&self, history: &[HistoryEntry]) -> Vec<(Timeline, NodeId)> {
        let opener = |at: &HistoryEntry| {
            let entry = self.timelines.get(&at.timeline)?;
            entry.is_elected(at.timeline).then_some((at.timeline, entry.leader))
        };
        history.iter().filter_map(opener).collect()
    }

    /// Notes that the server of this node has been in production on a timeline that no election had it open: whoever is
    /// elected under the same number later must not be taken for the one whose WAL is here. True if that is new. An
    /// error, in words, where another node was elected to open it.
    pub fn own_up(&mut self, position: Position) -> Result<bool, String> {
        let Position { timeline, lsn } = position;
        let before = self.timelines.get(&timeline).map(|entry| entry.leader);
        if before == Some(self.node) {
            return Ok(false);
        }
        let entry = TimelineEntry { term: NOT_ELECTED, leader: self.node, fork: lsn };
        self.timelines.insert(timeline, entry);
        // That the WAL parts again says nothing about the rewind or re-clone before.
        let tried = matches!(self.rewind, RewindState::Done(_) | RewindState::Recloned(_));
        if tried && self.error.is_none() {
            self.rewind = RewindState::None;
        }
        match before {
            None => Ok(true),
            Some(leader) => Err(format!(
                "the server was in production without an election, on timeline {timeline}, which is node {leader}'s"
            )),
        }
    }

    /// The server is about to be started, and was in production on this timeline when it ended: has this node been elected
    /// to open it? If not, that is noted. Returns what there is to say if the memory is another now.
    pub fn own_up_at_start(&mut self, position: Position) -> Option<String> {
        if self.term == Term(0) {
            // A server that is to become a member has been in production, of course.
            return None;
        }
        match self.own_up(position) {
            Ok(false) => None,
            Ok(true) => Some(format!(
                "the server was in production without an election, on timeline {}",
                position.timeline
            )),
            Err(text) => {
                let (kind, position) = (NodeErrorKind::TimelineConflict, Some(position));
                self.fail(NodeError { kind, text: text.clone(), position, leader: None });
                Some(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Position = Position { timeline: 4, lsn: Lsn(0x100) };

    fn memory() -> HardState {
        HardState::new(ClusterId(1), 1, NodeId(2))
    }

    #[test]
    fn a_timeline_that_nobody_elected_is_noted_once() {
        let mut hard = HardState { rewind: RewindState::Done(Term(3)), ..memory() };
        assert_eq!(hard.own_up(HERE), Ok(true));
        let entry = TimelineEntry { term: Term(0), leader: NodeId(2), fork: Lsn(0x100) };
        assert_eq!(hard.timelines.get(&4), Some(&entry));
        assert_eq!(hard.rewind, RewindState::None);
        assert_eq!(hard.own_up(HERE), Ok(false));
    }

    #[test]
    fn what_cannot_be_reset_is_not_hidden_by_what_can() {
        use NodeErrorKind::*;
        let mut hard = memory();
        let mut fail =
            |kind| hard.fail(NodeError { kind, text: String::new(), position: None, leader: None });
        assert_eq!([WalRemoved, WalRemoved, WalShorter, Removed].map(&mut fail), [true, false, true, false]);
        assert_eq!([RecloneFailed, TimelineConflict, WalShorter].map(&mut fail), [false, true, false]);
        assert_eq!([Forgetful, Removed, TimelineConflict].map(&mut fail), [true, false, false]);
        assert_eq!(hard.error.map(|error| error.kind), Some(Forgetful));
    }

    #[test]
    fn a_server_that_is_no_member_yet_may_have_been_in_production() {
        let mut hard = memory();
        assert_eq!(hard.own_up_at_start(HERE), None);
        assert!(hard.timelines.is_empty());
        hard.term = Term(3);
        assert!(hard.own_up_at_start(HERE).is_some_and(|text| text.ends_with("on timeline 4")));
        assert_eq!((hard.own_up_at_start(HERE), hard.error), (None, None));
    }

    #[test]
    fn an_elected_leader_has_nothing_to_own_up_to() {
        let mut hard = memory();
        let entry = TimelineEntry { term: Term(4), leader: NodeId(2), fork: Lsn(0x80) };
        hard.timelines.insert(4, entry);
        assert_eq!(hard.own_up(HERE), Ok(false));
        assert_eq!(hard.timelines.get(&4), Some(&entry));
    }

    #[test]
    fn another_leaders_timeline_is_an_error_and_not_elected_here() {
        let mut hard = memory();
        hard.timelines.insert(4, TimelineEntry { term: Term(4), leader: NodeId(1), fork: Lsn(0x80) });
        assert!(hard.own_up(HERE).is_err_and(|text| text.ends_with("on timeline 4, which is node 1's")));
        assert_eq!(hard.timelines.get(&4).map(|entry| entry.term), Some(Term(0)));
    }
}
