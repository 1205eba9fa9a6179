//! Standing for election: pre-vote, then the vote (Ongaro 2014, §3.4, §9.6).

use std::collections::BTreeSet;

use crate::config::{Member, Mode};
use crate::event::{EventKind, Step};
use crate::message::{Message, Refusal, VoteReply, VoteRequest};
use crate::{Millis, NodeId, Position, Term};

use super::{Node, Role, Wal};

/// Why a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// No leader has been heard since this node started.
    Startup,
    /// No leader has been heard since this node started, but until then it led.
    Return,
    /// The leader was not heard for an election timeout.
    Timeout,
    /// The leader is proven dead.
    Death,
    /// The leader hands over to this node, under this number.
    Handover(u32),
}

/// A candidacy that is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stand {
    pub at: Millis,
    pub cause: Cause,
}

/// A node that asks for votes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Candidate {
    pub cause: Cause,
    /// When the leader was last known to lead: where the clock of the failover starts.
    lost: Millis,
    since: Millis,
    phase: Phase,
    granted: BTreeSet<NodeId>,
    answered: BTreeSet<NodeId>,
    /// Another candidate, whose turn comes first, said so in this round.
    outranked: bool,
    /// A voter that will not stand itself holds more than this node believes to have while it receives: time to read
    /// what it has.
    behind: bool,
    /// Until when a voter may not speak, as it said: nobody could win without it.
    pub(super) hushed: Millis,
    /// How often it has asked for pre-votes.
    rounds: u32,
    /// The term asked for.
    term: Term,
    pub retry: Millis,
    /// The steps so far.
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Would you vote for me?
    PreVote,
    /// A quorum would; the own receiver is being stopped.
    Stopping,
    /// Vote for me.
    Vote,
}

impl Candidate {
    pub(super) fn deadline(&self) -> Millis {
        self.retry
    }

    /// Number of the hand-over that names this node.
    fn handover(&self) -> Option<u32> {
        if let Cause::Handover(number) = self.cause { Some(number) } else { None }
    }

    /// Must the own receiver be stopped now? At once where the leader is known to be gone, else only after a
    /// quorum agreed that it is, or where a position keeps it from that: what a receiver says of it is not exact.
    pub(super) fn wants_stop(&self) -> bool {
        self.phase != Phase::PreVote || self.behind || matches!(self.cause, Cause::Death | Cause::Handover(_))
    }
}

/// Election timeouts that a starting cluster waits for the positions of all its voters.
const STARTUP_PATIENCE: Millis = 5;

impl Node {
    /// Plans a candidacy for the case that no leader is heard.
    pub(super) fn stand_if_leaderless(&mut self) {
        let stand = match (&self.heard, self.led) {
            (Some(heard), _) if heard.dead.is_some() => {
                Stand { at: self.now + self.election_wait(), cause: Cause::Death }
            }
            (Some(heard), _) => {
                let wal = match self.wal {
                    // WAL that still arrives is a sign of life, but not for ever.
                    Wal::Receiving { leader, moved, .. } if leader == heard.id => {
                        moved.min(heard.at + self.timeout())
                    }
                    _ => heard.at,
                };
                Stand { at: heard.at.max(wal) + self.timeout(), cause: Cause::Timeout }
            }
            (None, Some(_)) => Stand { at: self.now + self.election_wait(), cause: Cause::Timeout },
            (None, None) => Stand { at: self.silent_until, cause: Cause::Startup },
        };
        let at = stand.at.max(self.silent_until) + self.turn();
        self.stand_at(Stand { at, ..stand });
    }

    /// Until when a starting cluster waits for everybody's position.
    fn patient_until(&self) -> Millis {
        self.started + STARTUP_PATIENCE * self.timeout()
    }

    /// How long one round of voting may take before the next is tried, in ms.
    pub(super) fn election_wait(&self) -> Millis {
        2 * Millis::from(self.config.settings.heartbeat_send_period).max(100)
    }

    pub(super) fn stand_at(&mut self, stand: Stand) {
        if let Role::Follower(follower) = &mut self.role {
            follower.stand = Some(stand);
        }
    }

