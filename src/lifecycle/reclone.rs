//! A new copy of the leader between the two lives of one postmaster, for a node that cannot follow and cannot be
//! rewound.
//!
//! The copy is made beside the data directory and completed there: this node's own files, and the word that it
//! succeeded. Then it takes the data directory's place ([`super::swap`]). Whatever cuts it short, the old data directory is
//! as it was, or the new one is whole.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use biha_core::{Hindrance, HistoryEntry, Lsn, Mended, Position, Timeline, TimelineEntry};
use biha_io::StateFiles;

use super::keep::Kept;
use super::report::of_own_disk;
use super::signals::STOPS;
use super::source::{Facts, Failure, Source, Version};
use super::swap::{self, Place};
use super::{aside, exit_log, keep, rewind, room, start, warn};
use crate::agent::history;
use crate::paths;
use crate::pg::{control, signal};

/// What pg_basebackup has written when it has written everything.
const COMPLETE: [&str; 4] = ["PG_VERSION", "global/pg_control", "backup_label", "backup_manifest"];

/// A data directory that is to be replaced.
struct Old<'a> {
    /// Where this node's own files are.
    own: &'a Path,
    mode: u32,
    /// Where its WAL ends, which is to be kept as far as only this node has it; `None`: the rewind has done that.
    end: Option<Position>,
}

/// Replaces this process's working directory, the data directory of a server that was shut down cleanly and whose WAL
/// ends there, by a copy of the one at `source`, a conninfo of keywords and values. Returns whether the operator wants
/// the server to stop.
pub fn run(source: &str, end: Position) -> bool {
    room::note(None);
    let result = here().and_then(|(data, mode)| {
        replace(&data, &Old { own: &data, mode, end: Some(end) }, &Source { conninfo: source })
    });
    let why = match result {
        Ok(()) => return false,
        Err(Failure::Stopped) => return true,
        Err(Failure::Failed(why)) => why,
        Err(Failure::Full { text, needed }) => {
            room::note(Some(needed));
            Hindrance { text, passing: true }
        }
    };
    let text = format!("the re-clone failed, and the data directory is as it was: {}", why.text);
    exit_log(&text, None);
    rewind::note(".".as_ref(), Err(&why));
    false
}

/// [`run`] where a rewind was cut short, and a stub stands in for the data directory.
pub fn after_rewind(source: &str) -> Result<(), Failure> {
    let (data, mode) = here()?;
    let (source, left) = (Source { conninfo: source }, rewind::sibling(&data));
    let leader = source.ask()?;
    leader.check(&known()?)?;
    make_room(&leader, &left)?;
    replace(&data, &Old { own: &data, mode, end: None }, &source)
}

/// Removes what a rewind has left of the data if the copy needs its place, and only if it is enough. It may be the last of
/// this database that there is; else the first start of the copy removes it.
fn make_room(leader: &Facts, left: &Path) -> Result<(), Failure> {
    let free = room::free()?;
    if leader.fits(free).is_err() {
        let size = aside::size(left).map_err(|e| of_own_disk("see how much room the rewind has left", &e))?;
        if let Err(Failure::Full { text, needed }) = leader.fits(free.saturating_add(size)) {
            let text = format!("{text}, with what the rewind has left");
            return Err(Failure::Full { text, needed: needed.saturating_sub(size) });
        }
        aside::remove(left).map_err(|e| of_own_disk("remove what the rewind has left", &e))?;
    }
    Ok(())
}

/// Removes what a re-clone has left that was cut short, and finishes what is left to do of one that was not. At each start.
pub fn tidy() {
    let tidied = fs::canonicalize(".").and_then(|data| Place::of(&data)).and_then(|place| place.clear());
    tidied.unwrap_or_else(|error| warn("remove what a re-clone has left", &error));
    // A whole data directory there, or a stub, is what a rewind left. This node's own files alone are the operator's
    // business.
    let rewound = fs::canonicalize(".").map(|data| rewind::sibling(&data));
    if let Ok(rewound) = rewound.map(|path| path.join("PG_VERSION").exists().then_some(path))
        && let Some(Err(error)) = rewound.map(|path| aside::remove(&path))
    {
        warn("remove what a rewind has left", &error);
    }
}

