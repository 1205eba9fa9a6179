//! What must hold at every moment of every run (S1 to S6: the design's properties).

use std::collections::{BTreeMap, BTreeSet};

use biha_core::*;

use super::Cluster;
use super::server::Waiting;
use super::wal::{Kind, Log};

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// At most one leader in a term (Ongaro 2014, §3.2 "Election Safety").
    S1,
    /// At most one open gate at any instant of the true time.
    S2,
    /// Where lossless: every acknowledged commit is in the WAL of every leader of a later term ("Leader
    /// Completeness").
    S3,
    /// No timeline number twice.
    S4,
    /// A vote or a term, once told, survives a crash; no second vote in a term.
    S5,
    /// An acknowledged change of the configuration is in every later leader's.
    S6,
    /// Nothing is said that is not on disk or not true.
    Word,
    /// No order that must not be given.
    Order,
    /// Who streams has a prefix of what its source has ("Log Matching").
    Stream,
    /// No node gives up for a reason that no fault explains.
    Node,
}

/// An acknowledged commit.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    number: u64,
    at: usize,
    term: Term,
}

/// What is known so far, and what was broken.
#[derive(Debug, Default)]
pub struct Checks {
    /// S1: the leader of each term, and in which of its lives.
    leaders: BTreeMap<Term, (NodeId, u64)>,
    /// S4: who opened each timeline.
    timelines: BTreeMap<Timeline, NodeId>,
    /// S5: votes told, by voter, its memory and term.
    votes: BTreeMap<(NodeId, u64, Term), NodeId>,
    acknowledged: Vec<Acknowledged>,
    /// S6: which configuration each was made of; those that users were told of.
    pub(super) made_of: BTreeMap<ConfigVersion, ConfigVersion>,
    pub(super) settled: Vec<ConfigVersion>,
    /// Requests for changes of it, and whether they were given at the leader itself.
    pub(super) asked: BTreeMap<RequestId, bool>,
    /// Is every acknowledged commit to be in every later leader's WAL?
    pub lossless: bool,
    /// Two leaders are possible by a configuration that somebody has: S1 and S2 do not hold.
    pub two_leaders: bool,
    /// Gates may be open at two until then, though two leaders are possible no more.
    pub(super) leases_end: Millis,
    /// How often that was so.
    pub judged_again: u64,
    /// There were two of one term: no timeline says any more whose it is.
    pub spoiled: bool,
    /// What nodes were told of who opened a timeline. WAL that a node has of one of two leaders of a term, without having
    /// heard of that one, cannot be told from the other's.
    noted: BTreeSet<(NodeId, Timeline, NodeId)>,
    /// A gate may have opened since they were looked at.
    pub gates_changed: bool,
    /// What is broken on purpose: counted only.
    pub expected: Vec<Rule>,
    pub violations: Vec<String>,
    pub broken: BTreeMap<Rule, u64>,
}

impl Checks {
    /// Terms that had a leader.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Terms in which somebody asked for votes and nobody was elected; and those of them where several asked.
    pub fn lost_elections(&self) -> (u64, u64) {
        let mut asked: BTreeMap<Term, u64> = BTreeMap::new();
        for ((voter, _, term), choice) in &self.votes {
            if voter == choice && !self.leaders.contains_key(term) {
                *asked.entry(*term).or_default() += 1;
            }
        }
        (asked.len() as u64, asked.values().filter(|count| **count > 1).count() as u64)
    }

