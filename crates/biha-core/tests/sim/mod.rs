//! A deterministic cluster in one process: the real core, simulated clocks, network, disks and servers.
//!
//! Everything happens in one queue of events, ordered by the true time; each host reads its own clock. The
//! same seed gives the same run.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod chaos;
mod check;
mod check_config;
mod disk;
mod event;
mod host;
mod hosts;
mod mutation;
mod net;
mod server;
mod stream;
mod trace;
mod wal;

use std::collections::BTreeMap;

use biha_core::*;

pub use chaos::{Chaos, Rng};
pub use check::{Checks, Rule};
pub use disk::Disk;
use event::Queue;
pub use event::{After, What};
pub use host::{Clock, Host};
pub use hosts::Hosts;
pub use mutation::Mutation;
pub use net::Net;
pub use server::{Mode as ServerMode, Server};
pub(crate) use trace::say;
pub use trace::{Fingerprint, describe, member};
pub use wal::{Kind, Log};

/// How long each thing takes, in ms.
pub const LATENCY: Millis = 1;
pub const START: Millis = 80;
pub const PROMOTE: Millis = 60;
const RESTART: Millis = 60;
const CRASH_RESTART: Millis = 40;
const REWIND: Millis = 300;
const CHECKPOINT: Millis = 200;
const RETRY_PULL: Millis = 100;
const RETRY_CONNECT: Millis = 20;
const DRAIN: Millis = 1000;