fn replace(data: &Path, old: &Old<'_>, source: &Source<'_>) -> Result<(), Failure> {
    if rewind::has_tablespaces(data) {
        return Err("this node has tablespaces, which a re-clone does not copy".to_string().into());
    }
    let place = Place::of(data).map_err(|e| of_own_disk("find the WAL", &e))?;
    place.clear().map_err(|e| of_own_disk("remove what an earlier re-clone has left", &e))?;
    place.check()?;
    let made = make(&place, old, source)
        .and_then(|()| place.exchange().map_err(|e| of_own_disk("exchange the data directories", &e).into()));
    if made.is_ok() {
        exit_log("the data directory was replaced by a copy of the leader's", None);
        if let Err(error) = swap::enter(&place.data) {
            warn("make the new data directory durable", &error);
            return Ok(());
        }
    }
    if made.is_err() || !signal::pending(&STOPS) {
        place.clear().unwrap_or_else(|error| warn("remove what is left of the re-clone", &error));
    }
    made
}

/// Makes the new data directory, whole and on disk.
fn make(place: &Place, old: &Old<'_>, source: &Source<'_>) -> Result<(), Failure> {
    let new = &place.beside;
    let leader = source.ask()?;
    leader.check(&known()?)?;
    leader.fits(room::free()?)?;
    source.mend_slot()?;
    go_on()?;
    exit_log(&format!("copying the leader to \"{}\"", new.display()), None);
    source.copy(new, place.wal_beside().as_deref())?;
    go_on()?;
    let timeline = check_complete(new)?;
    let kept = match old.end.filter(|_| keep::is_wanted()) {
        Some(end) => keep_lost_wal(&place.data, end, new, timeline)?,
        None => None,
    };
    let text = |e| Failure::from(format!("could not put this node's own files into the copy: {e}"));
    let done = go_on().and_then(|()| complete(place, old).map_err(text)).and_then(|()| go_on());
    if done.is_err()
        && let Some(Err(error)) = kept.as_ref().map(Kept::discard)
    {
        warn("remove the WAL that was kept", &error);
    }
    done
}