    pub fn commits(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    pub fn violation(&mut self, rule: Rule, text: String) {
        *self.broken.entry(rule).or_default() += 1;
        if !self.expected.contains(&rule) && self.violations.len() < 10 {
            self.violations.push(format!("{rule:?}: {text}"));
        }
    }

    pub(super) fn note_timelines(&mut self, id: NodeId, hard: &HardState) {
        self.noted.extend(hard.timelines.iter().map(|(timeline, entry)| (id, *timeline, entry.leader)));
    }

    /// A node takes WAL for its own that is another leader's.
    pub(super) fn mixed(&mut self, (id, own): (NodeId, &Log), (source, other): (NodeId, &Log), text: String) {
        let heard = |id: NodeId, log: &Log, other: &Log| {
            log.parts_on(other).is_none_or(|(at, by)| self.noted.contains(&(id, at, by)))
        };
        if !self.spoiled || heard(id, own, other) && heard(source, other, own) {
            self.violation(Rule::Stream, text);
        }
    }

    pub(super) fn forget_notes(&mut self, id: NodeId) {
        self.noted.retain(|(node, ..)| *node != id);
    }

    pub(super) fn acknowledged(&mut self, term: Term, commits: &[Waiting]) {
        self.acknowledged.extend(commits.iter().map(|w| Acknowledged { number: w.number, at: w.at, term }));
    }
}

impl Cluster {
    /// S1, S3 and S6.
    pub(super) fn check_leader(&mut self, id: NodeId) {
        let host = self.host(id);
        let Some(node) = &host.controller else { return };
        if !node.state().is_leader() {
            return;
        }
        let (term, life) = (node.hard().term, host.life);
        match self.checks.leaders.get(&term) {
            Some(known) if *known == (id, life) => return,
            Some(_) if self.checks.two_leaders => self.checks.spoiled = true,
            Some(known) => {
                let text = format!("n{id} (life {life}) leads term {term} as did {known:?}");
                self.checks.violation(Rule::S1, text);
            }
            None => {}
        }
        self.checks.leaders.insert(term, (id, life));
        if self.checks.two_leaders {
            return;
        }
        self.check_configuration(id, term);
        if self.checks.lossless
            && let Some(lost) = self.lost_commit(id, |acknowledged_in| acknowledged_in < term)
        {
            let text = format!("n{id} leads term {term} without the acknowledged commit {lost}");
            self.checks.violation(Rule::S3, text);
        }
    }

    /// A commit acknowledged in one of these terms, which is not in this node's WAL.
    pub fn lost_commit(&self, id: NodeId, terms: impl Fn(Term) -> bool) -> Option<u64> {
        let records = &self.host(id).server.log.records;
        let has = |a: &Acknowledged| {
            records.get(a.at - 1).is_some_and(|record| record.kind == Kind::Commit(a.number))
        };
        self.checks.acknowledged.iter().find(|a| terms(a.term) && !has(a)).map(|a| a.number)
    }

    /// S2. Gates are opened by a word of the controller, the server's promotion, or the host's waking; all else
    /// shuts them.
    pub(super) fn check_gates(&mut self) {
        let now = self.now;
        if self.checks.two_leaders || now < self.checks.leases_end {
            return;
        }
        if !std::mem::take(&mut self.checks.gates_changed) {
            return;
        }
        let mut open = self.hosts.values().filter(|h| h.gate > 0 && h.gate_open(now)).map(|h| h.id);
        if let (Some(first), Some(second)) = (open.next(), open.next()) {
            let text = format!("the gates of n{first} and n{second} are open at {now}");
            self.checks.violation(Rule::S2, text);
        }
    }

    /// Nothing leaves a node that its disk does not know.
    pub(super) fn check_word(&mut self, id: NodeId, envelope: &Envelope) {
        let to = envelope.to;
        let disk = &mut self.hosts.get_mut(&id).expect("a known host").disk;
        let (term, incarnation) = disk.told;
        disk.told = (term.max(envelope.term), incarnation.max(envelope.incarnation));
        if disk.hard.term != envelope.term || disk.hard.incarnation != envelope.incarnation {
            self.wrong_word(id, envelope, "a term or incarnation that is not on disk");
        }
        match &envelope.message {
            Message::VoteReply(reply) if reply.refusal.is_none() => self.check_vote(id, envelope, reply, to),
            Message::Vote(request) => {
                let host = &self.hosts[&id];
                if host.disk.hard.voted_for != Some(id) || host.disk.hard.term != request.term {
                    self.wrong_word(id, envelope, "a candidacy that is not on disk");
                }
                let server = &self.hosts[&id].server;
                let produces = server.produces();
                if request.position != server.log.end() || server.receiver.is_some() {
                    self.wrong_word(id, envelope, "a candidacy with a position that is not its WAL's end");
                }
                if produces {
                    self.wrong_word(id, envelope, "a candidacy of a server in production");
                }
                self.check_only_vote(id, request.term, id);
                self.check_number(id, request.term, id);
            }
            Message::HeartbeatAck(ack) if ack.config > self.host(id).disk.config.version => {
                self.wrong_word(id, envelope, "a configuration that is not on disk");
            }
            Message::ForwardReply { request, result: Ok(()) }
                if self.checks.asked.get(request) == Some(&false) =>
            {
                self.check_settled(id);
            }
            _ => {}
        }
    }

