//! What must hold at every moment of every run.

use std::collections::BTreeMap;

use biha_core::*;

use super::{Cluster, ServerMode};

/// What is known so far, and what was broken.
#[derive(Debug, Default)]
pub struct Checks {
    /// S1: the leader of each term, and in which of its lives.
    leaders: BTreeMap<Term, (NodeId, u64)>,
    /// S4: who opened each timeline.
    timelines: BTreeMap<Timeline, NodeId>,
    /// S5: votes told, by voter and term.
    votes: BTreeMap<(NodeId, Term), NodeId>,
    /// S3: commits acknowledged by enough synchronous standbys.
    pub acknowledged: Vec<u64>,
    /// Is every acknowledged commit to be in every later leader's WAL?
    pub lossless: bool,
    /// Two leaders are possible by configuration: S1 and S2 do not hold.
    pub two_leaders: bool,
    pub violations: Vec<String>,
}

impl Checks {
    /// Terms that had a leader.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    pub fn violation(&mut self, text: String) {
        if self.violations.len() < 10 {
            self.violations.push(text);
        }
    }
}

impl Cluster {
    /// S1 and S3.
    pub(super) fn check_leader(&mut self, id: NodeId) {
        let host = self.host(id);
        let Some(node) = &host.controller else { return };
        if !node.state().is_leader() || self.checks.two_leaders {
            return;
        }
        let (term, life) = (node.hard().term, host.life);
        match self.checks.leaders.get(&term) {
            Some(known) if *known == (id, life) => return,
            Some(known) => {
                let text = format!("S1: n{id} (life {life}) leads term {term} as did {known:?}");
                self.checks.violation(text);
            }
            None => {}
        }
        self.checks.leaders.insert(term, (id, life));
        if !self.checks.lossless {
            return;
        }
        let log = &self.host(id).server.log;
        if let Some(lost) = self.checks.acknowledged.iter().find(|n| !log.has_commit(**n)) {
            let text = format!("S3: n{id} leads term {term} without the acknowledged commit {lost}");
            self.checks.violation(text);
        }
    }

    /// S2: at most one gate is open.
    pub(super) fn check_gates(&mut self) {
        if self.checks.two_leaders {
            return;
        }
        let now = self.now;
        let mut open = self.hosts.values().filter(|h| h.gate > 0 && h.gate_open(now)).map(|h| h.id);
        if let (Some(first), Some(second)) = (open.next(), open.next()) {
            let text = format!("S2: the gates of n{first} and n{second} are open at {now}");
            self.checks.violation(text);
        }
    }

    /// S5: nothing leaves a node that its disk does not know.
    pub(super) fn check_word(&mut self, id: NodeId, envelope: &Envelope) {
        let host = self.host(id);
        let (hard, to) = (&host.disk.hard, envelope.to);
        let mut wrong = Vec::new();
        if hard.term != envelope.term || hard.incarnation != envelope.incarnation {
            wrong.push("a term or incarnation that is not on disk");
        }
        match &envelope.message {
            Message::VoteReply(reply) if reply.refusal.is_none() => {
                if hard.voted_for != Some(to) || hard.term != reply.term {
                    wrong.push("a vote that is not on disk");
                }
                if host.server.receiver.is_some() {
                    wrong.push("a vote while WAL is received");
                }
                if matches!(host.server.mode, ServerMode::Production | ServerMode::Draining) {
                    wrong.push("a vote of a server in production");
                }
                if reply.position.is_some_and(|p| p != host.server.log.end()) {
                    wrong.push("a vote with another position than its WAL's end");
                }
                let known = self.checks.votes.insert((id, reply.term), to);
                if known.is_some_and(|known| known != to) {
                    wrong.push("a second vote in a term");
                }
            }
            Message::Vote(request) => {
                if hard.voted_for != Some(id) || hard.term != request.term {
                    wrong.push("a candidacy that is not on disk");
                }
                if request.position != host.server.log.end() || host.server.receiver.is_some() {
                    wrong.push("a candidacy with a position that is not its WAL's end");
                }
                let known = self.checks.votes.insert((id, request.term), id);
                if known.is_some_and(|known| known != id) {
                    wrong.push("a second vote in a term, its own");
                }
            }
            Message::HeartbeatAck(ack) if ack.config > host.disk.config.version => {
                wrong.push("a configuration that is not on disk");
            }
            _ => {}
        }
        for what in wrong {
            self.checks.violation(format!("n{id} tells n{to} {what}: {:?}", envelope.message));
        }
    }

    /// Orders that must never be given.
    pub(super) fn check_order(&mut self, id: NodeId, order: &Order) {
        let host = &self.hosts[&id];
        let busy = host.order.as_ref().filter(|(_, o)| !matches!(o, Order::AwaitEnd { .. }));
        if let Some((_, busy)) = busy {
            let text = format!("n{id} orders {order:?} while {busy:?} is not done");
            self.checks.violation(text);
        }
        let term = host.disk.hard.term;
        if let Order::Follow { leader } = order
            && !self.checks.two_leaders
            && self.checks.leaders.get(&term).is_none_or(|(led, _)| led != leader)
        {
            self.checks.violation(format!("n{id} follows n{leader}, which does not lead term {term}"));
        }
    }

    /// S4.
    pub(super) fn check_promotion(&mut self, id: NodeId, timeline: Timeline) {
        let hard = &self.host(id).disk.hard;
        let intended = hard.promotion.is_some_and(|p| p.timeline == timeline);
        let in_term = self.checks.leaders.get(&Term(timeline)).is_some_and(|(led, _)| *led == id);
        if !intended {
            self.checks.violation(format!("n{id} promotes to {timeline} without the intention on disk"));
        }
        if self.checks.two_leaders {
            return;
        }
        if !in_term {
            self.checks.violation(format!("n{id} opens timeline {timeline} but did not lead that term"));
        }
        let known = self.checks.timelines.insert(timeline, id);
        if known.is_some_and(|known| known != id) {
            self.checks.violation(format!("S4: timeline {timeline} is opened by n{id} too"));
        }
    }
}
