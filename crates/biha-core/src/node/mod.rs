//! The state machine of one node.
//!
//! ```text
//!             no leader heard, or proven dead            votes of a quorum
//!  Follower ---------------------------------> Candidate ------------------> Leader
//!     ^  ^--- a leader heard, or the vote lost ----'                            |
//!     '------ a higher term, or handed over: the server restarts as a standby --'
//! ```
//!
//! [`Node::step`] takes one [`Input`], changes the state and returns the [`Output`]s. Its last act is always
//! [`Node::drive`], which compares what the server should be doing with what it was last ordered to do: no
//! other place gives orders.
//!
//! **Architecture invariant:** no clock, no randomness, no input or output here. Time comes in with each step,
//! randomness as the seed of a generator.

mod change;
mod drive;
mod elect;
mod follow;
mod handover;
mod lead;
mod limits;
mod order;
mod peers;
mod repair;
mod settle;
mod sync;
mod view;
mod vote;

use std::collections::BTreeMap;

use crate::command::{CommandError, CommandResult, RequestId};
use crate::config::{ClusterConfig, Mode};
use crate::event::{Event, EventKind, Step};
use crate::hardstate::{HardState, Hindrance, Mended, NodeError, NodeErrorKind};
use crate::message::{Goodbye, Heartbeat, Message};
use crate::step::{Input, Order, OrderId, Output, ServerStatus};
use crate::{Incarnation, Millis, NodeId, Position, Term, Timeline};

use elect::{Candidate, Stand};
use lead::Leader;
use peers::Peer;
pub use view::{MemberView, View};

/// This node's own settings, which need not be the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// `biha.autorewind`.
    pub autorewind: bool,
    /// `biha.autoreclone`.
    pub autoreclone: bool,
    /// `biha.trust_refused`.
    pub trust_refused: bool,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    now: Millis,
    started: Millis,
    hard: HardState,
    config: ClusterConfig,
    options: Options,
    role: Role,
    server: ServerStatus,
    /// Since when the server's disk is sick.
    sick_since: Option<Millis>,
    wal: Wal,
    /// The leader of the current term, once heard.
    heard: Option<Heard>,
    sticky: Option<Sticky>,
    /// The leader that was followed last gave nothing for `no_wal_on_follower`.
    starved: bool,
    /// The newest leader that has been heard since the start: its term, and to whom it hands over.
    led: Option<(Term, Option<NodeId>)>,
    /// No vote, pre-vote or candidacy before this moment: promises given by the former incarnation.
    silent_until: Millis,
    /// Highest term or timeline number seen anywhere.
    known: Term,
    /// Highest timeline number known to be in use.
    timeline: Timeline,
    peers: BTreeMap<NodeId, Peer>,
    order: Option<Outstanding>,
    next_order: OrderId,
    no_order_before: Millis,
    restarting: bool,
    stopping: bool,
    waiting: Vec<change::Waiting>,
    rng: u64,
    /// This life's [`Met::tag`](crate::Met).
    tag: u32,
    /// When what others have said of their memory is to be written at the latest.
    write_by: Millis,
    outputs: Vec<Output>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// A node that follows a leader or waits for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Follower {
    /// When to stand for election, and why.
    stand: Option<Stand>,
    /// A vote that will be given once the receiver has stopped.
    pending_vote: Option<(NodeId, crate::VoteRequest)>,
    /// By the receiver's word, which is not exact, this node holds more than a candidate: time to read what it has.
    doubts: bool,
    /// Has put its own candidacy off for one that it would vote for; once per lost leader.
    yielded: bool,
}

/// What is known of the WAL on this node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wal {
    /// Not read since the start.
    Unknown,
    /// Nothing is received; it ends here.
    Stopped { position: Position },
    /// Being received from this leader of this term; `failed` if nobody knows whether it is.
    Receiving { leader: NodeId, term: Term, moved: Millis, last: Option<Position>, failed: bool },
}

/// The leader of the current term, as last heard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Heard {
    id: NodeId,
    incarnation: Incarnation,
    at: Millis,
    beat: Heartbeat,
    /// It said goodbye, or a newer incarnation of it was heard: its gate is shut for good.
    dead: Option<Death>,
}

/// How a leader is known to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Death {
    at: Millis,
    /// Its WAL stream ends with a shutdown checkpoint: worth waiting for.
    clean: bool,
}

/// A promise not to vote or stand against a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sticky {
    leader: NodeId,
    incarnation: Incarnation,
    until: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Outstanding {
    id: OrderId,
    order: Order,
}