    pub(super) fn follower_on_time(&mut self) {
        let Role::Follower(follower) = &self.role else { return };
        let Some(stand) = follower.stand else { return };
        if self.now < stand.at {
            return;
        }
        if self.still_alive_by_wal(stand) {
            self.stand_if_leaderless();
            return;
        }
        if self.may_stand(stand.cause) {
            self.become_candidate(stand.cause);
        } else {
            let retry = self.now + self.promised_for().unwrap_or(Millis::MAX).clamp(1, self.timeout() / 4);
            self.stand_at(Stand { at: retry, ..stand });
        }
    }

    /// WAL has arrived since the candidacy was planned, and not too long after the last heartbeat.
    fn still_alive_by_wal(&self, stand: Stand) -> bool {
        let Some(heard) = self.heard.as_ref().filter(|h| h.dead.is_none()) else { return false };
        let Wal::Receiving { leader, moved, .. } = self.wal else { return false };
        stand.cause == Cause::Timeout
            && leader == heard.id
            && self.now < moved.min(heard.at + self.timeout()) + self.timeout()
    }

    /// May this node stand at all, as things are?
    fn may_stand(&self, cause: Cause) -> bool {
        let exempt = matches!(cause, Cause::Handover(_));
        self.me().is_some_and(|m| m.is_electable())
            && self.ready()
            && self.position().is_some()
            && self.now >= self.silent_until
            && (exempt || self.promised_for().is_none())
            && !self.server.production
            && !self.stopping
            && !self.restarting
    }

    fn become_candidate(&mut self, cause: Cause) {
        let lost = match (&self.heard, cause) {
            (Some(heard), Cause::Death) => heard.dead.map_or(heard.at, |d| d.at),
            (Some(heard), _) => heard.at,
            (None, _) => self.now,
        };
        if cause == Cause::Timeout
            && let Some(heard) = &self.heard
        {
            let cause = format!("node {} was not heard for {} ms", heard.id, self.now - heard.at);
            self.note(EventKind::LeaderLost, &cause, Vec::new());
        }
        self.role = Role::Candidate(Candidate {
            cause,
            lost,
            since: self.now,
            phase: Phase::PreVote,
            granted: BTreeSet::new(),
            answered: BTreeSet::new(),
            outranked: false,
            behind: false,
            hushed: self.now,
            rounds: 0,
            term: Term(0),
            retry: 0,
            steps: vec![Step { name: "detect".to_owned(), ms: self.now - lost }],
        });
        self.ask_pre_votes();
    }

    fn ask_pre_votes(&mut self) {
        let term = self.known.max(self.hard.term).next();
        let retry = self.now + Millis::from(self.config.settings.heartbeat_send_period).max(50);
        let retry = retry + self.random(self.beat());
        let me = self.hard.node;
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.phase = Phase::PreVote;
        candidate.term = term;
        candidate.retry = retry;
        candidate.granted = BTreeSet::from([me]);
        candidate.answered = BTreeSet::from([me]);
        candidate.outranked = false;
        candidate.rounds += 1;
        self.ask(false);
        self.count_pre_votes();
    }

