//! What a re-clone has other programs do: ask the leader's server (psql), and copy it (pg_basebackup). In an exiting
//! postmaster.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use biha_core::{Hindrance, Timeline};

use super::child::{End, Running};
use super::report::{complaints, is_of_connection};
use super::said::Said;
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
/// Bytes that a copy needs besides the databases, and one part of those: WAL, and what grows meanwhile.
const BESIDES: u64 = 32 << 20;
const PART: u64 = 16;

/// Why a re-clone ended without a new data directory.
#[derive(Debug)]
pub enum Failure {
    /// The operator stops the server.
    Stopped,
    /// For this reason.
    Failed(Hindrance),
    /// There is too little room for the copy.
    Full {
        /// What says so.
        text: String,
        /// Bytes that are to be free.
        needed: u64,
    },
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

/// Which database a server has, and how new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// PostgreSQL's system identifier.
    pub system_identifier: u64,
    /// The timeline on which it writes; 0 if it does not.
    pub timeline: Timeline,
}

impl Version {
    /// Is it of the same database, and of no leader from before one that this node knows of?
    pub fn check(&self, known: &Version) -> Result<(), String> {
        if self.system_identifier != known.system_identifier {
            return Err(format!(
                "the source is another database system: {} instead of {}",
                self.system_identifier, known.system_identifier
            ));
        }
        if self.timeline < known.timeline {
            return Err(format!(
                "the source leads timeline {}, and this node knows of {}",
                self.timeline, known.timeline
            ));
        }
        Ok(())
    }
}

/// What the leader's server says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    in_recovery: bool,
    version: Version,
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
            version: Version {
                system_identifier: fields.next()?.parse().ok()?,
                timeline: fields.next()?.parse().ok()?,
            },
            tablespaces: fields.next()?.parse().ok()?,
            bytes: fields.next()?.parse().ok()?,
        })
    }

    /// Is it what is to be copied, and can it be?
    pub fn check(&self, known: &Version) -> Result<(), Failure> {
        if self.in_recovery {
            return Err("the source is not in production any more".to_string().into());
        }
        self.version.check(known)?;
        if self.tablespaces > 0 {
            let count = self.tablespaces;
            let what = "outside of its data directory, which a re-clone does not copy";
            return Err(format!("the leader has {count} tablespaces {what}").into());
        }
        Ok(())
    }

    /// Can it be copied to where so many bytes are free?
    pub fn fits(&self, free: u64) -> Result<(), Failure> {
        let needed = self.bytes + self.bytes / PART + BESIDES;
        if needed <= free {
            return Ok(());
        }
        let text = format!(
            "a copy of the leader needs {needed} bytes, and {free} are free beside the data directory"
        );
        Err(Failure::Full { text, needed })
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
             (SELECT system_identifier::numeric + CASE WHEN system_identifier < 0 THEN 2::numeric ^ 64 ELSE 0 END \
              FROM pg_control_system())::numeric(20), \
             CASE WHEN pg_is_in_recovery() THEN 0 \
             ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END, \
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
    let said = Said::shown_in(paths::RECLONE_LOG.as_ref()).map_err(|e| failed("listen to", e))?;
    said.listen_to(&mut command).map_err(|e| failed("listen to", e))?;
    let running = Running::start_group(command).map_err(|e| failed("start", e))?;
    let end = running.wait(STALLED, || said.show()).map_err(|e| failed("watch", e))?;
    said.show();
    let text = said.text().map_err(|e| failed("listen to", e))?;
    match end {
        End::Ended(status) if status.success() => Ok(text),
        End::Ended(status) => Err(complaints(&text, name, &status.to_string()).into()),
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
        let known = Version { system_identifier: u64::MAX, timeline: 7 };
        let facts = Facts::read("a notice\nleader|f|18446744073709551615|7|0|1000\n").unwrap();
        assert_eq!(facts, Facts { in_recovery: false, version: known, tablespaces: 0, bytes: 1000 });
        facts.check(&known).unwrap();
        let enough = 1000 + 1000 / PART + BESIDES;
        facts.fits(enough).unwrap();
        let Err(Failure::Full { text, needed }) = facts.fits(enough - 1) else { panic!("it fits") };
        assert!(needed == enough && text.contains(&format!("{} are free", enough - 1)), "{text}");
        for (answer, why) in [
            ("leader|t|18446744073709551615|0|0|1", "not in production"),
            ("leader|f|1|7|0|1", "another database system: 1"),
            ("leader|f|18446744073709551615|6|0|1", "timeline 6, and this node knows of 7"),
            ("leader|f|18446744073709551615|8|2|1", "2 tablespaces"),
        ] {
            match Facts::read(answer).unwrap().check(&known) {
                Err(Failure::Failed(found)) => {
                    assert!(found.text.contains(why) && !found.passing, "{found:?}")
                }
                other => panic!("{other:?}"),
            }
        }
        for nonsense in ["", "leader|f", "leader|f|x|1|0|1", "psql: error: no"] {
            assert_eq!(Facts::read(nonsense), None, "{nonsense}");
        }
    }
}
