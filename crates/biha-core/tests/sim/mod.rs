//! A deterministic cluster in one process: the real core, simulated clocks, network, disks and servers.
//!
//! Everything happens in one queue of events, ordered by the true time; each host reads its own clock. The
//! same seed gives the same run.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod check;
mod host;
mod net;
mod server;
mod wal;

use std::collections::BTreeMap;

use biha_core::*;

pub use check::Checks;
pub use host::{Clock, Disk, Host};
pub use net::Net;
pub use server::{Mode as ServerMode, Server};
pub use wal::{Kind, Log};

/// How long each thing takes, in ms.
pub const LATENCY: Millis = 1;
const START: Millis = 80;
const RESTART: Millis = 60;
const CRASH_RESTART: Millis = 40;
const REWIND: Millis = 300;
const CHECKPOINT: Millis = 200;
const RETRY_PULL: Millis = 100;
const RETRY_CONNECT: Millis = 20;
const DRAIN: Millis = 1000;

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum What {
    Deliver(u64, Box<Envelope>),
    Lost(NodeId, NodeId, Disconnect),
    Tick(NodeId),
    Connect(NodeId, NodeId),
    Pull(NodeId),
    Agent(NodeId, u64, OrderId),
    AwaitEnds(NodeId, u64, OrderId),
    Up(NodeId, u64),
    Start(NodeId, u64, Option<NodeId>),
    Checkpointed(NodeId, u64),
    Exit(NodeId, u64, Millis, After),
}

/// What follows the end of a server.
#[derive(Clone, Copy, Debug)]
pub enum After {
    Stay,
    Start(Option<NodeId>),
}

/// Disorder, while it is on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chaos {
    /// Of 1000 messages, so many are lost.
    pub loss: u64,
    /// Of 1000 messages, so many arrive twice.
    pub duplicates: u64,
    /// Messages are late by up to so many ms, each by its own delay.
    pub jitter: Millis,
    /// Of 1000 orders, so many fail; and they take longer.
    pub failing_orders: u64,
    /// Of 10000 outputs, so many are the last before a crash.
    pub crash: u64,
    /// The server's hint is wrong now and then, as PostgreSQL's is.
    pub lying_hints: bool,
}

/// xorshift64*.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    pub fn of_1000(&mut self, chance: u64) -> bool {
        chance > 0 && self.below(1000) < chance
    }
}

