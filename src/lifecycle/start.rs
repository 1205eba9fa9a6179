//! What is done at every making of shared memory, in the postmaster, before the startup process exists: at
//! start and at each restart after a crash of a child.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use biha_core::{NodeId, NodeState, Position, PromotionIntent};
use biha_io::{Identity, LoadError, StateFiles};
use pgrx::PgLogLevel;

use super::aside::sync_directory;
use super::{reclone, report, rewind, unwritten};
use crate::board::{MemberStatus, Status};
use crate::pg::{clock, control, serverconf::ServerConf, settings, xlog};
use crate::{guc, paths};

/// Makes PostgreSQL start as a standby.
pub const STANDBY_SIGNAL: &str = "standby.signal";
const RECOVERY_SIGNAL: &str = "recovery.signal";
const WAL: &str = "pg_wal";
/// What is here is a copy, and recovery of it has not begun: its control file is the source's.
const BACKUP_LABEL: &str = "backup_label";

/// Settings that ask for a recovery up to a point, which is no business of biha's.
const RECOVERY_TARGETS: [&std::ffi::CStr; 5] = [
    c"recovery_target",
    c"recovery_target_lsn",
    c"recovery_target_name",
    c"recovery_target_time",
    c"recovery_target_xid",
];

/// Why a server cannot be started as a member of its cluster.
#[derive(Debug)]
pub struct Refusal {
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub hint: &'static str,
}

/// Is this start a point-in-time recovery? Then what asks for it.
pub fn recovery_target() -> Option<String> {
    if Path::new(RECOVERY_SIGNAL).exists() {
        return Some(RECOVERY_SIGNAL.into());
    }
    RECOVERY_TARGETS
        .into_iter()
        .find(|name| settings::get(name).is_some_and(|value| !value.is_empty()))
        .map(|name| name.to_string_lossy().into_owned())
}

/// Makes the server come up as a standby that receives from nobody. `first` is false at a restart after a
/// crash.
pub fn prepare(first: bool) -> Result<(), Refusal> {
    if first {
        reclone::tidy();
    }
    let doing = |what: &str, error: &io::Error| Refusal {
        text: format!("could not {what}: {error}"),
        hint: "A member of a biha cluster starts only as a standby.",
    };
    // What starts as a member is none of that any more, whoever starts it.
    remove_if_there(Path::new(paths::UNFINISHED)).map_err(|e| doing("remove bihactl's mark", &e))?;
    remove_if_there(Path::new(paths::PID_FILE_LINK))
        .map_err(|e| doing("remove a link to postmaster.pid", &e))?;
    create_standby_signal().map_err(|e| doing("create file \"standby.signal\"", &e))?;
    own_up_to_production().map_err(|e| doing("note a promotion without an election", &e))?;
    let removed = clear_unfinished_promotion().map_err(|e| doing("remove unused history files", &e))?;
    if !removed.is_empty() {
        pgrx::log!("removed history files of a promotion that did not happen: {}", removed.join(", "));
    }
    let removed = clear_unwritten_segments().map_err(|e| doing("remove segments without WAL", &e))?;
    if !removed.is_empty() {
        pgrx::log!("removed WAL segments that were never flushed: {}", removed.join(", "));
    }
    // The archive may hold a dead branch, so nothing is fetched from it either until a leader is known.
    let conf = ServerConf { blank_restore_command: true, ..ServerConf::default() };
    conf.write().map_err(|e| doing("write file \"pg_biha/server.conf\"", &e))?;
    settings::reload();
    if settings::get(c"primary_conninfo").is_some_and(|value| !value.is_empty()) {
        if first {
            return Err(Refusal {
                text: "parameter \"primary_conninfo\" is set outside of biha's files".into(),
                hint: "Remove it from postgresql.auto.conf, the command line, and whatever follows the include \
                       of postgresql.biha.conf in postgresql.conf: biha alone sets it.",
            });
        }
        // The files have a fault just now, and were not read.
        settings::set_as_file(c"primary_conninfo", "");
    }
    Ok(())
}

/// Takes back what biha had set when this server was a member, or what it was copied from: a recovery to a point
/// in time must not stream from the cluster's leader, nor wait for its standbys, and needs its own restore_command.
pub fn let_go() -> io::Result<()> {
    biha_io::durable_write(paths::SERVER_CONF.as_ref(), b"# Emptied by biha, which stands aside.\n")?;
    settings::reload();
    Ok(())
}

