//! A change of the replicated configuration, until it is settled: one at a time, when a quorum of the old and of the new
//! voters has the version on disk (Ongaro 2014, §4.1).

use crate::command::CommandError;
use crate::config::{ClusterConfig, ConfigVersion};
use crate::event::EventKind;
use crate::message::Message;
use crate::step::Output;
use crate::{Millis, NodeId};

use super::change::Origin;
use super::sync::Barrier;
use super::{Node, Role};

/// How long a change waits for its quorum before the outcome is called unknown, in ms.
const CHANGE_TIMEOUT: Millis = 10_000;

/// A change that is not settled: no quorum has it, or what was acknowledged before it is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    version: ConfigVersion,
    /// The configurations before it that are not settled either, and the one that was, oldest first: commits may have
    /// been acknowledged under each.
    pub old: Vec<ClusterConfig>,
    pub origin: Option<Origin>,
    deadline: Millis,
    pub barrier: Barrier,
    /// What is made when this is settled.
    next: Option<Box<ClusterConfig>>,
}

impl Change {
    /// A quorum has it on disk, and commits count by it alone. Another change may then follow, as this one may wait for
    /// standbys that are gone.
    pub(super) fn is_on_quorum(&self) -> bool {
        matches!(self.barrier, Barrier::Until(_))
    }

    /// The configurations before it whose quorums count until this change is settled. Not for a change of one
    /// member: quorums before and after share a voter then (Ongaro 2014, §4.1), and a dead one must be
    /// removable.
    pub(super) fn old_quorums(&self, new: &ClusterConfig) -> impl Iterator<Item = &ClusterConfig> {
        self.old.iter().filter(|old| old.elects_beside(new))
    }
}

impl Node {
    /// A new leader makes the newest configuration its own before it accepts any change.
    pub(super) fn republish_config(&mut self) {
        self.start_change(None, self.config.clone());
    }

    /// Makes a version of the configuration, and sends it to all.
    pub(super) fn start_change(&mut self, origin: Option<Origin>, mut config: ClusterConfig) {
        config.version = ConfigVersion {
            term: self.hard.term,
            seq: self.config.version.seq.saturating_add(1),
            leader: self.hard.node,
        };
        config.stale_quorums |= self.config.disjoint_quorums();
        // First a quorum must know that this may come, so that no later leader can miss that somebody may have it.
        let next = (config.disjoint_quorums() && !self.config.two_leaders_possible())
            .then(|| Box::new(ClusterConfig { stale_quorums: true, ..config.clone() }));
        if next.is_some() {
            config = ClusterConfig { version: config.version, stale_quorums: true, ..self.config.clone() };
        }
        let old = std::mem::replace(&mut self.config, config.clone());
        self.forget_strangers();
        let removed: Vec<NodeId> =
            old.members.keys().copied().filter(|id| !config.members.contains_key(id)).collect();
        self.outputs.push(Output::PersistConfig(Box::new(config.clone())));
        let deadline = self.now + CHANGE_TIMEOUT;
        let promise = config.settings.election_timeout();
        let smaller = promise < old.settings.election_timeout();
        let mut former = None;
        if let Role::Leader(leader) = &mut self.role {
            if smaller {
                leader.shorten(promise);
            }
            former = leader.change.take();
            let mut unsettled =
                former.as_mut().map(|former| std::mem::take(&mut former.old)).unwrap_or_default();
            unsettled.push(old);
            leader.change = Some(Change {
                version: config.version,
                old: unsettled,
                origin,
                deadline,
                barrier: Barrier::New,
                next,
            });
        }
        if let Some(origin) = former.and_then(|former| former.origin) {
            self.finish(origin, Err(CommandError::Unknown));
        }
        self.renew();
        for to in self.others().into_iter().chain(removed) {
            self.send(to, Message::Config(Box::new(config.clone())));
        }
        self.change_acknowledged();
    }

