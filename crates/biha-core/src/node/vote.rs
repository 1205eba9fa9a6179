//! Voting: when a voter says yes, and what it does before (Ongaro 2014, §3.4, §3.6.1, §4.2.3).

use crate::config::Mode;
use crate::hardstate::{RewindState, TimelineEntry};
use crate::message::{Message, Refusal, VoteReply, VoteRequest};
use crate::step::Order;
use crate::{Millis, NodeId, Position, Term};

use super::elect::{Cause, Stand};
use super::{Node, Role, Wal};

impl Node {
    /// Would this voter say no to the request, and why? The same question for pre-vote, vote, and a
    /// candidate's own vote.
    pub(super) fn refusal(&self, candidate: NodeId, request: &VoteRequest) -> Option<Refusal> {
        if !self.config.members.get(&candidate).is_some_and(|m| m.is_electable()) {
            return Some(Refusal::NotElectable);
        }
        if self.now < self.silent_until {
            return Some(Refusal::Silent(self.silent_until - self.now));
        }
        if self.server.production || matches!(self.role, Role::Leader(_)) {
            return Some(Refusal::InProduction);
        }
        if let Some(remaining) = self.promised_for()
            && !self.exempt(candidate, request)
        {
            return Some(Refusal::LeaderAlive(remaining));
        }
        let voted_in_it = request.term == self.hard.term && self.hard.voted_for == Some(candidate);
        if voted_in_it {
            return None;
        }
        if request.term == self.hard.term && self.hard.voted_for.is_some() {
            return Some(Refusal::AlreadyVoted);
        }
        if request.term <= self.known && !self.undecided(request.term) {
            return Some(Refusal::TermTooLow);
        }
        if !self.ready() {
            return Some(Refusal::NotReady);
        }
        if request.config < self.config.version {
            return Some(Refusal::ConfigOlder);
        }
        if self.has_wal() {
            match self.position() {
                None => return Some(Refusal::NotReady),
                Some(own) if request.position < own => return Some(Refusal::PositionBehind),
                Some(_) => {}
            }
        }
        None
    }

    /// The own term, in which this node has not voted, and whose number no timeline has.
    fn undecided(&self, term: Term) -> bool {
        term == self.hard.term
            && self.hard.voted_for.is_none()
            && term == self.known
            && Term(self.timeline) < term
    }

    /// Does the WAL end on a timeline that nobody was elected to open? It must not win against WAL that is.
    pub(super) fn unelected(&self, position: Position) -> bool {
        let alone = self.config.voters().eq([self.hard.node]);
        !alone
            && self.hard.timelines.get(&position.timeline).is_some_and(|e| !e.is_elected(position.timeline))
    }

    /// How long this node is still bound not to vote or stand, in ms.
    pub(super) fn promised_for(&self) -> Option<Millis> {
        self.sticky.filter(|s| self.now < s.until).map(|s| s.until - self.now)
    }

    /// The leader itself released this voter from its promise, for this candidate.
    fn exempt(&self, candidate: NodeId, request: &VoteRequest) -> bool {
        let (Some(heard), Some(number)) = (&self.heard, request.handover) else { return false };
        let handover = heard.beat.handover;
        handover.target == Some(candidate)
            && handover.number == number
            && self.sticky.is_some_and(|s| s.leader == heard.id && s.incarnation == heard.incarnation)
    }

    /// Fit to vote and to stand: the position is known and elected, no rewind is unfinished, no error.
    pub(super) fn ready(&self) -> bool {
        let known = match self.wal {
            Wal::Unknown => !self.has_wal(),
            Wal::Stopped { position } => !self.unelected(position),
            Wal::Receiving { .. } => true,
        };
        // A rewound node is whole again only once recovery has become consistent.
        let whole = self.server.consistent || !self.has_wal();
        let unfinished = matches!(self.hard.rewind, RewindState::Requested(_) | RewindState::Recloning);
        // A leader that gave way meanwhile: its server will be in production, and has then WAL of its own.
        let promoting = self.order.as_ref().is_some_and(|o| matches!(o.order, Order::Promote { .. }));
        known && whole && !unfinished && !promoting && self.hard.error.is_none()
    }

