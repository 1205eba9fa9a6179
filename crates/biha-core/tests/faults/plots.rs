//! Faults in a row, each of which is harmless alone: what chance would need very many seeds for.

use biha_core::*;

use super::run::Run;
use super::sim::{Mutation, say};

impl Run {
    /// A follower is cut off until it stands; another, whose promise holds the leader's lease, forgets it if it can.
    pub fn follower_stands(&mut self) -> Result<bool, String> {
        let Some(leader) = self.leader().filter(|_| self.cluster.hosts.len() > 2) else { return Ok(false) };
        let mut others: Vec<NodeId> = self.cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let last = others.remove(self.rng.below(others.len() as u64) as usize);
        // Else what is committed meanwhile would keep the others from being elected.
        self.quiet = !self.rng.one_in(4);
        for id in others {
            self.cut_both(leader, id);
        }
        let wait = self.timeout + self.rng.below(self.timeout);
        self.work(wait)?;
        self.cut_both(leader, last);
        self.forget(last);
        self.work(self.timeout)?;
        self.quiet = false;
        Ok(true)
    }

    /// A leader is cut off and restarted; as soon as the others have elected another, one of them forgets whom it voted
    /// for, if it can, and hears the old leader only, who asks for a vote in the same term.
    pub fn voter_forgets(&mut self) -> Result<bool, String> {
        let Some(old) = self.leader().filter(|_| self.cluster.hosts.len() > 2) else { return Ok(false) };
        let term = self.cluster.host(old).disk.hard.term;
        self.quiet = true;
        for id in self.cluster.ids() {
            self.cut_both(old, id);
        }
        self.cluster.kill_controller(old);
        if let Some(new) = self.await_leader_after(term)? {
            let voters: Vec<NodeId> = self
                .cluster
                .hosts
                .values()
                .filter(|h| h.id != new && h.disk.hard.voted_for == Some(new))
                .map(|h| h.id)
                .collect();
            if !voters.is_empty() {
                let voter = self.rng.pick(&voters);
                self.heal();
                for id in self.cluster.ids().into_iter().filter(|id| *id != voter && *id != old) {
                    self.cut_both(voter, id);
                    self.cut_both(old, id);
                }
                self.forget(voter);
                self.work(2 * self.timeout)?;
            }
        }
        self.quiet = false;
        Ok(true)
    }

    /// A follower misses what the leader commits with the others; the leader is cut off, and whoever is elected dies at
    /// once. The two that are left must not elect the one that misses it.
    pub fn deposed_leader_votes(&mut self) -> Result<bool, String> {
        let Some(old) = self.leader().filter(|_| self.cluster.hosts.len() > 2) else { return Ok(false) };
        let term = self.cluster.host(old).disk.hard.term;
        let others: Vec<NodeId> = self.cluster.ids().into_iter().filter(|id| *id != old).collect();
        let misses = self.rng.pick(&others);
        self.cut_both(old, misses);
        let wait = self.timeout / 2;
        self.work(wait)?;
        for id in self.cluster.ids() {
            self.cut_both(old, id);
        }
        self.quiet = true;
        let new = self.await_leader_after(term)?;
        if let Some(new) = new.filter(|new| *new != misses) {
            self.cluster.kill_host(new);
            self.heal();
            for id in others.into_iter().filter(|id| *id != misses) {
                self.cut_both(id, misses);
                self.cut_both(id, old);
            }
            self.work(2 * self.timeout)?;
        }
        self.quiet = false;
        Ok(true)
    }

    /// A leader is cut off; as soon as the others have elected another, that one is cut off instead, and the old one is
    /// back. In the end all are, and the newer leader dies.
    pub fn old_leader_returns(&mut self) -> Result<bool, String> {
        let Some(old) = self.leader().filter(|_| self.cluster.hosts.len() > 2) else { return Ok(false) };
        let term = self.cluster.host(old).disk.hard.term;
        for id in self.cluster.ids() {
            self.cut_both(old, id);
        }
        let Some(new) = self.await_leader_after(term)? else { return Ok(true) };
        self.heal();
        for id in self.cluster.ids() {
            self.cut_both(new, id);
        }
        self.work(2 * self.timeout)?;
        self.heal();
        self.cluster.kill_controller(new);
        self.work(self.timeout)?;
        Ok(true)
    }

