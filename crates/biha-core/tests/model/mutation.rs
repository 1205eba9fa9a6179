//! Rules taken out, one at a time. Each is done at the border of the core: what it says is not carried out, or
//! what it hears is not what was said.

use biha_core::*;

use super::happen::Turn;

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// What is told is written afterwards.
    ToldBeforeWritten,
    /// A node comes back without its state file, as if it were new.
    MemoryLost,
    /// Frames of an older life than one already seen are heard.
    OldLivesHeard,
    /// Frames of another life of the same number are heard.
    SecondCopiesHeard,
    /// Who was met is forgotten at a start.
    MetForgotten,
    /// A heartbeat makes no promise to whoever hears it.
    StickinessOff,
    /// A controller that starts knows nothing of its former promises.
    PromisesForgotten,
    /// The lease is longer than the election timeout.
    LeaseTooLong,
    /// The lease is as long as the promise: nothing is left for clocks that run unlike.
    LeaseWithoutMargin,
    /// The WAL receiver goes on while the node votes.
    ReceiverNotStopped,
    /// A server starts with the last primary_conninfo that was not empty.
    ReceiverKeptOverStart,
    /// The core is not told that a server without leadership is in production.
    ProductionHidden,
    /// A voter does not compare its position with the candidate's.
    PositionNotCompared,
    /// Positions are compared by LSN alone.
    TimelineNotCompared,
    /// A promotion takes the next free timeline number.
    NextFreeTimeline,
    /// A new term goes on with the server, and the timeline, of an old one.
    TimelineGoesOn,
    /// WAL that nobody elected stands like any other: not even the candidate itself objects.
    UnelectedWalForgotten,
    /// A voter does not compare its configuration with the candidate's.
    ConfigNotCompared,
    /// A new leader's configuration counts as settled before anybody has it.
    RepublishNotAwaited,
    /// The gate's word holds though the controller said good-bye.
    GateOutlivesController,
    /// A controller that starts leaves the gate's word as it is.
    WordKeptOverStart,
    /// A controller that starts goes on with the leadership of its former life.
    LeadershipResumed,
    /// A refused connection counts as proof of death (the node's own setting).
    RefusalTrusted,
    /// A configuration that is not lossless is taken for one (the scenario's own).
    RefereesNotCounted,
    /// A voter believes a candidate that the leader is dead.
    ClaimBelieved,
    /// When a hand-over is cancelled the gate's word from before it is put back.
    CancelledHandoverReopens,
    /// A voter holds on to the exemption of a cancelled hand-over.
    CancelledExemptionKept,
}

impl Mutation {
    /// It changes something from before the model begins, so it must be there before.
    pub fn remembers(self) -> bool {
        use Mutation::*;
        matches!(self, CancelledHandoverReopens | CancelledExemptionKept | MetForgotten)
    }
}

