//! A host of the model: disk, controller, server and the gate's word.

use biha_core::*;

use super::wal::Log;

/// What survives everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub hard: HardState,
    pub config: ClusterConfig,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    #[default]
    Down,
    Standby,
    Production,
    /// Shutting down: no backends, walsenders still send.
    Draining,
}

/// A commit whose client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Waiting {
    pub number: u64,
    /// Records up to its own.
    pub at: usize,
    /// Standbys that have flushed it, a bit each.
    pub flushed: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    pub log: Log,
    pub mode: Mode,
    /// primary_conninfo.
    pub receiver: Option<NodeId>,
    pub streaming: bool,
    pub no_walsenders: bool,
    pub waiting: Vec<Waiting>,
}

impl Server {
    pub fn status(&self) -> ServerStatus {
        let up = self.mode != Mode::Down;
        ServerStatus {
            production: self.mode == Mode::Production,
            consistent: up,
            streaming: self.streaming,
            checkpointed: self.mode == Mode::Production,
            hint: up.then(|| self.log.end()),
            ..ServerStatus::default()
        }
    }

    pub fn sends(&self) -> bool {
        self.mode != Mode::Down && !self.no_walsenders
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub id: NodeId,
    /// Counts the starts of the controller.
    pub life: u32,
    pub node: Option<Node>,
    pub disk: Disk,
    pub server: Server,
    /// The gate's word in shared memory, by this host's clock.
    pub gate: Millis,
    /// What the agent is doing; and until when, where it merely waits.
    pub order: Option<(OrderId, Order, Millis)>,
    pub told: ServerStatus,
    /// The disk as it was at the model's beginning, where a scenario puts it back.
    pub copy: Option<Box<Disk>>,
}

impl Host {
    pub fn new(id: NodeId, config: ClusterConfig) -> Self {
        Host {
            id,
            life: 0,
            node: None,
            disk: Disk { hard: HardState::new(ClusterId(1), 1, id), config },
            server: Server::default(),
            gate: 0,
            order: None,
            told: ServerStatus::default(),
            copy: None,
        }
    }

    pub fn term(&self) -> Term {
        self.disk.hard.term
    }

    pub fn state(&self) -> NodeState {
        self.node.as_ref().map_or(NodeState::Unknown, Node::state)
    }

    pub fn leads(&self) -> bool {
        self.state().is_leader()
    }
}
