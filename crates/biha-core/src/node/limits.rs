//! What a configuration must not be, and what must not become of one.

use crate::NodeId;
use crate::command::CommandError;
use crate::config::{ClusterConfig, Lossless, Settings};

use super::sync::Inherited;
use super::{Node, Role, invalid};

impl Node {
    /// More voters must not turn an explicit nquorum into one that elects two leaders.
    pub(super) fn check_majority(&self, new: &ClusterConfig) -> Result<(), CommandError> {
        if self.config.disjoint_quorums() || !new.disjoint_quorums() {
            return Ok(());
        }
        let (nquorum, voters) = (new.nquorum(), new.voters().count());
        Err(invalid(
            format!("nquorum {nquorum} is not a majority of {voters} voters: two leaders would be possible"),
            "Raise nquorum first, with biha.set_nquorum.",
        ))
    }

    /// Fewer voters must not leave fewer standbys than commits wait for. A cluster that is being made has fewer.
    pub(super) fn check_standbys_left(&self, new: &ClusterConfig) -> Result<(), CommandError> {
        if self.config.guards_commits() { check_synchronous(new) } else { Ok(()) }
    }

    /// Under `lossless = require` no change may let an acknowledged commit be lost, on the way included. What a new
    /// leader inherited was acknowledged under configurations that only the leader before it knew to be unsettled: until
    /// enough standbys have that, the quorums stay as they are.
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
        let leader = match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        };
        let quorums = |config: &ClusterConfig| (config.voters().collect::<Vec<_>>(), config.nquorum());
        let settled = leader.is_none_or(|leader| leader.inherited == Inherited::Safe);
        if self.config.guards_commits() && !settled && quorums(new) != quorums(&self.config) {
            return Err(invalid(
                "not enough standbys have yet what this leader inherited, which a quorum after this change could lack",
                "Wait until the leader takes writes. If it lacks standbys for good, lower biha.set_sync_standbys first.",
            ));
        }
        let may_lose = |(old, later): (&ClusterConfig, &[ClusterConfig])| {
            old.settings.lossless == Lossless::Require && old.may_lose_by(later, new)
        };
        if may_lose((&self.config, &[])) {
            return Err(invalid(
                "a quorum after this change could lack a commit that was acknowledged before it",
                "Raise biha.set_sync_standbys by one first, and lower it again afterwards.",
            ));
        }
        let mut chain =
            leader.and_then(|l| l.change.as_ref()).map_or(Vec::new(), |change| change.old.clone());
        chain.push(self.config.clone());
        let mut tails = (0..chain.len()).filter_map(|at| chain.get(at..)?.split_first());
        if tails.any(may_lose) {
            return Err(invalid(
                "the last change is not settled, and a quorum after this one could lack what was acknowledged before it",
                "Wait until the last change is settled, which takes as many standbys as commits wait for. If they are gone \
                 for good, lower biha.set_sync_standbys first, or relax biha.set_lossless.",
            ));
        }
        Ok(())
    }

    /// Do enough voters answer to change the quorums now, if that is what changes? A leader that loses its quorum by a
    /// change could not take it back either.
    pub(super) fn check_quorum(&self, new: &ClusterConfig) -> Result<(), CommandError> {
        let Role::Leader(leader) = &self.role else { return Ok(()) };
        let answers = |config: &ClusterConfig| leader.lease(config, self.hard.node, self.now) > self.now;
        if answers(&self.config) && !answers(new) {
            return Err(invalid(
                format!(
                    "too few voters answer for nquorum {} of {} voters",
                    new.nquorum(),
                    new.voters().count()
                ),
                "The leader could confirm nothing after this change. Start the others first, or remove those that are \
                 gone: biha.remove_node().",
            ));
        }
        // Where two leaders are possible anyway, the one that is left may go on alone.
        let rescued = self.config.disjoint_quorums() && answers(new);
        if self.config.settings.nquorum != new.settings.nquorum && !answers(&self.config) && !rescued {
            return Err(CommandError::Failed("too few voters answer to change nquorum now".to_owned()));
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

/// More synchronous standbys than there are: PostgreSQL would let every commit wait for ever, and biha guard none.
pub(super) fn check_synchronous(config: &ClusterConfig) -> Result<(), CommandError> {
    let standbys = config.members.values().filter(|m| m.is_wal_voter()).count().saturating_sub(1);
    if config.settings.sync_standbys as usize > standbys {
        return Err(invalid(
            format!("sync_standbys {} does not fit {standbys} standbys", config.settings.sync_standbys),
            "Every commit would wait for a node that does not exist. Add nodes first, or lower it with \
             biha.set_sync_standbys.",
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

pub(super) fn not_a_member(id: NodeId) -> CommandError {
    invalid(format!("node {id} is not a member of the cluster"), "The view biha.nodes_v lists the members.")
}
