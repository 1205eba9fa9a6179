//! `pg_biha/server.conf`: the PostgreSQL settings that change with the node's role. biha alone writes it; it
//! is included last by postgresql.biha.conf.

use std::{fs, io};

use crate::paths;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ServerConf {
    /// `primary_conninfo`; empty: receive from nobody.
    pub primary_conninfo: String,
    /// `primary_slot_name`.
    pub primary_slot_name: String,
    /// `synchronous_standby_names`; empty: asynchronous.
    pub synchronous_standby_names: String,
    /// Blank `restore_command`: the archive may hold a dead branch while no leader is known, and it slows a
    /// promotion.
    pub blank_restore_command: bool,
    /// `wal_retrieve_retry_interval` in ms; `None` leaves the operator's.
    pub retry_interval: Option<u32>,
    /// `default_transaction_read_only` on: clients that look for a server to write to pass this one by
    /// (libpq's `target_session_attrs`).
    pub looks_read_only: bool,
    /// `biha.receiver_epoch`.
    pub epoch: i32,
}

impl ServerConf {
    /// The file's text. The epoch stands last: once it is seen, everything before it is in force.
    pub fn text(&self) -> String {
        let mut text = String::from("# Written by biha; changes are lost.\n");
        let mut line = |name: &str, value: &str| {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        };
        line("primary_conninfo", &self.primary_conninfo);
        line("primary_slot_name", &self.primary_slot_name);
        line("synchronous_standby_names", &self.synchronous_standby_names);
        if self.blank_restore_command {
            line("restore_command", "");
        }
        if let Some(ms) = self.retry_interval {
            line("wal_retrieve_retry_interval", &format!("{ms}ms"));
        }
        if self.looks_read_only {
            line("default_transaction_read_only", "on");
        }
        line("biha.receiver_epoch", &self.epoch.to_string());
        text
    }

    /// Writes the file durably; whoever reads it afterwards, over a crash too, reads this.
    pub fn write(&self) -> io::Result<()> {
        biha_io::durable_write(paths::SERVER_CONF.as_ref(), self.text().as_bytes())
    }

    /// Replaces the file as one step, but leaves it to the system when it comes to disk: on the way to a vote or a
    /// new leader an fsync may cost more than everything else. Nothing is lost with it, as every start of the
    /// server begins with a file of its own.
    pub fn replace(&self) -> io::Result<()> {
        let temporary = format!("{}.new", paths::SERVER_CONF);
        fs::write(&temporary, self.text())?;
        fs::rename(&temporary, paths::SERVER_CONF)
    }
}
