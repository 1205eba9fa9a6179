//! The simulated PostgreSQL server of a host, and the agent that carries out orders on it.

use biha_core::*;

use super::wal::{Kind, Log};
use super::{After, CHECKPOINT, Cluster, DRAIN, LATENCY, RETRY_PULL, What};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Down,
    Starting,
    Standby,
    Production,
    /// Shutting down: no backends, walsenders still send.
    Draining,
}

#[derive(Debug, Default)]
pub struct Server {
    pub log: Log,
    pub mode: Mode,
    /// primary_conninfo.
    pub receiver: Option<NodeId>,
    pub streaming: bool,
    pub checkpointed: bool,
    pub no_walsenders: bool,
    pub pulling: bool,
    /// Commits that wait for synchronous standbys: number and index in the log.
    pub unacknowledged: Vec<(u64, usize)>,
}

impl Server {
    /// Every start is a standby start, with no primary_conninfo.
    pub fn start(&mut self) {
        let log = std::mem::take(&mut self.log);
        *self = Server { log, mode: Mode::Starting, ..Server::default() };
    }

    pub fn status(&self) -> ServerStatus {
        let consistent = matches!(self.mode, Mode::Standby | Mode::Production | Mode::Draining);
        ServerStatus {
            production: matches!(self.mode, Mode::Production),
            consistent,
            streaming: self.streaming,
            checkpointed: self.checkpointed,
            oldest_wal: Lsn(0),
            hint: consistent.then(|| self.log.end()),
        }
    }

    fn sends(&self) -> bool {
        matches!(self.mode, Mode::Standby | Mode::Production | Mode::Draining) && !self.no_walsenders
    }
}

/// The name of an order, without its contents.
pub fn name(order: &Order) -> &'static str {
    match order {
        Order::StopReceiving => "StopReceiving",
        Order::Follow { .. } => "Follow",
        Order::AwaitEnd { .. } => "AwaitEnd",
        Order::PrepareHandover => "PrepareHandover",
        Order::Promote { .. } => "Promote",
        Order::Restart { .. } => "Restart",
        Order::EndWalsenders => "EndWalsenders",
    }
}

impl Cluster {
    pub(super) fn order(&mut self, id: NodeId, number: OrderId, order: Order) {
        self.say(id, format!("orders {order:?}"));
        self.check_order(id, &order);
        let usual = match order {
            Order::StopReceiving | Order::Follow { .. } => 25,
            Order::Promote { .. } => 60,
            Order::PrepareHandover => 20,
            Order::Restart { .. } | Order::EndWalsenders => 5,
            Order::AwaitEnd { timeout } => timeout,
        };
        let mut delay = self.order_delay.get(&(id, name(&order))).copied().unwrap_or(usual);
        if self.chaos.jitter > 0 {
            delay = delay / 4 + self.rng.below(delay * 3);
        }
        let life = self.host(id).life;
        let waits = matches!(order, Order::AwaitEnd { .. });
        self.host_mut(id).order = Some((number, order));
        if waits {
            self.after(0, What::AwaitEnds(id, life, number));
        }
        self.after(delay, What::Agent(id, life, number));
    }

    /// An order's time has come.
    pub(super) fn agent(&mut self, id: NodeId, life: u64, number: OrderId) {
        if self.host(id).life != life || self.host(id).controller.is_none() {
            return;
        }
        let Some((_, order)) = self.host_mut(id).order.take_if(|(n, _)| *n == number) else { return };
        let fails = self.order_fails.get(&(id, name(&order))).cloned();
        let fails = fails.or_else(|| {
            let chance = self.chaos.failing_orders;
            self.rng.of_1000(chance).then(|| "as the seed will".to_owned())
        });
        if let Some(text) = fails {
            self.say(id, format!("fails to {}", name(&order)));
            self.step(id, Input::Done(number, OrderResult::Failed(text)));
            return;
        }
        let result = match order {
            Order::StopReceiving | Order::AwaitEnd { .. } => self.stop_receiving(id),
            Order::Follow { leader } => {
                let host = self.host_mut(id);
                host.server.receiver = Some(leader);
                host.server.pulling = true;
                self.after(LATENCY, What::Pull(id));
                OrderResult::Done
            }
            Order::PrepareHandover => OrderResult::Done,
            Order::Promote { timeline, .. } => self.promote(id, timeline),
            Order::EndWalsenders => {
                self.end_walsenders(id);
                OrderResult::Done
            }
            Order::Restart { rewind, drain } => {
                self.begin_exit(id, drain, After::Start(rewind));
                return;
            }
        };
        self.step(id, Input::Done(number, result));
        self.poke(id);
    }