pub struct Cluster {
    pub now: Millis,
    queue: BTreeMap<(Millis, u64), What>,
    queued: u64,
    pub net: Net,
    pub hosts: BTreeMap<NodeId, Host>,
    pub chaos: Chaos,
    pub rng: Rng,
    pub checks: Checks,
    /// k of synchronous commit; 0 is asynchronous.
    pub sync: usize,
    next_commit: u64,
    /// Orders of this kind (first word of the order) take so long, or fail.
    pub order_delay: BTreeMap<(NodeId, &'static str), Millis>,
    pub order_fails: BTreeMap<(NodeId, &'static str), String>,
    pub trace: Vec<String>,
    pub tracing: bool,
    /// Message kinds that are traced too.
    pub trace_messages: Vec<String>,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Cluster {
            now: 0,
            queue: BTreeMap::new(),
            queued: 0,
            net: Net::default(),
            hosts: BTreeMap::new(),
            chaos: Chaos::default(),
            rng: Rng::new(seed),
            checks: Checks::default(),
            sync: 0,
            next_commit: 0,
            order_delay: BTreeMap::new(),
            order_fails: BTreeMap::new(),
            trace: Vec::new(),
            tracing: true,
            trace_messages: Vec::new(),
        }
    }

    /// Adds a host whose disk holds this configuration; it is not started.
    pub fn add_host(&mut self, id: NodeId, config: ClusterConfig, options: Options) {
        self.hosts.insert(id, Host::new(id, config, options));
    }

    pub fn host(&self, id: NodeId) -> &Host {
        &self.hosts[&id]
    }

    pub fn host_mut(&mut self, id: NodeId) -> &mut Host {
        self.hosts.get_mut(&id).expect("a known host")
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    pub fn say(&mut self, id: NodeId, text: impl AsRef<str>) {
        if self.tracing {
            self.trace.push(format!("{:>6} n{} {}", self.now, id, text.as_ref()));
        }
    }

    pub fn after(&mut self, delay: Millis, what: What) {
        self.queued += 1;
        self.queue.insert((self.now + delay, self.queued), what);
    }

    /// Lets everything happen that is due in the next `ms` ms.
    pub fn run(&mut self, ms: Millis) {
        let end = self.now + ms;
        self.run_until(end, |_| false);
    }

    /// Runs until `done` or the end; true if done.
    pub fn run_until(&mut self, end: Millis, done: impl Fn(&Cluster) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            match self.queue.first_key_value() {
                Some(((at, _), _)) if *at <= end => {}
                _ => break,
            }
            let Some(((at, _), what)) = self.queue.pop_first() else { break };
            self.now = at;
            self.happen(what);
        }
        self.now = end;
        false
    }

    fn happen(&mut self, what: What) {
        let (at, for_controller) = what.host();
        if let Some(host) = self.hosts.get_mut(&at)
            && (host.frozen || host.stalled && for_controller)
        {
            host.backlog.push(what);
            return;
        }
        match what {
            What::Deliver(life, envelope) => {
                if self.host(at).life == life {
                    self.step(at, Input::Message(*envelope));
                }
            }
            What::Lost(at, peer, how) => self.step(at, Input::Disconnected(peer, how)),
            What::Tick(at) => {
                self.host_mut(at).tick_at = Millis::MAX;
                self.step(at, Input::Tick);
            }
            What::Connect(at, peer) => self.connect(at, peer),
            What::Pull(at) => self.pull(at),
            What::Agent(at, life, order) => self.agent(at, life, order),
            What::AwaitEnds(at, life, order) => self.await_ends(at, life, order),
            What::Up(at, life) => self.up(at, life),
            What::Start(at, life, rewind) => {
                if self.host(at).life == life && !self.host(at).stopped {
                    self.start(at, rewind);
                }
            }
            What::Checkpointed(at, life) => {
                let host = self.host_mut(at);
                if host.life == life && host.server.mode == ServerMode::Production {
                    host.server.checkpointed = true;
                    self.poke(at);
                }
            }
            What::Exit(at, life, until, after) => self.exit(at, life, until, after),
        }
    }

    /// One input for a node's core, and what comes of it.
    pub fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let host = self.host_mut(id);
        let local = host.clock.local(now);
        if !host.watched() {
            return;
        }
        let Some(node) = &mut host.controller else { return };
        let outputs = node.step(local, input);
        self.perform(id, outputs);
        self.settle(id);
    }

    /// Tells the core what the server looks like, if that is new.
    pub fn poke(&mut self, id: NodeId) {
        let mut status = self.host(id).server.status();
        if self.chaos.lying_hints && self.rng.below(4) == 0 {
            status.hint = self.lie(id, status.hint);
        }
        let host = self.host_mut(id);
        if !host.watched() || host.told == status {
            return;
        }
        host.told = status;
        self.step(id, Input::Server(status));
    }

    /// The receiver's view under- and overstates (PostgreSQL's receivedTLI and flushedUpto).
    fn lie(&mut self, id: NodeId, hint: Option<Position>) -> Option<Position> {
        let hint = hint?;
        let receiver = self.host(id).server.receiver;
        match self.rng.below(2) {
            0 => Some(Position { lsn: Lsn(hint.lsn.0 & !0xff), ..hint }),
            _ => receiver.map_or(Some(hint), |leader| {
                Some(Position { timeline: self.host(leader).server.log.end().timeline, ..hint })
            }),
        }
    }