fn create_standby_signal() -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(STANDBY_SIGNAL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Can this node be rewound if its WAL parts from the leader's?
pub fn can_be_rewound() -> bool {
    let hints = settings::get(c"wal_log_hints").is_some_and(|value| value == "on");
    hints || control::read().is_some_and(|file| file.checksums)
}

/// Removes what a promotion that did not happen has left: the empty history files below its timeline, which
/// would make recovery wait for ever, and that timeline's own, which nobody else has seen. Returns their
/// names.
fn clear_unfinished_promotion() -> io::Result<Vec<String>> {
    let Some(file) = control::read() else { return Ok(Vec::new()) };
    match promotion_intent(file.system_identifier) {
        Some(intent) if file.timeline < intent.timeline && !is_history(Path::new(WAL), intent)? => {
            remove_histories(Path::new(WAL), intent)
        }
        _ => Ok(Vec::new()),
    }
}

/// Was the server in production when it ended, though nobody had elected this node? Its controller may not have been
/// there to see it, or had no room on disk to note it; once recovery has begun the control file says so no more.
fn own_up_to_production() -> io::Result<()> {
    let Some(file) = control::read() else { return Ok(()) };
    if !file.state.was_primary() || Path::new(BACKUP_LABEL).try_exists()? {
        return Ok(());
    }
    // A rewind or copy that succeeded is older than that: its control file would not say so.
    if matches!(rewind::result()?, Some(Ok(_))) {
        rewind::forget_result()?;
    }
    let files = StateFiles::new(Path::new(paths::DIR));
    let mut hard = match files.load_state(&identity(file.system_identifier)) {
        Ok(hard) => hard,
        Err(LoadError::Io { error, .. }) => return Err(error),
        // One that cannot be used is for the controller to say.
        Err(_) => return Ok(()),
    };
    let end = file.checkpoint.max(file.min_recovery);
    let Some(text) = hard.own_up_at_start(Position { timeline: file.timeline, lsn: end }) else {
        return Ok(());
    };
    files.write_state(&hard)?;
    let hint = "What only this node has is not the cluster's. Unless another leader's timeline has this number, it is \
                rewound.";
    report(PgLogLevel::WARNING, text, Some(hint));
    Ok(())
}

fn clear_unwritten_segments() -> io::Result<Vec<String>> {
    let Some(file) = control::read() else { return Ok(Vec::new()) };
    unwritten::remove(Path::new(WAL), file.timeline, xlog::segment_size())
}

/// Has this node followed another leader since, across the numbers that it had burnt? Then they are part of the
/// history. The control file does not tell: it learns of a timeline only when a page of it is written.
fn is_history(wal: &Path, intent: PromotionIntent) -> io::Result<bool> {
    for entry in fs::read_dir(wal)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".history"));
        let number = number.and_then(|number| u32::from_str_radix(number, 16).ok());
        if number.is_some_and(|number| number > intent.timeline) && entry.metadata()?.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The promotion that this node had begun. A state file that cannot be used is not this node's memory; that
/// is for the controller to say.
fn promotion_intent(system_identifier: u64) -> Option<PromotionIntent> {
    StateFiles::new(Path::new(paths::DIR)).load_state(&identity(system_identifier)).ok()?.promotion
}

/// Whose memory the state file must be.
pub fn identity(system_identifier: u64) -> Identity {
    let node = NodeId(u32::try_from(guc::ID.get()).unwrap_or(0));
    Identity { cluster: None, system_identifier, node }
}

/// What sessions see until the controller has something to say.
pub fn first_status(system_identifier: u64) -> Option<Status> {
    let node = NodeId(u32::try_from(guc::ID.get()).ok()?);
    let files = StateFiles::new(Path::new(paths::DIR));
    let hard = files.load_state(&Identity { cluster: None, system_identifier, node }).ok()?;
    let config = files.load_config().ok()?;
    let member = |id: NodeId| MemberStatus {
        id,
        state: if id == node { NodeState::PreStartup } else { NodeState::Unknown },
        last_known: NodeState::Unknown,
        online: id == node,
        since_heard: None,
        position: None,
        connection: None,
    };
    Some(Status {
        node,
        term: hard.term,
        incarnation: hard.incarnation,
        leader: None,
        members: config.members.keys().copied().map(member).collect(),
        synchronous: config.wal_voters().collect(),
        config,
        error: hard.error,
        worth_waiting: false,
        hands_over_to: None,
        published: clock::boottime(),
    })
}

fn remove_histories(wal: &Path, intent: PromotionIntent) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for timeline in intent.first_placeholder..=intent.timeline {
        let name = format!("{timeline:08X}.history");
        let path = wal.join(&name);
        let is_placeholder = match path.metadata() {
            Ok(metadata) => metadata.len() == 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !is_placeholder && timeline != intent.timeline {
            continue;
        }
        for suffix in ["ready", "done"] {
            remove_if_there(&wal.join(format!("archive_status/{name}.{suffix}")))?;
        }
        remove_if_there(&path)?;
        removed.push(name);
    }
    sync_directory(wal)?;
    Ok(removed)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Does the cluster's configuration exist here?
pub fn is_member() -> bool {
    Path::new(paths::CONF).exists()
}

/// Does a member's memory exist here?
pub fn has_memory() -> bool {
    Path::new(paths::STATE).exists()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_promotion_made_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path();
        fs::create_dir(wal.join("archive_status")).unwrap();
        let content =
            [("2", "x"), ("3", ""), ("4", "1\t0/3000000\treason\n"), ("5", ""), ("A", "own"), ("B", "")];
        for (number, text) in content {
            fs::write(wal.join(format!("{number:0>8}.history")), text).unwrap();
        }
        fs::write(wal.join("archive_status/00000005.history.ready"), "").unwrap();
        let intent = PromotionIntent { timeline: 10, first_placeholder: 3 };
        let removed = remove_histories(wal, intent).unwrap();
        assert_eq!(removed, ["00000003.history", "00000005.history", "0000000A.history"]);
        for (number, left) in
            [("2", true), ("3", false), ("4", true), ("5", false), ("A", false), ("B", true)]
        {
            assert_eq!(wal.join(format!("{number:0>8}.history")).exists(), left, "{number}");
        }
        assert!(!wal.join("archive_status/00000005.history.ready").exists());
        assert!(remove_histories(wal, intent).unwrap().is_empty());
    }

    #[test]
    fn numbers_below_a_timeline_that_was_followed_since_are_history() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path();
        let intent = PromotionIntent { timeline: 4, first_placeholder: 3 };
        for (number, text, expected) in [
            ("3", "", false),
            ("4", "its own", false),
            ("5", "", false),
            ("A", "1\t0/3000000\treason\n", true),
        ] {
            fs::write(wal.join(format!("{number:0>8}.history")), text).unwrap();
            assert_eq!(is_history(wal, intent).unwrap(), expected, "{number}");
        }
    }
}
