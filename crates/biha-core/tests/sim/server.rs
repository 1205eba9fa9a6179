//! The simulated PostgreSQL server of a host, and the agent that carries out orders on it.

use biha_core::*;

use super::wal::{Kind, Log};
use super::{After, CHECKPOINT, Cluster, DRAIN, LATENCY, Mutation, PROMOTE, What, say};

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

/// A commit whose client waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub number: u64,
    /// How many records there were with it.
    pub at: usize,
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
    /// How many records survive a loss of power.
    pub on_disk: usize,
    /// An fsync of WAL is under way.
    pub flushing: bool,
    /// With how many records recovery is consistent.
    pub consistent_from: usize,
    /// Who was streamed from before. In a mutation only.
    pub former: Option<NodeId>,
    /// The control file says that it has left recovery.
    pub was_primary: bool,
    /// Commits that wait for synchronous standbys.
    pub unacknowledged: Vec<Waiting>,
}

impl Server {
    /// It leaves recovery; the first record of its timeline is flushed before the control file says so.
    fn leave_recovery(&mut self) {
        self.mode = Mode::Production;
        self.was_primary = true;
        self.on_disk = self.log.records.len();
        self.receiver = None;
        self.streaming = false;
    }

    /// Every start is a standby start, with no primary_conninfo. What is on file after a crash is synced first.
    pub fn start(&mut self) {
        let log = std::mem::take(&mut self.log);
        let (on_disk, consistent_from) = (log.records.len(), self.consistent_from);
        *self = Server { log, mode: Mode::Starting, on_disk, consistent_from, ..Server::default() };
    }

    pub fn status(&self) -> ServerStatus {
        let up = matches!(self.mode, Mode::Standby | Mode::Production | Mode::Draining);
        ServerStatus {
            production: matches!(self.mode, Mode::Production),
            consistent: up && self.log.records.len() >= self.consistent_from,
            streaming: self.streaming,
            checkpointed: self.checkpointed,
            sick: false,
            oldest_wal: Lsn(0),
            synced: Lsn(0),
            counts_others: false,
            end_on_file: self.log.end().lsn,
            asked: 0,
            hint: up.then(|| self.log.end()),
        }
    }

    /// Does it write WAL of its own?
    pub(super) fn produces(&self) -> bool {
        matches!(self.mode, Mode::Production | Mode::Draining)
    }

    pub(super) fn sends(&self) -> bool {
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
        Order::Reclone { .. } => "Reclone",
        Order::EndWalsenders => "EndWalsenders",
    }
}

impl Cluster {
    pub(super) fn order(&mut self, id: NodeId, number: OrderId, order: Order) {
        say!(self, id, "orders {order:?}");
        self.check_order(id, &order);
        let usual = match order {
            Order::StopReceiving | Order::Follow { .. } => 25,
            Order::Promote { .. } => PROMOTE,
            Order::PrepareHandover => 20,
            Order::Restart { .. } | Order::Reclone { .. } | Order::EndWalsenders => 5,
            Order::AwaitEnd { timeout } => timeout,
        };
        let mut delay = usual;
        if !self.order_delay.is_empty() {
            delay = self.order_delay.get(&(id, name(&order))).copied().unwrap_or(usual);
        }
        if self.chaos.jitter > 0 {
            delay = delay / 4 + self.rng.below(delay * 3);
        }
        if self.demotion_is_hidden(id, &order) {
            delay += 3 * self.host(id).disk.config.settings.election_timeout();
        }
        let life = self.host(id).life;
        let waits = matches!(order, Order::AwaitEnd { .. });
        self.host_mut(id).order = Some((number, order));
        if waits {
            self.after(0, What::AwaitEnds(id, life, number));
        }
        self.after(delay, What::Agent(id, life, number));
    }

    /// [`Mutation::ProductionVotes`]
    fn demotion_is_hidden(&mut self, id: NodeId, order: &Order) -> bool {
        let demotion = matches!(order, Order::Restart { rewind: None, drain: false });
        if !demotion || !self.mutated(Mutation::ProductionVotes) {
            return false;
        }
        let host = self.host_mut(id);
        host.hides_production = true;
        let life = host.life;
        // So that the controller looks at the server again.
        self.after(0, What::Checkpointed(id, life));
        true
    }