    pub(super) fn on_pre_vote(&mut self, from: NodeId, request: &VoteRequest) {
        let refusal = self
            .refusal(from, request)
            .or_else(|| self.outranks(from, request).then_some(Refusal::Outranked));
        self.answer(from, request, refusal, true);
        // Whoever can stand reads it then.
        let stands = self.me().is_some_and(|m| m.is_electable());
        if let Role::Follower(follower) = &mut self.role {
            follower.doubts |= refusal == Some(Refusal::PositionBehind) && !stands;
        }
        if refusal.is_none() {
            self.yield_once();
        }
    }

    /// Gives a candidate that this node would vote for the time to be elected, before it stands itself.
    fn yield_once(&mut self) {
        let at = self.now + self.election_wait() + self.turn();
        if let Role::Follower(follower) = &mut self.role
            && !std::mem::replace(&mut follower.yielded, true)
            && let Some(stand) = &mut follower.stand
        {
            stand.at = stand.at.max(at);
        }
    }

    pub(super) fn on_vote(&mut self, from: NodeId, request: VoteRequest) {
        if let Some(refusal) = self.refusal(from, &request) {
            self.answer(from, &request, Some(refusal), false);
            return;
        }
        if matches!(self.role, Role::Candidate(_)) {
            // Somebody stands ahead of this node, with a term as high and WAL as good.
            self.become_follower();
        }
        // Its own turn comes only if nothing comes of this candidate.
        let at = self.now + self.timeout() / 2 + self.turn();
        self.stand_at(Stand { at, cause: Cause::Timeout });
        let Role::Follower(follower) = &mut self.role else { return };
        let newer = follower.pending_vote.as_ref().is_none_or(|(_, r)| r.term <= request.term);
        if newer {
            follower.pending_vote = Some((from, request));
        }
        self.vote_if_stopped();
    }

    /// Before yes, a WAL voter stops receiving, durably; then the vote is persisted, then answered.
    pub(super) fn vote_if_stopped(&mut self) {
        if self.has_wal() && !matches!(self.wal, Wal::Stopped { .. }) {
            return;
        }
        let Role::Follower(follower) = &mut self.role else { return };
        let Some((from, request)) = follower.pending_vote.take() else { return };
        let refusal = self.refusal(from, &request);
        let again = self.hard.term == request.term && self.hard.voted_for == Some(from);
        if refusal.is_none() && !again {
            if request.term > self.hard.term {
                self.hard.term = request.term;
                self.heard = None;
            }
            self.hard.voted_for = Some(from);
            self.known = self.known.max(request.term);
            if let Wal::Stopped { position } = self.wal {
                self.hard.lower_bound = Some(position);
            }
            self.persist();
        }
        self.answer(from, &request, refusal, false);
    }

    fn answer(&mut self, to: NodeId, request: &VoteRequest, refusal: Option<Refusal>, pre: bool) {
        if refusal == Some(Refusal::ConfigOlder) {
            let config = Box::new(self.config.clone());
            self.send(to, Message::Config(config));
        }
        let is_referee = self.me().is_some_and(|m| m.mode == Mode::Referee);
        let unknown = is_referee || self.wal == Wal::Unknown;
        let position = if unknown { None } else { self.position() };
        // A leader that has handed over comes last.
        let led =
            self.led.filter(|(_, target)| target.is_none_or(|target| target == to)).map(|(term, _)| term);
        let reply = VoteReply { term: request.term, refusal, position, known: self.known, led };
        self.send(to, if pre { Message::PreVoteReply(reply) } else { Message::VoteReply(reply) });
        if refusal == Some(Refusal::PositionBehind) {
            self.stand_soon();
        }
    }

    /// Was this node, before it was started anew, the last leader that the voter has heard? Nobody holds more of its WAL.
    pub(super) fn led_last(&self, reply: &VoteReply) -> bool {
        let Some(Position { timeline, .. }) = self.position() else { return false };
        let opened = |e: &TimelineEntry| e.leader == self.hard.node && e.is_elected(timeline);
        reply.led == Some(Term(timeline)) && self.hard.timelines.get(&timeline).is_some_and(opened)
    }

    /// Another stands with less WAL than this node holds: this node should stand itself.
    fn stand_soon(&mut self) {
        let now = self.now;
        if let Role::Follower(follower) = &mut self.role
            && let Some(stand) = &mut follower.stand
        {
            stand.at = stand.at.min(now);
        }
    }
}
