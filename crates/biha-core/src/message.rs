//! What nodes say to each other. The wire format of these types is [`crate::wire`]'s; field and variant
//! order is part of it, so any change here is a new protocol version.

use serde::{Deserialize, Serialize};

use crate::command::{Command, CommandResult, RequestId};
use crate::config::{ClusterConfig, ConfigVersion};
use crate::event::EventRecord;
use crate::hardstate::Met;
use crate::{ClusterId, Incarnation, Lsn, Millis, NodeId, Position, Term, Timeline};

/// A message with what everything a node says carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The life of the sender that said it.
    pub incarnation: Incarnation,
    /// Drawn at random for that life.
    pub tag: u32,
    /// The sender's current term.
    pub term: Term,
    /// The sender's vote in that term.
    pub voted_for: Option<NodeId>,
    /// What is said.
    pub message: Message,
}

impl Envelope {
    /// What it says of its sender's memory.
    pub fn memory(&self) -> Met {
        Met { incarnation: self.incarnation, tag: self.tag, term: self.term, voted_for: self.voted_for }
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// First word on every new connection, from both sides.
    Hello(Hello),
    /// Leader to all: I lead in this term.
    Heartbeat(Box<Heartbeat>),
    /// Answer to a heartbeat.
    HeartbeatAck(HeartbeatAck),
    /// Would you vote for me? Raises no term (Ongaro 2014, §9.6).
    PreVote(VoteRequest),
    /// Answer to a pre-vote.
    PreVoteReply(VoteReply),
    /// Vote for me.
    Vote(VoteRequest),
    /// Answer to a vote request.
    VoteReply(VoteReply),
    /// Last word of a controller.
    Goodbye(Goodbye),
    /// A configuration the receiver may lack.
    Config(Box<ClusterConfig>),
    /// A user's command for the leader, from the node where it was given.
    Forward {
        /// Number of the request at the sender.
        request: RequestId,
        /// The command.
        command: Command,
    },
    /// The leader's answer to [`Message::Forward`].
    ForwardReply {
        /// Number of the request at the receiver.
        request: RequestId,
        /// What came of it.
        result: CommandResult,
    },
    /// Something worth remembering happened at the sender.
    Event(Box<EventRecord>),
    /// You have said this before, and do not remember it: you are not the node that you were.
    Refused(Met),
}

/// First word on a connection. A hello of another incarnation than the one that led *is* the proof that
/// the old one is dead and its gate shut.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the sender's configuration.
    pub config: ConfigVersion,
    /// What the sender is.
    pub state: NodeState,
}

/// The states a DBA sees (`biha.status_v`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// The controller has started, the server has not said anything yet.
    PreStartup,
    /// Local WAL is being replayed; the position is unknown.
    Startup,
    /// No leader known since the start.
    Forming,
    /// A leader was heard; the node checks whether it can follow, or rewinds.
    FollowerOffered,
    /// Follows the leader.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Elected, not writable.
    LeaderRo,
    /// Elected and writable.
    LeaderRw,
    /// Votes only.
    Referee,
    /// Stopped until an operator or a rewind mends it.
    NodeError,
    /// Not heard from.
    Unknown,
}

impl NodeState {
    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::PreStartup => "PRESTARTUP",
            NodeState::Startup => "STARTUP",
            NodeState::Forming => "CSTATE_FORMING",
            NodeState::FollowerOffered => "FOLLOWER_OFFERED",
            NodeState::Follower => "FOLLOWER",
            NodeState::Candidate => "CANDIDATE",
            NodeState::LeaderRo => "LEADER_RO",
            NodeState::LeaderRw => "LEADER_RW",
            NodeState::Referee => "REFEREE",
            NodeState::NodeError => "NODE_ERROR",
            NodeState::Unknown => "UNKNOWN",
        }
    }

    /// Is this one of the two leader states?
    pub fn is_leader(self) -> bool {
        matches!(self, NodeState::LeaderRo | NodeState::LeaderRw)
    }
}

/// A hand-over in the making. The number is raised at each begin and each cancel; a voter honours the
/// exemption from stickiness only for the number it now knows for the term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Handover {
    /// Counts begins and cancels within a term.
    pub number: u32,
    /// The node that is to lead next; `None` when no hand-over is going on.
    pub target: Option<NodeId>,
}

