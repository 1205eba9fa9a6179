//! WAL that rewinds would have discarded: where it is kept. Written by an exiting postmaster
//! (`lifecycle/keep.rs`), read by `biha.lost_transactions()`.
//!
//! Each rewind leaves one set: a directory with the segments from the fork to the end of this node's WAL, and the
//! history files that lead there. All sets lie in a sibling of the data directory, where pg_rewind removes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use biha_core::{HistoryEntry, Lsn, Timeline};

/// What is kept of one rewind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Timeline on which this node's WAL ended.
    pub timeline: Timeline,
    /// Where it left the leader's.
    pub fork: Lsn,
    /// Where the files are.
    pub path: PathBuf,
}

impl Set {
    /// The set of this name in `directory`.
    pub fn new(directory: &Path, timeline: Timeline, fork: Lsn) -> Self {
        Set { timeline, fork, path: directory.join(format!("{timeline:08X}-{:016X}", fork.0)) }
    }

    fn named(directory: &Path, name: &str) -> Option<Self> {
        let (timeline, fork) = name.split_once('-')?;
        let timeline = Timeline::from_str_radix(timeline, 16).ok()?;
        let set = Set::new(directory, timeline, Lsn(u64::from_str_radix(fork, 16).ok()?));
        // Nothing that only looks like it, such as a copy that was never finished.
        (set.path == directory.join(name)).then_some(set)
    }

    /// Bytes in its files.
    pub fn bytes(&self) -> io::Result<u64> {
        bytes_in(&self.path)
    }
}

/// Where the sets of this data directory are: `DIR.biha-lost`.
pub fn directory(data: &Path) -> PathBuf {
    let mut name = data.to_path_buf().into_os_string();
    name.push(".biha-lost");
    name.into()
}

/// The sets in a directory, oldest first: the numbers of timelines only grow. None if there is no directory.
pub fn sets(directory: &Path) -> io::Result<Vec<Set>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut sets = Vec::new();
    for entry in entries {
        sets.extend(entry?.file_name().to_str().and_then(|name| Set::named(directory, name)));
    }
    sets.sort_by_key(|set| (set.timeline, set.fork));
    Ok(sets)
}

/// Bytes in the files of a directory.
pub fn bytes_in(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Name of the file that holds a segment of a history (oldest timeline first): that of the newest timeline that
/// begins in the segment or before it, and no other; an older one's may go on with a dead branch.
pub fn segment_name(history: &[HistoryEntry], number: u64, segment_size: u64) -> Option<String> {
    let owner = history.iter().rev().find(|entry| entry.fork.0 / segment_size <= number)?;
    let per_id = 0x1_0000_0000 / segment_size;
    Some(format!("{:08X}{:08X}{:08X}", owner.timeline, number / per_id, number % per_id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_name_oldest_first() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(directory("/data/pg".as_ref()), PathBuf::from("/data/pg.biha-lost"));
        let lost = root.path().join("none");
        assert_eq!(sets(&lost).unwrap(), []);
        let [newer, older] = [(0x10, 5), (2, 0x1_0000_00A0)].map(|(t, lsn)| Set::new(&lost, t, Lsn(lsn)));
        for set in [&newer, &older] {
            fs::create_dir_all(&set.path).unwrap();
        }
        for other in ["00000003-0000000000000001.partial", "3-1", "notes"] {
            fs::create_dir(lost.join(other)).unwrap();
        }
        fs::write(older.path.join("x"), [0; 300]).unwrap();
        fs::write(older.path.join("y"), [0; 21]).unwrap();
        assert_eq!(sets(&lost).unwrap(), [older.clone(), newer]);
        assert_eq!(older.path, lost.join("00000002-00000001000000A0"));
        assert_eq!(older.bytes().unwrap(), 321);
    }

    #[test]
    fn a_segment_is_the_newest_timelines_that_begins_in_it() {
        let mb = 16 << 20;
        let history = [(1, 0), (4, 3 * mb + 5), (9, 3 * mb + 7)]
            .map(|(timeline, fork)| HistoryEntry { timeline, fork: Lsn(fork) });
        let name = |number| segment_name(&history, number, mb).unwrap();
        assert_eq!(name(2), "000000010000000000000002");
        assert_eq!(name(3), "000000090000000000000003");
        assert_eq!(name(256 + 7), "000000090000000100000007");
    }
}