    /// A stream that ended with a shutdown checkpoint ends the waiting for it.
    pub(super) fn await_ends(&mut self, id: NodeId, life: u64, number: OrderId) {
        let host = self.host(id);
        let waits = host.order.as_ref().is_some_and(|(n, _)| *n == number);
        if host.life == life && waits && host.server.log.complete() {
            self.after(0, What::Agent(id, life, number));
        }
    }

    fn stop_receiving(&mut self, id: NodeId) -> OrderResult {
        let server = &mut self.host_mut(id).server;
        server.receiver = None;
        server.streaming = false;
        OrderResult::Stopped {
            position: server.log.end(),
            complete: server.log.complete(),
            max_timeline: server.log.max_timeline(),
        }
    }

    fn promote(&mut self, id: NodeId, timeline: Timeline) -> OrderResult {
        self.check_promotion(id, timeline);
        let host = self.host_mut(id);
        if let Err(text) = host.server.log.open_timeline(timeline, id) {
            self.say(id, format!("cannot promote: {text}"));
            return OrderResult::Failed(text);
        }
        host.server.mode = Mode::Production;
        host.server.checkpointed = false;
        let (life, history) = (host.life, host.server.log.history.clone());
        self.say(id, format!("in production on timeline {timeline}"));
        self.after(CHECKPOINT, What::Checkpointed(id, life));
        self.appended(id);
        OrderResult::Promoted { history }
    }

    /// Does anybody's primary_conninfo point there?
    pub fn is_source(&self, id: NodeId) -> bool {
        self.hosts.values().any(|h| h.server.receiver == Some(id))
    }

    /// Somebody calls pg_promote(): the server opens the next free timeline.
    pub fn promote_by_hand(&mut self, id: NodeId) {
        let server = &mut self.host_mut(id).server;
        let next = server.log.max_timeline() + 1;
        if server.mode == Mode::Standby && server.log.open_timeline(next, id).is_ok() {
            server.mode = Mode::Production;
            server.receiver = None;
            server.streaming = false;
            self.say(id, format!("in production on timeline {next}, by hand"));
            self.poke(id);
        }
    }

    /// There is new WAL: whoever streams from here gets it.
    fn appended(&mut self, id: NodeId) {
        let hosts: Vec<NodeId> = self
            .hosts
            .values()
            .filter(|h| h.server.receiver == Some(id) && !h.server.pulling)
            .map(|h| h.id)
            .collect();
        for host in hosts {
            self.host_mut(host).server.pulling = true;
            self.after(LATENCY, What::Pull(host));
        }
    }

    /// A receiver gets what its source has.
    pub(super) fn pull(&mut self, id: NodeId) {
        self.host_mut(id).server.pulling = false;
        let server = &self.host(id).server;
        let Some(source) = server.receiver else { return };
        let Some(from) = self.hosts.get(&source).filter(|_| server.mode == Mode::Standby) else { return };
        if !from.power || from.frozen || !self.net.open(id, source) {
            // Silence: nothing is noticed. The link's end or the host's return goes on from here.
            return;
        }
        if !from.server.sends() || !server.log.can_stream_from(&from.server.log) {
            self.host_mut(id).server.streaming = false;
            self.host_mut(id).server.pulling = true;
            self.after(RETRY_PULL, What::Pull(id));
            self.poke(id);
            return;
        }
        let log = from.server.log.clone();
        let server = &mut self.host_mut(id).server;
        server.streaming = true;
        match server.log.receive(&log) {
            Err(text) => self.checks.violation(format!("n{id} streams from n{source}: {text}")),
            Ok(false) => {}
            Ok(true) => {
                self.appended(id);
                self.flushed_at_standbys(source);
            }
        }
        self.poke(id);
        if let Some((number, Order::AwaitEnd { .. })) = self.host(id).order {
            let life = self.host(id).life;
            self.after(0, What::AwaitEnds(id, life, number));
        }
    }

