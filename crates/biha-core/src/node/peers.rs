//! The other nodes: their words, lives and deaths.

use crate::config::ConfigVersion;
use crate::message::{Envelope, Goodbye, Hello, Message, NodeState};
use crate::step::{Disconnect, Output};
use crate::{Incarnation, Millis, NodeId, Position, Term};

use super::{Node, Role};

/// What is known of another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub incarnation: Incarnation,
    pub heard: Option<Millis>,
    pub state: NodeState,
    pub position: Option<Position>,
    pub config: ConfigVersion,
    pub closed: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Peer {
            incarnation: Incarnation(0),
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
        Envelope {
            cluster: self.hard.cluster,
            from: self.hard.node,
            to,
            incarnation: self.hard.incarnation,
            term: self.hard.term,
            message: Message::Hello(Hello { config: self.config.version, state: self.state() }),
        }
    }

    pub(super) fn on_message(&mut self, envelope: Envelope) {
        let Envelope { cluster, from, to, incarnation, term, message } = envelope;
        if cluster != self.hard.cluster || to != self.hard.node || from == self.hard.node {
            return;
        }
        // A removed node that is added anew begins with a new memory: only members' lives are remembered.
        let member = self.config.members.contains_key(&from);
        if member && !self.met(from, incarnation) {
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

    /// Notes the sender's incarnation; false for one that is already known to be dead.
    fn met(&mut self, from: NodeId, incarnation: Incarnation) -> bool {
        let now = self.now;
        let peer = self.peers.entry(from).or_default();
        if incarnation < peer.incarnation {
            return false;
        }
        peer.heard = Some(now);
        peer.closed = false;
        if incarnation > peer.incarnation {
            peer.incarnation = incarnation;
            self.former_life_ended(from, incarnation);
        }
        true
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
        let incarnation = self.peers.get(&from).map(|p| p.incarnation);
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
