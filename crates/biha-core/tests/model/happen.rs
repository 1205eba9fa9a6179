//! What happens when an item's turn has come: controllers, network, crashes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use biha_core::*;

use super::host::Mode;
use super::mutation::Mutation;
use super::scenario::Scenario;
use super::shared::Shared;
use super::state::{Item, State};

/// Carries out steps on a state; a crash may be due after some outputs of the first step.
pub struct Turn<'a> {
    pub model: &'a Scenario,
    pub state: State,
    /// The host of the item crashes after so many outputs of its first step.
    crash: Option<usize>,
    /// The crash has happened.
    crashed: bool,
}

impl<'a> Turn<'a> {
    pub fn new(model: &'a Scenario, state: State) -> Self {
        Turn { model, state, crash: None, crashed: false }
    }

    /// Lets the item happen with a crash after `outputs` outputs; `None` if that is no point worth a crash.
    pub fn crash(mut self, item: Item, outputs: usize) -> Option<State> {
        self.crash = Some(outputs);
        self.happen(item);
        self.crashed.then_some(self.state)
    }

    pub fn happen(&mut self, item: Item) {
        match item {
            Item::Deliver(life, envelope) => {
                let to = envelope.to;
                if self.state.host(to).life != life {
                    return;
                }
                let envelope = self.arriving((*envelope).clone());
                self.meet(&envelope);
                self.forge(&envelope);
                self.step(to, Input::Message(envelope));
            }
            Item::Tick(id, life) => {
                if self.state.host(id).life == life {
                    self.step(id, Input::Tick);
                }
            }
            Item::Done(id, life, number) => self.agent(id, life, number),
            Item::Pull(id) => self.pull(id),
            Item::Start(id, life, rewind) => {
                let host = self.state.host(id);
                if host.life == life && host.node.is_none() {
                    self.start(id, rewind);
                }
            }
        }
    }

    /// Milliseconds of a host's clock: each is off by its own amount and runs at its own rate.
    pub fn local(&self, id: NodeId) -> Millis {
        self.model.local(id, self.state.now)
    }

    /// One instant passes.
    pub fn time_passes(&mut self) {
        self.state.now += 1;
        self.state.left.instants -= 1;
        for id in self.state.ids() {
            let local = self.local(id);
            let host = self.state.host(id);
            let life = host.life;
            let due = host.node.as_ref().is_some_and(|n| n.next_deadline() <= local);
            let waited = host.order.as_ref().filter(|(.., until)| *until <= local).map(|(n, ..)| *n);
            let retries = host.server.receiver.is_some() && !host.server.streaming;
            let tick = Item::Tick(id, life);
            if due && !self.state.queue.contains(&tick) && !self.state.late.contains(&tick) {
                self.state.push(tick);
            }
            if let Some(number) = waited {
                self.agent_is_done(id, number);
            }
            if retries {
                self.wal_to(id);
            }
        }
        for id in self.state.ids() {
            self.lease_ended(id);
        }
    }

    /// One input for a node's core, and what comes of it.
    pub fn step(&mut self, id: NodeId, input: Input) {
        let local = self.local(id);
        let host = self.state.host_mut(id);
        let Some(mut node) = host.node.take() else { return };
        let outputs = catch_unwind(AssertUnwindSafe(|| node.step(local, input)));
        let Ok(outputs) = outputs else {
            self.state.seen.change().panicked = true;
            return;
        };
        host.node = Some(node);
        self.perform(id, outputs);
        self.settle(id);
    }

    /// Tells the core what the server looks like, if that is new.
    pub fn poke(&mut self, id: NodeId) {
        let status = self.status(id);
        if self.state.host(id).node.is_none() || self.state.host(id).told == status {
            return;
        }
        self.state.host_mut(id).told = status;
        self.step(id, Input::Server(status));
    }

    fn perform(&mut self, id: NodeId, outputs: Vec<Output>) {
        let outputs = self.ordered(outputs);
        let limit = self.crash.take();
        if limit.is_some_and(|limit| !is_crash_point(&outputs, limit)) {
            return;
        }
        for (at, output) in outputs.into_iter().enumerate() {
            if limit == Some(at) {
                break;
            }
            self.output(id, output);
        }
        if limit.is_some() {
            self.crashed = true;
            self.power_off(id);
        }
    }

