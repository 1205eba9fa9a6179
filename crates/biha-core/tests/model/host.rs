//! A host of the model: disk, controller, server and the gate's word.

use std::collections::BTreeMap;

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
    /// End of its record.
    pub end: Lsn,
    /// The timeline it is on: the term of the leader that took it.
    pub timeline: Timeline,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    pub log: Log,
    pub mode: Mode,
    /// primary_conninfo.
    pub receiver: Option<NodeId>,
    /// The last one that was not empty.
    pub received_from: Option<NodeId>,
    pub streaming: bool,
    pub no_walsenders: bool,
    pub waiting: Vec<Waiting>,
    /// How far standbys have flushed what they received from here.
    pub flushed: BTreeMap<NodeId, Lsn>,
}

impl Server {
    /// So many of these standbys have flushed the WAL up to here.
    pub fn synced(&self, standbys: &[NodeId], count: usize) -> Lsn {
        let mut ends: Vec<Lsn> = standbys.iter().filter_map(|id| self.flushed.get(id).copied()).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        count.checked_sub(1).map_or(Lsn(u64::MAX), |at| ends.get(at).copied().unwrap_or_default())
    }

    pub fn status(&self) -> ServerStatus {
        let up = self.mode != Mode::Down;
        ServerStatus {
            production: self.mode == Mode::Production,
            consistent: up,
            end_on_file: self.log.end().lsn,
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
    /// The newest life heard of each peer, as the transport knows it.
    pub met: BTreeMap<NodeId, Incarnation>,
    /// State files and WAL as they were at the beginning.
    pub copy: Option<Box<(Disk, Log)>>,
    /// What a mutation remembers: the gate's word, or the hand-over, of before.
    pub word_before: Millis,
    pub handover_before: Option<Handover>,
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
            met: BTreeMap::new(),
            copy: None,
            word_before: 0,
            handover_before: None,
        }
    }

    pub fn term(&self) -> Term {
        self.disk.hard.term
    }

    /// How far enough synchronous standbys have flushed, by the configuration that the node uses.
    pub fn synced(&self) -> Lsn {
        let Some(node) = &self.node else { return Lsn(0) };
        if self.server.mode != Mode::Production || self.server.flushed.is_empty() {
            return Lsn(0);
        }
        let count = node.config().settings.sync_standbys as usize;
        self.server.synced(&node.view().synchronous, count)
    }

    pub fn state(&self) -> NodeState {
        self.node.as_ref().map_or(NodeState::Unknown, Node::state)
    }

    /// For people: id.life, state, term, end of WAL, and whether the gate's word lies ahead.
    pub fn summary(&self, local: Millis) -> String {
        let open = if self.gate > local { " open" } else { "" };
        let server = match self.server.mode {
            Mode::Standby => "",
            Mode::Production => " production",
            Mode::Draining => " draining",
            Mode::Down => " down",
        };
        let state = self.state().name();
        format!("n{}.{} {state} {} {}{server}{open}", self.id, self.life, self.term(), self.server.log.end())
    }

    pub fn leads(&self) -> bool {
        self.state().is_leader()
    }
}
