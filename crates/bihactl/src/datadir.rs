//! What lies in a data directory, found without a connection.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::{Pid, geteuid, test_kill_process};

use crate::files;
use crate::tools::{Show, Tools, run};

/// Marks a directory that an unfinished bihactl made: a later run may empty it.
pub const UNFINISHED: &str = "pg_biha/bihactl.unfinished";

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing of that name.
    Missing,
    /// An empty directory.
    Empty,
    /// What an earlier bihactl could not finish, nor take back.
    Unfinished,
    /// A PostgreSQL data directory of this major version.
    Cluster(u32),
    /// Something else.
    Other,
}

/// A running server, from its postmaster.pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The postmaster.
    pub pid: u32,
    /// Its port.
    pub port: u16,
    /// Directory of its socket; empty if it has none.
    pub socket_dir: String,
}

/// Facts about a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    /// Absolute path.
    pub path: PathBuf,
    /// What is there.
    pub content: Content,
    /// It, or what it would be made in, belongs to the user that runs this.
    pub own: bool,
    /// Its permission bits; 0 if it is missing.
    pub mode: u32,
    /// Its server, if it runs.
    pub running: Option<Running>,
    /// It has standby.signal.
    pub standby: bool,
    /// It has recovery.signal.
    pub recovery: bool,
    /// It has pg_biha/biha.conf: it is a biha node.
    pub biha: bool,
    /// It has tablespaces.
    pub tablespaces: bool,
}

impl DataDir {
    /// Looks.
    pub fn probe(path: &Path) -> Result<DataDir> {
        let path = std::path::absolute(path)?;
        let there = |name: &str| path.join(name).symlink_metadata().is_ok();
        let content = content(&path)?;
        // A directory yet to be made must be possible to make.
        let holder = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let own = if holder == path {
            fs::metadata(&path)?.uid() == geteuid().as_raw()
        } else {
            rustix::fs::access(holder, rustix::fs::Access::WRITE_OK).is_ok()
        };
        let entries =
            |name: &str| fs::read_dir(path.join(name)).is_ok_and(|mut entries| entries.next().is_some());
        Ok(DataDir {
            content,
            own,
            mode: fs::metadata(&path).map_or(0, |metadata| metadata.mode() & 0o7777),
            running: running(&path)?,
            standby: there("standby.signal"),
            recovery: there("recovery.signal"),
            biha: there("pg_biha/biha.conf") && matches!(content, Content::Cluster(_)),
            tablespaces: entries("pg_tblspc"),
            path,
        })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn content(path: &Path) -> Result<Content> {
    if path.symlink_metadata().is_err() {
        return Ok(Content::Missing);
    }
    let mut entries = fs::read_dir(path).with_context(|| format!("could not read \"{}\"", path.display()))?;
    if entries.next().is_none() {
        return Ok(Content::Empty);
    }
    if path.join(UNFINISHED).exists() {
        return Ok(Content::Unfinished);
    }
    // initdb and pg_basebackup write the control file last: without it they were cut short.
    if !path.join("global/pg_control").exists() {
        return Ok(Content::Other);
    }
    let version = files::read_text(&path.join("PG_VERSION"))?;
    Ok(version.and_then(|text| text.trim().parse().ok()).map_or(Content::Other, Content::Cluster))
}

/// The server of a data directory, if its postmaster lives.
pub fn running(path: &Path) -> Result<Option<Running>> {
    let text = files::read_text(&path.join("postmaster.pid"))?.unwrap_or_default();
    Ok(parse_pid_file(&text).filter(|server| {
        let pid = i32::try_from(server.pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
    }))
}

/// Lines of postmaster.pid (pidfile.h): pid, data directory, start time, port, socket directory, …
fn parse_pid_file(text: &str) -> Option<Running> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    let port = lines.nth(2).and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    let socket_dir = lines.next().unwrap_or("").trim().to_owned();
    Some(Running { pid, port, socket_dir })
}

/// Facts from the control file.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Control {
    /// PostgreSQL's system identifier.
    pub system_identifier: u64,
    /// Cluster state, as pg_controldata words it.
    pub state: String,
    /// Data pages have checksums.
    pub checksums: bool,
    /// The `wal_level` that the server runs, or last ran, with.
    pub wal_level: String,
}

/// Reads the control file with pg_controldata.
pub fn control(tools: &Tools, pgdata: &Path) -> Result<Control> {
    let text = run(tools.command("pg_controldata").arg("-D").arg(pgdata), Show::Failure)?;
    parse_control(&text).context("unexpected output of pg_controldata")
}

fn parse_control(text: &str) -> Option<Control> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    Some(Control {
        system_identifier: field("Database system identifier")?.parse().ok()?,
        state: field("Database cluster state")?.to_owned(),
        checksums: field("Data page checksum version")? != "0",
        wal_level: field("wal_level setting")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_pid_file() {
        let text = "4711\n/d\n1700000000\n5433\n/tmp\n*\n  123 4\nready   \n";
        let server = Running { pid: 4711, port: 5433, socket_dir: "/tmp".into() };
        assert_eq!(parse_pid_file(text), Some(server));
        assert_eq!(parse_pid_file(""), None);
    }

    #[test]
    fn reads_the_control_file() {
        let text = "pg_control version number:            1300\n\
                    Database system identifier:           7300000000000000001\n\
                    Database cluster state:               shut down in recovery\n\
                    wal_level setting:                    replica\n\
                    Data page checksum version:           1\n";
        let control = parse_control(text).expect("parses");
        assert_eq!(control.system_identifier, 7_300_000_000_000_000_001);
        assert_eq!(control.state, "shut down in recovery");
        assert!(control.checksums);
        assert_eq!(control.wal_level, "replica");
    }

    #[test]
    fn tells_what_is_there() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("data");
        let content = || DataDir::probe(&path).expect("probe").content;
        assert_eq!(content(), Content::Missing);
        fs::create_dir(&path).expect("made");
        assert_eq!(content(), Content::Empty);
        fs::write(path.join("x"), "").expect("written");
        assert_eq!(content(), Content::Other);
        fs::write(path.join("PG_VERSION"), "15\n").expect("written");
        assert_eq!(content(), Content::Other, "cut short");
        fs::create_dir(path.join("global")).expect("made");
        fs::write(path.join("global/pg_control"), "").expect("written");
        assert_eq!(content(), Content::Cluster(15));
        fs::create_dir(path.join("pg_biha")).expect("made");
        fs::write(path.join(UNFINISHED), "").expect("written");
        assert_eq!(content(), Content::Unfinished);
    }
}
