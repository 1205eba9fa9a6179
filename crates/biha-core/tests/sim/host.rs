//! A host: disk, clock, controller and server; how they start, stop, crash and freeze.

use std::collections::BTreeMap;

use biha_core::*;

use super::disk::Writing;
use super::mutation::OUTLIVES;
use super::{
    After, CRASH_RESTART, Cluster, Disk, LATENCY, Log, Mutation, RETRY_CONNECT, REWIND, Rule, START, Server,
    ServerMode, What, say,
};

/// A clock that is off and does not run alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub offset: Millis,
    /// Parts per million by which it runs fast.
    pub ppm: i64,
    /// It stands while its host is frozen.
    pub pauses: bool,
}

impl Clock {
    pub fn local(&self, real: Millis) -> Millis {
        let drift = real as i64 * self.ppm / 1_000_000;
        (self.offset as i64 + real as i64 + drift) as Millis
    }

    /// The first moment at which this clock shows at least `local`.
    pub fn real(&self, local: Millis) -> Millis {
        let since = local.saturating_sub(self.offset) as i128;
        let mut real = (since * 1_000_000 / i128::from(1_000_000 + self.ppm)) as Millis;
        while self.local(real) < local {
            real += 1;
        }
        real
    }
}

#[derive(Debug)]
pub struct Host {
    pub id: NodeId,
    pub controller: Option<Node>,
    /// Counts the starts of the controller in this simulation.
    pub life: u64,
    pub power: bool,
    pub server: Server,
    pub disk: Disk,
    pub clock: Clock,
    pub options: Options,
    /// The gate's word in shared memory, by this host's clock.
    pub gate: Millis,
    /// Nothing runs on this host.
    pub frozen: bool,
    pub frozen_since: Millis,
    /// Only the controller does not run.
    pub stalled: bool,
    /// The controller waits for its disk.
    pub writing: Option<Writing>,
    pub backlog: Vec<What>,
    pub order: Option<(OrderId, Order)>,
    /// How many standbys a commit waits for, and whose flushes are counted: the names that the server has read.
    pub synchronous: (usize, Vec<NodeId>),
    /// The names that it has not read yet.
    pub names: Option<Vec<NodeId>>,
    pub told: ServerStatus,
    pub tick_at: Millis,
    pub traced: Option<(NodeState, Term)>,
    pub replies: Vec<(RequestId, CommandResult)>,
    /// An operator stopped it: a pending restart does not start it again.
    pub stopped: bool,
    /// Its server goes on without a controller, the gate as it was. In a mutation only.
    pub ghost: bool,
    /// The controller is not told that its server is in production. In a mutation only.
    pub hides_production: bool,
    /// Last words of others. In a mutation only.
    pub goodbyes: BTreeMap<NodeId, Goodbye>,
}

impl Host {
    pub fn new(id: NodeId, config: ClusterConfig, options: Options) -> Self {
        Host {
            id,
            controller: None,
            life: 0,
            power: true,
            server: Server::default(),
            disk: Disk::new(id, config),
            clock: Clock::default(),
            options,
            gate: 0,
            frozen: false,
            frozen_since: 0,
            stalled: false,
            writing: None,
            backlog: Vec::new(),
            order: None,
            synchronous: (0, Vec::new()),
            names: None,
            told: ServerStatus::default(),
            tick_at: Millis::MAX,
            traced: None,
            replies: Vec::new(),
            stopped: false,
            ghost: false,
            hides_production: false,
            goodbyes: BTreeMap::new(),
        }
    }

    /// Would a commit pass at this moment?
    pub fn gate_open(&self, now: Millis) -> bool {
        (self.controller.is_some() || self.ghost)
            && self.server.mode == ServerMode::Production
            && !self.frozen
            && self.clock.local(now) < self.gate
    }

    /// The controller runs: it sees what the server does.
    pub fn watched(&self) -> bool {
        self.controller.is_some() && !self.frozen && !self.hangs()
    }

    /// The controller does not run, though the host does.
    pub fn hangs(&self) -> bool {
        self.stalled || self.writing.is_some()
    }

    pub fn state(&self) -> Option<NodeState> {
        self.controller.as_ref().map(Node::state)
    }
}