/// One step of a timeline history: the timeline and where it begins (0 for the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The timeline.
    pub timeline: Timeline,
    /// Where it left the one before it.
    pub fork: Lsn,
}

/// The leader's view of one member, carried to all so that every node can show it and knows who stands first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerView {
    /// The member.
    pub id: NodeId,
    /// What it said it is.
    pub state: NodeState,
    /// Heard from within the election timeout.
    pub online: bool,
    /// How long ago it was heard, in ms.
    pub since_heard: Millis,
    /// The end of its WAL as it last said.
    pub position: Option<Position>,
}

/// Leader to all members, once a period.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts this leader's heartbeat rounds within (term, incarnation).
    pub seq: u64,
    /// Whoever receives this will not vote or stand against the sender for so many ms from receipt.
    pub promise: Millis,
    /// The hand-over now going on.
    pub handover: Handover,
    /// Version of the leader's configuration.
    pub config: ConfigVersion,
    /// LEADER_RO or LEADER_RW.
    pub state: NodeState,
    /// The leader's timeline history, oldest first; empty until it has promoted.
    pub history: Vec<HistoryEntry>,
    /// Who was elected to open the timelines of that history, oldest first, as far as the leader knows.
    pub openers: Vec<(Timeline, NodeId)>,
    /// A node may rewind against the leader now.
    pub rewind_ready: bool,
    /// Start of the oldest WAL that the leader still has; 0 if not known.
    pub oldest_wal: Lsn,
    /// End of the leader's WAL.
    pub position: Option<Position>,
    /// The leader's view of the members.
    pub peers: Vec<PeerView>,
}

/// Answer to a heartbeat; also tells the leader how the sender is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The heartbeat's number.
    pub seq: u64,
    /// The leader's incarnation that sent it.
    pub leader_incarnation: Incarnation,
    /// The hand-over number it carried.
    pub handover: u32,
    /// Version of the newest configuration on the sender's disk.
    pub config: ConfigVersion,
    /// What the sender is.
    pub state: NodeState,
    /// End of the sender's WAL as far as known without stopping it.
    pub position: Option<Position>,
    /// Streams from the leader it answers, and its disks take writes: it could take over.
    pub streaming: bool,
}

/// Asks for a vote or a pre-vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoteRequest {
    /// The term asked for.
    pub term: Term,
    /// The candidate's position.
    pub position: Position,
    /// Version of the candidate's configuration.
    pub config: ConfigVersion,
    /// Number of the hand-over that names this candidate, if it stands because of one.
    pub handover: Option<u32>,
}

/// Answers a [`VoteRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoteReply {
    /// The term asked for.
    pub term: Term,
    /// `None` is yes.
    pub refusal: Option<Refusal>,
    /// The voter's position, if it has one and knows it.
    pub position: Option<Position>,
    /// Highest term or timeline number the voter knows of.
    pub known: Term,
    /// Term of the newest leader that the voter has heard since it started, if that does not hand over to another node.
    pub led: Option<Term>,
}

/// Why a vote was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The voter still hears a leader; it may ask again after so many ms.
    LeaderAlive(Millis),
    /// The voter was started a moment ago and keeps the promises of its former life for so many ms.
    Silent(Millis),
    /// The voter's WAL goes further than the candidate's.
    PositionBehind,
    /// The voter's configuration is newer (it follows in a message of its own).
    ConfigOlder,
    /// The voter has voted for another in this term.
    AlreadyVoted,
    /// The voter knows a term or timeline number that is not below the one asked for.
    TermTooLow,
    /// The voter's server is in production: it must become a standby first.
    InProduction,
    /// The voter does not know its own position yet, or must rewind, or is in NODE_ERROR.
    NotReady,
    /// The voter does not count the candidate as electable.
    NotElectable,
    /// The voter stands itself, and its turn is before the candidate's. Pre-votes only, and not for long.
    Outranked,
}

/// Why a controller says its last word. All of them mean: the gate of this incarnation is shut for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Goodbye {
    /// The postmaster is dead; WAL may be missing at the receiver.
    PostmasterDied,
    /// A clean stop or restart: the WAL stream will end with a shutdown checkpoint.
    CleanStop,
    /// The controller itself gives up (an error it cannot live with).
    Fault,
}
