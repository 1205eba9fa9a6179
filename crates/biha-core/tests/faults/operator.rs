//! The operator, while everything is on fire: parameters, members, nodes made anew.

use biha_core::*;

use super::run::Run;
use super::sim::{self, ServerMode, say};

/// How long the operator waits before another attempt, in ms.
const AGAIN: Millis = 300;
/// Attempts at what may be impossible, as to remove the only node that can lead.
const PATIENCE: u32 = 30;

/// What the operator is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Take the node out of the cluster; then, if so, make it anew.
    Remove { id: NodeId, again: bool },
    /// Enter it as a new member.
    Add { id: NodeId },
}

/// One task at a time; a request is repeated until it is done.
#[derive(Debug, Default)]
pub struct Operator {
    task: Option<Task>,
    /// Where it was given, in which life of that node, and under which number.
    asked: Option<(NodeId, u64, RequestId)>,
    not_before: Millis,
    attempts: u32,
    /// What must be changed first, by the refusal.
    first: Option<Setting>,
    /// Removed for good.
    retired: Vec<NodeId>,
}

impl Operator {
    pub fn is_busy(&self) -> bool {
        self.task.is_some()
    }

    pub fn will_renew(&mut self, id: NodeId) {
        self.retired.retain(|retired| *retired != id);
        self.task = Some(Task::Remove { id, again: true });
        self.asked = None;
    }

    /// Is the node not to be started?
    pub fn keeps_down(&self, id: NodeId) -> bool {
        self.retired.contains(&id) || matches!(self.task, Some(Task::Add { id: adds }) if adds == id)
    }

    pub fn retired(&self, id: NodeId) -> bool {
        self.retired.contains(&id)
    }
}

impl Run {
    pub fn user(&mut self, at: NodeId, command: Command) {
        self.requests += 1;
        self.cluster.step(at, Input::Command(self.requests, command));
    }

    pub fn change_parameter(&mut self, at: NodeId, target: NodeId) {
        let command = self.some_change(at, target);
        self.user(at, command.clone());
        if self.rng.one_in(3) {
            // Somebody does not wait for the answer, and asks again.
            self.user(at, command);
        }
    }

    fn some_change(&mut self, at: NodeId, target: NodeId) -> Command {
        let voters = self.cluster.host(at).disk.config.voters().count() as u32;
        let majority = voters / 2 + 1;
        let least = if self.minorities && self.rng.one_in(3) { 1 } else { majority };
        let some = least + self.rng.below(u64::from(voters - least + 1)) as u32;
        let votes = self.rng.one_in(2);
        let k = self.rng.below(u64::from(majority)) as u32;
        let setting = match self.rng.below(12) {
            0 | 1 => Setting::HeartbeatSendPeriod(self.rng.pick(&[50, 100, 200])),
            2 => Setting::HeartbeatMaxLost(self.rng.pick(&[4, 6, 10])),
            3..=5 if self.voters_change => Setting::Nquorum(Some(some)),
            6 if self.voters_change => Setting::Nquorum(None),
            7 => Setting::Minnodes(self.rng.one_in(2).then_some(majority)),
            8 if self.voters_change => Setting::SyncStandbys(k),
            9 if self.voters_change => return Command::SetMember(target, MemberSetting::CanVote(votes)),
            10 if self.voters_change => return Command::SetMember(target, MemberSetting::CanBeLeader(votes)),
            _ => {
                let priority = self.rng.below(300) as i32 - 1;
                return Command::SetMember(target, MemberSetting::Priority(priority));
            }
        };
        Command::Set(vec![setting])
    }

    /// Takes a member out, or a new one in. False if the operator has something else to do.
    pub fn change_members(&mut self, id: NodeId) -> bool {
        if self.operator.is_busy() || !self.voters_change || self.leader().is_none() {
            return false;
        }
        let host = self.cluster.host(id);
        if self.operator.retired(id) {
            self.operator.retired.retain(|retired| *retired != id);
            self.operator.task = Some(Task::Add { id });
            return true;
        }
        let members = host.disk.config.members.len();
        if members > 2 && self.rng.one_in(2) {
            let again = self.rng.one_in(2);
            self.operator.task = Some(Task::Remove { id, again });
            return true;
        }
        let new = NodeId(self.cluster.hosts.len() as u32 + 1);
        if new.0 > self.most_nodes {
            return false;
        }
        let (config, options) = (host.disk.config.clone(), host.options);
        self.cluster.add_host(new, config, options);
        self.set_clock(new);
        self.cluster.host_mut(new).stopped = true;
        self.operator.task = Some(Task::Add { id: new });
        true
    }