impl Cluster {
    /// Starts controller and server.
    pub fn start(&mut self, id: NodeId, rewind: Option<NodeId>) {
        let rewound = rewind.map(|source| self.rewind(id, source));
        let now = self.now;
        let seed = self.rng.below(u64::MAX);
        let host = self.host_mut(id);
        if !host.power || host.controller.is_some() || host.server.mode != ServerMode::Down {
            return;
        }
        if self.cannot_own_up(id) {
            let life = self.host(id).life;
            self.after(CRASH_RESTART, What::Start(id, life, None));
            return;
        }
        let hard = self.remembered(id);
        if self.host(id).disk.lost {
            say!(self, id, "does not start: its state file is torn or gone");
            return;
        }
        self.check_memory(id);
        let host = self.host_mut(id);
        host.life += 1;
        host.gate = 0;
        host.order = None;
        host.names = None;
        host.told = ServerStatus::default();
        host.tick_at = Millis::MAX;
        host.traced = None;
        host.hides_production = false;
        host.server.start();
        let local = host.clock.local(now);
        let config = host.disk.config.clone();
        let (node, outputs) = Node::new(local, seed, hard, config, host.options, rewound);
        host.controller = Some(node);
        let life = host.life;
        self.fingerprint.add(&(now, id, &outputs));
        self.perform(id, outputs);
        self.settle(id);
        let recovery = match self.chaos.slow_start {
            0 => 0,
            most => self.rng.below(most),
        };
        self.after(START + recovery, What::Up(id, life));
        self.reconnect(id);
    }

    /// What the postmaster does before recovery begins. The server does not start where that fails.
    fn cannot_own_up(&mut self, id: NodeId) -> bool {
        let forgets = self.mutated(Mutation::PromotionForgotten);
        let host = self.host_mut(id);
        if !host.server.was_primary || host.disk.lost || forgets {
            return false;
        }
        let mut hard = host.disk.hard.clone();
        let (full, position) = (host.disk.full, host.server.log.end());
        let Some(text) = hard.own_up_at_start(position) else { return false };
        if !self.promoted_by_hand {
            self.checks.violation(Rule::Node, format!("n{id} was elected, but says: {text}"));
        }
        if full {
            say!(self, id, "does not start: no space is left on the device");
            return true;
        }
        self.host_mut(id).disk.hard = hard;
        say!(self, id, "starts: {text}");
        false
    }

    fn rewind(&mut self, id: NodeId, source: NodeId) -> Result<Mended, Hindrance> {
        let from = self.host(source);
        let ready = from.power && !from.frozen && from.server.mode == ServerMode::Production;
        if !ready || !self.net.open(id, source) {
            return Err(Hindrance { text: "could not connect to the source".to_owned(), passing: true });
        }
        let (log, checkpointed) = (from.server.log.clone(), from.server.checkpointed);
        let copies = self.host(id).disk.hard.rewind == RewindState::Recloning;
        if !copies && !checkpointed {
            // PostgreSQL 15 compares control files: "no rewind required".
            say!(self, id, "is not rewound against n{source}, which made no checkpoint");
            return Ok(Mended::Rewound);
        }
        if !copies && let Err(text) = self.host(id).server.log.can_be_rewound(&log) {
            let own = (id, &self.hosts[&id].server.log);
            let text = format!("n{id} is rewound against n{source}: {text}");
            self.checks.mixed(own, (source, &log), text);
        }
        let server = &mut self.hosts.get_mut(&id).expect("a known host").server;
        server.log.rewind(&log);
        server.consistent_from = log.records.len();
        server.was_primary = false;
        if self.chaos.torn_wal && self.rng.one_in(2) {
            // The rest comes by streaming; until then recovery is not consistent.
            let common = log.history.last().map_or(0, |e| log.records_until(e.fork)) + 1;
            let keep = common + self.rng.below((log.records.len() - common + 1) as u64) as usize;
            self.host_mut(id).server.log.truncate(keep);
        }
        if copies {
            say!(self, id, "copied from n{source}");
            return Ok(Mended::Copied);
        }
        say!(self, id, "rewound against n{source}");
        Ok(Mended::Rewound)
    }

    pub(super) fn up(&mut self, id: NodeId, life: u64) {
        let host = self.host_mut(id);
        if host.life == life && host.server.mode == ServerMode::Starting {
            host.server.mode = ServerMode::Standby;
            self.poke(id);
        }
    }

    /// The controller is gone; the kernel closes its connections.
    pub(super) fn controller_gone(&mut self, id: NodeId) {
        self.write_interrupted(id);
        let host = self.host_mut(id);
        let life = host.life;
        host.controller = None;
        host.order = None;
        host.traced = None;
        (host.frozen, host.stalled) = (false, false);
        host.backlog.clear();
        if !host.power {
            return;
        }
        for peer in self.ids() {
            let connected = self.net.connected((id, life), (peer, self.host(peer).life));
            if peer != id && connected && self.net.passes(id, peer) {
                self.net.drop_connection(id, peer);
                self.after(LATENCY, What::Lost(peer, id, Disconnect::Closed));
                self.dial(peer, id, RETRY_CONNECT);
            }
        }
    }

