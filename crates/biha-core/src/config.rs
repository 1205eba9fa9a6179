//! The replicated configuration: who belongs to the cluster, and the settings that all nodes share.
//!
//! One versioned value, changed as a whole, one member at a time (Ongaro 2014, §4.1). Each node always
//! uses the newest version it holds, whether a quorum has it or not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Millis, NodeId, Term};

/// Version of a [`ClusterConfig`]: the term of the leader that made it, then a counter. Where two leaders of one term are
/// possible both may have counted alike; their numbers tell the versions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ConfigVersion {
    /// Term of the leader that made this version.
    pub term: Term,
    /// Counts the versions; never goes down.
    pub seq: u64,
    /// Who made it; 0 is whoever made the cluster.
    pub leader: NodeId,
}

/// What a member is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// A full node: leader or follower.
    Regular,
    /// Votes only; no replication.
    Referee,
    /// Votes and receives WAL without applying it; never leads.
    RefereeWithWal,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Host name or address, for the control channel and for replication.
    pub host: String,
    /// Port of the PostgreSQL server.
    pub port: u16,
    /// Port of the control channel.
    pub biha_port: u16,
    /// What the member is for.
    pub mode: Mode,
    /// May this node become leader?
    pub can_be_leader: bool,
    /// Is this node's vote counted?
    pub can_vote: bool,
    /// Delay before this node stands for election, in ms; -1 is off.
    pub priority: i32,
    /// Added, but not yet caught up: not a voter until the leader has seen it stream.
    pub joining: bool,
}

impl Member {
    /// Counted in elections and leases.
    pub fn is_voter(&self) -> bool {
        self.can_vote && !self.joining
    }

    /// A voter that receives WAL.
    pub fn is_wal_voter(&self) -> bool {
        self.is_voter() && self.mode != Mode::Referee
    }

    /// May stand for election.
    pub fn is_electable(&self) -> bool {
        self.is_voter() && self.can_be_leader && self.mode == Mode::Regular
    }
}

/// What biha does so that no acknowledged commit is lost, where synchronous replication makes that possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Lossless {
    /// Nothing beyond PostgreSQL's own synchronous replication.
    Off,
    /// A synchronous commit is acknowledged only when the standbys have it, whoever cancels its wait; sessions may
    /// still ask for less.
    #[default]
    Warn,
    /// And every commit is synchronous, and a setting that would let one be lost is refused.
    Require,
}

impl Lossless {
    /// The name users write.
    pub fn name(self) -> &'static str {
        match self {
            Lossless::Off => "off",
            Lossless::Warn => "warn",
            Lossless::Require => "require",
        }
    }
}

impl std::str::FromStr for Lossless {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Lossless::Off, Lossless::Warn, Lossless::Require];
        let found = all.into_iter().find(|lossless| lossless.name() == text);
        found.ok_or_else(|| format!("lossless must be off, warn or require, not \"{text}\""))
    }
}

/// Settings that are the same on every node. Times in ms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settings {
    /// Period of the leader's heartbeats; at least 10.
    pub heartbeat_send_period: u32,
    /// Heartbeats that may be missed before a peer is UNKNOWN; at least 2.
    pub heartbeat_max_lost: u32,
    /// Votes that elect a leader; `None` is the majority of voters.
    pub nquorum: Option<u32>,
    /// Live nodes a leader needs to take writes; `None` is the quorum.
    pub minnodes: Option<u32>,
    /// A follower that gets no WAL for this long reconnects.
    pub no_wal_on_follower: u32,
    /// k of `ANY k (...)`; 0 is asynchronous.
    pub sync_standbys: u32,
    /// Lowest k in relaxed mode; -1 is strict.
    pub sync_standbys_min: i32,
    /// How strictly synchronous commits are guarded.
    pub lossless: Lossless,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            heartbeat_send_period: 200,
            heartbeat_max_lost: 10,
            nquorum: None,
            minnodes: None,
            no_wal_on_follower: 20_000,
            sync_standbys: 0,
            sync_standbys_min: -1,
            lossless: Lossless::default(),
        }
    }
}

impl Settings {
    /// How long a follower waits for a heartbeat before it asks for an election, in ms. Also the promise
    /// that each heartbeat carries (stickiness).
    pub fn election_timeout(&self) -> Millis {
        Millis::from(self.heartbeat_send_period) * Millis::from(self.heartbeat_max_lost)
    }

    /// How long after its sending an acknowledged heartbeat entitles the leader to commit, in ms: 10 % less
    /// than the promise it carried, for clocks that do not run alike (Ongaro 2014, §6.4.1).
    pub fn lease(&self) -> Millis {
        lease_of(self.election_timeout())
    }
}

/// The lease that a promise of `promise` ms entitles to.
pub fn lease_of(promise: Millis) -> Millis {
    promise - promise.div_ceil(10)
}

/// The whole replicated configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Newer versions replace older ones as a whole.
    pub version: ConfigVersion,
    /// All members by number.
    pub members: BTreeMap<NodeId, Member>,
    /// The common settings.
    pub settings: Settings,
    /// A member may still elect by an older version, whose nquorum lets two leaders be elected: set in each version that
    /// comes of such a one, until every member had the version before.
    pub stale_quorums: bool,
}

