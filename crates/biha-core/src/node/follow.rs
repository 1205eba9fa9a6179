//! Following: heartbeats heard, leaders lost.

use crate::config::ClusterConfig;
use crate::event::EventKind;
use crate::hardstate::{NodeErrorKind, RewindState, TimelineEntry};
use crate::history::{Ancestry, ancestry};
use crate::message::{Heartbeat, HeartbeatAck, HistoryEntry, Message};
use crate::step::{Order, Output};
use crate::{Incarnation, Lsn, NodeId, Position, Term, Timeline};

use super::elect::{Cause, Stand};
use super::{Death, Heard, Node, Role, Sticky, Wal, prune};

/// What a node says that is no member any more.
pub(super) const REMOVED: &str = "this node was removed from the cluster";

impl Node {
    pub(super) fn on_heartbeat(
        &mut self,
        from: NodeId,
        incarnation: Incarnation,
        term: Term,
        beat: Heartbeat,
    ) {
        let member = self.config.members.get(&from).is_some_and(|m| m.is_electable());
        if !member && beat.config <= self.config.version {
            return;
        }
        if term < self.hard.term {
            // Answered with the own, higher term: a stale leader learns of it and steps down.
            self.acknowledge(from, incarnation, beat.seq, beat.handover.number);
            return;
        }
        self.see_term(term);
        if matches!(self.role, Role::Leader(_)) {
            // Only an nquorum that is no majority elects two in one term: the higher number gives way.
            if from > self.hard.node {
                return;
            }
            self.gate(0);
            self.note(EventKind::Demoted, &format!("node {from} leads the same term"), Vec::new());
            self.become_follower();
        }
        self.know_leader(from, incarnation, beat);
    }

