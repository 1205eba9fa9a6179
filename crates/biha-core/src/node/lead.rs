//! Leading: heartbeats, the lease, LEADER_RO and LEADER_RW (Ongaro 2014, §6.4.1).

use std::collections::{BTreeMap, VecDeque};

use crate::config::{ClusterConfig, ConfigVersion, lease_of};
use crate::event::{EventKind, Step};
use crate::hardstate::TimelineEntry;
use crate::message::{Handover, Heartbeat, HeartbeatAck, HistoryEntry, Message, NodeState, PeerView};
use crate::step::{Order, Output};
use crate::{Millis, NodeId, Position, Term, Timeline};

use super::change::Origin;
use super::elect::{Cause, Stand};
use super::handover::HandingOver;
use super::settle::Change;
use super::sync::Inherited;
use super::{Node, Role, prune};

/// Heartbeat rounds whose acknowledgements are still of use.
const MAX_ROUNDS: usize = 64;

/// A node that leads its term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub term: Term,
    /// The next round's number.
    seq: u64,
    next_beat: Millis,
    /// Rounds sent: number, when, with which promise.
    rounds: VecDeque<Round>,
    acks: BTreeMap<NodeId, Ack>,
    /// The history of the timeline it opened; empty until promoted.
    pub history: Vec<HistoryEntry>,
    /// What the gate's word was last set to.
    open_until: Millis,
    /// Has been LEADER_RW in this term.
    served: bool,
    /// Since when the gate is shut.
    shut_since: Option<Millis>,
    /// The walsenders were ended for it.
    walsenders_ended: bool,
    pub handover: Handover,
    pub handing_over: Option<HandingOver>,
    /// Not again by itself before this moment: one was given up.
    pub no_handover_before: Millis,
    /// Its disk has been well in this term.
    pub was_well: bool,
    pub change: Option<Change>,
    /// Who ended that two leaders are possible, and how long that command waits until every member knows.
    pub ended: Option<(Origin, Millis)>,
    pub inherited: Inherited,
    cause: Cause,
    lost: Millis,
    since: Millis,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Round {
    seq: u64,
    sent: Millis,
    promise: Millis,
    handover: u32,
}

/// What a member last acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ack {
    /// When the newest heartbeat it acknowledged was sent.
    sent: Millis,
    promise: Millis,
    pub heard: Millis,
    pub handover: u32,
    pub streaming: bool,
    pub version: ConfigVersion,
}

impl Leader {
    pub(super) fn deadline(&self) -> Millis {
        self.next_beat
    }

    pub(super) fn is_open(&self) -> bool {
        self.open_until > 0
    }

    pub(super) fn ack(&self, id: NodeId) -> Option<&Ack> {
        self.acks.get(&id)
    }

    /// May a commit that finds the gate shut wait for it to open? Not in a hand-over, and not for longer than a
    /// hiccup lasts.
    pub(super) fn is_worth_waiting_for(&self, now: Millis, timeout: Millis) -> bool {
        self.keeps_office() && self.shut_since.is_none_or(|since| now < since + timeout)
    }

    /// No hand-over stands in the way of commits.
    fn keeps_office(&self) -> bool {
        self.handing_over.is_none_or(|h| !h.is_announced())
    }

    /// Drops a member from the lease and from the live ones.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.acks.remove(&id);
    }

    /// Forgets every acknowledgement: only what is said from now on counts.
    pub(super) fn forget_all(&mut self) {
        self.acks.clear();
        self.rounds.clear();
    }

    /// Promises in force must not outlast a smaller one that is about to be given.
    pub(super) fn shorten(&mut self, promise: Millis) {
        for ack in self.acks.values_mut() {
            ack.promise = ack.promise.min(promise);
        }
        for round in &mut self.rounds {
            round.promise = round.promise.min(promise);
        }
    }

    /// When the lease ends. While nquorum itself is being changed it ends by the old one as well: nobody else has
    /// the new one yet.
    pub(super) fn lease(&self, config: &ClusterConfig, me: NodeId, now: Millis) -> Millis {
        let new = self.lease_by(config, me, now);
        let old = self.change.iter().flat_map(|change| change.old_quorums(config));
        old.map(|old| self.lease_by(old, me, now)).fold(new, Millis::min)
    }

    /// The nquorum-th latest of the voters' promises, the leader's own included.
    fn lease_by(&self, config: &ClusterConfig, me: NodeId, now: Millis) -> Millis {
        let own = now + config.settings.lease();
        let mut ends: Vec<Millis> = config
            .voters()
            .filter_map(|id| match self.acks.get(&id) {
                _ if id == me => Some(own),
                Some(ack) => Some(ack.sent + lease_of(ack.promise)),
                None => None,
            })
            .collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(config.nquorum().saturating_sub(1)).copied().unwrap_or(0)
    }

    /// Members heard within the election timeout, the leader included.
    fn alive(&self, config: &ClusterConfig, now: Millis) -> usize {
        let timeout = config.settings.election_timeout();
        let takes_part = |id: &NodeId| config.members.get(id).is_some_and(|member| !member.joining);
        self.acks.keys().filter(|id| takes_part(id) && self.hears(**id, now, timeout)).count() + 1
    }

    /// Has this member acknowledged a heartbeat within the timeout?
    pub(super) fn hears(&self, id: NodeId, now: Millis, timeout: Millis) -> bool {
        self.acks.get(&id).is_some_and(|ack| now < ack.heard + timeout)
    }
}