impl Node {
    /// A node at the start of its controller. `hard` is what the state file holds; `rewound` what came of a
    /// rewind or re-clone that the restart was for. The first outputs make the new incarnation durable. `seed` is random;
    /// where its lower half is 0 there is no jitter.
    pub fn new(
        now: Millis,
        seed: u64,
        hard: HardState,
        config: ClusterConfig,
        options: Options,
        rewound: Option<Result<Mended, Hindrance>>,
    ) -> (Node, Vec<Output>) {
        let silent_until = if hard.longest_promise > 0 { now + hard.longest_promise } else { now };
        let timeline = hard.timelines.keys().next_back().copied().unwrap_or(0);
        let known = hard.term.max(Term(timeline));
        let mut node = Node {
            now,
            started: now,
            hard,
            config,
            options,
            role: Role::Follower(Follower::default()),
            server: ServerStatus::default(),
            sick_since: None,
            wal: Wal::Unknown,
            heard: None,
            sticky: None,
            starved: false,
            led: None,
            silent_until,
            known,
            timeline,
            peers: BTreeMap::new(),
            order: None,
            next_order: 1,
            no_order_before: 0,
            restarting: false,
            stopping: false,
            waiting: Vec::new(),
            rng: if seed as u32 == 0 { 0 } else { seed | 1 },
            tag: (seed >> 32) as u32,
            write_by: Millis::MAX,
            outputs: Vec::new(),
        };
        node.hard.incarnation.0 += 1;
        // The agent may have orders of the former life, and outlive this one.
        node.next_order = (node.hard.incarnation.0 << 32) + 1;
        node.hard.promotion = None;
        node.forget_strangers();
        node.gate(0);
        let failed = node.take_rewind_result(rewound);
        node.persist();
        node.note(EventKind::Started, "the controller started", Vec::new());
        if let Some((kind, text)) = failed {
            node.note(kind, &text, Vec::new());
        }
        node.stand_if_leaderless();
        let outputs = std::mem::take(&mut node.outputs);
        (node, outputs)
    }

    /// Takes one input and says what is to be done, in order. `now` never goes back.
    pub fn step(&mut self, now: Millis, input: Input) -> Vec<Output> {
        self.now = self.now.max(now);
        // After its last word a node says nothing more: it would renew the promises it has just released.
        if self.stopping {
            return Vec::new();
        }
        self.begin_step();
        match input {
            Input::Tick => {}
            Input::Message(envelope) => self.on_message(envelope),
            Input::Disconnected(peer, how) => self.on_disconnected(peer, how),
            Input::Server(status) => self.on_server(status),
            Input::Done(id, result) => self.on_done(id, result),
            Input::Command(request, command) => self.on_command(request, command),
            Input::Stop(goodbye) => self.on_stop(goodbye),
        }
        if !self.stopping {
            self.on_time();
            self.drive();
        }
        self.check();
        std::mem::take(&mut self.outputs)
    }

    /// Replaces this node's own settings.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// What this node remembers over a crash.
    pub fn hard(&self) -> &HardState {
        &self.hard
    }

    /// The newest configuration this node holds.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// What must hold after every step, in every build.
    fn check(&self) {
        assert!(self.known >= self.hard.term, "a known term is never below the own");
        if let Role::Leader(leader) = &self.role {
            assert!(leader.term == self.hard.term, "a leader leads its current term only");
            assert!(self.hard.voted_for == Some(self.hard.node), "a leader has voted for itself");
            assert!(self.heard.is_none(), "a leader hears no other leader in its term");
        }
        if let Some(heard) = &self.heard {
            assert!(heard.id != self.hard.node, "a node does not follow itself");
        }
    }

