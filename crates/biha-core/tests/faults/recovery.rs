//! After the faults: a leader in time (L1), all follow; then one clean failure and one clean switchover.

use biha_core::*;

use super::run::Run;
use super::sim::{Chaos, Host, PROMOTE, Rule, say};

/// What servers do meanwhile, in ms: stop receiving, restart, promote, follow.
const WORK: Millis = 500;
/// What comes on top after faults: an order that failed is not repeated before a second has passed; synchronous
/// standbys that have parted are rewound before anything may be committed.
const AFTER_FAULTS: Millis = 1000 + 1000;
/// For so many election timeouts a cluster that starts waits for voters that it has no word from.
const STARTUP_PATIENCE: Millis = 5;

impl Run {
    /// No more faults: one leader that takes writes, and all others stream from it.
    pub fn recover(&mut self) -> Result<(), String> {
        say!(self.cluster, NodeId(0), "no more faults");
        let late = self.cluster.chaos.jitter.max(self.cluster.chaos.slow_write);
        self.cluster.chaos = Chaos::default();
        self.free_disks();
        self.thaw_all();
        // What is on its way still arrives.
        self.work(1 + late)?;
        self.boot_all();
        self.heal();
        let begin = self.cluster.now;
        let timeout = self.longest_timeout();
        let absent = if self.all_voters_there() { 0 } else { STARTUP_PATIENCE * timeout };
        let end = begin + 2 * timeout + absent + self.longest_priority() + WORK + AFTER_FAULTS;
        while self.cluster.now < end && self.leader().is_none() {
            self.mend();
            self.work(20)?;
        }
        let Some(leader) = self.leader() else {
            // WAL that nobody elected neither votes nor stands; without it there may be no quorum.
            if self.is_excused() || !self.can_elect() {
                self.figures.excused += 1;
                return self.verdict();
            }
            return Err("L1: no leader in time".to_owned());
        };
        self.figures.after_faults(self.nodes, self.cluster.now - begin, timeout);
        say!(self.cluster, leader, "leads {} ms after the last fault", self.cluster.now - begin);
        for _ in 0..1000 {
            self.mend();
            self.work(50)?;
            if self.all_follow() && !self.operator.is_busy() {
                return self.takes_a_write();
            }
        }
        if self.is_excused() { self.verdict() } else { Err(self.who_does_not_follow()) }
    }

    /// A number may have been taken twice, or may be yet: what has it is in error for good.
    fn is_excused(&self) -> bool {
        self.by_hand || self.cluster.checks.spoiled || self.cluster.checks.two_leaders
    }

    fn who_does_not_follow(&self) -> String {
        let followers = |h: &&Host| Some(h.id) != self.leader() && !h.server.streaming;
        let missing: Vec<NodeId> = self.cluster.hosts.values().filter(followers).map(|h| h.id).collect();
        format!("not all nodes follow in time: {missing:?} do not; the operator: {:?}", self.operator)
    }

    /// The longest time that anybody waits for a leader, or is bound by a promise.
    fn longest_timeout(&self) -> Millis {
        let of = |h: &Host| h.disk.config.settings.election_timeout().max(h.disk.hard.longest_promise);
        self.cluster.hosts.values().map(of).max().unwrap_or(0)
    }

    fn all_voters_there(&self) -> bool {
        self.newest_config().voters().all(|id| !self.is_away(id))
    }

    /// Is there a quorum with an electable member that holds as much as the others of it, and are there enough
    /// nodes to take writes? A voter that holds more but may not lead stands in the way: nobody fetches its WAL. And
    /// a node whose rewind is not complete votes only once a leader has given it the rest.
    fn can_elect(&self) -> bool {
        let config = self.newest_config();
        let there: Vec<_> = config.members.iter().filter(|(id, _)| !self.is_away(**id)).collect();
        let end = |id: NodeId| self.cluster.host(id).server.log.end();
        let whole = |id: NodeId| {
            let server = &self.cluster.host(id).server;
            server.log.records.len() >= server.consistent_from
        };
        let elects = |candidate: NodeId| {
            let votes = |(id, m): &&(&NodeId, &Member)| {
                m.is_voter() && (!m.is_wal_voter() || whole(**id) && end(**id) <= end(candidate))
            };
            there.iter().filter(votes).count() >= config.nquorum()
        };
        there.iter().filter(|(_, m)| m.is_electable()).any(|(id, _)| elects(**id))
            && there.iter().filter(|(_, m)| !m.joining).count() >= config.minnodes()
            && there.iter().filter(|(_, m)| m.is_wal_voter()).count() > config.settings.sync_standbys as usize
    }

    /// The operator boots what a lost race left down, and has nothing else to do.
    fn mend(&mut self) {
        self.boot_all();
        for id in self.cluster.ids() {
            let Some(error) = self.cluster.host(id).disk.hard.error.clone() else { continue };
            match error.kind {
                NodeErrorKind::TimelineConflict if self.is_excused() => {}
                // It was joining, and the removal came to nothing with its leader.
                NodeErrorKind::Removed if self.newest_config().members.contains_key(&id) => {
                    self.user(id, Command::ResetNodeError);
                }
                NodeErrorKind::Removed => {}
                _ => self.cluster.checks.violation(Rule::Node, format!("n{id}: {}", error.text)),
            }
        }
    }

    fn all_follow(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let config = &self.cluster.host(leader).disk.config;
        config.members.iter().filter(|(id, _)| **id != leader && !self.operator.keeps_down(**id)).all(
            |(id, m)| {
                let h = self.cluster.host(*id);
                // Some may never vote: two leaders, or a loss, would be possible then.
                let synced =
                    h.disk.config.version == config.version && (!m.joining || !may_vote(config, *id));
                synced && (m.mode == Mode::Referee || h.server.streaming && h.server.receiver == Some(leader))
            },
        )
    }

