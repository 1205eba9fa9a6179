//! The servers of the model and their agents: what a PostgreSQL server does when it is ordered to.

use biha_core::*;

use super::happen::Turn;
use super::host::{Mode, Server, Waiting};
use super::mutation::Mutation;
use super::state::Item;
use super::wal::Kind;

impl Turn<'_> {
    pub(super) fn order(&mut self, id: NodeId, number: OrderId, order: Order) {
        let local = self.local(id);
        let (until, waits) = match order {
            Order::AwaitEnd { timeout } if !self.model.impatient => (local + timeout, true),
            _ => (Millis::MAX, false),
        };
        self.state.host_mut(id).order = Some((number, order, until));
        if !waits || self.state.host(id).server.log.complete() {
            self.agent_is_done(id, number);
        }
    }

    /// The agent will have carried the order out when its turn comes.
    pub(super) fn agent_is_done(&mut self, id: NodeId, number: OrderId) {
        let item = Item::Done(id, self.state.host(id).life, number);
        if !self.state.queue.contains(&item) && !self.state.late.contains(&item) {
            self.state.push(item);
        }
    }

    pub(super) fn agent(&mut self, id: NodeId, life: u32, number: OrderId) {
        let host = self.state.host(id);
        if host.life != life || host.node.is_none() {
            return;
        }
        let Some((_, order, _)) = host.order.as_ref().filter(|(n, ..)| *n == number) else { return };
        let order = order.clone();
        self.state.host_mut(id).order = None;
        if let Order::Restart { rewind, drain } = order {
            self.restart(id, rewind, drain);
            return;
        }
        if let Order::Reclone { leader, .. } = order {
            self.restart(id, Some(leader), false);
            return;
        }
        let result = match order {
            Order::StopReceiving => self.stop_receiving(id, false),
            Order::AwaitEnd { .. } => self.stop_receiving(id, self.model.impatient),
            Order::Follow { leader } => {
                let server = &mut self.state.host_mut(id).server;
                server.receiver = Some(leader);
                server.received_from = Some(leader);
                self.wal_to(id);
                OrderResult::Done
            }
            Order::Promote { timeline, .. } => self.promote(id, timeline),
            Order::EndWalsenders => {
                self.end_walsenders(id);
                OrderResult::Done
            }
            Order::PrepareHandover | Order::Restart { .. } | Order::Reclone { .. } => OrderResult::Done,
        };
        self.step(id, Input::Done(number, result));
        self.poke(id);
    }

    fn stop_receiving(&mut self, id: NodeId, impatient: bool) -> OrderResult {
        let goes_on = self.model.has(Mutation::ReceiverNotStopped);
        let flat = self.model.has(Mutation::TimelineNotCompared);
        let server = &mut self.state.host_mut(id).server;
        if !goes_on {
            server.receiver = None;
            server.streaming = false;
        }
        let mut position = server.log.end();
        if flat {
            position.timeline = 1;
        }
        let (complete, max_timeline) = (impatient || server.log.complete(), server.log.max_timeline());
        OrderResult::Stopped { position, complete, max_timeline }
    }

    fn promote(&mut self, id: NodeId, timeline: Timeline) -> OrderResult {
        let next_free = self.model.has(Mutation::NextFreeTimeline);
        let term = self.state.host(id).term();
        let goes_on = self.model.has(Mutation::TimelineGoesOn) && self.mode(id) == Mode::Production;
        let server = &mut self.state.host_mut(id).server;
        let opened = match () {
            () if goes_on => server.log.end().timeline,
            () if next_free => server.log.max_timeline() + 1,
            () => timeline,
        };
        if !goes_on && let Err(text) = server.log.open_timeline(opened, id) {
            return OrderResult::Failed(text);
        }
        server.mode = Mode::Production;
        server.receiver = None;
        server.streaming = false;
        let mut history = server.log.history.clone();
        if let Some(last) = history.last_mut() {
            last.timeline = timeline;
        }
        self.wrote(id, opened, term);
        self.appended(id);
        OrderResult::Promoted { history }
    }

    /// The server restarts in its place, as a standby. The controller says its last word first.
    fn restart(&mut self, id: NodeId, rewind: Option<NodeId>, drain: bool) {
        self.step(id, Input::Stop(Goodbye::CleanStop));
        self.end(id);
        if self.model.has(Mutation::TimelineGoesOn) && !drain && rewind.is_none() {
            self.start_controller(id, None);
            self.poke(id);
            return;
        }
        let life = self.state.host(id).life;
        let server = &mut self.state.host_mut(id).server;
        if server.mode == Mode::Production {
            server.log.append(Kind::Shutdown(id));
            server.mode = Mode::Draining;
        }
        server.no_walsenders = !drain;
        if drain {
            self.appended(id);
        } else {
            self.end_walsenders(id);
        }
        self.state.push(Item::Start(id, life, rewind));
    }

    /// Somebody calls pg_promote(): the server opens the next free timeline.
    pub fn promote_by_hand(&mut self, id: NodeId) {
        let server = &mut self.state.host_mut(id).server;
        let next = server.log.max_timeline() + 1;
        if server.mode == Mode::Standby && server.log.open_timeline(next, id).is_ok() {
            server.mode = Mode::Production;
            server.receiver = None;
            server.streaming = false;
        }
        self.poke(id);
    }

    pub(super) fn start_server(&mut self, id: NodeId) {
        let kept = self.model.has(Mutation::ReceiverKeptOverStart);
        let server = &mut self.state.host_mut(id).server;
        let log = std::mem::take(&mut server.log);
        let received_from = server.received_from;
        let receiver = received_from.filter(|_| kept);
        *server = Server { log, mode: Mode::Standby, receiver, received_from, ..Server::default() };
        if receiver.is_some() {
            self.wal_to(id);
        }
    }

    /// The server's processes are gone.
    pub(super) fn server_gone(&mut self, id: NodeId) {
        let server = &mut self.state.host_mut(id).server;
        server.mode = Mode::Down;
        server.receiver = None;
        server.streaming = false;
        server.waiting.clear();
        self.end_walsenders(id);
    }

    pub(super) fn rewind(&mut self, id: NodeId, source: NodeId) -> Result<Mended, Hindrance> {
        if self.mode(source) != Mode::Production || !self.reaches(id, source) {
            return Err(Hindrance { text: "could not connect to the source".to_owned(), passing: true });
        }
        let log = self.state.host(source).server.log.clone();
        self.state.host_mut(id).server.log.rewind(&log);
        Ok(Mended::Rewound)
    }

    fn reaches(&self, id: NodeId, source: NodeId) -> bool {
        self.state.linked(id, source) && self.state.frozen != Some(source)
    }

    /// WAL is on its way to this host.
    pub(super) fn wal_to(&mut self, id: NodeId) {
        let item = Item::Pull(id);
        if !self.state.queue.contains(&item) && !self.state.late.contains(&item) {
            self.state.push(item);
        }
    }

    /// There is new WAL: whoever receives from here gets it.
    fn appended(&mut self, id: NodeId) {
        for to in self.state.ids() {
            if self.state.host(to).server.receiver == Some(id) {
                self.wal_to(to);
            }
        }
    }

    fn end_walsenders(&mut self, id: NodeId) {
        for to in self.state.ids() {
            let server = &self.state.host(to).server;
            if server.receiver == Some(id) && server.streaming {
                self.state.host_mut(to).server.streaming = false;
                self.poke(to);
            }
        }
    }

    /// A receiver gets what its source has.
    pub(super) fn pull(&mut self, id: NodeId) {
        let server = &self.state.host(id).server;
        let Some(source) = server.receiver.filter(|_| server.mode == Mode::Standby) else { return };
        let from = &self.state.host(source).server;
        let streams = from.sends() && self.reaches(id, source) && server.log.can_stream_from(&from.log);
        let log = from.log.clone();
        let server = &mut self.state.host_mut(id).server;
        server.streaming = streams;
        if streams {
            if server.log.receive(&log).is_err() {
                self.state.seen.change().parted = true;
            }
            self.flushed(id, source);
        }
        self.poke(id);
        let host = self.state.host(id);
        if let Some((number, Order::AwaitEnd { .. }, _)) = host.order
            && host.server.log.complete()
        {
            self.agent_is_done(id, number);
        }
    }

    /// A client commits; its number is its own: no two servers have it by chance.
    pub(super) fn commit(&mut self, id: NodeId) {
        self.state.left.commits -= 1;
        let number = 1000 * u64::from(id.0) + self.state.host(id).server.log.records.len() as u64;
        let server = &mut self.state.host_mut(id).server;
        server.log.append(Kind::Commit(number));
        let Position { timeline, lsn } = server.log.end();
        server.waiting.push(Waiting { number, end: lsn, timeline });
        if self.state.host(id).leads() {
            self.wrote(id, timeline, self.state.host(id).term());
        }
        self.appended(id);
        self.acknowledge(id);
        self.poke(id);
    }

    /// The walsenders of `source` hear how far this standby has flushed.
    fn flushed(&mut self, id: NodeId, source: NodeId) {
        let end = self.state.host(id).server.log.end().lsn;
        if self.state.host(source).server.flushed.get(&id) != Some(&end) {
            self.state.host_mut(source).server.flushed.insert(id, end);
            self.acknowledge(source);
            self.poke(source);
        }
    }

    /// Tells the clients whose commits enough synchronous standbys have.
    pub(super) fn acknowledge(&mut self, id: NodeId) {
        let host = self.state.host(id);
        let passes = if self.model.leases {
            self.state.gate_open(self.model, id)
        } else {
            host.server.mode == Mode::Production
        };
        if !passes || host.server.waiting.is_empty() {
            return;
        }
        let synced = host.synced();
        let (done, waiting): (Vec<_>, Vec<_>) = host.server.waiting.iter().partition(|w| w.end <= synced);
        if !done.is_empty() {
            self.state.host_mut(id).server.waiting = waiting;
            let acknowledged = done.into_iter().map(|w| (w.number, Term(w.timeline)));
            self.state.seen.change().acknowledged.extend(acknowledged);
        }
    }
}