impl ClusterConfig {
    /// Numbers of the voters, ascending.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(|(_, m)| m.is_voter()).map(|(id, _)| *id)
    }

    /// Votes that elect a leader, and acknowledgements that renew its lease.
    pub fn nquorum(&self) -> usize {
        match self.settings.nquorum {
            Some(n) => n as usize,
            None => self.voters().count() / 2 + 1,
        }
    }

    /// Live nodes, the leader included, that a leader needs to take writes.
    pub fn minnodes(&self) -> usize {
        self.settings.minnodes.map_or_else(|| self.nquorum(), |n| n as usize)
    }

    /// True where an explicit nquorum lets two leaders be elected (two disjoint quorums exist).
    pub fn disjoint_quorums(&self) -> bool {
        2 * self.nquorum() <= self.voters().count()
    }

    /// Can two leaders be elected, by this version or by an older one that a member may still go by?
    pub fn two_leaders_possible(&self) -> bool {
        self.stale_quorums || self.disjoint_quorums()
    }

    /// Is every acknowledged commit on a member of every electing quorum, and why (not)? True iff
    /// k + 1 + nquorum > number of all voters (R + W > N).
    pub fn lossless(&self) -> (bool, String) {
        let (k, nquorum, voters) =
            (self.settings.sync_standbys as usize, self.nquorum(), self.voters().count());
        if self.disjoint_quorums() {
            return (false, format!("two leaders possible: nquorum {nquorum} of {voters} voters"));
        }
        if self.stale_quorums {
            return (false, "two leaders possible: not every member has the new nquorum yet".to_owned());
        }
        if voters == 1 {
            return (true, "the only voter holds every commit".to_owned());
        }
        let sum = format!("{k} synchronous standbys + 1 + nquorum {nquorum}, {voters} voters");
        match k + 1 + nquorum > voters {
            _ if k == 0 => (false, "replication is asynchronous (sync_standbys is 0)".to_owned()),
            _ if self.settings.lossless == Lossless::Off => {
                (false, "nobody guards the wait for standbys (lossless is off)".to_owned())
            }
            _ if !self.guards_commits() => (false, format!("fewer standbys than sync_standbys {k} asks for")),
            true => (true, format!("every quorum holds every commit: {sum}")),
            false => (false, format!("a quorum can lack a commit: {sum}")),
        }
    }

    /// Voters that receive WAL: each may be one of the synchronous standbys.
    pub fn wal_voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(|(_, m)| m.is_wal_voter()).map(|(id, _)| *id)
    }

    /// Must commits wait for standbys, and does biha see to it? Not while a cluster that is being made has fewer
    /// than it asks for: its leader could never take in the others.
    pub fn guards_commits(&self) -> bool {
        let k = self.settings.sync_standbys as usize;
        k > 0 && self.settings.lossless != Lossless::Off && self.wal_voters().count() > k
    }

    /// Can a quorum of the configuration `new` lack what was acknowledged under this one? Then the change from one
    /// to the other, by way of those `between`, could lose it. A voter that was removed on the way may have been one of
    /// the few that had it; whoever has its number in `new` is another.
    pub fn may_lose_by(&self, between: &[ClusterConfig], new: &ClusterConfig) -> bool {
        let there = |id: &NodeId, config: &ClusterConfig| config.members.get(id).is_some_and(|m| !m.joining);
        let votes = |id: &NodeId| new.members.get(id).is_some_and(Member::is_wal_voter);
        let stays = |id: &NodeId| votes(id) && between.iter().all(|config| there(id, config));
        let removed = self.wal_voters().filter(|id| !stays(id)).count();
        let holders = (self.settings.sync_standbys as usize + 1).saturating_sub(removed);
        holders + new.nquorum() <= new.voters().count()
    }

    /// Could this one still elect somebody whom no quorum of the configuration `new` knows of? A change of one voter leaves
    /// quorums that overlap; another nquorum does not. Where two leaders are possible already nothing is promised. And a
    /// removal waits for nobody: a dead node must be removable.
    pub fn elects_beside(&self, new: &ClusterConfig) -> bool {
        let removal = new.members.len() < self.members.len();
        let promised = !self.two_leaders_possible() || !self.disjoint_quorums() && new.disjoint_quorums();
        !removal && promised && self.settings.nquorum != new.settings.nquorum
    }

    /// Are these members a quorum?
    pub fn is_quorum(&self, includes: impl Fn(&NodeId) -> bool) -> bool {
        self.voters().filter(includes).count() >= self.nquorum()
    }
}

/// A member's host without the brackets that an IPv6 address has in URIs, and neither in connection strings nor for a
/// resolver.
pub fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ids: &[u32]) -> ClusterConfig {
        let member = Member {
            host: "host".to_owned(),
            port: 5432,
            biha_port: 5433,
            mode: Mode::Regular,
            can_be_leader: true,
            can_vote: true,
            priority: -1,
            joining: false,
        };
        let members = ids.iter().map(|id| (NodeId(*id), member.clone())).collect();
        let settings = Settings { sync_standbys: 1, lossless: Lossless::Require, ..Settings::default() };
        ClusterConfig { members, settings, ..ClusterConfig::default() }
    }

    #[test]
    fn who_was_removed_and_came_back_is_another() {
        let whole = of(&[1, 2, 3]);
        assert!(!whole.may_lose_by(&[], &whole));
        // Node 2 may be gone, and the commit was on 1 and 3: 2 and the new 3 elect.
        assert!(whole.may_lose_by(&[of(&[1, 2])], &whole));
    }

    #[test]
    fn brackets_are_no_part_of_an_address() {
        assert_eq!(["[fd00::2]", "fd00::2", "db1"].map(bare_host), ["fd00::2", "fd00::2", "db1"]);
    }
}
