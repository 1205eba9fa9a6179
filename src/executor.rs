//! Carries out what the core wants, in its order: one line an output.

use std::sync::atomic::Ordering;

use biha_core::{Envelope, Event, EventRecord, Message, NodeId, Output};
use pgrx::{PgSqlErrorCode, ereport, log, warning};

use crate::board;
use crate::controller::Controller;
use crate::pg::clock;

/// Events told to a node that was away.
const EVENTS_TOLD: usize = 64;

impl Controller {
    /// Nothing after a write is done before that write is on disk; a write that fails ends the process.
    pub(crate) fn execute(&mut self, outputs: Vec<Output>) {
        let mut members_changed = false;
        for output in outputs {
            match output {
                Output::Persist(hard) => must(self.files.write_state(&hard)),
                Output::PersistConfig(config) => {
                    must(self.files.write_config(&config));
                    members_changed = true;
                }
                Output::Send(envelope) => self.tell(&envelope),
                Output::Gate(until) => board::gate().open_until.store(until, Ordering::SeqCst),
                Output::Order(id, order) => board::give_order(id, &order),
                Output::Reply(request, result) => board::answer(request, &result),
                Output::Event(event) => self.record(event),
                Output::Remember(record) => self.remember(*record),
            }
        }
        // Last, so that a removed member is still told.
        if members_changed {
            self.know_peers();
        }
    }

    /// Keeps an event and tells the other nodes.
    fn record(&mut self, event: Event) {
        log!("biha: term {}: {}: {}{}", event.term, event.kind.name(), event.cause, steps(&event));
        self.events += 1;
        let hard = self.node.hard();
        let record = EventRecord {
            node: hard.node,
            incarnation: hard.incarnation,
            seq: self.events,
            at: clock::wall(),
            event,
        };
        let own = hard.node;
        let peers: Vec<NodeId> = self.node.config().members.keys().copied().filter(|id| *id != own).collect();
        for to in peers {
            let envelope = self.node.envelope(to, Message::Event(Box::new(record.clone())));
            self.tell(&envelope);
        }
        self.remember(record);
    }

    /// Tells a node that was away what happened meanwhile; what it knows already it does not keep twice.
    pub(crate) fn tell_events(&mut self, to: NodeId) {
        let newest = self.history.records().rev().take(EVENTS_TOLD).cloned().collect::<Vec<_>>();
        for record in newest.into_iter().rev() {
            let envelope = self.node.envelope(to, Message::Event(Box::new(record)));
            self.tell(&envelope);
        }
    }

    /// Messages may be lost; the core repeats what matters.
    pub(crate) fn tell(&mut self, envelope: &Envelope) {
        if let Err(error) = self.network.send(envelope.to, envelope) {
            warning!("could not send a message to node {}: {error}", envelope.to);
        }
    }

    /// Written by a thread: the leader's disk may hang, and what follows here is what gives the leadership up.
    fn remember(&mut self, record: EventRecord) {
        if let Err(error) = self.history.append(record) {
            warning!("could not keep an event: {error}");
        }
    }

    /// The history is for people: that it cannot be written is no reason to stop.
    pub(crate) fn tell_of_history(&self) {
        if let Some(error) = self.history.failure() {
            warning!("could not write biha's history: {error}");
        }
    }
}

fn steps(event: &Event) -> String {
    let steps: Vec<String> = event.steps.iter().map(|s| format!("{} {} ms", s.name, s.ms)).collect();
    if steps.is_empty() { String::new() } else { format!(" ({})", steps.join(", ")) }
}

/// After a failed write it is not known what the file holds: this life of the node must end, and the next one
/// reads what is there.
fn must(written: std::io::Result<()>) {
    if let Err(error) = written {
        ereport!(
            PANIC,
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("could not write biha's state: {error}"),
            "The server restarts, read-only, and takes part in the cluster again once the file can be written."
        );
    }
}
