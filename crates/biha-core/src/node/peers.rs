//! The other nodes: their words, lives and deaths.

use crate::config::ConfigVersion;
use crate::event::EventKind;
use crate::hardstate::{HardState, Met, NodeErrorKind};
use crate::message::{Envelope, Goodbye, Hello, Message, NodeState};
use crate::step::{Disconnect, Output};
use crate::{Incarnation, Millis, NodeId, Position, Term};

use super::{Node, Role};

/// What is known of another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub heard: Option<Millis>,
    pub state: NodeState,
    pub position: Option<Position>,
    pub config: ConfigVersion,
    pub closed: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Peer {
            heard: None,
            state: NodeState::Unknown,
            position: None,
            config: ConfigVersion::default(),
            closed: true,
        }
    }
}

impl Node {
    /// Words for every new connection to a peer.
    pub fn hello(&self, to: NodeId) -> Envelope {
        self.envelope(to, Message::Hello(Hello { config: self.config.version, state: self.state() }))
    }

    /// A message with what everything this node says carries.
    pub fn envelope(&self, to: NodeId, message: Message) -> Envelope {
        let Met { incarnation, tag, term, voted_for } = self.memory();
        let HardState { cluster, node: from, .. } = self.hard;
        Envelope { cluster, from, to, incarnation, tag, term, voted_for, message }
    }

    /// What this node says of its own memory.
    pub fn memory(&self) -> Met {
        let HardState { incarnation, term, voted_for, .. } = self.hard;
        Met { incarnation, tag: self.tag, term, voted_for }
    }

    pub(super) fn on_message(&mut self, envelope: Envelope) {
        let memory = envelope.memory();
        let Envelope { cluster, from, to, incarnation, term, message, .. } = envelope;
        if cluster != self.hard.cluster || to != self.hard.node || from == self.hard.node {
            return;
        }
        // A removed node that is added anew begins with a new memory: only members' lives are remembered.
        let member = self.config.members.contains_key(&from);
        // A refusal is no word of the sender's that could be refused in turn: two would never come to an end.
        if member && !matches!(message, Message::Refused(_)) && !self.met(from, memory) {
            return;
        }
        match message {
            Message::Heartbeat(beat) => self.on_heartbeat(from, incarnation, term, *beat),
            Message::Config(config) => self.on_config(from, *config),
            // A term from outside the newest configuration changes nothing.
            _ if !member => self.on_stranger(from, &message),
            Message::Hello(hello) => self.on_hello(from, term, &hello),
            Message::HeartbeatAck(ack) => self.on_ack(from, term, &ack),
            Message::PreVote(request) => self.on_pre_vote(from, &request),
            Message::PreVoteReply(reply) => self.on_pre_vote_reply(from, term, &reply),
            Message::Vote(request) => self.on_vote(from, request),
            Message::VoteReply(reply) => self.on_vote_reply(from, term, &reply),
            Message::Goodbye(goodbye) => self.on_goodbye(from, goodbye),
            Message::Forward { request, command } => self.on_forward(from, request, command),
            Message::ForwardReply { request, result } => self.on_forward_reply(request, result),
            Message::Event(record) => self.outputs.push(Output::Remember(record)),
            Message::Refused(known) => self.on_refused(from, known),
        }
    }

    /// A node that is no member any more may not have heard of its removal.
    fn on_stranger(&mut self, from: NodeId, message: &Message) {
        let theirs = match message {
            Message::Hello(hello) => hello.config,
            Message::PreVote(request) => request.config,
            _ => return,
        };
        if theirs < self.config.version {
            let config = Box::new(self.config.clone());
            self.send(from, Message::Config(config));
        }
    }

    /// Notes what the sender says of its memory; false for a life that is over, or that has forgotten something.
    fn met(&mut self, from: NodeId, memory: Met) -> bool {
        let known = self.hard.met.get(&from).copied().unwrap_or_default();
        if !memory.remembers(&known) {
            self.send(from, Message::Refused(known));
            return false;
        }
        let now = self.now;
        let peer = self.peers.entry(from).or_default();
        peer.heard = Some(now);
        peer.closed = false;
        let newest = known.then(memory);
        if newest == known {
            return true;
        }
        self.hard.met.insert(from, newest);
        if memory.incarnation > known.incarnation {
            self.persist();
            self.former_life_ended(from, memory.incarnation);
        } else {
            // No election waits for that: it is written along with the next vote, or soon.
            self.write_by = self.write_by.min(now + self.timeout());
        }
        true
    }

    /// Another member remembers more of this node than it does itself: this is not the memory it should be.
    fn on_refused(&mut self, from: NodeId, known: Met) {
        if self.memory().remembers(&known) {
            return;
        }
        let text = format!(
            "node {from} knows of a later life of this node, or of a vote that it does not remember: its data \
             directory was put back to an older copy, or runs twice"
        );
        if matches!(self.role, Role::Leader(_)) {
            self.gate(0);
            self.note(EventKind::Demoted, &text, Vec::new());
        }
        self.become_follower();
        self.fail(NodeErrorKind::Forgetful, text);
    }

    /// Only members' memories are of interest.
    pub(super) fn forget_strangers(&mut self) {
        self.peers.retain(|id, _| self.config.members.contains_key(id));
        self.hard.met.retain(|id, _| self.config.members.contains_key(id));
    }

    /// A newer incarnation is authenticated proof that the older one is dead and its gate shut.
    fn former_life_ended(&mut self, from: NodeId, incarnation: Incarnation) {
        if self.sticky.is_some_and(|s| s.leader == from && s.incarnation < incarnation) {
            self.sticky = None;
        }
        if self.heard.as_ref().is_some_and(|h| h.id == from && h.incarnation < incarnation) {
            self.leader_died(false, "its controller was started anew");
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.forget(from);
        }
    }

    fn on_hello(&mut self, from: NodeId, term: Term, hello: &Hello) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.state = hello.state;
            peer.config = hello.config;
        }
        self.see_term(term);
        self.push_config(from, hello.config);
        if matches!(self.role, Role::Leader(_)) {
            self.beat_now();
        }
    }

    fn on_goodbye(&mut self, from: NodeId, goodbye: Goodbye) {
        let clean = goodbye == Goodbye::CleanStop;
        let incarnation = self.hard.met.get(&from).map(|m| m.incarnation);
        if self.sticky.is_some_and(|s| s.leader == from && Some(s.incarnation) == incarnation) {
            self.sticky = None;
        }
        if self.heard.as_ref().is_some_and(|h| h.id == from && Some(h.incarnation) == incarnation) {
            let why = match goodbye {
                Goodbye::PostmasterDied => "its postmaster died",
                Goodbye::CleanStop => "it is being stopped",
                Goodbye::Fault => "its controller gave up",
            };
            self.leader_died(clean, why);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.forget(from);
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.state = NodeState::Unknown;
        }
    }

    pub(super) fn on_disconnected(&mut self, from: NodeId, how: Disconnect) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let refused_after_end = peer.closed && how == Disconnect::Refused;
        peer.closed = true;
        if let Role::Leader(leader) = &mut self.role {
            leader.forget(from);
        }
        if refused_after_end && self.options.trust_refused {
            if self.sticky.is_some_and(|s| s.leader == from) {
                self.sticky = None;
            }
            if self.heard.as_ref().is_some_and(|h| h.id == from) {
                self.leader_died(false, "its host refuses connections");
            }
        }
    }
}
