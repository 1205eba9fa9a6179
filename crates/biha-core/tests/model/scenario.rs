//! What a cluster of the model consists of, and how much may happen to it.

use std::collections::{BTreeSet, VecDeque};

use biha_core::*;

use super::happen::Turn;
use super::host::Host;
use super::mutation::Mutation;
use super::shared::Shared;
use super::state::{Left, Seen, State};

/// ms that a slow and a fast clock show in an instant of 1000 ms: they differ by 10 %, which is what a lease is
/// shorter than a promise.
pub const SLOW: u64 = 950;
pub const FAST: u64 = 1050;

/// Which faults may happen.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub late: bool,
    pub twice: bool,
    pub crash: bool,
    pub kill: bool,
    pub isolate: bool,
    pub part: bool,
    pub freeze: bool,
    /// What was cut may be healed.
    pub heal: bool,
    pub early: bool,
    pub refuse: bool,
    pub split: bool,
    pub respawn: bool,
    pub promote: bool,
    /// To be put back to a copy of which everybody has met a later life.
    pub put_back: Option<NodeId>,
}

impl Faults {
    /// None of them.
    pub const NONE: Faults = Faults {
        late: false,
        twice: false,
        crash: false,
        kill: false,
        isolate: false,
        part: false,
        freeze: false,
        heal: false,
        early: false,
        refuse: false,
        split: false,
        respawn: false,
        promote: false,
        put_back: None,
    };
    /// Whole nodes and links fail, no single frame.
    pub const COARSE: Faults =
        Faults { kill: true, isolate: true, part: true, freeze: true, heal: true, ..Faults::NONE };
    /// What happens to nodes and networks.
    pub const USUAL: Faults = Faults { late: true, twice: true, crash: true, early: true, ..Faults::COARSE };
}

/// A cluster and its bounds.
#[derive(Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub config: ClusterConfig,
    pub options: Options,
    /// ms of each node's clock in an instant.
    pub rates: Vec<u64>,
    pub faults: Faults,
    pub left: Left,
    /// Given in this order, each once, at a node that leads.
    pub commands: Vec<Command>,
    /// Without: heartbeats promise nothing, and every server in production takes and acknowledges commits.
    pub leases: bool,
    /// Whoever waits for the end of a stream thinks at once that it has come.
    pub impatient: bool,
    /// Begins with nodes that have just been started, instead of a leader that all follow.
    pub cold: bool,
    /// What must be reachable.
    pub reaches: &'static [&'static str],
    pub mutation: Option<Mutation>,
    /// What has happened before the model begins.
    pub before: fn(&mut Turn),
}

impl Scenario {
    /// Nodes 1 to `count`; node 1 leads and its clock is slow, the others' are fast.
    pub fn new(name: &'static str, count: u32) -> Self {
        let settings = Settings {
            heartbeat_send_period: 667,
            heartbeat_max_lost: 3,
            sync_standbys: 1,
            ..Settings::default()
        };
        let members = (1..=count).map(|id| (NodeId(id), member(Mode::Regular))).collect();
        Scenario {
            name,
            config: ClusterConfig { members, settings, ..ClusterConfig::default() },
            options: Options { autorewind: true, autoreclone: false, trust_refused: false },
            rates: std::iter::once(SLOW).chain(std::iter::repeat(FAST)).take(count as usize).collect(),
            faults: Faults::USUAL,
            left: Left::default(),
            commands: Vec::new(),
            leases: true,
            impatient: false,
            cold: false,
            reaches: &[],
            mutation: None,
            before: |_| {},
        }
    }

    pub fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// A host's clock: off by its own amount, and running at its own rate.
    pub fn local(&self, id: NodeId, now: u32) -> Millis {
        1_000_000 * u64::from(id.0) + u64::from(now) * self.rates[id.0 as usize - 1]
    }

    /// A cluster that has elected node 1, which everybody follows, and then what the scenario says.
    pub fn beginning(&self) -> State {
        let hosts = self.config.members.keys().map(|id| Shared::new(Host::new(*id, self.config.clone())));
        let state = State {
            now: 0,
            hosts: hosts.collect(),
            queue: VecDeque::new(),
            late: Vec::new(),
            cut: BTreeSet::new(),
            frozen: None,
            left: Left { instants: 100, commits: 100, commands: self.commands.len() as u8, faults: 0 },
            seen: Shared::new(Seen::default()),
        };
        // What is taken out is taken out later: this must come to a good end.
        let whole = Scenario { mutation: self.mutation.filter(|m| m.remembers()), ..self.clone() };
        let mut turn = Turn::new(&whole, state);
        for id in turn.state.ids() {
            turn.start(id, None);
        }
        if !self.cold {
            turn.run_until(|turn| turn.steady());
        }
        for id in turn.state.ids() {
            let host = turn.state.host_mut(id);
            host.copy = Some(Box::new((host.disk.clone(), host.server.log.clone())));
        }
        (self.before)(&mut turn);
        turn.state.left = Left { commands: turn.state.left.commands, ..self.left };
        turn.state
    }
}

impl Turn<'_> {
    /// The undisturbed course of things, until something is so.
    pub fn run_until(&mut self, done: impl Fn(&Turn) -> bool) {
        while !done(self) {
            assert!(self.state.left.instants > 0, "{}: it never comes to that", self.model.name);
            self.next();
        }
    }

    /// What comes next, undisturbed.
    pub fn next(&mut self) {
        match self.state.take_head() {
            Some(item) => self.happen(item),
            None => self.time_passes(),
        }
    }

    /// The scenario's next command is given at this node.
    pub fn command(&mut self, id: NodeId) {
        let place = self.model.commands.len() - self.state.left.commands as usize;
        self.state.left.commands -= 1;
        self.step(id, Input::Command(place as RequestId, self.model.commands[place].clone()));
    }

    pub fn isolate(&mut self, id: NodeId) {
        for peer in self.state.ids() {
            self.cut(id, peer);
        }
    }

    /// One node takes writes, everybody else streams, nothing is under way.
    pub fn steady(&self) -> bool {
        let open = self.state.open_gates(self.model) == 1;
        let all_stream = self.state.hosts.iter().all(|h| {
            let referee = self.model.config.members.get(&h.id).is_some_and(|m| m.mode == Mode::Referee);
            referee || h.leads() || h.server.streaming
        });
        open && all_stream && self.state.queue.is_empty()
    }
}

/// A member that nobody connects to.
pub fn member(mode: Mode) -> Member {
    Member {
        host: "h".to_owned(),
        port: 1,
        biha_port: 2,
        mode,
        can_be_leader: true,
        can_vote: true,
        priority: -1,
        joining: false,
    }
}