/// This node's own files, and what came of the re-clone, if it comes into force.
fn complete(place: &Place, old: &Old<'_>) -> io::Result<()> {
    let new = &place.beside;
    aside::carry_over(old.own, new, rewind::log_directory(&place.data).as_deref())?;
    // Without it pg_ctl would take the server for stopped.
    match fs::copy(place.data.join(paths::PID_FILE), new.join(paths::PID_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => drop(other?),
    }
    // Whoever starts it, also without biha, has a standby.
    fs::write(new.join(start::STANDBY_SIGNAL), "")?;
    fs::set_permissions(new.join(start::STANDBY_SIGNAL), Permissions::from_mode(0o600))?;
    rewind::note_in(new, Ok(Mended::Copied))?;
    fs::set_permissions(new, Permissions::from_mode(old.mode))?;
    rewind::sync_data(new)
}

fn go_on() -> Result<(), Failure> {
    if signal::pending(&STOPS) { Err(Failure::Stopped) } else { Ok(()) }
}

/// This process's working directory, and its mode.
fn here() -> Result<(PathBuf, u32), Failure> {
    let found = fs::canonicalize(".").and_then(|data| {
        let mode = fs::metadata(&data)?.permissions().mode() & 0o7777;
        Ok((data, mode))
    });
    found.map_err(|e| of_own_disk("find the data directory", &e).into())
}

/// Which database this node has, and the newest timeline that it knows of.
fn known() -> Result<Version, String> {
    let system_identifier = control::read().ok_or("this node's control file is damaged")?.system_identifier;
    let known = StateFiles::new(Path::new(paths::DIR)).load_state(&start::identity(system_identifier));
    let timeline = newest_timeline(&known.map_err(|e| e.to_string())?.timelines);
    Ok(Version { system_identifier, timeline })
}

/// Is this a whole base backup of this cluster's, and of no leader from before one that this node knows of? Its timeline.
fn check_complete(new: &Path) -> Result<Timeline, String> {
    if let Some(name) = missing(new) {
        return Err(format!("the copy lacks file \"{name}\""));
    }
    let path = CString::new(new.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    let file = control::read_in(&path).ok_or("the copy's control file is damaged")?;
    Version { system_identifier: file.system_identifier, timeline: file.timeline }.check(&known()?)?;
    Ok(file.timeline)
}

/// The newest timeline that somebody who was elected has opened: its number is the term.
fn newest_timeline(timelines: &BTreeMap<Timeline, TimelineEntry>) -> Timeline {
    timelines
        .iter()
        .filter(|(number, entry)| entry.term.0 == **number)
        .map(|(number, _)| *number)
        .max()
        .unwrap_or(0)
}

/// What a base backup lacks.
fn missing(new: &Path) -> Option<&'static str> {
    COMPLETE.into_iter().find(|name| !new.join(name).exists())
}

/// Keeps aside what the leader has not got of this node's WAL.
fn keep_lost_wal(
    data: &Path,
    end: Position,
    new: &Path,
    timeline: Timeline,
) -> Result<Option<Kept>, Failure> {
    let read = |data: &Path, timeline| history::read_in(&data.join(history::DIR), timeline);
    let histories = read(data, end.timeline).and_then(|own| Ok((own, read(new, timeline)?)));
    match histories {
        Ok((own, leader)) => match fork(&own, end.lsn, &leader) {
            None => Ok(None),
            Some(fork) => keep::before("the re-clone", data, end.timeline, fork)
                .map_err(|keep::Stopped| Failure::Stopped),
        },
        Err(error) => {
            warn("see whether there is WAL that only this node has", &error);
            Ok(None)
        }
    }
}

/// Where WAL of this history, which ends at `end`, left the leader's history; `None` if it did not.
fn fork(own: &[HistoryEntry], end: Lsn, leader: &[HistoryEntry]) -> Option<Position> {
    let common = own.iter().zip(leader).take_while(|(own, leader)| own == leader).count();
    let left = [own, leader].iter().filter_map(|history| history.get(common)).map(|next| next.fork).min()?;
    let timeline = own.get(common.saturating_sub(1))?.timeline;
    (end > left).then_some(Position { timeline, lsn: left })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn history(entries: &[(u32, u64)]) -> Vec<HistoryEntry> {
        entries
            .iter()
            .map(|(timeline, fork)| HistoryEntry { timeline: *timeline, fork: Lsn(*fork) })
            .collect()
    }

    #[test]
    fn wal_parts_where_either_history_leaves_the_common_one() {
        let leader = history(&[(1, 0), (3, 100), (7, 250)]);
        let at = |own: &[(u32, u64)], end| {
            fork(&history(own), Lsn(end), &leader).map(|fork| (fork.timeline, fork.lsn.0))
        };
        assert_eq!(at(&[(1, 0), (3, 100), (7, 250)], 9999), None, "the leader's own timeline");
        assert_eq!(at(&[(1, 0), (3, 100)], 250), None, "up to where the leader left it");
        assert_eq!(at(&[(1, 0), (3, 100)], 251), Some((3, 250)), "beyond");
        assert_eq!(at(&[(1, 0)], 90), None, "long before");
        assert_eq!(at(&[(1, 0), (3, 100), (5, 200)], 230), Some((3, 200)), "a timeline of its own");
        assert_eq!(at(&[(1, 0), (3, 100), (5, 300)], 330), Some((3, 250)), "left only later");
        assert_eq!(at(&[(1, 0), (4, 100)], 100), None, "nothing was written there");
    }

    #[test]
    fn only_timelines_that_were_elected_tell_who_is_newer() {
        let entry =
            |term| TimelineEntry { term: biha_core::Term(term), leader: biha_core::NodeId(1), fork: Lsn(0) };
        assert_eq!(newest_timeline(&BTreeMap::new()), 0);
        let by_hand = entry(0);
        assert_eq!(newest_timeline(&[(3, entry(3)), (6, entry(6)), (7, by_hand)].into()), 6);
    }

    #[test]
    fn half_a_base_backup_is_none() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("global")).unwrap();
        for name in COMPLETE {
            assert_eq!(missing(directory.path()), Some(name));
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(missing(directory.path()), None);
    }
}