impl Turn<'_> {
    /// A frame as its receiver hears it.
    pub(super) fn arriving(&mut self, mut envelope: Envelope) -> Envelope {
        let to = envelope.to;
        if !self.model.leases
            && let Message::Heartbeat(beat) = &mut envelope.message
        {
            beat.promise = 0;
        }
        let Some(mutation) = self.model.mutation else { return envelope };
        let version = self.state.host(to).disk.config.version;
        match (&mut envelope.message, mutation) {
            (Message::Heartbeat(beat), Mutation::StickinessOff) => beat.promise = 0,
            (Message::PreVote(r) | Message::Vote(r), Mutation::PositionNotCompared) => {
                r.position = Position { timeline: Timeline::MAX, lsn: Lsn(u64::MAX) };
            }
            (Message::PreVote(r) | Message::Vote(r), Mutation::ConfigNotCompared) => r.config = version,
            (Message::Heartbeat(beat), Mutation::CancelledExemptionKept) => {
                let before = &mut self.state.host_mut(to).handover_before;
                match *before {
                    Some(announced) if beat.handover.target.is_none() => beat.handover = announced,
                    _ if beat.handover.target.is_some_and(|t| t != to) => *before = Some(beat.handover),
                    _ => {}
                }
            }
            (_, Mutation::OldLivesHeard | Mutation::SecondCopiesHeard) => {
                let met = &self.state.host(to).disk.hard.met;
                let known = met.get(&envelope.from).copied().unwrap_or_default();
                let second = envelope.incarnation == known.incarnation;
                let older = envelope.incarnation < known.incarnation;
                if if mutation == Mutation::OldLivesHeard { older } else { second } {
                    (envelope.incarnation, envelope.tag) = (known.incarnation, known.tag);
                }
            }
            _ => {}
        }
        envelope
    }

    /// Words that were never said, heard just before this frame.
    pub(super) fn forge(&mut self, envelope: &Envelope) {
        let (from, to) = (envelope.from, envelope.to);
        if self.model.has(Mutation::ClaimBelieved)
            && matches!(envelope.message, Message::PreVote(_) | Message::Vote(_))
        {
            let leader = self.state.host(to).node.as_ref().and_then(|n| n.view().leader);
            if let Some(leader) = leader.filter(|l| *l != to && *l != from) {
                self.hear(leader, to, Message::Goodbye(Goodbye::PostmasterDied));
            }
        }
    }

    /// `to` hears `message` as if `from` had said it.
    fn hear(&mut self, from: NodeId, to: NodeId, message: Message) {
        let hard = &self.state.host(from).disk.hard;
        let (cluster, incarnation, voted_for) = (hard.cluster, hard.incarnation, hard.voted_for);
        let (term, tag) = (hard.term.max(self.state.host(to).term()), self.state.host(from).life);
        let said = Envelope { cluster, from, to, incarnation, tag, term, voted_for, message };
        self.step(to, Input::Message(said));
    }

    /// A leader has just been elected: everybody seems to have its configuration.
    pub(super) fn elected(&mut self, id: NodeId) {
        if !self.model.has(Mutation::RepublishNotAwaited) {
            return;
        }
        let disk = &self.state.host(id).disk;
        let (leader_incarnation, config) = (disk.hard.incarnation, disk.config.version);
        for peer in self.state.ids() {
            if peer != id {
                let ack = HeartbeatAck {
                    seq: 1,
                    leader_incarnation,
                    handover: 0,
                    config,
                    state: NodeState::Follower,
                    position: None,
                    streaming: false,
                };
                self.hear(peer, id, Message::HeartbeatAck(ack));
            }
        }
    }

    /// What the core is told of its server.
    pub(super) fn status(&self, id: NodeId) -> ServerStatus {
        let host = self.state.host(id);
        let mut status = ServerStatus { synced: host.synced(), ..host.server.status() };
        match self.model.mutation {
            Some(Mutation::ProductionHidden | Mutation::TimelineGoesOn) => status.production &= host.leads(),
            Some(Mutation::TimelineNotCompared) => {
                status.hint = status.hint.map(|p| Position { timeline: 1, ..p });
            }
            _ => {}
        }
        status
    }

    /// The outputs of a step in the order in which they are carried out.
    pub(super) fn ordered(&self, mut outputs: Vec<Output>) -> Vec<Output> {
        if self.model.has(Mutation::ToldBeforeWritten) {
            outputs.sort_by_key(|output| matches!(output, Output::Persist(_)));
        }
        outputs
    }

    /// What a controller that starts finds in its state file.
    pub(super) fn remembered(&self, id: NodeId) -> HardState {
        let host = self.state.host(id);
        let mut hard = host.disk.hard.clone();
        match self.model.mutation {
            Some(Mutation::PromisesForgotten) => hard.longest_promise = 0,
            Some(Mutation::MemoryLost) if host.life > 0 => {
                let incarnation = hard.incarnation;
                hard = HardState { incarnation, ..HardState::new(hard.cluster, hard.system_identifier, id) };
            }
            Some(Mutation::MetForgotten) => hard.met.clear(),
            Some(Mutation::UnelectedWalForgotten) => hard.timelines.retain(|_, entry| entry.term != Term(0)),
            _ => {}
        }
        hard
    }

    /// The gate's word as it is stored.
    pub(super) fn word(&mut self, id: NodeId, until: Millis) -> Millis {
        let local = self.local(id);
        let host = self.state.host(id);
        let promise = host.disk.config.settings.election_timeout();
        match self.model.mutation {
            Some(Mutation::LeaseTooLong) if until > 0 => until + promise,
            Some(Mutation::LeaseWithoutMargin) if until > 0 => until + promise - lease_of(promise),
            Some(Mutation::CancelledHandoverReopens) => {
                let (word, before, leads) = (host.gate, host.word_before, host.leads());
                let cancelled = until == 0 && word == 0 && leads && before > local;
                self.state.host_mut(id).word_before = if word > 0 { word } else { before };
                if cancelled { before } else { until }
            }
            _ => until,
        }
    }

    /// A controller has started or has said its last word; the gate's word was this before.
    pub(super) fn word_kept(&mut self, id: NodeId, word: Millis) {
        let starts = self.state.host(id).node.is_some();
        if self.model.has(if starts { Mutation::WordKeptOverStart } else { Mutation::GateOutlivesController })
        {
            self.state.host_mut(id).gate = word;
        }
    }

    /// The peers hear of a new life, but nothing else is new.
    pub(super) fn leadership_goes_on(&mut self, id: NodeId) -> bool {
        if !self.model.has(Mutation::LeadershipResumed) {
            return false;
        }
        for peer in self.state.ids() {
            let host = self.state.host(id);
            let Some(mut hello) = host.node.as_ref().map(|n| n.hello(peer)) else { return false };
            hello.incarnation.0 += 1;
            if peer != id {
                self.step(peer, Input::Message(hello));
            }
        }
        true
    }
}