pub struct Cluster {
    pub now: Millis,
    queue: Queue,
    pub net: Net,
    pub hosts: Hosts,
    pub chaos: Chaos,
    pub rng: Rng,
    pub checks: Checks,
    /// Rules that are taken out.
    pub mutations: Vec<Mutation>,
    /// Somebody has promoted a server by hand.
    pub promoted_by_hand: bool,
    next_commit: u64,
    /// Orders of this kind (first word of the order) take so long, or fail.
    pub order_delay: BTreeMap<(NodeId, &'static str), Millis>,
    pub order_fails: BTreeMap<(NodeId, &'static str), String>,
    pub trace: Vec<String>,
    pub tracing: bool,
    /// Message kinds that are traced too.
    pub trace_messages: Vec<String>,
    pub fingerprint: Fingerprint,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Cluster {
            now: 0,
            queue: Queue::default(),
            net: Net::default(),
            hosts: Hosts::default(),
            chaos: Chaos::default(),
            rng: Rng::new(seed),
            checks: Checks::default(),
            mutations: Vec::new(),
            promoted_by_hand: false,
            next_commit: 0,
            order_delay: BTreeMap::new(),
            order_fails: BTreeMap::new(),
            trace: Vec::new(),
            tracing: true,
            trace_messages: Vec::new(),
            fingerprint: Fingerprint::default(),
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
        self.hosts.keys().collect()
    }

    pub fn after(&mut self, delay: Millis, what: What) {
        self.queue.push(self.now + delay, what);
    }

    /// How many events there have been.
    pub fn events(&self) -> u64 {
        self.queue.made()
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
            let Some((at, what)) = self.queue.pop(end) else { break };
            self.now = at;
            self.happen(what);
        }
        self.now = end;
        false
    }

    fn happen(&mut self, what: What) {
        let (at, for_controller) = what.host();
        if let Some(host) = self.hosts.get_mut(&at)
            && (host.frozen || for_controller && host.hangs())
        {
            host.backlog.push(what);
            return;
        }
        match what {
            What::Deliver(life, mut envelope) => {
                if self.host(at).life == life {
                    let forged = self.forged(&envelope);
                    self.arriving(&mut envelope);
                    self.step(at, Input::Message(*envelope));
                    forged.into_iter().for_each(|envelope| self.step(at, Input::Message(envelope)));
                }
            }
            What::Lost(at, peer, how) => self.step(at, Input::Disconnected(peer, how)),
            What::Tick(at) => {
                if self.host(at).tick_at > self.now {
                    // It was put off.
                    return;
                }
                self.host_mut(at).tick_at = Millis::MAX;
                if self.host(at).synchronous.0 > 0 {
                    self.poke(at);
                }
                self.step(at, Input::Tick);
            }
            What::Connect(at, peer) => self.connect(at, peer),
            What::Pull(at) => self.pull(at),
            What::Flushed(at, life) => self.flushed(at, life),
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
            What::Written(at, life) => self.written(at, life),
            What::Reloaded(at, life) => self.reloaded(at, life),
        }
    }

    /// One input for a node's core, and what comes of it. Where the server is in production the core sees it as it is, as
    /// the controller that ships looks at it before each step.
    pub fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let seen = self.seen_anew(id);
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.watched()) else { return };
        let local = host.clock.local(now);
        let Some(node) = &mut host.controller else { return };
        let mut outputs = seen.map_or_else(Vec::new, |status| node.step(local, Input::Server(status)));
        if let Input::Command(request, command) = &input {
            self.checks.asked(*request, command, node.state().is_leader());
        }
        outputs.extend(node.step(local, input));
        self.fingerprint.add(&(now, id, &outputs));
        self.perform(id, outputs);
        self.settle(id);
    }

    /// What has changed on a server in production since the core was told.
    fn seen_anew(&mut self, id: NodeId) -> Option<ServerStatus> {
        let host = self.host(id);
        if !host.watched() || !host.told.production || host.server.mode != ServerMode::Production {
            return None;
        }
        let hint = Some(host.server.log.end());
        let (synced, counts_others) = (self.synced_as_told(id), self.counts_others(id));
        let status = ServerStatus { hint, synced, counts_others, ..host.told };
        (status != host.told).then(|| {
            self.host_mut(id).told = status;
            status
        })
    }

    /// Tells the core what the server looks like, if that is new.
    pub fn poke(&mut self, id: NodeId) {
        let mut status = self.host(id).server.status();
        (status.synced, status.counts_others) = (self.synced_as_told(id), self.counts_others(id));
        if self.chaos.lying_hints && self.rng.below(4) == 0 {
            status.hint = self.lie(id, status.hint);
        }
        let host = self.host_mut(id);
        status.production &= !host.hides_production;
        if !host.watched() || host.told == status {
            return;
        }
        host.told = status;
        self.step(id, Input::Server(status));
    }

    fn synced_as_told(&self, id: NodeId) -> Lsn {
        if self.mutated(Mutation::StandbysNotAwaited) { Lsn(u64::MAX) } else { self.synced(id) }
    }

    /// The receiver's view under- and overstates (PostgreSQL's receivedTLI and flushedUpto). In production there is
    /// none, whatever the settings say.
    fn lie(&mut self, id: NodeId, hint: Option<Position>) -> Option<Position> {
        let hint = hint?;
        let Server { receiver, mode, .. } = self.host(id).server;
        match self.rng.below(2) {
            _ if mode == ServerMode::Production => Some(hint),
            0 => Some(Position { lsn: Lsn(hint.lsn.0 & !0xff), ..hint }),
            _ => receiver.map_or(Some(hint), |leader| {
                Some(Position { timeline: self.host(leader).server.log.end().timeline, ..hint })
            }),
        }
    }

    /// After each step: the next tick, the traced state, the invariants.
    pub(super) fn settle(&mut self, id: NodeId) {
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
            say!(self, id, "{} in term {term}", state.name());
        }
        if self.host(id).writing.is_none() {
            self.set_synchronous(id);
            self.check_leader(id);
        }
        self.check_gates();
    }

    /// What is carried out at once; writes are the disk's.
    pub(super) fn act(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Persist(_) | Output::PersistConfig(_) => self.write(id, output),
            Output::Send(envelope) => self.send(id, envelope),
            Output::Gate(until) => self.set_gate(id, until),
            Output::Order(order_id, order) => self.order(id, order_id, order),
            Output::Reply(request, result) => {
                self.check_reply(id, request, &result);
                if self.tracing {
                    let text = match &result {
                        Ok(()) => "done".to_owned(),
                        Err(error) => format!("ERROR: {error}"),
                    };
                    say!(self, id, "answers request {request}: {text}");
                }
                self.host_mut(id).replies.push((request, result));
            }
            Output::Event(event) => say!(self, id, "{}: {}", event.kind.name(), event.cause),
            Output::Remember(_) => {}
        }
    }

    fn set_gate(&mut self, id: NodeId, until: Millis) {
        let (until, now) = (self.gate_word(id, until), self.now);
        let host = self.host_mut(id);
        let (was, is) = (host.gate > 0, until > 0);
        let opens = is && !host.gate_open(now);
        host.gate = until;
        match (was, is) {
            (false, true) => say!(self, id, "opens the gate"),
            (true, false) => say!(self, id, "shuts the gate"),
            _ => {}
        }
        if opens {
            self.checks.gates_changed = true;
        }
    }
}
