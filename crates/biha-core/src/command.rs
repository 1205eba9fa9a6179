//! What users ask of the cluster, and what comes of it.

use serde::{Deserialize, Serialize};

use crate::{Lossless, Member, NodeId};

/// Number of a request at the node where it was given; unique within the node's incarnation.
pub type RequestId = u64;

/// A user's command. All but [`Command::ResetNodeError`] and [`Command::Reclone`] are carried out by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Command {
    /// Make this node the leader.
    SetLeader(NodeId),
    /// Add a member; it is no voter until it streams.
    AddNode(NodeId, Member),
    /// Remove a member.
    RemoveNode(NodeId),
    /// Change common settings.
    Set(Vec<Setting>),
    /// Change one member.
    SetMember(NodeId, MemberSetting),
    /// Leave NODE_ERROR. Carried out where it was given.
    ResetNodeError,
    /// Copy the leader anew, in NODE_ERROR. Carried out where it was given.
    Reclone,
}

/// One change of a common setting. Times in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Setting {
    /// See [`crate::Settings::heartbeat_send_period`].
    HeartbeatSendPeriod(u32),
    /// See [`crate::Settings::heartbeat_max_lost`].
    HeartbeatMaxLost(u32),
    /// See [`crate::Settings::nquorum`]; `None` returns to the majority.
    Nquorum(Option<u32>),
    /// See [`crate::Settings::minnodes`]; `None` returns to the quorum.
    Minnodes(Option<u32>),
    /// See [`crate::Settings::no_wal_on_follower`].
    NoWalOnFollower(u32),
    /// See [`crate::Settings::sync_standbys`].
    SyncStandbys(u32),
    /// See [`crate::Settings::sync_standbys_min`].
    SyncStandbysMin(i32),
    /// See [`crate::Settings::lossless`].
    Lossless(Lossless),
}

/// One change of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberSetting {
    /// See [`Member::can_be_leader`].
    CanBeLeader(bool),
    /// See [`Member::can_vote`].
    CanVote(bool),
    /// See [`Member::priority`].
    Priority(i32),
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum CommandError {
    /// No leader is known; nothing was changed.
    #[error("the cluster has no leader now")]
    NoLeader,
    /// Another change or hand-over is going on; nothing was changed.
    #[error("another change is in progress")]
    Busy,
    /// The request makes no sense as things are; nothing was changed.
    #[error("{text}")]
    Invalid {
        /// What is wrong.
        text: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// It was begun and then given up; nothing was changed.
    #[error("{0}")]
    Failed(String),
    /// It was begun and the outcome is not known: it may still take effect.
    #[error("the outcome is not known")]
    Unknown,
}

/// What came of a command.
pub type CommandResult = Result<(), CommandError>;