    fn output(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Persist(hard) => self.state.host_mut(id).disk.hard = *hard,
            Output::PersistConfig(config) => self.state.host_mut(id).disk.config = *config,
            Output::Send(envelope) => self.send(*envelope),
            Output::Gate(until) => self.gate(id, until),
            Output::Order(number, order) => self.order(id, number, order),
            Output::Reply(request, result) => self.replied(id, request, &result),
            Output::Event(event) => self.event(&event),
            Output::Remember(_) => {}
        }
    }

    fn send(&mut self, envelope: Envelope) {
        self.told(&envelope);
        let to = envelope.to;
        if to.0 as usize > self.state.hosts.len() || self.state.cut.contains(&(envelope.from, to)) {
            return;
        }
        if self.refuses(to, envelope.from) || self.refuses(envelope.from, to) {
            return;
        }
        let peer = self.state.host(to);
        if peer.node.is_some() {
            let life = peer.life;
            self.state.push(Item::Deliver(life, Shared::new(envelope)));
        }
    }

    fn meet(&mut self, envelope: &Envelope) {
        let known = self.state.host(envelope.to).met.get(&envelope.from);
        if known.is_none_or(|known| *known < envelope.incarnation) {
            self.state.host_mut(envelope.to).met.insert(envelope.from, envelope.incarnation);
        }
    }

    /// Does this host's transport refuse the other, because it knows a newer life of it?
    fn refuses(&self, id: NodeId, other: NodeId) -> bool {
        let known = self.state.host(id).met.get(&other);
        !self.model.has(Mutation::OldLivesHeard)
            && known.is_some_and(|known| *known > self.state.host(other).disk.hard.incarnation)
    }

    /// Words for the new connections between two nodes.
    fn greet(&mut self, a: NodeId, b: NodeId) {
        let (Some(first), Some(second)) = (&self.state.host(a).node, &self.state.host(b).node) else {
            return;
        };
        let hellos = [first.hello(b), second.hello(a)];
        for hello in hellos {
            self.send(hello);
        }
    }

    /// Starts controller and server: always as a standby, with no primary_conninfo.
    pub fn start(&mut self, id: NodeId, rewind: Option<NodeId>) {
        let rewound = rewind.map(|source| self.rewind(id, source));
        if matches!(rewound, Some(Ok(_))) && !self.state.seen.rewound {
            self.state.seen.change().rewound = true;
        }
        self.start_server(id);
        self.start_controller(id, rewound);
        self.poke(id);
    }

    pub fn start_controller(&mut self, id: NodeId, rewound: Option<Result<Mended, Hindrance>>) {
        let local = self.local(id);
        let options = self.model.options;
        let hard = self.remembered(id);
        let host = self.state.host_mut(id);
        host.life += 1;
        host.order = None;
        host.met.clear();
        host.told = ServerStatus::default();
        let (config, word) = (host.disk.config.clone(), host.gate);
        let (node, outputs) = Node::new(local, u64::from(host.life) << 32, hard, config, options, rewound);
        host.node = Some(node);
        let life = host.life;
        self.state.late.retain(|item| match item {
            Item::Deliver(to_life, envelope) => envelope.to != id || *to_life >= life,
            Item::Tick(of, of_life) | Item::Done(of, of_life, _) | Item::Start(of, of_life, _) => {
                *of != id || *of_life >= life
            }
            Item::Pull(of) => *of != id,
        });
        self.perform(id, outputs);
        self.word_kept(id, word);
        for peer in self.state.ids() {
            if peer != id && self.state.linked(id, peer) {
                self.greet(id, peer);
            }
        }
    }

    /// Everything on the host ends; nobody is told. It may come back at any time.
    pub fn power_off(&mut self, id: NodeId) {
        self.end(id);
        self.server_gone(id);
        let life = self.state.host(id).life;
        self.state.hold(Item::Start(id, life, None));
    }

    /// The controller is gone.
    pub fn end(&mut self, id: NodeId) {
        let host = self.state.host_mut(id);
        host.node = None;
        host.order = None;
    }

    /// Only the controller dies, and starts anew beside a server that goes on.
    pub fn respawn(&mut self, id: NodeId) {
        if self.leadership_goes_on(id) {
            return;
        }
        self.end(id);
        self.start_controller(id, None);
        self.poke(id);
    }

    /// The host goes down and comes back with the state files and the WAL it had at the beginning.
    pub fn put_back(&mut self, id: NodeId) {
        self.end(id);
        self.server_gone(id);
        let host = self.state.host_mut(id);
        if let Some(copy) = &host.copy {
            (host.disk, host.server.log) = (**copy).clone();
        }
        self.start(id, None);
    }

    /// The postmaster is killed: the controller says its last word and ends. It may come back at any time.
    pub fn kill(&mut self, id: NodeId) {
        let word = self.state.host(id).gate;
        self.step(id, Input::Stop(Goodbye::PostmasterDied));
        self.power_off(id);
        self.word_kept(id, word);
    }

    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        if a != b {
            self.state.cut.extend([(a, b), (b, a)]);
        }
    }

    /// All links work again: new connections, and WAL flows.
    pub fn heal(&mut self) {
        let cut = std::mem::take(&mut self.state.cut);
        for (a, b) in cut {
            if a < b {
                self.greet(a, b);
            }
        }
        for id in self.state.ids() {
            if self.state.host(id).server.receiver.is_some() {
                self.wal_to(id);
            }
        }
    }

    pub fn mode(&self, id: NodeId) -> Mode {
        self.state.host(id).server.mode
    }
}

/// A crash after so many of these outputs is worth a look: beside a write, or at the end. Elsewhere it is as if the
/// frames after it were late for ever.
fn is_crash_point(outputs: &[Output], count: usize) -> bool {
    let writes = |at: usize| matches!(outputs.get(at), Some(Output::Persist(_) | Output::PersistConfig(_)));
    count == outputs.len() || count < outputs.len() && (writes(count) || count > 0 && writes(count - 1))
}