    /// A client's commit: its number, or why not.
    pub fn commit(&mut self, id: NodeId) -> Result<u64, &'static str> {
        let now = self.now;
        if self.host(id).server.mode != Mode::Production {
            return Err("read-only");
        }
        if !self.host(id).gate_open(now) {
            return Err("the gate is shut");
        }
        self.next_commit += 1;
        let number = self.next_commit;
        let server = &mut self.host_mut(id).server;
        server.log.append(Kind::Commit(number));
        let at = server.log.records.len();
        server.unacknowledged.push((number, at));
        self.appended(id);
        self.flushed_at_standbys(id);
        self.poke(id);
        Ok(number)
    }

    /// Acknowledges the commits that enough synchronous standbys have.
    fn flushed_at_standbys(&mut self, id: NodeId) {
        let now = self.now;
        if self.sync == 0 || !self.host(id).gate_open(now) {
            return;
        }
        let mut flushed: Vec<usize> = self
            .hosts
            .values()
            .filter(|h| h.server.receiver == Some(id) && h.server.streaming)
            .map(|h| h.server.log.records.len())
            .collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let Some(enough) = flushed.get(self.sync - 1).copied() else { return };
        let waiting = &mut self.host_mut(id).server.unacknowledged;
        let done: Vec<u64> = waiting.iter().filter(|(_, at)| *at <= enough).map(|(n, _)| *n).collect();
        waiting.retain(|(_, at)| *at > enough);
        self.checks.acknowledged.extend(done);
    }

    /// Walsenders end; receivers notice and try again.
    fn end_walsenders(&mut self, id: NodeId) {
        for host in self.ids() {
            if self.host(host).server.receiver == Some(id) && self.net.open(id, host) {
                self.host_mut(host).server.streaming = false;
                self.host_mut(host).server.pulling = true;
                self.after(RETRY_PULL, What::Pull(host));
                self.poke(host);
            }
        }
    }

    /// The server begins to shut down; the controller says its last word and ends.
    pub(super) fn begin_exit(&mut self, id: NodeId, drain: bool, after: After) {
        self.step(id, Input::Stop(Goodbye::CleanStop));
        self.controller_gone(id);
        let host = self.host_mut(id);
        let life = host.life;
        if host.server.mode == Mode::Production {
            host.server.log.append(Kind::Shutdown(id));
            host.server.mode = Mode::Draining;
        }
        if drain {
            self.appended(id);
        } else {
            self.host_mut(id).server.no_walsenders = true;
        }
        let until = if drain { self.now + DRAIN } else { self.now };
        self.after(5, What::Exit(id, life, until, after));
    }

    /// Has everybody who streams from here got everything?
    pub(super) fn drained(&self, id: NodeId) -> bool {
        let all = self.host(id).server.log.records.len();
        self.hosts
            .values()
            .filter(|h| h.server.receiver == Some(id) && h.server.streaming)
            .all(|h| h.server.log.records.len() >= all)
    }

    /// The server's processes are gone; if the host still runs, receivers notice.
    pub(super) fn server_gone(&mut self, id: NodeId) {
        let host = self.host_mut(id);
        host.server.mode = Mode::Down;
        host.server.receiver = None;
        host.server.streaming = false;
        host.gate = 0;
        if host.power {
            self.end_walsenders(id);
        }
    }
}