    /// A member has a newer version than this leader, of another leader of this term: makes its own anew above that.
    pub(super) fn outdo(&mut self, version: ConfigVersion) {
        if version.term != self.hard.term || version <= self.config.version {
            return;
        }
        self.config.version.seq = version.seq;
        self.config.stale_quorums = true;
        self.start_change(None, self.config.clone());
    }

    /// Settles the change once a quorum of the new voters has it on disk, and of the old ones where those need not share one
    /// with it.
    pub(super) fn change_acknowledged(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(change) = &leader.change else {
            self.forget_older_quorums();
            return;
        };
        let has = |id: &NodeId| self.has_version(*id, change.version);
        let known =
            self.config.is_quorum(has) && change.old_quorums(&self.config).all(|old| old.is_quorum(has));
        if !known || !self.change_is_flushed() {
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(change) = leader.change.take() else { return };
        if let Some(next) = change.next {
            self.start_change(change.origin, *next);
            return;
        }
        let cleared = !self.config.stale_quorums && change.old.iter().any(|old| old.stale_quorums);
        if cleared {
            self.note(EventKind::Config, "every member has the new nquorum: one leader at most", Vec::new());
        } else if change.origin.is_some() {
            self.note(EventKind::Config, "the configuration was changed", Vec::new());
        }
        let ended = change.old.iter().any(ClusterConfig::disjoint_quorums) && !self.config.disjoint_quorums();
        match change.origin {
            Some(origin) if ended => self.finish_when_known(origin, change.deadline),
            Some(origin) => self.finish(origin, Ok(())),
            None => {}
        }
        self.forget_older_quorums();
    }

    /// The change is settled, but its user wants to hear that two leaders are possible no more.
    fn finish_when_known(&mut self, origin: Origin, deadline: Millis) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some((former, _)) = leader.ended.replace((origin, deadline)) {
            self.finish(former, Ok(()));
        }
    }

    /// Two leaders are possible no more when every member goes by a version that does not let them be elected: then a
    /// version of its own says so, after which there is nothing to do here.
    fn forget_older_quorums(&mut self) {
        if !self.config.stale_quorums || self.config.disjoint_quorums() {
            return;
        }
        let known = self.config.members.keys().all(|id| self.has_version(*id, self.config.version));
        let Role::Leader(leader) = &mut self.role else { return };
        if known && leader.handing_over.is_none() {
            let origin = leader.ended.take().map(|(origin, _)| origin);
            self.start_change(origin, ClusterConfig { stale_quorums: false, ..self.config.clone() });
        }
    }

    /// Gives up waiting, not the change: it stays pending, and no other starts before it is settled.
    pub(super) fn change_on_time(&mut self) {
        let (now, timeout, me) = (self.now, self.timeout(), self.hard.node);
        let Role::Leader(leader) = &mut self.role else { return };
        let hears = |id: &NodeId| *id == me || leader.hears(*id, now, timeout);
        let gives_up = |deadline: Millis| {
            now >= deadline || leader.handing_over.is_some() || !self.config.members.keys().all(hears)
        };
        if leader.ended.as_ref().is_some_and(|(_, deadline)| gives_up(*deadline))
            && let Some((origin, _)) = leader.ended.take()
        {
            self.finish(origin, Ok(()));
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(change) = leader.change.as_mut().filter(|c| now >= c.deadline) else { return };
        if let Some(origin) = change.origin.take() {
            self.finish(origin, Err(CommandError::Unknown));
        }
    }

    /// Sends the configuration to a member that has an older one. The leader's.
    pub(super) fn push_config(&mut self, to: NodeId, version: ConfigVersion) {
        if matches!(self.role, Role::Leader(_)) && version < self.config.version {
            let config = Box::new(self.config.clone());
            self.send(to, Message::Config(config));
        }
    }

    /// Has this member that version of this leader, or a later one?
    fn has_version(&self, id: NodeId, version: ConfigVersion) -> bool {
        let (Role::Leader(leader), me) = (&self.role, self.hard.node) else { return false };
        let has = |known: ConfigVersion| known.leader == me && known >= version;
        id == me || leader.ack(id).is_some_and(|ack| has(ack.version))
    }
}
