//! What a re-clone has other programs do: ask the leader's server (psql), and copy it (pg_basebackup). In an exiting
//! postmaster.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use biha_core::Hindrance;

use super::child::{End, Running};
use super::report::{complaints, is_of_connection, of_own_disk};
use crate::agent::receiver::node_name;
use crate::pg::postmaster;
use crate::{guc, paths};

/// A program that has not moved for so long is given up. pg_basebackup waits for the leader's checkpoint.
const STALLED: Duration = Duration::from_secs(600);
/// What the source's conninfo gets unless it says otherwise: a dead source must be noticed.
const CONNECTION: &str = "connect_timeout=10 keepalives_idle=10 keepalives_interval=5 keepalives_count=3 \
                          tcp_user_timeout=20000 application_name=biha_reclone";
/// How the answer begins.
const ANSWER: &str = "leader|";

/// Why a re-clone ended without a new data directory.
#[derive(Debug)]
pub enum Failure {
    /// The operator stops the server.
    Stopped,
    /// For this reason.
    Failed(Hindrance),
}

impl From<Hindrance> for Failure {
    fn from(why: Hindrance) -> Self {
        Failure::Failed(why)
    }
}

/// A program's complaint, or one of what it was to work on.
impl From<String> for Failure {
    fn from(text: String) -> Self {
        let passing = is_of_connection(&text);
        Hindrance { text, passing }.into()
    }
}

/// What the leader's server says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    in_recovery: bool,
    tablespaces: u64,
    /// Bytes in all databases.
    bytes: u64,
}

impl Facts {
    fn read(log: &str) -> Option<Facts> {
        let line = log.lines().find_map(|line| line.strip_prefix(ANSWER))?;
        let mut fields = line.split('|');
        Some(Facts {
            in_recovery: fields.next()? == "t",
            tablespaces: fields.next()?.parse().ok()?,
            bytes: fields.next()?.parse().ok()?,
        })
    }

    /// Can it be copied to where so many bytes are free?
    pub fn check(&self, free: u64) -> Result<(), Hindrance> {
        let (text, passing) = if self.in_recovery {
            ("the source is not in production any more".into(), false)
        } else if self.tablespaces > 0 {
            let count = self.tablespaces;
            let what = "outside of its data directory, which a re-clone does not copy";
            (format!("the leader has {count} tablespaces {what}"), false)
        } else if self.bytes > free {
            let bytes = self.bytes;
            let text = format!(
                "the leader's databases have {bytes} bytes, and {free} are free beside the data directory"
            );
            (text, true)
        } else {
            return Ok(());
        };
        Err(Hindrance { text, passing })
    }
}

/// The leader's server, as a source of base backups.
pub struct Source<'a> {
    /// A conninfo of keywords and values.
    pub conninfo: &'a str,
}

impl Source<'_> {
    /// Asks it for what must be known before.
    pub fn ask(&self) -> Result<Facts, Failure> {
        let log = self.psql(&[&format!(
            "SELECT '{ANSWER}' || pg_is_in_recovery()::text::char, \
             (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')), \
             (SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database)"
        )])?;
        Facts::read(&log).ok_or_else(|| Failure::from(format!("psql gave no answer: {}", log.trim())))
    }

    /// Makes this node's slot there fit for use: nobody else's WAL sender may hold it (one of a copy that was cut
    /// short), and one that has lost WAL is of no use any more.
    pub fn mend_slot(&self) -> Result<(), Failure> {
        let slot = slot();
        let held = format!("FROM pg_replication_slots WHERE slot_name = '{slot}'");
        self.psql(&[
            &format!("SELECT pg_terminate_backend(active_pid, 5000) {held} AND active"),
            &format!("SELECT pg_drop_replication_slot(slot_name) {held} AND wal_status = 'lost'"),
            // The leader makes it as well.
            &format!(
                "DO $$BEGIN PERFORM pg_create_physical_replication_slot('{slot}', true); \
                 EXCEPTION WHEN duplicate_object THEN END$$"
            ),
        ])?;
        Ok(())
    }

    fn psql(&self, statements: &[&str]) -> Result<String, Failure> {
        let mut command = program("psql");
        command.args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-d"]).arg(self.with_limits());
        for statement in statements {
            command.args(["-c", statement]);
        }
        run(command, "psql")
    }

    /// Copies it into a directory that is not there yet, its WAL elsewhere if that is wanted. Not durably.
    pub fn copy(&self, to: &Path, wal: Option<&Path>) -> Result<(), Failure> {
        let mut command = program("pg_basebackup");
        command.arg("-D").arg(to).arg("-d").arg(self.with_limits());
        command.args(["-X", "stream", "-S", &slot(), "-c", "fast", "--no-sync", "-w", "-v"]);
        if let Some(wal) = wal {
            let mut option = std::ffi::OsString::from("--waldir=");
            option.push(wal);
            command.arg(option);
        }
        run(command, "pg_basebackup").map(drop)
    }

    fn with_limits(&self) -> String {
        format!("{CONNECTION} {}", self.conninfo)
    }
}

/// This node's slot on the leader.
fn slot() -> String {
    node_name(biha_core::NodeId(u32::try_from(guc::ID.get()).unwrap_or(0)))
}

/// One of the server's own programs. Its messages are read by a program.
fn program(name: &str) -> Command {
    let mut command = Command::new(postmaster::executable().with_file_name(name));
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program to its end: all that it said.
fn run(mut command: Command, name: &str) -> Result<String, Failure> {
    let failed = |what: &str, error: io::Error| Failure::from(format!("could not {what} {name}: {error}"));
    let log = File::create(paths::RECLONE_LOG)
        .map_err(|e| of_own_disk(&format!("log what is said by {name}"), &e))?;
    let output = log.try_clone().map_err(|e| failed("log what is said by", e))?;
    command.stdout(output).stderr(log);
    let running = Running::start_group(command).map_err(|e| failed("start", e))?;
    let end = running.wait(STALLED).map_err(|e| failed("watch", e))?;
    let said = fs::read(paths::RECLONE_LOG).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    match end {
        End::Ended(status) if status.success() => Ok(said.into_owned()),
        End::Ended(status) => Err(complaints(&said, name, &status.to_string()).into()),
        End::Stopped => Err(Failure::Stopped),
        End::Stalled => Err(Failure::from(format!("{name} stood still for {} s", STALLED.as_secs()))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_leaders_answer_is_read_and_judged() {
        let facts = Facts::read("a notice\nleader|f|0|1000\n").unwrap();
        assert_eq!(facts, Facts { in_recovery: false, tablespaces: 0, bytes: 1000 });
        facts.check(1000).unwrap();
        let full = facts.check(999).unwrap_err();
        assert!(full.text.contains("999 are free") && full.passing);
        for (answer, why) in [("leader|t|0|1", "not in production"), ("leader|f|2|1", "2 tablespaces")] {
            let found = Facts::read(answer).unwrap().check(u64::MAX).unwrap_err();
            assert!(found.text.contains(why) && !found.passing, "{found:?}");
        }
        for nonsense in ["", "leader|f", "leader|f|x|1", "psql: error: no"] {
            assert_eq!(Facts::read(nonsense), None, "{nonsense}");
        }
    }
}