    fn check_vote(&mut self, id: NodeId, envelope: &Envelope, reply: &VoteReply, to: NodeId) {
        let (hard, server) = (&self.hosts[&id].disk.hard, &self.hosts[&id].server);
        let mut wrong = Vec::new();
        if hard.voted_for != Some(to) || hard.term != reply.term {
            wrong.push("a vote that is not on disk");
        }
        if server.receiver.is_some() {
            wrong.push("a vote while WAL is received");
        }
        if server.produces() {
            wrong.push("a vote of a server in production");
        }
        if reply.position.is_some_and(|p| p != server.log.end()) {
            wrong.push("a vote with another position than its WAL's end");
        }
        if server.on_disk < server.log.records.len() {
            wrong.push("a vote with a position that is not on disk");
        }
        for what in wrong {
            self.wrong_word(id, envelope, what);
        }
        self.check_only_vote(id, reply.term, to);
        self.check_number(id, reply.term, to);
    }

    /// S4: nobody votes for a term whose number, or a higher one, is that of a timeline in its own pg_wal, unless the
    /// candidate has opened it.
    fn check_number(&mut self, id: NodeId, term: Term, candidate: NodeId) {
        let newest = self.hosts[&id].server.log.max_timeline();
        let opened = self.checks.timelines.get(&newest) == Some(&candidate);
        if Term(newest) >= term && !opened && !self.checks.two_leaders {
            let text = format!("n{id} votes for n{candidate} in term {term} and has timeline {newest}");
            self.checks.violation(Rule::S4, text);
        }
    }

    fn wrong_word(&mut self, id: NodeId, envelope: &Envelope, what: &str) {
        let text = format!("n{id} tells n{} {what}: {:?}", envelope.to, envelope.message);
        self.checks.violation(Rule::Word, text);
    }

    /// S5: no second vote in a term.
    fn check_only_vote(&mut self, id: NodeId, term: Term, choice: NodeId) {
        let memory = self.host(id).disk.memory;
        let known = self.checks.votes.insert((id, memory, term), choice);
        if known.is_some_and(|known| known != choice) {
            self.checks
                .violation(Rule::S5, format!("n{id} votes for n{choice} in term {term}, and for {known:?}"));
        }
    }

    /// S5: what a node that starts finds on its disk is not behind what it has said.
    pub(super) fn check_memory(&mut self, id: NodeId) {
        let disk = &self.host(id).disk;
        let (term, incarnation) = disk.told;
        let vote = self.checks.votes.get(&(id, disk.memory, disk.hard.term));
        let forgot = disk.hard.term < term
            || disk.hard.incarnation < incarnation
            || vote.is_some_and(|choice| disk.hard.voted_for != Some(*choice));
        if forgot {
            let text = format!("n{id} had told term {term} and {vote:?}, and finds {:?}", disk.hard);
            self.checks.violation(Rule::S5, text);
        }
    }

    /// Orders that must never be given.
    pub(super) fn check_order(&mut self, id: NodeId, order: &Order) {
        let host = &self.hosts[&id];
        let waits = |o: &Order| matches!(o, Order::AwaitEnd { .. } | Order::PrepareHandover);
        let busy = host.order.as_ref().filter(|(_, o)| !waits(o));
        if let Some((_, busy)) = busy {
            let text = format!("n{id} orders {order:?} while {busy:?} is not done");
            self.checks.violation(Rule::Order, text);
        }
        let term = host.disk.hard.term;
        if let Order::Follow { leader } = order
            && !self.checks.two_leaders
            && self.checks.leaders.get(&term).is_none_or(|(led, _)| led != leader)
        {
            let text = format!("n{id} follows n{leader}, which does not lead term {term}");
            self.checks.violation(Rule::Order, text);
        }
    }

    /// S4.
    pub(super) fn check_promotion(&mut self, id: NodeId, timeline: Timeline) {
        let hard = &self.host(id).disk.hard;
        let intended = hard.promotion.is_some_and(|p| p.timeline == timeline);
        let in_term = self.checks.leaders.get(&Term(timeline)).is_some_and(|(led, _)| *led == id);
        if !intended {
            let text = format!("n{id} promotes to {timeline} without the intention on disk");
            self.checks.violation(Rule::Order, text);
        }
        let twice = self.checks.timelines.insert(timeline, id).is_some_and(|known| known != id);
        if self.checks.two_leaders {
            self.checks.spoiled |= twice;
            return;
        }
        if !in_term {
            let text = format!("n{id} opens timeline {timeline} but did not lead that term");
            self.checks.violation(Rule::Order, text);
        }
        if twice {
            self.checks.violation(Rule::S4, format!("timeline {timeline} is opened by n{id} too"));
        }
    }
}