impl Node {
    pub(super) fn become_leader(&mut self, cause: Cause, lost: Millis, steps: Vec<Step>) {
        let now = self.now;
        self.heard = None;
        self.sticky = None;
        self.role = Role::Leader(Box::new(Leader {
            term: self.hard.term,
            seq: 0,
            next_beat: now,
            rounds: VecDeque::new(),
            acks: BTreeMap::new(),
            history: Vec::new(),
            open_until: 0,
            served: false,
            shut_since: Some(now),
            walsenders_ended: false,
            handover: Handover::default(),
            handing_over: None,
            no_handover_before: 0,
            was_well: self.sick_since.is_none(),
            change: None,
            ended: None,
            inherited: Inherited::default(),
            cause,
            lost,
            since: now,
            steps,
        }));
        self.republish_config();
        self.beat_now();
    }

    pub(super) fn leader_on_time(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if self.now >= leader.next_beat {
            self.beat_now();
        }
        self.renew();
        self.handover_on_time();
        self.change_acknowledged();
        self.change_on_time();
    }

    /// One round of heartbeats.
    pub(super) fn beat_now(&mut self) {
        let period = Millis::from(self.config.settings.heartbeat_send_period);
        let promise = self.timeout();
        let peers = self.peer_views();
        let (now, position, checkpointed) = (self.now, self.position(), self.server.checkpointed);
        let config = self.config.version;
        let oldest_wal = self.server.oldest_wal;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.seq += 1;
        leader.next_beat = now + period;
        leader.rounds.push_back(Round {
            seq: leader.seq,
            sent: now,
            promise,
            handover: leader.handover.number,
        });
        if leader.rounds.len() > MAX_ROUNDS {
            leader.rounds.pop_front();
        }
        let beat = Heartbeat {
            seq: leader.seq,
            promise,
            handover: leader.handover,
            config,
            state: if leader.is_open() { NodeState::LeaderRw } else { NodeState::LeaderRo },
            openers: self.hard.openers(&leader.history),
            history: leader.history.clone(),
            rewind_ready: checkpointed && !leader.history.is_empty(),
            oldest_wal,
            position,
            peers,
        };
        for to in self.others() {
            self.send(to, Message::Heartbeat(Box::new(beat.clone())));
        }
    }

    fn peer_views(&self) -> Vec<PeerView> {
        self.view()
            .members
            .into_iter()
            .map(|m| PeerView {
                id: m.id,
                state: m.state,
                online: m.online,
                since_heard: m.since_heard.unwrap_or(0),
                position: m.position,
            })
            .collect()
    }