    /// After each step: the next tick, the traced state, the invariants.
    fn settle(&mut self, id: NodeId) {
        let now = self.now;
        let host = self.host_mut(id);
        let Some(node) = &host.controller else { return };
        let deadline = node.next_deadline();
        let at = if deadline == Millis::MAX { deadline } else { host.clock.real(deadline).max(now + 1) };
        let (state, term) = (node.state(), node.hard().term);
        let known = host.traced;
        if at < host.tick_at {
            host.tick_at = at;
            self.after(at - now, What::Tick(id));
        }
        if known != Some((state, term)) {
            self.host_mut(id).traced = Some((state, term));
            self.say(id, format!("{} in term {term}", state.name()));
        }
        self.check_leader(id);
        self.check_gates();
    }

    fn perform(&mut self, id: NodeId, outputs: Vec<Output>) {
        for output in outputs {
            if self.chaos.crash > 0 && self.rng.below(10_000) < self.chaos.crash {
                self.say(id, "crashes between two outputs");
                self.kill_controller(id);
                return;
            }
            match output {
                Output::Persist(hard) => self.host_mut(id).disk.hard = *hard,
                Output::PersistConfig(config) => self.host_mut(id).disk.config = *config,
                Output::Send(envelope) => self.send(id, envelope),
                Output::Gate(until) => self.set_gate(id, until),
                Output::Order(order_id, order) => self.order(id, order_id, order),
                Output::Reply(request, result) => {
                    let text = match &result {
                        Ok(()) => "done".to_owned(),
                        Err(error) => format!("ERROR: {error}"),
                    };
                    self.host_mut(id).replies.push((request, result));
                    self.say(id, format!("answers request {request}: {text}"));
                }
                Output::Event(event) => self.say(id, format!("{}: {}", event.kind.name(), event.cause)),
                Output::Remember(_) => {}
            }
        }
    }

    fn set_gate(&mut self, id: NodeId, until: Millis) {
        let host = self.host_mut(id);
        let (was, is) = (host.gate > 0, until > 0);
        host.gate = until;
        match (was, is) {
            (false, true) => self.say(id, "opens the gate"),
            (true, false) => self.say(id, "shuts the gate"),
            _ => {}
        }
    }

    fn send(&mut self, id: NodeId, envelope: Box<Envelope>) {
        self.check_word(id, &envelope);
        let to = envelope.to;
        if !self.trace_messages.is_empty() {
            let text = describe(&envelope.message);
            if self.trace_messages.iter().any(|kind| text.starts_with(kind.as_str())) {
                self.say(id, format!("-> n{to} {text}"));
            }
        }
        let Some(peer) = self.hosts.get(&to) else { return };
        let lives = ((id, self.host(id).life), (to, peer.life));
        if !self.net.connected(lives.0, lives.1) || !self.net.passes(id, to) {
            return;
        }
        let chaos = self.chaos;
        if self.rng.of_1000(chaos.loss) {
            return;
        }
        let copies = if self.rng.of_1000(chaos.duplicates) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if chaos.jitter > 0 { self.rng.below(chaos.jitter) } else { 0 };
            self.after(LATENCY + late, What::Deliver(lives.1.1, envelope.clone()));
        }
    }

    /// An attempt of `id` to reach `peer`.
    fn connect(&mut self, id: NodeId, peer: NodeId) {
        let (mine, its) = (self.host(id), self.host(peer));
        if mine.controller.is_none() || self.net.connected((id, mine.life), (peer, its.life)) {
            return;
        }
        let (from, to) = ((id, mine.life), (peer, its.life));
        if !its.power || its.frozen || !self.net.open(id, peer) {
            return;
        }
        if its.controller.is_none() {
            self.after(LATENCY, What::Lost(id, peer, Disconnect::Refused));
            self.after(RETRY_CONNECT, What::Connect(id, peer));
            return;
        }
        if its.stalled {
            return;
        }
        self.net.connect(from, to);
        for (a, b) in [(from, to), (to, from)] {
            if let Some(node) = &self.host(a.0).controller {
                let hello = node.hello(b.0);
                self.after(LATENCY, What::Deliver(b.1, Box::new(hello)));
            }
        }
    }

    /// Everybody tries to reach `id`, and it everybody.
    pub fn reconnect(&mut self, id: NodeId) {
        for peer in self.ids() {
            if peer != id {
                self.after(LATENCY, What::Connect(id, peer));
                self.after(LATENCY, What::Connect(peer, id));
            }
        }
    }

    /// Both sides see the connection end, and make a new one.
    pub fn reset_connection(&mut self, a: NodeId, b: NodeId) {
        if !self.net.exists(a, b) {
            return;
        }
        self.net.drop_connection(a, b);
        self.after(LATENCY, What::Lost(a, b, Disconnect::Closed));
        self.after(LATENCY, What::Lost(b, a, Disconnect::Closed));
        self.after(RETRY_CONNECT, What::Connect(a, b));
    }

    /// A link works again: what was received in vain goes on, connections of former lives are replaced.
    pub fn healed(&mut self, a: NodeId, b: NodeId) {
        let lives = ((a, self.host(a).life), (b, self.host(b).life));
        if self.net.exists(a, b) && !self.net.connected(lives.0, lives.1) {
            self.net.drop_connection(a, b);
            self.after(LATENCY, What::Lost(a, b, Disconnect::Closed));
            self.after(LATENCY, What::Lost(b, a, Disconnect::Closed));
        }
        self.after(LATENCY + 1, What::Connect(a, b));
        self.after(LATENCY + 1, What::Connect(b, a));
        self.after(LATENCY, What::Pull(a));
        self.after(LATENCY, What::Pull(b));
    }
}