    /// An order's time has come.
    pub(super) fn agent(&mut self, id: NodeId, life: u64, number: OrderId) {
        if self.host(id).life != life || self.host(id).controller.is_none() {
            return;
        }
        let Some((_, order)) = self.host_mut(id).order.take_if(|(n, _)| *n == number) else { return };
        let fails = match self.order_fails.is_empty() {
            true => None,
            false => self.order_fails.get(&(id, name(&order))).cloned(),
        };
        let fails = fails.or_else(|| {
            let chance = self.chaos.failing_orders;
            self.rng.of_1000(chance).then(|| "as the seed will".to_owned())
        });
        if let Some(text) = fails {
            say!(self, id, "fails to {}", name(&order));
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
            // What a rewind makes of the log is a copy of the source's, too.
            Order::Reclone { leader, .. } => {
                self.begin_exit(id, false, After::Start(Some(leader)));
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
        let goes_on = self.mutated(Mutation::ReceiverGoesOn);
        let overlooks = self.mutated(Mutation::HistoryFilesOverlooked);
        if self.mutated(Mutation::OldLeaderFollowed) {
            let host = self.host_mut(id);
            host.server.former = host.server.receiver;
            let patience = host.disk.config.settings.election_timeout();
            self.after(patience, What::Pull(id));
        }
        let server = &mut self.host_mut(id).server;
        if !goes_on {
            server.receiver = None;
            server.streaming = false;
        }
        // Its last act is to sync what it wrote.
        server.on_disk = server.log.records.len();
        let position = server.log.end();
        let max_timeline = if overlooks { position.timeline } else { server.log.max_timeline() };
        OrderResult::Stopped { position, complete: server.log.complete(), max_timeline }
    }

    fn promote(&mut self, id: NodeId, timeline: Timeline) -> OrderResult {
        let server = &self.host(id).server;
        if server.mode == Mode::Production {
            // Somebody was faster: it is promoted once.
            return OrderResult::Promoted { history: server.log.history.clone() };
        }
        let next_free = self.mutated(Mutation::NextFreeTimeline);
        let free = self.host(id).server.log.max_timeline() + 1;
        let number = if next_free { free } else { timeline };
        self.check_promotion(id, number);
        if self.host(id).disk.full {
            return OrderResult::Failed("no space is left on the device".to_owned());
        }
        let host = self.host_mut(id);
        if let Err(text) = host.server.log.open_timeline(number, id) {
            say!(self, id, "cannot promote: {text}");
            return OrderResult::Failed(text);
        }
        host.server.leave_recovery();
        host.server.checkpointed = false;
        let (life, mut history) = (host.life, host.server.log.history.clone());
        say!(self, id, "in production on timeline {number}");
        if let Some(last) = history.last_mut() {
            last.timeline = timeline;
        }
        self.checks.gates_changed = true;
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
        if self.opens_by_hand(id) {
            self.poke(id);
        }
    }

    /// Somebody calls pg_promote(), and the power goes before the controller sees that it was done.
    pub fn promotion_goes_unseen(&mut self, id: NodeId) {
        if self.opens_by_hand(id) {
            self.kill_host(id);
        }
    }

    fn opens_by_hand(&mut self, id: NodeId) -> bool {
        let server = &mut self.host_mut(id).server;
        let next = server.log.max_timeline() + 1;
        let opens = server.mode == Mode::Standby && server.log.open_timeline(next, id).is_ok();
        if opens {
            server.leave_recovery();
            self.promoted_by_hand = true;
            say!(self, id, "in production on timeline {next}, by hand");
        }
        opens
    }

    /// Somebody calls pg_promote(), and the power goes before anything but the history file is on disk.
    pub fn promotion_breaks_off(&mut self, id: NodeId) {
        let log = &mut self.host_mut(id).server.log;
        let next = log.max_timeline() + 1;
        log.files.insert(next);
        say!(self, id, "has a history file of timeline {next}, by hand");
        self.kill_host(id);
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

    /// The server's processes are gone; if the host still runs, receivers notice.
    pub(super) fn server_gone(&mut self, id: NodeId) {
        let host = self.host_mut(id);
        host.server.mode = Mode::Down;
        host.server.receiver = None;
        host.server.streaming = false;
        host.gate = 0;
        host.ghost = false;
        if host.power {
            self.end_walsenders(id);
        }
    }
}
