//! Users' commands, and the changes of the replicated configuration that they ask for.

use crate::command::{Command, CommandError, CommandResult, MemberSetting, RequestId, Setting};
use crate::config::{ClusterConfig, Member, Mode};
use crate::event::EventKind;
use crate::hardstate::RewindState;
use crate::message::{Message, NodeState};
use crate::{Millis, NodeId, Term};

use super::limits::{check_counts, check_synchronous, check_times, checked_priority, not_a_member};
use super::{Node, Role, invalid};

/// How long a request waits for its outcome, in ms.
const REQUEST_TIMEOUT: Millis = 15_000;
/// A joining node this near to the leader's position has caught up, in bytes of WAL.
const CAUGHT_UP: u64 = 16 * 1024 * 1024;
/// Most requests that wait for an outcome elsewhere.
const MAX_WAITING: usize = 64;
/// Most members of a cluster.
pub const MAX_MEMBERS: usize = 64;

/// Where a command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub node: NodeId,
    pub request: RequestId,
}

/// A user of this node who waits for an outcome elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    request: RequestId,
    pub(super) deadline: Millis,
    /// Accepted by the leader: done when this node leads, begun in this term.
    new_leader: Option<(NodeId, Term)>,
    command: Command,
}

impl Node {
    pub(super) fn on_command(&mut self, request: RequestId, command: Command) {
        let done_here = match command {
            Command::ResetNodeError => Some(self.reset_error()),
            Command::Reclone => Some(self.reclone_by_hand()),
            _ => None,
        };
        if let Some(result) = done_here {
            self.reply(request, result);
            return;
        }
        if matches!(self.role, Role::Leader(_)) {
            let origin = Origin { node: self.hard.node, request };
            self.execute(origin, command);
            return;
        }
        let Some(leader) = self.heard.as_ref().filter(|h| h.dead.is_none()).map(|h| h.id) else {
            self.reply(request, Err(CommandError::NoLeader));
            return;
        };
        if self.waiting.len() >= MAX_WAITING {
            self.reply(request, Err(CommandError::Busy));
            return;
        }
        self.send(leader, Message::Forward { request, command: command.clone() });
        let deadline = self.now + REQUEST_TIMEOUT;
        self.waiting.push(Waiting { request, deadline, new_leader: None, command });
    }

    /// Where there is no error it accepts WAL that nobody elected: the operator knows what this node holds.
    fn reset_error(&mut self) -> CommandResult {
        let kind = self.hard.error.as_ref().map(|error| error.kind);
        if let Some(kind) = kind.filter(|kind| kind.is_for_good()) {
            let text =
                format!("{} cannot be reset: this node is not what the others take it for", kind.name());
            return Err(invalid(text, kind.remedy()));
        }
        if self.hard.error.take().is_some() {
            self.hard.rewind = RewindState::None;
            self.hard.lower_bound = None;
            self.starved = false;
            self.note(EventKind::NodeError, "the error was reset", Vec::new());
        } else {
            // As if it had been elected then: whoever has another timeline of that number is told so.
            let unelected = self.hard.timelines.iter_mut().filter(|(at, entry)| !entry.is_elected(**at));
            let accepted = unelected.map(|(at, entry)| entry.term = Term(*at)).count();
            if accepted == 0 {
                return Ok(());
            }
            self.note(EventKind::NodeError, "a promotion that nobody elected was accepted", Vec::new());
        }
        self.persist();
        Ok(())
    }

    pub(super) fn on_forward(&mut self, from: NodeId, request: RequestId, command: Command) {
        let origin = Origin { node: from, request };
        if matches!(self.role, Role::Leader(_)) {
            self.execute(origin, command);
        } else {
            self.finish(origin, Err(CommandError::NoLeader));
        }
    }

    pub(super) fn on_forward_reply(&mut self, request: RequestId, result: CommandResult) {
        let term = self.hard.term;
        let Some(at) = self.waiting.iter().position(|w| w.request == request) else { return };
        if result.is_ok()
            && let Command::SetLeader(target) = self.waiting[at].command
        {
            self.waiting[at].new_leader = Some((target, term));
            self.leader_known_to_requests();
            return;
        }
        self.waiting.swap_remove(at);
        self.reply(request, result);
    }

