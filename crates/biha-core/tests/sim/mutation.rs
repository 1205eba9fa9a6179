//! Rules taken out, to show that the checks would see it. The core stays as it ships: at its border something is
//! not carried out, or what it hears is not what was said.

use biha_core::*;

use super::{Cluster, say};

/// How late a write is on disk, in ms, under [`Mutation::ToldBeforeWritten`].
pub(super) const WRITES_LATE: Millis = 500;
/// How long a server outlives its controller's good-bye under [`Mutation::GateAfterGoodbye`].
pub(super) const OUTLIVES: Millis = 1500;
/// A lease without an end.
const ENDLESS: Millis = 1 << 40;

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// What a node must remember is on disk only after it has spoken.
    ToldBeforeWritten,
    /// A heartbeat makes no promise to whoever hears it.
    NoStickiness,
    /// A started controller keeps no promise of its former life.
    NoSilence,
    /// The WAL receiver goes on while the node votes.
    ReceiverGoesOn,
    /// A demoted leader votes before its server has been restarted, with the position it was elected with.
    ProductionVotes,
    /// The lease is longer than the promise.
    LeaseTooLong,
    /// The gate is shut by nothing but the loss of the leadership.
    NoLease,
    /// The gate outlives the controller's good-bye.
    GateAfterGoodbye,
    /// Whoever lost its state file comes back with an empty one.
    EmptyMemory,
    /// A promotion takes the next free timeline number.
    NextFreeTimeline,
    /// A voter does not compare its position with the candidate's.
    PositionNotCompared,
    /// Positions are compared by LSN alone.
    TimelineNotCompared,
    /// A voter does not compare its configuration with the candidate's.
    ConfigNotCompared,
    /// A commit waits for one synchronous standby less than lossless asks for.
    OneStandbyLess,
    /// What is to be replicated first counts as replicated.
    StandbysNotAwaited,
    /// A change is settled though the server still counts who does not count any more.
    NamesNotAwaited,
    /// Voters count as synchronous as soon as the leader has written that they are.
    NewcomersCounted,
    /// A node that has voted and hears of no new leader streams from its old one again.
    OldLeaderFollowed,
    /// What proved a leader's death goes on proving it while the leader is heard.
    ProofOutlived,
    /// A history file without WAL of its timeline is not taken for a number in use.
    HistoryFilesOverlooked,
    /// A start does not look at whether the server had been promoted.
    PromotionForgotten,
    /// A leader does not say who opened the timelines before its own.
    OpenersUnsaid,
    /// What a member is told of a new nquorum does not say that others may still go by the old one.
    StaleQuorumsUnsaid,
}

impl Cluster {
    pub fn mutated(&self, mutation: Mutation) -> bool {
        self.mutations.contains(&mutation)
    }

    /// A message as its receiver hears it.
    pub(super) fn arriving(&self, envelope: &mut Envelope) {
        if self.mutations.is_empty() {
            return;
        }
        let disk = &self.host(envelope.to).disk;
        let own = self.host(envelope.to).server.log.end();
        match &mut envelope.message {
            Message::Heartbeat(beat) if self.mutated(Mutation::NoStickiness) => beat.promise = 0,
            Message::Heartbeat(beat) if self.mutated(Mutation::OpenersUnsaid) => beat.openers.clear(),
            Message::Config(config) if self.mutated(Mutation::StaleQuorumsUnsaid) => {
                config.stale_quorums = false
            }
            Message::PreVote(request) | Message::Vote(request) => {
                if self.mutated(Mutation::PositionNotCompared) {
                    request.position = Position { timeline: Timeline::MAX, lsn: Lsn(u64::MAX) };
                }
                if self.mutated(Mutation::TimelineNotCompared) {
                    request.position.timeline = own.timeline;
                }
                if self.mutated(Mutation::ConfigNotCompared) {
                    request.config = disk.config.version;
                }
            }
            _ => {}
        }
    }

    /// What is heard after this message, though nobody said it.
    pub(super) fn forged(&mut self, heard: &Envelope) -> Vec<Envelope> {
        match &heard.message {
            Message::Goodbye(word) if self.mutated(Mutation::ProofOutlived) => {
                self.host_mut(heard.to).goodbyes.insert(heard.from, *word);
                Vec::new()
            }
            Message::Heartbeat(_) if self.mutated(Mutation::ProofOutlived) => {
                let word = self.host(heard.to).goodbyes.get(&heard.from);
                let again = word.map(|word| Envelope { message: Message::Goodbye(*word), ..heard.clone() });
                again.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The gate's word as it is stored.
    pub(super) fn gate_word(&self, id: NodeId, until: Millis) -> Millis {
        let host = self.host(id);
        if self.mutated(Mutation::NoLease) {
            let leads = host.controller.as_ref().is_some_and(|node| node.state().is_leader());
            return if until > 0 || leads && host.gate > 0 { ENDLESS } else { 0 };
        }
        if until > 0 && self.mutated(Mutation::LeaseTooLong) {
            return until + host.disk.config.settings.election_timeout();
        }
        until
    }

    /// What a controller finds on disk when it starts.
    pub(super) fn remembered(&mut self, id: NodeId) -> HardState {
        let now = self.now;
        let no_silence = self.mutated(Mutation::NoSilence);
        let empty = self.mutated(Mutation::EmptyMemory);
        let host = self.host_mut(id);
        if let Some((_, hard)) = host.disk.late.iter().rev().find(|(at, _)| *at <= now) {
            let incarnation = host.disk.hard.incarnation;
            host.disk.hard = HardState { incarnation, ..hard.clone() };
        }
        host.disk.late.clear();
        if host.disk.lost && empty {
            host.disk.renew();
            say!(self, id, "begins with an empty memory");
        }
        let mut hard = self.host(id).disk.hard.clone();
        if no_silence {
            hard.longest_promise = 0;
        }
        hard
    }
}
