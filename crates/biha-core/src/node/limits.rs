//! What a configuration must not be, and what must not become of one.

use crate::command::CommandError;
use crate::config::{ClusterConfig, Lossless, Settings};

use super::{Node, Role, invalid};

impl Node {
    /// More voters must not turn an explicit nquorum into one that elects two leaders.
    pub(super) fn check_majority(&self, new: &ClusterConfig) -> Result<(), CommandError> {
        if self.config.two_leaders_possible() || !new.two_leaders_possible() {
            return Ok(());
        }
        let (nquorum, voters) = (new.nquorum(), new.voters().count());
        Err(invalid(
            format!("nquorum {nquorum} is not a majority of {voters} voters: two leaders would be possible"),
            "Raise nquorum first, with biha.set_nquorum.",
        ))
    }

    /// Under `lossless = require` no change may let an acknowledged commit be lost, on the way included.
    pub(super) fn check_lossless(&self, new: &ClusterConfig) -> Result<(), CommandError> {
        if new.settings.lossless != Lossless::Require {
            return Ok(());
        }
        let (lossless, why) = new.lossless();
        if !lossless {
            return Err(invalid(
                format!("lossless is \"require\", but with this change commits could be lost: {why}"),
                "k + 1 + nquorum must be more than the number of voters: change biha.set_sync_standbys or \
                 biha.set_nquorum first, or relax biha.set_lossless.",
            ));
        }
        let pending = match &self.role {
            Role::Leader(leader) => leader.change.as_ref().map(|change| &change.old),
            _ => None,
        };
        let before = [Some(&self.config), pending];
        let guarded = |old: &&&ClusterConfig| old.settings.lossless == Lossless::Require;
        if before.iter().flatten().filter(guarded).any(|old| old.may_lose_by(new)) {
            return Err(invalid(
                "a quorum after this change could lack a commit that was acknowledged before it",
                "Raise biha.set_sync_standbys by one first, and lower it again afterwards.",
            ));
        }
        Ok(())
    }
}

/// A node that waits for longer before it stands is better told never to lead.
pub(super) fn checked_priority(ms: i32) -> Result<i32, CommandError> {
    if (-1..=60_000).contains(&ms) {
        return Ok(ms);
    }
    Err(invalid(
        "priority must be between 0 and 60000 ms, or -1 for none",
        "A node that should never lead gets biha.set_can_be_leader(id, false).",
    ))
}

pub(super) fn check_times(settings: &Settings) -> Result<(), CommandError> {
    if !(10..=60_000).contains(&settings.heartbeat_send_period) {
        return Err(invalid("heartbeat_send_period must be between 10 and 60000 ms", ""));
    }
    if !(2..=1000).contains(&settings.heartbeat_max_lost) {
        return Err(invalid("heartbeat_max_lost must be between 2 and 1000", ""));
    }
    if !(1000..=86_400_000).contains(&settings.no_wal_on_follower) {
        return Err(invalid("no_wal_on_follower must be between 1000 and 86400000 ms", ""));
    }
    Ok(())
}

/// More synchronous standbys than there are would let every commit wait for ever.
pub(super) fn check_synchronous(config: &ClusterConfig) -> Result<(), CommandError> {
    let standbys = config.members.values().filter(|m| m.is_wal_voter()).count().saturating_sub(1);
    if config.settings.sync_standbys as usize > standbys {
        return Err(invalid(
            format!("sync_standbys {} does not fit {standbys} standbys", config.settings.sync_standbys),
            "Every commit would wait for a node that does not exist. Add nodes first.",
        ));
    }
    Ok(())
}

pub(super) fn check_counts(config: &ClusterConfig) -> Result<(), CommandError> {
    let voters = config.voters().count();
    let members = config.members.values().filter(|m| !m.joining).count();
    if config.nquorum() < 1 || config.nquorum() > voters {
        return Err(invalid(
            format!("nquorum {} does not fit {voters} voters", config.nquorum()),
            "Change nquorum first, with biha.set_nquorum.",
        ));
    }
    if config.minnodes() < 1 || config.minnodes() > members {
        return Err(invalid(
            format!("minnodes {} does not fit {members} nodes", config.minnodes()),
            "Change minnodes first, with biha.set_minnodes.",
        ));
    }
    Ok(())
}
