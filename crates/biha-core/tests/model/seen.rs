//! What the properties need to know of the past.

use biha_core::*;

use super::happen::Turn;
use super::host::Mode;
use super::mutation::Mutation;
use super::scenario::Scenario;
use super::state::State;

impl Turn<'_> {
    /// After each step: who leads?
    pub(super) fn settle(&mut self, id: NodeId) {
        let host = self.state.host(id);
        if !host.leads() {
            return;
        }
        let (term, leader) = (host.term(), (id, host.life));
        if self.state.seen.leaders.get(&term).is_none_or(|known| !known.contains(&leader)) {
            self.state.seen.change().leaders.entry(term).or_default().insert(leader);
            self.elected(id);
        }
    }

    /// A frame leaves its sender.
    pub(super) fn told(&mut self, envelope: &Envelope) {
        let (from, to, term) = (envelope.from, envelope.to, envelope.term);
        let disk = &self.state.host(from).disk;
        let hard = &disk.hard;
        let vote = match &envelope.message {
            Message::VoteReply(reply) if reply.refusal.is_none() => Some((reply.term, to)),
            Message::Vote(request) => Some((request.term, from)),
            _ => None,
        };
        let vote_lacks = vote.is_some_and(|(term, to)| (hard.term, hard.voted_for) != (term, Some(to)));
        let config_lacks = match &envelope.message {
            Message::HeartbeatAck(ack) => ack.config > disk.config.version,
            _ => false,
        };
        let lacks =
            hard.term < term || hard.incarnation != envelope.incarnation || vote_lacks || config_lacks;
        let seen = &self.state.seen;
        let new_term = seen.terms.get(&from).is_none_or(|known| *known < term);
        let new_vote =
            vote.filter(|(term, to)| seen.votes.get(&(from, *term)).is_none_or(|known| !known.contains(to)));
        if !lacks && !new_term && new_vote.is_none() {
            return;
        }
        let seen = self.state.seen.change();
        seen.unwritten |= lacks;
        if new_term {
            seen.terms.insert(from, term);
        }
        if let Some((term, to)) = new_vote {
            seen.votes.entry((from, term)).or_default().insert(to);
        }
    }

    /// Sets the gate's word.
    pub(super) fn gate(&mut self, id: NodeId, until: Millis) {
        let word = self.word(id, until);
        if self.state.host(id).gate != word {
            self.state.host_mut(id).gate = word;
            self.acknowledge(id);
        }
    }

    /// Did a lease end by itself at this instant?
    pub(super) fn lease_ended(&mut self, id: NodeId) {
        let (local, host) = (self.local(id), self.state.host(id));
        if host.gate > 0 && host.gate <= local && !self.state.seen.lease_ended {
            self.state.seen.change().lease_ended = true;
        }
    }

    pub(super) fn wrote(&mut self, id: NodeId, timeline: Timeline, term: Term) {
        let known = self.state.seen.written.get(&timeline);
        if known.is_none_or(|known| !known.contains(&(id, term))) {
            self.state.seen.change().written.entry(timeline).or_default().insert((id, term));
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        if event.kind == EventKind::Switchover && !self.state.seen.handed_over {
            self.state.seen.change().handed_over = true;
        }
    }

    /// A command of the scenario was answered; its request has the number of its place.
    pub(super) fn replied(&mut self, id: NodeId, request: RequestId, result: &CommandResult) {
        let place = request as usize;
        let changes = self.model.commands.get(place).is_some_and(|c| !matches!(c, Command::SetLeader(_)));
        if result.is_ok() && changes {
            let term = self.state.host(id).term();
            self.state.seen.change().settled.insert(place, term);
        }
    }
}

impl State {
    /// Would a commit pass? The server is in production, the controller lives and the word lies ahead. On a host that
    /// is frozen it would, on waking.
    pub fn gate_open(&self, model: &Scenario, id: NodeId) -> bool {
        let host = self.host(id);
        // Where the word outlives the controller, backends go on though everything else is gone.
        let outlived = model.has(Mutation::GateOutlivesController) && host.node.is_none();
        let serves = host.server.mode == Mode::Production && host.node.is_some();
        (serves || outlived) && model.local(id, self.now) < host.gate
    }

    /// The hosts on which a commit would pass.
    pub fn open_gates(&self, model: &Scenario) -> usize {
        self.hosts.iter().filter(|h| self.gate_open(model, h.id)).count()
    }
}
