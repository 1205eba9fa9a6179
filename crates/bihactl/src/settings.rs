//! Which settings a node gets, from what its server has now.

use std::collections::BTreeMap;

use crate::conf::{BihaConf, without_biha};

/// Settings of a server that the decisions here look at.
pub const NAMES: [&str; 13] = [
    "port",
    "shared_preload_libraries",
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "wal_keep_size",
    "wal_log_hints",
    "full_page_writes",
    "fsync",
    "synchronous_standby_names",
    "config_file",
    "hba_file",
];

/// Settings in force, by name, as `postgres -C` or `SHOW` prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings(pub BTreeMap<String, String>);

impl ServerSettings {
    /// A setting's value; empty if it is not known.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> u32 {
        self.get(name).parse().unwrap_or(0)
    }
}

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Number of the node.
    pub id: u32,
    /// Where the others reach it.
    pub host: &'a str,
    /// Port of the server.
    pub port: u16,
    /// Port of the control channel.
    pub biha_port: u16,
    /// `listen_addresses`.
    pub listen_addresses: &'a str,
    /// The cluster's nquorum, if given.
    pub nquorum: Option<u32>,
}

/// Decides the settings of a cluster's first node. What the server has is kept where it suffices.
pub fn first_node(now: &ServerSettings, checksums: bool, wanted: &Wanted<'_>) -> BihaConf {
    let mut conf = BihaConf::default();
    conf.set_identity(wanted.id, wanted.host, wanted.port, wanted.biha_port, wanted.listen_addresses);
    conf.set_libraries(&without_biha(now.get("shared_preload_libraries")));
    conf.set("hot_standby", "on");
    conf.set("wal_level", if now.get("wal_level") == "logical" { "logical" } else { "replica" });
    let senders = match wanted.nquorum {
        Some(n) if n > 3 => n * 2 + 3,
        _ => 10,
    };
    let senders = senders.max(now.number("max_wal_senders"));
    let slots = (senders + 1).max(11).max(now.number("max_replication_slots"));
    conf.set("max_wal_senders", &senders.to_string());
    conf.set("max_replication_slots", &slots.to_string());
    if matches!(now.get("max_slot_wal_keep_size"), "" | "-1") {
        conf.set("max_slot_wal_keep_size", "5GB");
    }
    if matches!(now.get("wal_keep_size"), "" | "0") {
        conf.set("wal_keep_size", "1GB");
    }
    // After a crash or a rewind a start syncs the data directory, file by file unless told otherwise.
    conf.set("recovery_init_sync_method", "syncfs");
    if !checksums {
        conf.set("wal_log_hints", "on");
    }
    conf
}

/// Decides the settings of a further node: the leader's, with its own identity. `libraries` are those that
/// this node's own server had, where it had any.
pub fn further_node(leader: &BihaConf, libraries: Option<&str>, wanted: &Wanted<'_>) -> BihaConf {
    let mut conf = leader.clone();
    conf.set_identity(wanted.id, wanted.host, wanted.port, wanted.biha_port, wanted.listen_addresses);
    let libraries = libraries.or(leader.get("shared_preload_libraries")).unwrap_or("").to_owned();
    conf.set_libraries(&libraries);
    conf
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(nquorum: Option<u32>) -> Wanted<'static> {
        Wanted { id: 1, host: "a", port: 5432, biha_port: 5433, listen_addresses: "*", nquorum }
    }

    fn settings(pairs: &[(&str, &str)]) -> ServerSettings {
        ServerSettings(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_fresh_server_gets_the_defaults() {
        let conf = first_node(&settings(&[("wal_keep_size", "0")]), true, &wanted(None));
        for (name, value) in [
            ("shared_preload_libraries", "biha"),
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "11"),
            ("max_slot_wal_keep_size", "5GB"),
            ("wal_keep_size", "1GB"),
            ("port", "5432"),
            ("biha.port", "5433"),
        ] {
            assert_eq!(conf.get(name), Some(value), "{name}");
        }
        assert_eq!(conf.get("wal_log_hints"), None);
    }

    #[test]
    fn what_suffices_is_kept() {
        let now = settings(&[
            ("shared_preload_libraries", "pg_stat_statements"),
            ("wal_level", "logical"),
            ("max_wal_senders", "50"),
            ("max_slot_wal_keep_size", "20GB"),
            ("wal_keep_size", "2GB"),
        ]);
        let conf = first_node(&now, false, &wanted(None));
        assert_eq!(conf.get("shared_preload_libraries"), Some("biha, pg_stat_statements"));
        assert_eq!(conf.get("wal_level"), Some("logical"));
        assert_eq!(conf.get("max_wal_senders"), Some("50"));
        assert_eq!(conf.get("max_replication_slots"), Some("51"));
        assert_eq!(conf.get("max_slot_wal_keep_size"), None);
        assert_eq!(conf.get("wal_keep_size"), None);
        assert_eq!(conf.get("wal_log_hints"), Some("on"));
    }

    #[test]
    fn a_large_quorum_needs_more_senders() {
        let conf = first_node(&ServerSettings::default(), true, &wanted(Some(5)));
        assert_eq!(conf.get("max_wal_senders"), Some("13"));
        assert_eq!(conf.get("max_replication_slots"), Some("14"));
    }

    #[test]
    fn a_further_node_takes_the_leaders_settings() {
        let leader = first_node(&settings(&[("shared_preload_libraries", "a")]), false, &wanted(None));
        let mut mine = wanted(None);
        (mine.id, mine.port) = (2, 5442);
        let conf = further_node(&leader, None, &mine);
        assert_eq!(conf.get("biha.id"), Some("2"));
        assert_eq!(conf.get("port"), Some("5442"));
        assert_eq!(conf.get("shared_preload_libraries"), Some("biha, a"));
        assert_eq!(conf.get("wal_log_hints"), Some("on"));
        assert_eq!(further_node(&leader, Some("b"), &mine).get("shared_preload_libraries"), Some("biha, b"));
    }
}
