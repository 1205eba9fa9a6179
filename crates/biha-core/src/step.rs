//! The core's doors: what goes in, what comes out.
//!
//! [`Output`]s are carried out in order, and the order is the durability rule: nothing after a
//! [`Output::Persist`] or [`Output::PersistConfig`] is done before that write is on disk. A write that
//! fails ends the process.

use crate::command::{Command, CommandResult, RequestId};
use crate::config::ClusterConfig;
use crate::event::{Event, EventRecord};
use crate::hardstate::HardState;
use crate::message::{Envelope, Goodbye, HistoryEntry};
use serde::{Deserialize, Serialize};

use crate::{Lsn, Millis, NodeId, Position, Timeline};

/// What can happen to a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A message of an authenticated peer.
    Message(Envelope),
    /// The connection to a peer ended.
    Disconnected(NodeId, Disconnect),
    /// What the server looks like now.
    Server(ServerStatus),
    /// An order was carried out, or not.
    Done(OrderId, OrderResult),
    /// A user's command, given at this node.
    Command(RequestId, Command),
    /// The server is being stopped or restarted; the controller must end soon.
    Stop(Goodbye),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disconnect {
    /// Closed or reset by the other side, or given up.
    Closed,
    /// An attempt to connect was refused by the host: weaker than a word from the node itself.
    Refused,
}

/// What the local server looks like; read before each input, since a step may have changed what `synced` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ServerStatus {
    /// Out of recovery: takes part as a primary.
    pub production: bool,
    /// Recovery has reached a consistent state (hot standby is open), or the server is in production.
    pub consistent: bool,
    /// The WAL receiver is streaming.
    pub streaming: bool,
    /// In production: a checkpoint has been made on the present timeline, so that pg_rewind reads a current
    /// control file (PostgreSQL 15 reads nothing else).
    pub checkpointed: bool,
    /// A disk of this node takes no writes, or has not for `biha.watchdog_timeout`, or is nearly full.
    pub sick: bool,
    /// In production: start of the oldest WAL that is still there; 0 if not known.
    pub oldest_wal: Lsn,
    /// In production: as many standbys as `sync_standbys` says have flushed the WAL up to here; 0 if there are
    /// fewer.
    pub synced: Lsn,
    /// In production: PostgreSQL may still count a standby as synchronous that does not count any more.
    pub counts_others: bool,
    /// In recovery: where the control file will say that the WAL ends once the server is stopped. What lies beyond was
    /// not replayed, and pg_rewind does not see it (`minRecoveryPoint`; pg_rewind.c).
    pub end_on_file: Lsn,
    /// In recovery: the timeline that was last asked for, of whatever leader; 0 if none was.
    pub asked: Timeline,
    /// End of WAL as far as known without stopping anything; good for showing and ranking only.
    pub hint: Option<Position>,
}

/// Names an order, for all lives of a node; a newer order cancels an older one that only waits.
pub type OrderId = u64;

/// Work on the server, done by the agent, one order at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Order {
    /// Stop receiving WAL, durably, and read the position. Answer: [`OrderResult::Stopped`].
    StopReceiving,
    /// Stream from this leader. Answer: [`OrderResult::Done`] when the settings are in force.
    Follow {
        /// The leader.
        leader: NodeId,
    },
    /// Wait until the WAL stream has ended with a shutdown checkpoint, or so many ms have passed, then do as
    /// [`Order::StopReceiving`].
    AwaitEnd {
        /// How long to wait at most.
        timeout: Millis,
    },
    /// Make a checkpoint, so that the one at shutdown is short; refuse if the server would not start again
    /// with its present files. Answer: [`OrderResult::Done`] or [`OrderResult::Failed`].
    PrepareHandover,
    /// Open this timeline. Answer: [`OrderResult::Promoted`].
    Promote {
        /// The number of the new timeline: the term.
        timeline: Timeline,
        /// The first number that needs a placeholder history file.
        first_placeholder: Timeline,
    },
    /// Stop the server and start it again in place, as a standby.
    Restart {
        /// Rewind against this node in between.
        rewind: Option<NodeId>,
        /// Let the followers receive everything, the shutdown checkpoint included (a hand-over). Otherwise all
        /// walsenders are ended first, so that none can hold the shutdown up.
        drain: bool,
    },
    /// Stop the server and start it again in place, as a standby, with a new copy of the leader's data.
    Reclone {
        /// The leader.
        leader: NodeId,
        /// Where the WAL of this node ends, which it is to keep as far as the leader has not got it.
        end: Position,
    },
    /// End all walsenders: nobody shall receive from this fenced leader.
    EndWalsenders,
}

impl Order {
    /// It merely waits for something: a newer order ends it.
    pub(crate) fn may_be_replaced(&self) -> bool {
        matches!(self, Order::AwaitEnd { .. } | Order::PrepareHandover)
    }
}

/// What came of an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OrderResult {
    /// Done.
    Done,
    /// No WAL is being received any more, nor will be.
    Stopped {
        /// Where the WAL ends.
        position: Position,
        /// The last record is a shutdown checkpoint: the stream is complete.
        complete: bool,
        /// Highest timeline number with a history file in pg_wal, or the own one.
        max_timeline: Timeline,
    },
    /// The server is in production on the new timeline.
    Promoted {
        /// Its history, oldest first, the new timeline last.
        history: Vec<HistoryEntry>,
    },
    /// It could not be done.
    Failed(String),
}

/// What a node wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Write the hard state to disk before going on.
    Persist(Box<HardState>),
    /// Write the configuration to disk before going on.
    PersistConfig(Box<ClusterConfig>),
    /// Send a message; may be lost.
    Send(Box<Envelope>),
    /// Commits may pass until this moment (CLOCK_BOOTTIME ms); 0 shuts the gate.
    Gate(Millis),
    /// Give the agent an order.
    Order(OrderId, Order),
    /// Answer a user's command.
    Reply(RequestId, CommandResult),
    /// Remember this, and tell the others.
    Event(Event),
    /// Remember what another node told.
    Remember(Box<EventRecord>),
}
