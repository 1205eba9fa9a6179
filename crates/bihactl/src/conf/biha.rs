//! postgresql.biha.conf: the settings that make a PostgreSQL server a biha node and stay as they are.

use super::{setting, setting_line, with_biha_first, without_biha};

/// Its name; it lies in the data directory.
pub const FILE: &str = "postgresql.biha.conf";

const SERVER_CONF: &str = "pg_biha/server.conf";

/// Settings that tell one node from another.
const IDENTITY: [&str; 6] = ["biha.id", "biha.host", "biha.port", "port", "cluster_name", "listen_addresses"];

/// The file as a list of settings, in order, each name once.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BihaConf {
    settings: Vec<(String, String)>,
}

impl BihaConf {
    /// Reads a file that bihactl wrote.
    pub fn parse(text: &str) -> Self {
        let mut conf = BihaConf::default();
        for (name, value) in text.lines().filter_map(setting) {
            conf.set(&name, &value);
        }
        conf
    }

    /// Sets one setting, in its place if it is there, at the end if not.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.settings.iter_mut().find(|(n, _)| n == name) {
            Some(entry) => entry.1 = value.to_owned(),
            None => self.settings.push((name.to_owned(), value.to_owned())),
        }
    }

    /// The value of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Sets what makes this node itself: everything else may be the same on all nodes.
    pub fn set_identity(&mut self, id: u32, host: &str, port: u16, biha_port: u16, listen_addresses: &str) {
        let values = [
            id.to_string(),
            host.to_owned(),
            biha_port.to_string(),
            port.to_string(),
            format!("biha_node_{id}"),
            listen_addresses.to_owned(),
        ];
        for (name, value) in IDENTITY.iter().zip(values) {
            self.set(name, &value);
        }
    }

    /// Puts biha first in this list of libraries and keeps the others.
    pub fn set_libraries(&mut self, list: &str) {
        self.set("shared_preload_libraries", &with_biha_first(list));
    }

    /// The names of all settings, for cleaning postgresql.auto.conf.
    pub fn names(&self) -> Vec<&str> {
        self.settings.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// What a server that leaves biha must keep in order to start as it did: all but biha's own.
    pub fn without_biha(&self) -> Vec<(String, String)> {
        self.settings
            .iter()
            .filter(|(name, _)| !name.starts_with("biha.") && name != "cluster_name")
            .map(|(name, value)| match name.as_str() {
                "shared_preload_libraries" => (name.clone(), without_biha(value)),
                _ => (name.clone(), value.clone()),
            })
            .collect()
    }

    /// The file's text. The settings that change with the node's role come last and win.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# Written by bihactl. This node's own settings; those of the whole cluster are in pg_biha/biha.conf.\n",
        );
        for (name, value) in &self.settings {
            text.push_str(&setting_line(name, value));
        }
        text.push_str(&format!("include_if_exists '{SERVER_CONF}'\n"));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> BihaConf {
        let mut conf = BihaConf::default();
        conf.set_identity(1, "a", 5432, 5433, "*");
        conf.set_libraries("auto_explain");
        conf.set("max_wal_senders", "10");
        conf
    }

    #[test]
    fn is_read_as_it_was_written() {
        let conf = example();
        assert_eq!(BihaConf::parse(&conf.text()), conf);
        assert!(conf.text().ends_with("include_if_exists 'pg_biha/server.conf'\n"));
    }

    #[test]
    fn another_node_differs_in_its_identity_only() {
        let mut conf = example();
        conf.set_identity(2, "b", 5442, 5443, "*");
        let text = conf.text();
        for line in ["biha.id = '2'", "biha.host = 'b'", "port = '5442'", "cluster_name = 'biha_node_2'"] {
            assert!(text.contains(line), "{line}");
        }
        assert!(text.contains("biha, auto_explain") && text.contains("max_wal_senders = '10'"));
        assert_eq!(conf.names().len(), example().names().len());
    }

    #[test]
    fn leaving_keeps_port_and_sizes_without_biha() {
        let kept = example().without_biha();
        assert!(kept.contains(&("port".into(), "5432".into())));
        assert!(kept.contains(&("shared_preload_libraries".into(), "auto_explain".into())));
        assert!(kept.iter().all(|(name, value)| !name.contains("biha") && !value.contains("biha")));
    }
}