    /// The controller process is killed: a crash restart brings both back.
    pub fn kill_controller(&mut self, id: NodeId) {
        if self.host(id).controller.is_none() || self.host(id).frozen {
            return;
        }
        self.controller_gone(id);
        self.server_gone(id);
        let life = self.host(id).life;
        self.after(CRASH_RESTART, What::Start(id, life, None));
    }

    /// The postmaster is killed: the controller says its last word and ends.
    pub fn kill_postmaster(&mut self, id: NodeId) {
        if self.host(id).frozen || self.host(id).hangs() || self.host(id).ghost {
            return;
        }
        let host = self.host_mut(id);
        host.stopped = true;
        let (gate, life) = (host.gate, host.life);
        self.step(id, Input::Stop(Goodbye::PostmasterDied));
        self.controller_gone(id);
        if self.mutated(Mutation::GateAfterGoodbye) && self.host(id).server.mode == ServerMode::Production {
            let host = self.host_mut(id);
            (host.ghost, host.gate) = (true, gate);
            self.after(OUTLIVES, What::Exit(id, life, 0, After::Stay));
            return;
        }
        self.server_gone(id);
    }

    /// Power is lost: nobody is told.
    pub fn kill_host(&mut self, id: NodeId) {
        let host = self.host_mut(id);
        host.power = false;
        host.stopped = true;
        self.controller_gone(id);
        self.server_gone(id);
        if self.chaos.torn_wal {
            let log = &self.host(id).server.log;
            let (safe, all) = (self.host(id).server.on_disk, log.records.len());
            let keep = safe + self.rng.below((all - safe.min(all) + 1) as u64) as usize;
            if keep < all {
                say!(self, id, "loses {} records that were not on disk", all - keep);
                self.host_mut(id).server.log.truncate(keep);
            }
        }
    }

    /// The operator starts the node (again).
    pub fn boot(&mut self, id: NodeId) {
        let host = self.host_mut(id);
        host.power = true;
        host.stopped = false;
        self.start(id, None);
        for peer in self.ids() {
            if peer != id && self.net.open(id, peer) {
                self.healed(id, peer);
            }
        }
    }

    /// The operator makes the node anew: a base backup of `like` and its configuration, an empty memory.
    pub fn renew(&mut self, id: NodeId, like: NodeId) {
        let from = self.host(like);
        let (config, log) = (from.disk.config.clone(), from.server.log.clone());
        let host = self.host_mut(id);
        host.disk.config = config;
        host.disk.renew();
        host.server = Server { log, ..Server::default() };
        say!(self, id, "is made anew from n{like}");
        self.checks.forget_notes(id);
    }

    /// The operator stops the node.
    pub fn stop(&mut self, id: NodeId) {
        let host = self.host(id);
        if host.controller.is_none() || host.frozen || host.hangs() {
            return;
        }
        self.host_mut(id).stopped = true;
        self.begin_exit(id, true, After::Stay);
    }

    pub(super) fn exit(&mut self, id: NodeId, life: u64, until: Millis, after: After) {
        if self.host(id).life != life || self.host(id).server.mode == ServerMode::Down {
            return;
        }
        if self.now < until && !self.drained(id) {
            self.after(5, What::Exit(id, life, until, after));
            return;
        }
        self.server_gone(id);
        if let After::Start(rewind) = after
            && !self.host(id).stopped
        {
            let takes = if rewind.is_some() { REWIND } else { super::RESTART };
            self.after(takes, What::Start(id, life, rewind));
        }
    }

    /// Nothing runs on the host any more; its clock goes on.
    pub fn freeze(&mut self, id: NodeId) {
        let now = self.now;
        let host = self.host_mut(id);
        if host.controller.is_some() && !host.frozen {
            host.frozen = true;
            host.frozen_since = now;
        }
    }

    /// The controller alone does not run any more.
    pub fn stall(&mut self, id: NodeId) {
        let host = self.host_mut(id);
        host.stalled = host.controller.is_some();
    }

    pub fn thaw(&mut self, id: NodeId) {
        let now = self.now;
        let host = self.host_mut(id);
        if host.frozen && host.clock.pauses {
            let slept = (now - host.frozen_since).min(host.clock.offset);
            host.clock.offset -= slept;
        }
        host.frozen = false;
        host.stalled = false;
        self.checks.gates_changed = true;
        self.check_gates();
        self.catch_up(id);
        for peer in self.ids() {
            if peer != id {
                self.dial(peer, id, 1);
                self.after(1, What::Pull(peer));
            }
        }
        self.poke(id);
    }

    /// What happened meanwhile happens now.
    pub(super) fn catch_up(&mut self, id: NodeId) {
        for what in std::mem::take(&mut self.host_mut(id).backlog) {
            self.after(0, what);
        }
    }
}