impl What {
    /// Where it happens, and whether it is the controller's to see.
    fn host(&self) -> (NodeId, bool) {
        match self {
            What::Deliver(_, envelope) => (envelope.to, true),
            What::Lost(at, ..) | What::Tick(at) | What::Connect(at, _) => (*at, true),
            What::Agent(at, ..) | What::AwaitEnds(at, ..) => (*at, true),
            What::Pull(at) | What::Up(at, _) | What::Start(at, ..) => (*at, false),
            What::Checkpointed(at, _) | What::Exit(at, ..) => (*at, false),
        }
    }
}

/// A message in a few words.
pub fn describe(message: &Message) -> String {
    let answer = |r: &VoteReply| match r.refusal {
        None => format!("yes in term {}", r.term),
        Some(why) => format!("no in term {}: {why:?}", r.term),
    };
    let asks = |r: &VoteRequest| {
        let handover = r.handover.map_or(String::new(), |n| format!(" by hand-over {n}"));
        format!("term {} at {}{handover}", r.term, r.position)
    };
    match message {
        Message::Hello(_) => "Hello".to_owned(),
        Message::Heartbeat(b) => {
            let target = b.handover.target.map_or(String::new(), |t| format!(" to n{t}"));
            format!("Heartbeat {} {} handover {}{target}", b.seq, b.state.name(), b.handover.number)
        }
        Message::HeartbeatAck(a) => format!("HeartbeatAck {} {}", a.seq, a.state.name()),
        Message::PreVote(r) => format!("PreVote {}", asks(r)),
        Message::PreVoteReply(r) => format!("PreVoteReply {}", answer(r)),
        Message::Vote(r) => format!("Vote {}", asks(r)),
        Message::VoteReply(r) => format!("VoteReply {}", answer(r)),
        Message::Goodbye(g) => format!("Goodbye {g:?}"),
        Message::Config(c) => format!("Config {}.{}", c.version.term, c.version.seq),
        Message::Forward { request, .. } => format!("Forward {request}"),
        Message::ForwardReply { request, result } => {
            format!("ForwardReply {request} {}", if result.is_ok() { "done" } else { "failed" })
        }
        Message::Event(_) => "Event".to_owned(),
    }
}

/// A member that nobody connects to.
pub fn member(mode: Mode, priority: i32) -> Member {
    Member {
        host: "host".to_owned(),
        port: 5432,
        biha_port: 5433,
        mode,
        can_be_leader: true,
        can_vote: true,
        priority,
        joining: false,
    }
}