    /// Sends the request to all other voters.
    fn ask(&mut self, vote: bool) {
        let Role::Candidate(candidate) = &self.role else { return };
        let (handover, Some(position)) = (candidate.handover(), self.position()) else { return };
        let request = VoteRequest { term: candidate.term, position, config: self.config.version, handover };
        let voters: Vec<NodeId> = self.config.voters().filter(|id| *id != self.hard.node).collect();
        for voter in voters {
            // By an older configuration this node may be none that can be elected.
            if !vote && self.peers.get(&voter).is_some_and(|p| p.config < self.config.version) {
                self.send(voter, Message::Config(Box::new(self.config.clone())));
            }
            let request = request.clone();
            self.send(voter, if vote { Message::Vote(request) } else { Message::PreVote(request) });
        }
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: NodeId, term: Term, reply: &VoteReply) {
        self.note_reply(from, reply);
        // A refusal with a higher term ends the candidacy as a heartbeat would.
        if term > self.hard.term {
            self.adopt_term_as_candidate(term);
        }
        let ahead = self.ahead(from, reply);
        let returns = self.led_last(reply);
        let voter = self.config.members.get(&from);
        let has_wal = voter.is_some_and(|m| m.mode != Mode::Referee);
        let stands = voter.is_some_and(Member::is_electable);
        let Role::Candidate(candidate) = &mut self.role else { return };
        if candidate.phase != Phase::PreVote || reply.term != candidate.term {
            return;
        }
        if candidate.cause == Cause::Startup && stands && returns {
            candidate.cause = Cause::Return;
        }
        candidate.outranked |= ahead;
        candidate.behind |= reply.refusal == Some(Refusal::PositionBehind) && !stands;
        // Whoever does not know its position yet may still turn out to hold the most.
        if reply.position.is_some() || !has_wal {
            candidate.answered.insert(from);
        }
        match reply.refusal {
            None => {
                candidate.granted.insert(from);
            }
            Some(refusal) => self.on_refusal(refusal),
        }
        self.count_pre_votes();
    }

    /// Does the voter hold more than this node, so that it should stand instead? It gets one election timeout
    /// for that, or as long as a starting cluster waits.
    fn ahead(&self, voter: NodeId, reply: &VoteReply) -> bool {
        let Role::Candidate(candidate) = &self.role else { return false };
        let starts = candidate.cause == Cause::Startup && self.now < self.patient_until();
        let can_stand = self.config.members.get(&voter).is_some_and(|m| m.is_electable())
            && reply.refusal != Some(Refusal::NotReady);
        can_stand
            && reply.position > self.position()
            && (starts || self.now < candidate.since + self.timeout())
    }

    /// A candidate that has not voted yet takes over a higher term and goes on.
    fn adopt_term_as_candidate(&mut self, term: Term) {
        self.known = self.known.max(term);
        match &self.role {
            Role::Candidate(c) if c.phase != Phase::Vote => {
                self.hard.term = term;
                self.hard.voted_for = None;
                self.heard = None;
                self.persist();
            }
            _ => self.see_term(term),
        }
    }