    /// L1 with nothing else going on: the leader dies, silently or not, and the others have a new one within two
    /// election timeouts. Priorities and a server's work are counted apart.
    pub fn fail_over(&mut self) -> Result<(), String> {
        // An order that failed among the faults holds up the next ones for a second.
        self.work(1000)?;
        let Some(leader) = self.leader().filter(|id| self.can_spare(*id) && !self.is_excused()) else {
            return Ok(());
        };
        let silently = self.seed.is_multiple_of(2);
        let begin = self.cluster.now;
        say!(self.cluster, leader, "dies{}", if silently { " silently" } else { "" });
        if silently {
            self.cluster.kill_host(leader);
        } else {
            self.cluster.kill_postmaster(leader);
        }
        let timeout = self.longest_timeout();
        let waits = if silently { 2 * timeout } else { 0 };
        let bound = waits + self.longest_priority() + PROMOTE + WORK;
        while self.leader().is_none() {
            self.work(5)?;
            if self.cluster.now > begin + bound {
                return Err(format!("L1: no leader {bound} ms after the last one's death"));
            }
        }
        let took = self.cluster.now - begin;
        self.figures.failed_over(self.nodes, silently, took);
        say!(self.cluster, NodeId(0), "a leader after {took} ms");
        self.cluster.boot(leader);
        self.until_all_follow()
    }

    fn longest_priority(&self) -> Millis {
        let members = self.newest_config().members;
        members.values().map(|m| Millis::try_from(m.priority).unwrap_or(0)).max().unwrap_or(0)
    }

    fn until_all_follow(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            self.mend();
            self.work(50)?;
            if self.all_follow() {
                return self.takes_a_write();
            }
        }
        Err(self.who_does_not_follow())
    }

    /// An open gate is not enough: a client is told that it has committed.
    fn takes_a_write(&mut self) -> Result<(), String> {
        let (before, begin) = (self.cluster.checks.commits(), self.cluster.now);
        self.commit();
        while self.cluster.checks.commits() == before {
            self.work(5)?;
            if self.cluster.now > begin + WORK {
                let error = Err(format!("L1: no commit is acknowledged within {WORK} ms"));
                return if self.is_excused() { self.verdict() } else { error };
            }
        }
        self.verdict()
    }

    /// A planned switchover loses nothing, also where replication is asynchronous.
    pub fn switch_over(&mut self) -> Result<(), String> {
        let Some(leader) = self.leader().filter(|_| !self.is_excused()) else { return Ok(()) };
        let config = self.cluster.host(leader).disk.config.clone();
        let others: Vec<NodeId> = config
            .members
            .iter()
            .filter(|(id, m)| m.is_electable() && **id != leader && self.cluster.host(**id).server.streaming)
            .map(|(id, _)| *id)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        let timeout = config.settings.election_timeout();
        let target = self.rng.pick(&others);
        let term = self.cluster.host(leader).disk.hard.term;
        let promised = |id: NodeId| self.cluster.host(id).disk.hard.longest_promise;
        if promised(leader) > promised(target) + timeout {
            // Its silence after the restart may outlast the target's patience where its vote is needed.
            return Ok(());
        }
        let begin = self.cluster.now;
        say!(self.cluster, leader, "is to hand over to n{target}");
        self.user(leader, Command::SetLeader(target));
        while self.leader() != Some(target) {
            self.work(5)?;
            if self.cluster.now > begin + self.longest_timeout() + WORK {
                return Err(format!("n{target} does not lead in time after a switchover"));
            }
        }
        self.figures.switched_over(self.nodes, self.cluster.now - begin);
        match self.cluster.lost_commit(target, |acknowledged_in| acknowledged_in == term) {
            Some(lost) => Err(format!("the switchover to n{target} loses the acknowledged commit {lost}")),
            None => self.until_all_follow(),
        }
    }

    /// L1 where a node is away for long and the leader's controller dies: whoever holds the most leads, without waiting
    /// for the absent one as a cluster that starts does.
    pub fn lead_without_one(&mut self) -> Result<(), String> {
        let Some(leader) = self.leader().filter(|_| !self.is_excused()) else { return Ok(()) };
        let others: Vec<NodeId> = self.cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let Some(absent) = others.iter().copied().find(|id| self.can_spare(*id)) else { return Ok(()) };
        let config = self.newest_config();
        let may_lead = |id: &NodeId| config.members.get(id).is_some_and(Member::is_electable);
        if !others.iter().any(|id| *id != absent && !self.is_away(*id) && may_lead(id)) {
            return Ok(());
        }
        self.cluster.kill_host(absent);
        self.work(self.longest_timeout())?;
        let begin = self.cluster.now;
        say!(self.cluster, leader, "loses its controller while n{absent} is away");
        self.cluster.kill_controller(leader);
        let bound = 2 * self.longest_timeout() + self.longest_priority() + PROMOTE + WORK;
        while self.leader().is_none() {
            self.work(5)?;
            if self.cluster.now > begin + bound {
                return Err(format!("L1: no leader {bound} ms after the end of its controller"));
            }
        }
        self.cluster.boot(absent);
        self.until_all_follow()
    }
}

/// Would the cluster be as safe as it is, if this node voted?
fn may_vote(config: &ClusterConfig, id: NodeId) -> bool {
    let mut admitted = config.clone();
    if let Some(member) = admitted.members.get_mut(&id) {
        member.joining = false;
    }
    let require = config.settings.lossless == Lossless::Require;
    !admitted.disjoint_quorums() && (!require || admitted.lossless().0 && !config.may_lose_by(&[], &admitted))
}