    /// Answers those who wait for a switchover, as far as its outcome is known by now.
    pub(super) fn leader_known_to_requests(&mut self) {
        let Some(leader) = self.writable_leader() else { return };
        let term = self.hard.term;
        let mut answers = Vec::new();
        self.waiting.retain(|w| match w.new_leader {
            Some((target, _)) if target == leader => {
                answers.push((w.request, Ok(())));
                false
            }
            Some((target, began)) if term > began => {
                let text = format!("node {leader} became leader instead of node {target}");
                answers.push((w.request, Err(CommandError::Failed(text))));
                false
            }
            _ => true,
        });
        for (request, result) in answers {
            self.reply(request, result);
        }
    }

    fn writable_leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(leader) if leader.is_open() => Some(self.hard.node),
            _ => self.heard.as_ref().filter(|h| h.beat.state == NodeState::LeaderRw).map(|h| h.id),
        }
    }

    pub(super) fn requests_on_time(&mut self) {
        self.leader_known_to_requests();
        let now = self.now;
        let late: Vec<RequestId> =
            self.waiting.iter().filter(|w| now >= w.deadline).map(|w| w.request).collect();
        self.waiting.retain(|w| now < w.deadline);
        for request in late {
            self.reply(request, Err(CommandError::Unknown));
        }
    }

    fn execute(&mut self, origin: Origin, command: Command) {
        let made = match command {
            Command::SetLeader(target) => {
                self.set_leader(origin, target);
                return;
            }
            Command::ResetNodeError | Command::Reclone => {
                self.finish(origin, Ok(()));
                return;
            }
            // What was asked for may be what this leader has, but no quorum yet: neither done nor senseless before
            // that is settled.
            _ if self.busy() => Err(CommandError::Busy),
            Command::AddNode(id, member) => self.with_node(id, member),
            Command::RemoveNode(id) => self.without_node(id),
            Command::Set(settings) => self.with_settings(&settings),
            Command::SetMember(id, setting) => self.with_member(id, setting),
        };
        let checked = made.and_then(|config| self.check_lossless(&config).map(|()| config));
        match checked {
            Err(error) => self.finish(origin, Err(error)),
            Ok(config) if config == self.config => self.finish(origin, Ok(())),
            Ok(config) => match self.check_quorum(&config) {
                Err(error) => self.finish(origin, Err(error)),
                Ok(()) => self.start_change(Some(origin), config),
            },
        }
    }

    fn busy(&self) -> bool {
        match &self.role {
            Role::Leader(leader) => {
                let unknown = leader.change.as_ref().is_some_and(|change| !change.is_on_quorum());
                unknown || leader.handing_over.is_some()
            }
            _ => true,
        }
    }

    fn with_node(&self, id: NodeId, member: Member) -> Result<ClusterConfig, CommandError> {
        if let Some(known) = self.config.members.get(&id) {
            let same = known.host == member.host
                && (known.port, known.biha_port, known.mode) == (member.port, member.biha_port, member.mode);
            return if same {
                Ok(self.config.clone())
            } else {
                Err(invalid(
                    format!("node {id} is already a member of the cluster"),
                    "Choose another number, or remove that node first.",
                ))
            };
        }
        if id.0 == 0 || member.host.is_empty() || member.port == 0 || member.biha_port == 0 {
            return Err(invalid("a member needs a number above 0, a host and two ports", ""));
        }
        if self.config.members.len() >= MAX_MEMBERS {
            return Err(invalid(
                format!("a cluster has at most {MAX_MEMBERS} members"),
                "Remove a node first: biha.remove_node().",
            ));
        }
        let mut config = self.config.clone();
        let mut admitted = self.config.clone();
        config.members.insert(id, Member { joining: true, ..member.clone() });
        admitted.members.insert(id, Member { joining: false, ..member });
        self.check_majority(&admitted)?;
        self.check_lossless(&admitted)?;
        Ok(config)
    }

    fn without_node(&self, id: NodeId) -> Result<ClusterConfig, CommandError> {
        if id == self.hard.node {
            return Err(invalid(
                format!("node {id} is the leader and cannot be removed"),
                "Make another node the leader first, with biha.set_leader.",
            ));
        }
        let mut config = self.config.clone();
        if config.members.remove(&id).is_none() {
            return Err(not_a_member(id));
        }
        check_counts(&config)?;
        self.check_standbys_left(&config)?;
        Ok(config)
    }

    fn with_member(&self, id: NodeId, setting: MemberSetting) -> Result<ClusterConfig, CommandError> {
        let mut config = self.config.clone();
        let Some(member) = config.members.get_mut(&id) else {
            return Err(not_a_member(id));
        };
        match setting {
            MemberSetting::CanBeLeader(value) => member.can_be_leader = value,
            MemberSetting::CanVote(value) => member.can_vote = value,
            MemberSetting::Priority(value) => member.priority = checked_priority(value)?,
        }
        if id == self.hard.node && !config.members.get(&id).is_some_and(Member::is_electable) {
            return Err(invalid(
                format!("node {id} leads the cluster and must stay electable"),
                "Make another node the leader first, with biha.set_leader.",
            ));
        }
        check_counts(&config)?;
        self.check_majority(&config)?;
        self.check_standbys_left(&config)?;
        Ok(config)
    }

    fn with_settings(&self, changes: &[Setting]) -> Result<ClusterConfig, CommandError> {
        let mut config = self.config.clone();
        let settings = &mut config.settings;
        for change in changes {
            match *change {
                Setting::HeartbeatSendPeriod(ms) => settings.heartbeat_send_period = ms,
                Setting::HeartbeatMaxLost(count) => settings.heartbeat_max_lost = count,
                Setting::Nquorum(count) => settings.nquorum = count,
                Setting::Minnodes(count) => settings.minnodes = count,
                Setting::NoWalOnFollower(ms) => settings.no_wal_on_follower = ms,
                Setting::SyncStandbys(count) => settings.sync_standbys = count,
                Setting::SyncStandbysMin(count) => settings.sync_standbys_min = count,
                Setting::Lossless(lossless) => settings.lossless = lossless,
            }
        }
        check_times(&config.settings)?;
        check_counts(&config)?;
        check_synchronous(&config)?;
        Ok(config)
    }

    /// A leader that stops leading cannot say what becomes of what it began.
    pub(super) fn abandon_requests(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let change = leader.change.take().and_then(|c| c.origin);
        let ended = leader.ended.take().map(|(origin, _)| origin);
        let handing = leader.handing_over.take();
        if let Some(origin) = change {
            self.finish(origin, Err(CommandError::Unknown));
        }
        if let Some(origin) = ended {
            self.finish(origin, Ok(()));
        }
        if let Some(handing) = handing
            && handing.phase != super::handover::HandoverPhase::Leaving
            && let Some(origin) = handing.origin
        {
            let error = CommandError::Failed("the leader lost its leadership meanwhile".to_owned());
            self.finish(origin, Err(error));
        }
    }

    /// Makes a joining member that has caught up a voter.
    pub(super) fn admit(&mut self, id: NodeId) {
        if !self.config.members.get(&id).is_some_and(|m| m.joining) {
            return;
        }
        let own = self.position();
        let Role::Leader(leader) = &self.role else { return };
        if self.busy() || !leader.is_open() {
            return;
        }
        let streams = leader.ack(id).is_some_and(|a| a.streaming);
        let near = match (own, self.peers.get(&id).and_then(|p| p.position)) {
            (Some(own), Some(its)) => own.timeline == its.timeline && its.lsn.0 + CAUGHT_UP >= own.lsn.0,
            _ => false,
        };
        let mut config = self.config.clone();
        if let Some(member) = config.members.get_mut(&id) {
            member.joining = false;
        }
        let caught_up =
            matches!(config.members.get(&id), Some(m) if m.mode == Mode::Referee) || streams && near;
        let fits = self.check_majority(&config).is_ok() && self.check_lossless(&config).is_ok();
        if caught_up && fits {
            self.note(
                EventKind::Config,
                &format!("node {id} has caught up and votes from now on"),
                Vec::new(),
            );
            self.start_change(None, config);
        }
    }

    /// Answers a command where it was given.
    pub(super) fn finish(&mut self, origin: Origin, result: CommandResult) {
        if origin.node == self.hard.node {
            self.reply(origin.request, result);
        } else {
            self.send(origin.node, Message::ForwardReply { request: origin.request, result });
        }
    }
}