    fn know_leader(&mut self, from: NodeId, incarnation: Incarnation, beat: Heartbeat) {
        // A late one must bring back neither a promise that was shortened nor a hand-over that was cancelled.
        let late = |h: &Heard| h.id == from && h.incarnation == incarnation && beat.seq <= h.beat.seq;
        if self.heard.as_ref().is_some_and(late) {
            return;
        }
        if beat.promise > self.hard.longest_promise {
            self.hard.longest_promise = beat.promise;
            self.persist();
        }
        self.sticky = Some(Sticky { leader: from, incarnation, until: self.now + beat.promise });
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.state = beat.state;
            peer.position = beat.position;
            peer.config = beat.config;
        }
        self.learn_from(&beat);
        self.know_timeline(beat.history.last().map_or(0, |e| e.timeline));
        let handover = (beat.handover.target == Some(self.hard.node)).then_some(beat.handover.number);
        self.led = Some((self.hard.term, beat.handover.target));
        // Whoever leads now was elected when the leases before it had ended, so promises of this node's former
        // life bind no more; the one to this leader is kept above.
        self.silent_until = self.silent_until.min(self.now);
        self.heard = Some(Heard { id: from, incarnation, at: self.now, beat, dead: None });
        match &mut self.role {
            Role::Follower(follower) => follower.yielded = false,
            _ => self.become_follower(),
        }
        self.acknowledge_again();
        if handover.is_none() {
            self.stand_if_leaderless();
        }
        self.leader_known_to_requests();
    }

    /// The leader's view of the other members, and the timeline it opened.
    fn learn_from(&mut self, beat: &Heartbeat) {
        for view in &beat.peers {
            if view.id == self.hard.node {
                continue;
            }
            let peer = self.peers.entry(view.id).or_default();
            peer.position = view.position;
            peer.state = view.state;
            if view.online {
                peer.heard = peer.heard.max(Some(self.now.saturating_sub(view.since_heard)));
            }
        }
    }

    /// Remembers who opened the timelines of the leader's history. False if this node's WAL is on one of them, or has come
    /// by, that somebody else opened: divergence that pg_rewind would not see.
    fn record_timelines(&mut self, position: Position) -> bool {
        let Some(heard) = &self.heard else { return true };
        let Some(newest) = heard.beat.history.last() else { return true };
        if self.unelected(position) && heard.beat.history.iter().any(|e| e.timeline == position.timeline) {
            return false;
        }
        let (mut timelines, before) = (self.hard.timelines.clone(), heard.beat.openers.iter());
        let told = before.copied().filter(|(timeline, _)| *timeline < newest.timeline);
        for (timeline, leader) in told.chain([(newest.timeline, heard.id)]) {
            let Some(at) = heard.beat.history.iter().find(|e| e.timeline == timeline) else { continue };
            let entry = TimelineEntry { term: Term(timeline), leader, fork: at.fork };
            match timelines.get(&timeline) {
                Some(known) if (known.term, known.leader) == (entry.term, leader) => {}
                Some(_) if timeline <= position.timeline => return false,
                _ => {
                    timelines.insert(timeline, entry);
                }
            }
        }
        prune(&mut timelines);
        if timelines != self.hard.timelines {
            self.hard.timelines = timelines;
            self.persist();
        }
        true
    }

    fn acknowledge(&mut self, to: NodeId, incarnation: Incarnation, seq: u64, handover: u32) {
        let streaming = self.server.streaming
            && !self.server.sick
            && matches!(self.wal, Wal::Receiving { leader, term, .. } if leader == to && term == self.hard.term);
        let ack = HeartbeatAck {
            seq,
            leader_incarnation: incarnation,
            handover,
            config: self.config.version,
            state: self.state(),
            position: self.position(),
            streaming,
        };
        self.send(to, Message::HeartbeatAck(ack));
    }

    /// Answers the last heartbeat, or answers it again now that there is something new to say.
    pub(super) fn acknowledge_again(&mut self) {
        let Some(heard) = &self.heard else { return };
        self.acknowledge(heard.id, heard.incarnation, heard.beat.seq, heard.beat.handover.number);
    }

    pub(super) fn on_config(&mut self, from: NodeId, config: ClusterConfig) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.config = peer.config.max(config.version);
        }
        if config.version <= self.config.version || matches!(self.role, Role::Leader(_)) {
            return;
        }
        self.adopt_config(config);
        self.acknowledge_again();
    }

    pub(super) fn adopt_config(&mut self, config: ClusterConfig) {
        self.outputs.push(Output::PersistConfig(Box::new(config.clone())));
        self.config = config;
        self.forget_strangers();
        if self.me().is_none() {
            self.fail(NodeErrorKind::Removed, REMOVED.to_owned());
        } else if self.me().is_some_and(|me| !me.joining)
            && self.hard.error.take_if(|error| error.kind == NodeErrorKind::Removed).is_some()
        {
            // It had heard of a removal that no quorum has. Where it is joining another may have got its number since.
            self.note(EventKind::NodeError, "this node is a member of the cluster again", Vec::new());
            self.persist();
        }
    }

    /// The leader is proven dead, its gate shut for good.
    pub(super) fn leader_died(&mut self, clean: bool, why: &str) {
        let now = self.now;
        let Some(heard) = &mut self.heard else { return };
        if heard.dead.is_some() {
            return;
        }
        heard.dead = Some(Death { at: now, clean });
        let chosen = heard.beat.handover.target;
        let id = heard.id;
        self.note(EventKind::LeaderLost, &format!("node {id} is gone: {why}"), Vec::new());
        if let Role::Candidate(candidate) = &mut self.role {
            candidate.cause = Cause::Death;
            candidate.retry = now;
            return;
        }
        let receiving = matches!(self.wal, Wal::Receiving { .. });
        let wait = match (clean && receiving, chosen) {
            // The stream's end brings the candidacy forward (`stream_ended`).
            (true, None) => self.timeout(),
            (true, Some(chosen)) if chosen == self.hard.node => self.timeout(),
            (true, Some(_)) => 2 * self.timeout(),
            (false, _) => self.turn(),
        };
        self.stand_at(Stand { at: now + wait, cause: Cause::Death });
    }

    /// The stream of a leader that is stopping has ended with its shutdown checkpoint: nothing is missing.
    pub(super) fn stream_ended(&mut self) {
        let Some(heard) = &self.heard else { return };
        let (wait, cause) = match heard.beat.handover.target {
            Some(chosen) if chosen == self.hard.node => (0, Cause::Handover(heard.beat.handover.number)),
            Some(_) => (self.timeout(), Cause::Death),
            None => (self.turn(), Cause::Death),
        };
        self.stand_at(Stand { at: self.now + wait, cause });
    }

    /// The order that following asks for now, if any.
    pub(super) fn follow_order(&mut self) -> Option<Order> {
        let heard = self.heard.as_ref()?;
        let (leader, term) = (heard.id, self.hard.term);
        let chosen = heard.beat.handover.target == Some(self.hard.node);
        if let Wal::Receiving { leader: from, term: in_term, .. } = self.wal {
            let ending = match heard.dead {
                Some(death) => death.clean,
                None => chosen,
            };
            let from_it = from == leader && in_term == term;
            if ending && from_it {
                return Some(Order::AwaitEnd { timeout: self.timeout() });
            }
            if from_it && self.is_astray(&heard.beat.history) {
                return Some(Order::Restart { rewind: None, drain: false });
            }
            let stalled = self.receiver_stalled();
            self.starved = stalled;
            let stop = !from_it || heard.dead.is_some() || stalled;
            return stop.then_some(Order::StopReceiving);
        }
        let Wal::Stopped { position } = self.wal else { return None };
        let silent = self.now >= heard.at + self.timeout();
        if heard.dead.is_some() || silent || heard.beat.history.is_empty() || chosen {
            return None;
        }
        if self.hard.error.is_some() {
            return self.reclone_order(leader, position);
        }
        if !self.record_timelines(position) {
            self.fail(
                NodeErrorKind::TimelineConflict,
                format!("node {leader}'s WAL has a timeline whose number another leader has used here"),
            );
            return None;
        }
        self.follow_or_rewind(leader, position)
    }

    fn follow_or_rewind(&mut self, leader: NodeId, position: Position) -> Option<Order> {
        let heard = self.heard.as_ref()?;
        let Ancestry::Parted(fork) = ancestry(position, &heard.beat.history) else {
            let oldest = heard.beat.oldest_wal;
            // Until it has starved once, an archive may have what the leader has not.
            if self.starved && position.lsn < oldest {
                let text = format!("the WAL ends at {position}, but node {leader} has none before {oldest}");
                self.fail(NodeErrorKind::WalRemoved, text);
                return None;
            }
            // What this node heard of, but its WAL does not come by, must not be taken for a part of it later.
            let history = &heard.beat.history;
            let comes_by = |at: Timeline| at > position.timeline || history.iter().any(|e| e.timeline == at);
            let before = self.hard.timelines.len();
            self.hard.timelines.retain(|at, _| comes_by(*at));
            if self.hard.timelines.len() < before {
                self.persist();
            }
            return Some(Order::Follow { leader });
        };
        let parting = match fork {
            Lsn(0) => format!("the WAL ends at {position}, on a timeline that node {leader}'s history lacks"),
            _ => format!("the WAL ends at {position} but leaves node {leader}'s at {fork}"),
        };
        let done = [RewindState::Done(self.hard.term), RewindState::Recloned(self.hard.term)];
        if done.contains(&self.hard.rewind) {
            self.fail(NodeErrorKind::RewindFailed, format!("after a rewind {parting}"));
            return None;
        }
        if !self.options.autorewind {
            self.fail(NodeErrorKind::Diverged, parting);
            return None;
        }
        // Where replay has not come as far as the fork, pg_rewind would find nothing to do.
        if !heard.beat.rewind_ready || self.server.end_on_file <= fork || self.pauses() {
            return None;
        }
        self.hard.rewind = RewindState::Requested(self.hard.term);
        self.note(EventKind::Rewind, &parting, Vec::new());
        self.persist();
        Some(Order::Restart { rewind: Some(leader), drain: false })
    }

    /// Has recovery turned to a timeline that this leader's WAL has never come by? It had been told of a leader that was
    /// lost before it wrote anything, and never turns back: only a new start looks for the newest again
    /// (xlogrecovery.c, `rescanLatestTimeLine`). Meanwhile the receiver has fetched the history of this one.
    fn is_astray(&self, history: &[HistoryEntry]) -> bool {
        let Wal::Receiving { moved, .. } = self.wal else { return false };
        let asked = self.server.asked;
        let known = history.iter().any(|entry| entry.timeline == asked);
        let newer = history.first().is_some_and(|oldest| asked > oldest.timeline);
        newer && !known && !self.server.streaming && self.now >= moved + self.timeout()
    }

    /// No WAL and no stream for `no_wal_on_follower`, or an order that failed: worth a new connection.
    fn receiver_stalled(&self) -> bool {
        match self.wal {
            Wal::Receiving { moved, failed, .. } => {
                let patience = u64::from(self.config.settings.no_wal_on_follower);
                failed || !self.server.streaming && self.now >= moved + patience
            }
            _ => false,
        }
    }
}