    fn note_reply(&mut self, from: NodeId, reply: &VoteReply) {
        self.known = self.known.max(reply.known);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.position = reply.position.or(peer.position);
        }
    }

    /// Brings the next attempt forward or puts it off, by what the refusal says.
    fn on_refusal(&mut self, refusal: Refusal) {
        let beat = self.beat();
        let jitter = self.random(beat);
        let now = self.now;
        let Role::Candidate(candidate) = &mut self.role else { return };
        let wait = match refusal {
            // Proof of death reaches each voter on its own, mostly within a moment.
            Refusal::LeaderAlive(ms) => ms.min((beat / 2) << candidate.rounds.min(4)) + jitter / 2,
            Refusal::Silent(ms) => {
                candidate.hushed = now + ms;
                ms + 1
            }
            Refusal::TermTooLow => 0,
            Refusal::ConfigOlder => beat,
            Refusal::PositionBehind => 4 * beat + jitter,
            Refusal::AlreadyVoted | Refusal::InProduction | Refusal::NotReady | Refusal::NotElectable => {
                return;
            }
            Refusal::Outranked => {
                candidate.outranked = true;
                2 * beat
            }
        };
        candidate.retry = if wait == 0 { now + 1 } else { candidate.retry.min(now + wait) };
    }

    /// How many voters said yes in this round, and how many said anything of use. Whoever is no voter by the
    /// newest configuration does not count.
    pub(super) fn voters_who_answered(&self) -> (usize, usize) {
        let Role::Candidate(candidate) = &self.role else { return (0, 0) };
        let among = |set: &BTreeSet<NodeId>| self.config.voters().filter(|id| set.contains(id)).count();
        (among(&candidate.granted), among(&candidate.answered))
    }

    fn count_pre_votes(&mut self) {
        let nquorum = self.config.nquorum();
        let voters = self.config.voters().count();
        let (granted, answered) = self.voters_who_answered();
        let patient = self.now < self.patient_until();
        let wait = self.election_wait();
        let Role::Candidate(candidate) = &mut self.role else { return };
        if candidate.phase != Phase::PreVote || candidate.outranked || granted < nquorum {
            return;
        }
        // A cluster that starts waits for everybody's position: whoever comes late may hold what was acknowledged.
        if candidate.cause == Cause::Startup && patient && answered < voters {
            return;
        }
        candidate.phase = Phase::Stopping;
        candidate.retry = self.now + 2 * wait;
        let ms = self.now - candidate.since;
        candidate.steps.push(Step { name: "prevote".to_owned(), ms });
        self.start_vote_if_stopped();
    }

    /// The vote itself, once nothing is received any more.
    pub(super) fn start_vote_if_stopped(&mut self) {
        let term = self.known.max(self.hard.term).next();
        let Role::Candidate(candidate) = &self.role else { return };
        if candidate.phase != Phase::Stopping {
            return;
        }
        if self.has_wal() && !matches!(self.wal, Wal::Stopped { .. }) {
            return;
        }
        let Some(position) = self.position() else { return };
        let handover = candidate.handover();
        let request = VoteRequest { term, position, config: self.config.version, handover };
        // At the moment it persists its own vote a candidate passes the same checks as any other voter.
        if self.refusal(self.hard.node, &request).is_some() {
            self.become_follower();
            return;
        }
        self.vote_for_self(term, position);
    }

    fn vote_for_self(&mut self, term: Term, position: Position) {
        self.hard.term = term;
        self.hard.voted_for = Some(self.hard.node);
        self.hard.lower_bound = Some(position);
        self.known = self.known.max(term);
        self.heard = None;
        self.persist();
        let retry = self.now + self.election_wait() + self.random(4 * self.beat());
        let now = self.now;
        let me = self.hard.node;
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.phase = Phase::Vote;
        candidate.term = term;
        candidate.retry = retry;
        candidate.granted = BTreeSet::from([me]);
        let before: Millis = candidate.steps.iter().skip(1).map(|s| s.ms).sum();
        candidate
            .steps
            .push(Step { name: "stop".to_owned(), ms: (now - candidate.since).saturating_sub(before) });
        self.ask(true);
        self.count_votes();
    }

    pub(super) fn on_vote_reply(&mut self, from: NodeId, term: Term, reply: &VoteReply) {
        self.note_reply(from, reply);
        if term > self.hard.term {
            self.see_term(term);
            return;
        }
        let Role::Candidate(candidate) = &mut self.role else { return };
        if candidate.phase != Phase::Vote || reply.term != candidate.term {
            return;
        }
        match reply.refusal {
            None => {
                candidate.granted.insert(from);
                self.count_votes();
            }
            Some(refusal) => self.on_refusal(refusal),
        }
    }

    fn count_votes(&mut self) {
        let nquorum = self.config.nquorum();
        if self.voters_who_answered().0 < nquorum {
            return;
        }
        let Role::Candidate(candidate) = &mut self.role else { return };
        let before: Millis = candidate.steps.iter().skip(1).map(|s| s.ms).sum();
        let ms = (self.now - candidate.since).saturating_sub(before);
        candidate.steps.push(Step { name: "vote".to_owned(), ms });
        let (cause, lost, steps) = (candidate.cause, candidate.lost, std::mem::take(&mut candidate.steps));
        self.become_leader(cause, lost, steps);
    }

    pub(super) fn candidate_on_time(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        if self.now < candidate.retry {
            return;
        }
        let cause = match candidate.cause {
            // An exemption that failed once is not used again: the ordinary election decides.
            Cause::Handover(_) if candidate.phase == Phase::Vote => Cause::Timeout,
            cause => cause,
        };
        if !self.may_stand(cause) {
            self.become_follower();
            return;
        }
        if let Role::Candidate(candidate) = &mut self.role {
            candidate.cause = cause;
        }
        self.ask_pre_votes();
    }
}
