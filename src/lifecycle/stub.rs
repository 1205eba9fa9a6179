//! What stands at the data directory's path while pg_rewind is at work on the data beside it, where biha may copy the
//! leader by itself: as much as a postmaster needs to load biha, this node's own files, and no data. A rewind that is
//! cut short, by kill -9 or by a power failure, then leaves a directory whose start copies the leader.
//!
//! Without biha PostgreSQL does not start on it either: it has none of the directories that shared memory needs.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use biha_io::StateFiles;
use pgrx::PgLogLevel;

use super::reexec::Image;
use super::room::Wanting;
use super::signals::STOPS;
use super::source::Failure;
use super::{aside, exit_log, reclone, report, swap};
use crate::agent::history::DIR as WAL;
use crate::agent::receiver;
use crate::paths;
use crate::pg::{exec, postmaster, signal};

/// What of the data a postmaster looks at before it loads libraries.
const FILES: [&str; 3] = ["PG_VERSION", "global/pg_control", paths::PID_FILE];
/// What the leader's sessions are, in turn: one that takes no writes may lack only this node to take them again.
const SESSIONS: [&str; 2] = ["read-write", "primary"];
/// How long to wait before the leader is looked for again.
const PAUSE: Duration = Duration::from_secs(5);

/// Makes a stub of `own`, a directory with this node's own files, and has it take the place of the data directory, which
/// is at `own` then. After an error all is as it was.
pub fn stand_in(data: &Path, own: &Path, mode: u32) -> io::Result<()> {
    swap::is_one_piece(data)?;
    fill(data, own, mode).and_then(|()| swap::exchange(own, data)).inspect_err(|_| {
        // The error that counts is the first one; the next rewind removes the directory.
        let _ = empty(own);
    })
}

fn fill(data: &Path, stub: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(stub.join("global"))?;
    for name in FILES {
        fs::copy(data.join(name), stub.join(name))?;
    }
    // For the copy to know where its WAL belongs.
    if let Ok(target) = fs::read_link(data.join(WAL)) {
        symlink(target, stub.join(WAL))?;
    }
    fs::write(stub.join(aside::STUB), "")?;
    fs::set_permissions(stub, Permissions::from_mode(mode))?;
    exec::sync_file_system(stub)
}

fn empty(stub: &Path) -> io::Result<()> {
    [paths::PID_FILE, "PG_VERSION", "global", WAL, aside::STUB]
        .into_iter()
        .try_for_each(|name| aside::remove(&stub.join(name)))
}

/// Is this process's working directory a stub?
pub fn is_here() -> bool {
    Path::new(aside::STUB).exists()
}

/// Copies the leader, as soon as there is one, and becomes the server of the copy. In `_PG_init`: a stub has no shared
/// memory. Ends the process if the operator stops it.
pub fn resume(image: &Image) {
    signal::block_all();
    exit_log("a rewind of this node was cut short: copying the leader instead", None);
    for session in SESSIONS.into_iter().cycle() {
        let copied = leader(session).map_err(Failure::from).and_then(|leader| reclone::after_rewind(&leader));
        let (text, wanted) = match copied {
            Ok(()) => break,
            Err(Failure::Failed(why)) => (why.text, 0),
            Err(Failure::Full { text, needed }) => (text, needed),
            Err(Failure::Stopped) => postmaster::end(0),
        };
        let hint = "It is tried again. The server starts when the leader has been copied.";
        report(PgLogLevel::WARNING, format!("could not copy the leader: {text}"), Some(hint));
        let wanting = Wanting::of(wanted);
        loop {
            if signal::take(&STOPS, PAUSE).is_some() {
                postmaster::end(0);
            }
            if wanting.is_over() {
                break;
            }
        }
    }
    let error = image.start();
    report(
        PgLogLevel::FATAL,
        format!("could not restart in place: {error}"),
        Some("Start the server again."),
    );
}

/// Conninfo of whichever member leads.
fn leader(session: &str) -> Result<String, String> {
    let config = StateFiles::new(Path::new(paths::DIR)).load_config().map_err(|e| e.to_string())?;
    Ok(receiver::leader_conninfo(&config, session))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_stub_has_what_loads_biha_and_no_data() {
        let root = tempfile::tempdir().unwrap();
        let (data, own) = (root.path().join("data"), root.path().join("own"));
        for directory in ["global", "base"] {
            fs::create_dir_all(data.join(directory)).unwrap();
        }
        symlink("/elsewhere", data.join(WAL)).unwrap();
        fs::create_dir(&own).unwrap();
        fs::write(own.join("postgresql.conf"), "mine").unwrap();
        assert!(stand_in(&data, &own, 0o700).is_err(), "without a control file");
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
        for name in FILES {
            fs::write(data.join(name), "data").unwrap();
        }
        stand_in(&data, &own, 0o700).unwrap();
        for name in FILES.into_iter().chain(["postgresql.conf", aside::STUB]) {
            assert!(data.join(name).exists(), "{name}");
        }
        assert_eq!(fs::read_link(data.join(WAL)).unwrap(), Path::new("/elsewhere"));
        assert!(!data.join("base").exists() && own.join("base").exists());
    }
}
