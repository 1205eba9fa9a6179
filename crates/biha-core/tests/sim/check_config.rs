//! S6: a change of the configuration that a user was told of is in every later leader's configuration.
//!
//! Versions alone do not show it: a later leader's is always higher. So it is remembered which version was made of
//! which.

use biha_core::*;

use super::check::Checks;
use super::{Cluster, Host, Rule};

impl Checks {
    /// A user gave a command, at the leader or elsewhere.
    pub(super) fn asked(&mut self, request: RequestId, command: &Command, leads: bool) {
        if !matches!(command, Command::SetLeader(_) | Command::ResetNodeError) {
            self.asked.insert(request, leads);
        }
    }

    /// Was `new` made of `old`, at once or by way of others?
    fn descends(&self, new: ConfigVersion, old: ConfigVersion) -> bool {
        let mut version = new;
        while version != old {
            match self.made_of.get(&version) {
                Some(before) => version = *before,
                None => return false,
            }
        }
        true
    }
}

impl Cluster {
    /// A configuration is about to be written.
    pub(super) fn check_new_config(&mut self, id: NodeId, config: &ClusterConfig) {
        let disk = &self.hosts[&id].disk;
        let leads = self.hosts[&id]
            .controller
            .as_ref()
            .is_some_and(|node| node.state().is_leader() && node.hard().term == config.version.term);
        if config.disjoint_quorums() && !disk.config.disjoint_quorums() && config.version.term > Term(0) {
            if leads && config.settings.nquorum == disk.config.settings.nquorum {
                let text = format!("n{id} makes two leaders possible without anybody's wish: {config:?}");
                self.checks.violation(Rule::S1, text);
            }
            // Somebody wished it.
            self.checks.two_leaders = true;
        }
        let disk = &self.hosts[&id].disk;
        // A removal waits for nobody, so that nothing can be said of who still knows what.
        if leads && self.checks.two_leaders && config.members.len() < disk.config.members.len() {
            self.checks.spoiled = true;
        }
        if leads {
            let known = self.checks.made_of.insert(config.version, disk.config.version);
            if known.is_some_and(|known| known != disk.config.version) {
                let text = format!("n{id} makes version {:?} a second time", config.version);
                self.checks.violation(Rule::S6, text);
            }
        }
    }

    /// A user is told that a command given at the leader itself is done.
    pub(super) fn check_reply(&mut self, id: NodeId, request: RequestId, result: &CommandResult) {
        if self.checks.asked.get(&request) == Some(&true) && result.is_ok() {
            self.check_settled(id);
        }
    }

    /// The leader says that a command is done: its configuration is one that must not be lost.
    pub(super) fn check_settled(&mut self, id: NodeId) {
        let config = &self.host(id).disk.config;
        let version = config.version;
        if self.checks.two_leaders && !config.two_leaders_possible() {
            self.judge_again(version);
        }
        if self.checks.settled.last() != Some(&version) {
            self.checks.settled.push(version);
        }
    }

    /// A user was told that two leaders are possible no more: from here on all is judged again, unless there were two of
    /// one term.
    fn judge_again(&mut self, version: ConfigVersion) {
        if self.checks.spoiled {
            return;
        }
        let elects = |host: &&Host| {
            let config = &host.disk.config;
            config.disjoint_quorums() && config.members.contains_key(&host.id)
        };
        let two: Vec<_> = self.hosts.values().filter(elects).collect();
        let newest = two.iter().map(|host| host.disk.config.version).max();
        if newest.is_some_and(|newest| newest > version && !self.checks.descends(version, newest)) {
            // Said by a leader that others have gone on without.
            return;
        }
        match two.iter().find(|host| !self.checks.descends(version, host.disk.config.version)) {
            Some(host) => {
                let text =
                    format!("one leader is possible at most, but n{} has {:?}", host.id, host.disk.config);
                self.checks.violation(Rule::S6, text);
            }
            None => {
                // Leases may be open until then that another quorum had granted before.
                let promises = self.hosts.values().map(|host| host.disk.hard.longest_promise);
                self.checks.leases_end = self.now + promises.max().unwrap_or(0);
                self.checks.two_leaders = false;
                self.checks.judged_again += 1;
                self.checks.settled.clear();
            }
        }
    }

    /// Has a new leader every change that users were told of in earlier terms?
    pub(super) fn check_configuration(&mut self, id: NodeId, term: Term) {
        let own = self.host(id).disk.config.version;
        let lost = |old: &&ConfigVersion| old.term < term && !self.checks.descends(own, **old);
        if let Some(lost) = self.checks.settled.iter().find(lost) {
            let text = format!("n{id} leads term {term} with {own:?}, which does not come of {lost:?}");
            self.checks.violation(Rule::S6, text);
        }
    }
}