    fn on_time(&mut self) {
        match &self.role {
            Role::Follower(_) => self.follower_on_time(),
            Role::Candidate(_) => self.candidate_on_time(),
            Role::Leader(_) => self.leader_on_time(),
        }
        // Not after the last word: it goes out first, also where the disk hangs.
        if self.now >= self.write_by && !self.stopping {
            self.persist();
        }
        self.requests_on_time();
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Millis {
        let role = match &self.role {
            Role::Follower(f) => f.stand.map_or(Millis::MAX, |s| s.at),
            Role::Candidate(c) => c.deadline(),
            Role::Leader(l) => l.deadline(),
        };
        let requests = self.waiting.iter().map(|w| w.deadline).min().unwrap_or(Millis::MAX);
        let order = if self.no_order_before > self.now { self.no_order_before } else { Millis::MAX };
        role.min(requests).min(order).min(self.write_by).min(self.sync_deadline()).max(self.now + 1)
    }

    fn on_server(&mut self, status: ServerStatus) {
        let begins = status.streaming && !self.server.streaming;
        let turned = status.sick != self.server.sick;
        self.server = status;
        let now = self.now;
        if turned {
            self.disk_turned(status.sick);
        }
        if status.production && !matches!(self.role, Role::Leader(_)) {
            self.own_up_to_timeline();
        }
        if let Wal::Receiving { last, moved, .. } = &mut self.wal
            && *last != status.hint
        {
            *last = status.hint;
            *moved = now;
        }
        if begins {
            // The leader should not have to wait for the next heartbeat to know.
            self.acknowledge_again();
        }
    }

    /// Its disk has become sick, or well again.
    fn disk_turned(&mut self, sick: bool) {
        self.sick_since = sick.then_some(self.now);
        match &mut self.role {
            Role::Leader(leader) => leader.was_well |= !sick,
            // Its turn to stand comes later now, or is as any other's.
            Role::Follower(follower) if follower.stand.is_some() => self.stand_if_leaderless(),
            Role::Follower(_) | Role::Candidate(_) => {}
        }
    }

    /// Nothing but the end of this life can end the leadership: the process is to end without another word.
    fn resign(&mut self, why: &str) {
        self.note(EventKind::Demoted, why, Vec::new());
        self.on_stop(Goodbye::Fault);
    }

    /// Has this node given up its life by itself? Its process must end then.
    pub fn has_resigned(&self) -> bool {
        self.stopping
    }

    /// The server is being stopped: shut the gate for good, and tell everybody before anything else.
    fn on_stop(&mut self, goodbye: Goodbye) {
        self.stopping = true;
        self.gate(0);
        for peer in self.others() {
            self.send(peer, Message::Goodbye(goodbye));
        }
    }

    /// Takes note of a term. A higher one ends whatever role this node had in the old one.
    fn see_term(&mut self, term: Term) {
        self.known = self.known.max(term);
        if term <= self.hard.term {
            return;
        }
        if matches!(self.role, Role::Leader(_)) {
            self.gate(0);
            self.note(EventKind::Demoted, "a higher term was seen", Vec::new());
        }
        self.hard.term = term;
        self.hard.voted_for = None;
        self.heard = None;
        self.persist();
        match &self.role {
            // A vote that waits for the receiver's end may be for this very term.
            Role::Follower(f) if f.pending_vote.as_ref().is_some_and(|(_, r)| r.term >= term) => {}
            _ => self.become_follower(),
        }
    }

    fn become_follower(&mut self) {
        if let Role::Leader(leader) = &self.role
            && leader.is_open()
        {
            self.gate(0);
        }
        self.abandon_requests();
        self.role = Role::Follower(Follower::default());
        self.stand_if_leaderless();
    }

    // Small helpers, in the order of the alphabet.

    /// The time between two candidates that would otherwise stand together, in ms.
    fn beat(&self) -> Millis {
        (Millis::from(self.config.settings.heartbeat_send_period) / 8).clamp(10, 50)
    }

    fn fail(&mut self, kind: NodeErrorKind, text: String) {
        let (position, leader) = (self.position(), self.heard.as_ref().map(|h| h.id));
        if self.hard.fail(NodeError { kind, text: text.clone(), position, leader }) {
            self.note(EventKind::NodeError, &text, Vec::new());
            self.persist();
        }
    }

    fn gate(&mut self, until: Millis) {
        self.outputs.push(Output::Gate(until));
    }

    /// Timelines up to this number are in use.
    fn know_timeline(&mut self, timeline: Timeline) {
        self.timeline = self.timeline.max(timeline);
        self.known = self.known.max(Term(timeline));
    }

    fn me(&self) -> Option<&crate::Member> {
        self.config.members.get(&self.hard.node)
    }

    fn note(&mut self, kind: EventKind, cause: &str, steps: Vec<Step>) {
        let leader = match &self.role {
            Role::Leader(_) => Some(self.hard.node),
            _ => self.heard.as_ref().map(|h| h.id),
        };
        self.outputs.push(Output::Event(Event {
            kind,
            term: self.hard.term,
            leader,
            position: self.position(),
            cause: cause.to_owned(),
            steps,
        }));
    }

    /// All other members.
    fn others(&self) -> Vec<NodeId> {
        self.config.members.keys().copied().filter(|id| *id != self.hard.node).collect()
    }

    fn persist(&mut self) {
        self.write_by = Millis::MAX;
        self.outputs.push(Output::Persist(Box::new(self.hard.clone())));
    }

    /// Where this node's WAL ends: exactly if nothing is received, else as far as known.
    fn position(&self) -> Option<Position> {
        match self.wal {
            Wal::Stopped { position } if !self.server.production => Some(position),
            _ => self.server.hint,
        }
    }

    /// A number below `below`, from the node's own generator (xorshift64*; Vigna 2016).
    fn random(&mut self, below: Millis) -> Millis {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        (self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    fn reply(&mut self, request: RequestId, result: CommandResult) {
        self.outputs.push(Output::Reply(request, result));
    }

    fn send(&mut self, to: NodeId, message: Message) {
        let envelope = self.envelope(to, message);
        self.outputs.push(Output::Send(Box::new(envelope)));
    }

    fn timeout(&self) -> Millis {
        self.config.settings.election_timeout()
    }

    /// Does this node take part with a WAL of its own?
    fn has_wal(&self) -> bool {
        self.me().is_none_or(|m| m.mode != Mode::Referee)
    }
}

/// The timelines a node remembers; older ones are of no use to anybody.
const MAX_TIMELINES: usize = 64;

fn prune<V>(map: &mut BTreeMap<Timeline, V>) {
    while map.len() > MAX_TIMELINES {
        map.pop_first();
    }
}

fn invalid(text: impl Into<String>, hint: impl Into<String>) -> CommandError {
    CommandError::Invalid { text: text.into(), hint: hint.into() }
}
