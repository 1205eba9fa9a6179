//! Synchronous commit without loss: what a leader inherited is shown only when a synchronous quorum has it, and a
//! change of the configuration is in force only when nothing depends on the old one any more.
//!
//! Reads (elections) and writes (acknowledged commits) must overlap: k + 1 + nquorum > voters, at every moment and
//! from each configuration to the next.

use crate::{ClusterConfig, Lsn, Millis, NodeId};

use super::{Node, Role};

/// How often to look whether standbys have flushed what is waited for, in ms.
const LOOK: Millis = 5;

/// What a new leader must see replicated before it may commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) enum Inherited {
    /// It has not written the first record of its timeline, as far as known.
    #[default]
    Unknown,
    /// Enough standbys must have this much.
    Until(Lsn),
    /// They had.
    Safe,
}

/// Where the change of a configuration that guards commits stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) enum Barrier {
    /// Made in this very step: commits may still be acknowledged as before.
    #[default]
    New,
    /// From now on commits are acknowledged as it says.
    InForce,
    /// What was acknowledged before ends here at the latest; enough standbys must have it.
    Until(Lsn),
}

impl Node {
    /// May this leader's clients see what it inherited? Raft's rule that a leader commits nothing of older terms by
    /// itself (Ongaro 2014, §3.6.2): the first record of the own timeline must be on a synchronous quorum, and the
    /// configuration that says what that is, on an electing one.
    pub(super) fn inherited_is_safe(&mut self) -> bool {
        let (synced, hint) = (self.server.synced, self.server.hint);
        let guarded = self.config.guards_commits();
        let Role::Leader(leader) = &mut self.role else { return false };
        let (Some(opened), Some(end)) = (leader.history.last(), hint) else { return false };
        if leader.inherited == Inherited::Unknown && end.timeline == opened.timeline && end.lsn > opened.fork
        {
            leader.inherited = Inherited::Until(end.lsn);
        }
        if let Inherited::Until(end) = leader.inherited
            && synced >= end
            && leader.change.is_none()
        {
            leader.inherited = Inherited::Safe;
        }
        !guarded || leader.inherited == Inherited::Safe
    }

    /// When to look again for what standbys have flushed.
    pub(super) fn sync_deadline(&self) -> Millis {
        let Role::Leader(leader) = &self.role else { return Millis::MAX };
        let promoted = !leader.history.is_empty();
        let waits = leader.inherited != Inherited::Safe || leader.change.is_some();
        if self.config.guards_commits() && promoted && waits { self.now + LOOK } else { Millis::MAX }
    }

    /// The voters whose flush a commit may count. Until a quorum has a new configuration either may elect, it or the
    /// one before it: only who votes in both counts. That does not matter where commits were not guarded. Afterwards
    /// the new one alone elects, whatever else the change still waits for.
    pub(super) fn synchronous(&self) -> Vec<NodeId> {
        let change = match &self.role {
            Role::Leader(leader) => leader.change.as_ref().filter(|change| !change.is_on_quorum()),
            _ => None,
        };
        let old = change.and_then(|change| change.old.last()).filter(|old| old.guards_commits());
        let before = |id: &NodeId| old.is_none_or(|old| old.wal_voters().any(|voter| voter == *id));
        self.config.wal_voters().filter(before).collect()
    }

    /// Steps are what the outside sees: what was decided in the last one is in force now.
    pub(super) fn begin_step(&mut self) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(change) = &mut leader.change
            && change.barrier == Barrier::New
        {
            change.barrier = Barrier::InForce;
        }
    }

    /// Of a change that a quorum has: has a synchronous quorum by the new configuration everything that was acknowledged by the old one? As long as the
    /// server counts others, commits are acknowledged on their word too.
    pub(super) fn change_is_flushed(&mut self) -> bool {
        let (synced, hint) = (self.server.synced, self.server.hint.filter(|_| !self.server.counts_others));
        let guarded = self.config.guards_commits();
        let (members, settings) = (&self.config.members, &self.config.settings);
        let Role::Leader(leader) = &mut self.role else { return false };
        let Some(change) = &mut leader.change else { return false };
        let same = |old: &ClusterConfig| old.members == *members && old.settings == *settings;
        if !guarded || change.old.iter().all(same) {
            return true;
        }
        if change.barrier == Barrier::InForce
            && let Some(end) = hint
        {
            change.barrier = Barrier::Until(end.lsn);
        }
        matches!(change.barrier, Barrier::Until(end) if synced >= end)
    }
}