    pub(super) fn on_ack(&mut self, from: NodeId, term: Term, ack: &HeartbeatAck) {
        self.see_term(term);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.state = ack.state;
            peer.position = ack.position;
            peer.config = ack.config;
        }
        let (now, incarnation, own_term) = (self.now, self.hard.incarnation, self.hard.term);
        let Role::Leader(leader) = &mut self.role else { return };
        if term != own_term || ack.leader_incarnation != incarnation {
            return;
        }
        let round = leader.rounds.iter().find(|r| r.seq == ack.seq).copied();
        let Some(round) = round.filter(|r| r.handover == leader.handover.number) else { return };
        let new = Ack {
            sent: round.sent,
            promise: round.promise,
            heard: now,
            handover: ack.handover,
            streaming: ack.streaming,
            version: ack.config,
        };
        // A late acknowledgement says nothing new.
        if leader.acks.get(&from).is_some_and(|old| old.sent > new.sent) {
            return;
        }
        leader.acks.insert(from, new);
        self.push_config(from, ack.config);
        self.outdo(ack.config);
        self.renew();
        self.handover_acknowledged();
        self.change_acknowledged();
        self.admit(from);
    }

    /// Recomputes the lease and sets the gate's word.
    pub(super) fn renew(&mut self) {
        let (now, me) = (self.now, self.hard.node);
        let safe = self.inherited_is_safe();
        let config = &self.config;
        let Role::Leader(leader) = &self.role else { return };
        let lease = leader.lease(config, me, now);
        let alive = leader.alive(config, now) >= config.minnodes();
        let promoted = !leader.history.is_empty() && self.server.production;
        let able = promoted && safe && leader.keeps_office() && !self.stopping;
        let open = able && alive && lease > now;
        let until = if open { lease } else { 0 };
        if until == leader.open_until {
            return;
        }
        let was_open = leader.is_open();
        let alive_text = leader.alive(config, now);
        if let Role::Leader(leader) = &mut self.role {
            leader.open_until = until;
            match (was_open, open) {
                (true, false) => leader.shut_since = Some(now),
                (false, true) => {
                    leader.shut_since = None;
                    leader.walsenders_ended = false;
                }
                _ => {}
            }
        }
        self.gate(until);
        match (was_open, open) {
            (false, true) => self.opened(),
            (true, false) => {
                let why = if lease <= now {
                    "the lease ran out: too few voters answer".to_owned()
                } else if !alive {
                    format!("{alive_text} nodes are alive, minnodes is {}", self.config.minnodes())
                } else {
                    "a hand-over begins".to_owned()
                };
                self.note(EventKind::Fenced, &why, Vec::new());
                self.beat_now();
            }
            _ => {}
        }
    }

    /// LEADER_RW is reached.
    fn opened(&mut self) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.inherited = Inherited::Safe;
        if leader.served {
            self.note(EventKind::Unfenced, "a quorum answers again", Vec::new());
        } else {
            leader.served = true;
            let (cause, lost) = (leader.cause, leader.lost);
            let mut steps = std::mem::take(&mut leader.steps);
            steps.push(Step { name: "writable".to_owned(), ms: now - leader.since });
            steps.push(Step { name: "total".to_owned(), ms: now - lost });
            let (kind, text) = match cause {
                Cause::Handover(_) => (EventKind::Switchover, "the leader handed over"),
                Cause::Death => (EventKind::Failover, "the leader is gone"),
                Cause::Timeout => (EventKind::Failover, "the leader was not heard"),
                Cause::Return => (EventKind::Failover, "the leader is back"),
                Cause::Startup => (EventKind::Failover, "the cluster started"),
            };
            self.note(kind, text, steps);
        }
        self.beat_now();
    }

    /// The order that leading asks for now, if any.
    pub(super) fn leader_order(&mut self) -> Option<Order> {
        let now = self.now;
        let timeout = self.timeout();
        let own_timeline = self.position().map_or(0, |p| p.timeline);
        let (config, me) = (&self.config, self.hard.node);
        let Role::Leader(leader) = &mut self.role else { return None };
        if let Some(order) = leader.handing_over.and_then(|h| h.order()) {
            return Some(order);
        }
        if leader.history.is_empty() && self.server.production {
            self.own_up_to_timeline();
            self.promotion_failed("somebody else promoted the server");
            return None;
        }
        if leader.history.is_empty() {
            let ready = leader.lease(config, me, now) > now && leader.alive(config, now) >= config.minnodes();
            return ready
                .then_some(Order::Promote { timeline: leader.term.0, first_placeholder: own_timeline + 1 });
        }
        let lost = leader.lease(config, me, now) <= now;
        let long = leader.shut_since.is_some_and(|since| now >= since + timeout);
        if lost && long && !leader.walsenders_ended {
            leader.walsenders_ended = true;
            return Some(Order::EndWalsenders);
        }
        None
    }

    pub(super) fn promoted(&mut self, history: Vec<HistoryEntry>) {
        let now = self.now;
        let me = self.hard.node;
        // The server has left recovery; the next status says so too, if the last one did not.
        if !self.server.production {
            self.server.production = true;
            self.server.hint = history.last().map(|e| Position { timeline: e.timeline, lsn: e.fork });
        }
        let opened = history.last().map(|e| Term(e.timeline));
        if !matches!(&self.role, Role::Leader(leader) if opened == Some(leader.term)) {
            // Nothing may be written on a timeline whose number is not this term's.
            if matches!(self.role, Role::Leader(_)) {
                self.promotion_failed("the server opened another timeline than ordered");
            }
            self.own_up_to_timeline();
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        leader.steps.push(Step { name: "promote".to_owned(), ms: now - leader.since });
        leader.since = now;
        leader.history.clone_from(&history);
        let term = leader.term;
        let last: Option<(Timeline, crate::Lsn)> = leader.history.last().map(|e| (e.timeline, e.fork));
        self.renew();
        self.hard.promotion = None;
        self.know_timeline(term.0);
        // What this node heard of, but its WAL has not come by, must not be taken for a part of it.
        self.hard.timelines.retain(|at, _| history.iter().any(|entry| entry.timeline == *at));
        if let Some((timeline, fork)) = last {
            self.hard.timelines.insert(timeline, TimelineEntry { term, leader: me, fork });
            prune(&mut self.hard.timelines);
        }
        self.outputs.push(Output::Persist(Box::new(self.hard.clone())));
        self.beat_now();
    }

    pub(super) fn promotion_failed(&mut self, text: &str) {
        self.note(EventKind::Demoted, &format!("the promotion failed: {text}"), Vec::new());
        self.become_follower();
        // The others' turn comes first: whatever failed here may fail again.
        let at = self.now + 2 * self.timeout();
        self.stand_at(Stand { at, cause: Cause::Timeout });
    }
}