    /// What the operator does next.
    pub fn operate(&mut self) {
        let Some(task) = self.operator.task else {
            self.operator.attempts = 0;
            return;
        };
        let now = self.cluster.now;
        if let Some((at, life, request)) = self.operator.asked {
            let host = self.cluster.host(at);
            let Some((_, result)) = host.replies.iter().rev().find(|(number, _)| *number == request) else {
                // Who dies answers nothing.
                if host.life != life || host.controller.is_none() {
                    self.operator.asked = None;
                }
                return;
            };
            let result = result.clone();
            self.operator.asked = None;
            self.operator.not_before = now + AGAIN;
            self.answered(task, &result);
            return;
        }
        let may = |id: &NodeId| now >= self.operator.not_before && self.cluster.host(*id).watched();
        let Some(leader) = self.leader().filter(may) else { return };
        self.operator.attempts += 1;
        if self.operator.attempts > PATIENCE && !self.is_lost(task) {
            self.operator.task = None;
            return;
        }
        let command = match task {
            _ if self.operator.first.is_some() => Command::Set(self.operator.first.into_iter().collect()),
            Task::Remove { id, .. } if id == leader => Command::SetLeader(self.some_node()),
            Task::Remove { id, .. } => Command::RemoveNode(id),
            Task::Add { id } => Command::AddNode(id, sim::member(Mode::Regular, -1)),
        };
        // Not every command is given at the leader.
        let other = self.some_node();
        let at = if self.rng.one_in(4) && self.cluster.host(other).watched() { other } else { leader };
        let handover = matches!(command, Command::SetLeader(_));
        self.user(at, command);
        self.operator.not_before = now + AGAIN;
        if !handover {
            self.operator.asked = Some((at, self.cluster.host(at).life, self.requests));
        }
    }

    fn answered(&mut self, task: Task, result: &CommandResult) {
        let preparation = self.operator.first.take().is_some();
        let done = match result {
            Ok(()) => !preparation,
            Err(CommandError::Invalid { text, .. }) => {
                // As bihactl does: what is no member any more need not be removed.
                matches!(task, Task::Remove { .. }) && text.contains("not a member")
            }
            Err(_) => false,
        };
        if !done {
            self.operator.first = self.preparation(result).filter(|_| self.is_lost(task));
            if matches!(result, Err(CommandError::Invalid { .. })) && !self.is_lost(task) {
                self.operator.task = None;
            }
            return;
        }
        self.operator.attempts = 0;
        match task {
            Task::Remove { id, again } => {
                say!(self.cluster, id, "OPERATOR has removed it");
                if again || self.cluster.host(id).disk.lost {
                    self.cluster.kill_host(id);
                    self.operator.task = Some(Task::Add { id });
                } else {
                    self.operator.task = None;
                    self.operator.retired.push(id);
                    if self.rng.one_in(2) {
                        self.cluster.kill_host(id);
                    }
                }
            }
            Task::Add { id } => {
                if self.rng.one_in(2) {
                    // The base backup takes its time.
                    self.operator.not_before += self.rng.below(3 * self.timeout);
                    return;
                }
                let Some(leader) = self.leader() else { return };
                if self.cluster.host(id).controller.is_some()
                    || self.cluster.host(id).server.mode != ServerMode::Down
                {
                    self.cluster.kill_host(id);
                }
                self.cluster.renew(id, leader);
                self.operator.task = None;
                self.cluster.boot(id);
            }
        }
    }

    /// What the hint of a refusal says.
    fn preparation(&self, result: &CommandResult) -> Option<Setting> {
        let Err(CommandError::Invalid { text, .. }) = result else { return None };
        let k = self.newest_config().settings.sync_standbys;
        if text.contains("could lack a commit") || text.contains("commits could be lost") {
            return Some(Setting::SyncStandbys(k + 1));
        }
        text.contains("not a majority").then_some(Setting::Nquorum(None))
    }

    /// Whoever lost its memory is made anew, whatever it takes.
    fn is_lost(&self, task: Task) -> bool {
        let (Task::Remove { id, .. } | Task::Add { id }) = task;
        self.cluster.host(id).disk.lost
    }

    /// Can the others elect, and write, without this node?
    pub fn can_spare(&self, id: NodeId) -> bool {
        if self.operator.is_busy() && !self.mutated {
            return false;
        }
        let newest = self.newest_config();
        let others = newest.members.iter().filter(|(other, m)| **other != id && !m.joining);
        let without: Vec<_> = others.filter(|(other, _)| !self.is_away(**other)).collect();
        let voters = without.iter().filter(|(_, m)| m.is_voter()).count();
        let wal = without.iter().filter(|(_, m)| m.is_wal_voter()).count();
        newest.members.contains_key(&id)
            && voters >= newest.nquorum()
            && without.len() >= newest.minnodes()
            && wal > newest.settings.sync_standbys as usize + 1
            && without.iter().any(|(_, m)| m.is_electable())
    }

    /// Not there, and not to be had by starting it.
    pub fn is_away(&self, id: NodeId) -> bool {
        self.cluster.hosts.get(&id).is_none_or(|h| h.disk.lost || h.disk.hard.error.is_some())
            || self.operator.keeps_down(id)
    }

    pub fn newest_config(&self) -> ClusterConfig {
        let configs = self.cluster.hosts.values().map(|h| &h.disk.config);
        configs.max_by_key(|config| config.version).cloned().unwrap_or_default()
    }
}