    /// The cluster comes to wait for one standby more and for one voter less, or the other way round, while some standbys
    /// lag, or one that does not ceases to be a voter; leaders die in between. In the end the leader is lost, and as many of
    /// the standbys that have its WAL as can be spared.
    pub fn quorums_shift(&mut self) -> Result<bool, String> {
        let Some(mut leader) = self.leader() else { return Ok(false) };
        let config = self.cluster.host(leader).disk.config.clone();
        let (k, quorum) = (config.settings.sync_standbys, config.nquorum() as u32);
        let mut standbys: Vec<NodeId> = config.wal_voters().filter(|id| *id != leader).collect();
        let lagging = (standbys.len() + 1).saturating_sub(k as usize);
        let lagging = self.rng.below(lagging as u64) as usize;
        let set = |setting| Command::Set(vec![setting]);
        let (steps, late) = match self.rng.below(3) {
            0 => (vec![set(Setting::SyncStandbys(k + 1)), set(Setting::Nquorum(Some(quorum - 1)))], false),
            1 => (
                vec![
                    set(Setting::Nquorum(Some(quorum + 1))),
                    set(Setting::SyncStandbys(k.saturating_sub(1))),
                ],
                false,
            ),
            _ => {
                let out = Command::SetMember(self.rng.pick(&standbys), MemberSetting::CanVote(false));
                (vec![set(Setting::SyncStandbys(k + 1)), out, set(Setting::SyncStandbys(k))], true)
            }
        };
        if !late {
            self.lag(&mut standbys, lagging);
        }
        let wait = self.rng.below(self.timeout);
        self.work(wait)?;
        for (number, step) in steps.iter().enumerate() {
            if late && number == 2 {
                standbys.sort_by_key(|id| matches!(steps[1], Command::SetMember(out, _) if out == *id));
                self.lag(&mut standbys, lagging);
            }
            for _ in 0..=self.rng.below(2) {
                say!(self.cluster, leader, "is asked for {step:?}");
                self.user(leader, step.clone());
                let wait = self.rng.below(self.timeout / 2);
                self.work(wait)?;
            }
            if self.rng.one_in(3) {
                let term = self.cluster.host(leader).disk.hard.term;
                self.cluster.kill_host(leader);
                let Some(next) = self.await_leader_after(term)? else { return Ok(true) };
                leader = next;
            }
        }
        self.lose(leader, standbys, &config)?;
        Ok(true)
    }

    /// nquorum is 1, and then a majority again, of which one node does not hear; the leader dies, and the next is asked for
    /// something. As often it is any change of a parameter.
    pub fn majority_again(&mut self, at: NodeId, target: NodeId) -> Result<bool, String> {
        let leader = self.leader().filter(|_| self.cluster.hosts.len() > 2);
        let Some(leader) = leader.filter(|_| self.rng.one_in(2)) else {
            self.change_parameter(at, target);
            return Ok(self.cluster.host(at).watched());
        };
        let set = |setting| Command::Set(vec![setting]);
        self.user(leader, set(Setting::Nquorum(Some(1))));
        if self.rng.one_in(3) {
            let wait = self.rng.below(10);
            self.work(wait)?;
            return self.comes_back_cut_off(leader, set(Setting::Nquorum(None)));
        }
        self.work(self.timeout)?;
        let others: Vec<NodeId> = self.cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let misses = self.rng.pick(&others);
        for id in self.cluster.ids() {
            self.cut_both(misses, id);
        }
        self.user(leader, set(Setting::Nquorum(None)));
        let wait = self.rng.below(self.timeout / 4);
        self.work(wait)?;
        self.next_is_asked(leader, &set(Setting::Nquorum(None)), self.timeout / 8)?;
        self.work(2 * self.timeout)?;
        Ok(true)
    }

    /// A leader's controller dies; whoever is elected next is asked for something, again and again.
    fn next_is_asked(&mut self, old: NodeId, command: &Command, pause: Millis) -> Result<(), String> {
        let term = self.cluster.host(old).disk.hard.term;
        self.cluster.kill_controller(old);
        if let Some(next) = self.await_leader_after(term)? {
            for _ in 0..4 {
                self.user(next, command.clone());
                self.work(pause)?;
            }
        }
        Ok(())
    }

    /// A leader dies; the others elect another, which does as it is told; the old one comes back, and hears of nobody.
    fn comes_back_cut_off(&mut self, old: NodeId, command: Command) -> Result<bool, String> {
        for id in self.cluster.ids() {
            self.cut_both(old, id);
        }
        self.next_is_asked(old, &command, self.timeout / 4)?;
        self.work(8 * self.timeout)?;
        Ok(true)
    }

    /// The first of the standbys receive no more WAL.
    fn lag(&mut self, standbys: &mut Vec<NodeId>, count: usize) {
        for lags in standbys.drain(..count.min(standbys.len())) {
            self.cluster.ids().into_iter().for_each(|id| self.cluster.net.cut_wal(id, lags));
        }
    }

    /// The leader is lost, and as many of the standbys as leave a quorum.
    fn lose(&mut self, leader: NodeId, standbys: Vec<NodeId>, config: &ClusterConfig) -> Result<(), String> {
        self.cluster.kill_host(leader);
        let quorum = self.newest_config().nquorum();
        for lost in standbys {
            let left = config.voters().filter(|id| self.cluster.host(*id).power).count();
            if left > quorum {
                self.cluster.kill_host(lost);
            }
        }
        self.work(3 * self.timeout)
    }

    fn await_leader_after(&mut self, term: Term) -> Result<Option<NodeId>, String> {
        let end = self.cluster.now + 3 * self.timeout;
        while self.cluster.now < end && self.elected_after(term).is_none() {
            self.work(1)?;
        }
        Ok(self.elected_after(term))
    }

    /// A leader of a later term, whether it takes writes or not.
    fn elected_after(&self, term: Term) -> Option<NodeId> {
        let leads = |node: &Node| node.state().is_leader() && node.hard().term > term;
        self.cluster.hosts.values().find(|h| h.controller.as_ref().is_some_and(leads)).map(|h| h.id)
    }

    /// A crash; what is not on disk is forgotten. Where the rule is that a lost memory is replaced by an empty one, that.
    fn forget(&mut self, id: NodeId) {
        if self.cluster.mutated(Mutation::EmptyMemory) && self.lose_memory(id) {
            self.cluster.boot(id);
        } else {
            self.cluster.kill_controller(id);
        }
    }
}
