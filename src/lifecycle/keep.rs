//! Keeps, before a rewind or a re-clone, the WAL that only this node has. In an exiting postmaster: no shared memory, no ERROR.
//!
//! Copies, not links: pg_rewind truncates a file that the source has as well, and PostgreSQL recycles the others.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use biha_core::{HistoryEntry, Position, Timeline};
use pgrx::PgLogLevel;

use super::aside::sync_directory;
use super::signals::STOPS;
use crate::agent::history;
use crate::guc;
use crate::lost::{self, Set};
use crate::pg::{signal, xlog};

/// Most sets that are kept.
const MAX_SETS: usize = 5;
/// Where a segment's first page says which place in the WAL it is (`XLogPageHeaderData.xlp_pageaddr`).
const PAGE_ADDRESS: u64 = 8;

/// The operator stops the server.
pub struct Stopped;

/// Is anything to be kept (`biha.keep_lost_wal`)?
pub fn is_wanted() -> bool {
    limit() > 0
}

fn limit() -> u64 {
    u64::try_from(guc::KEEP_LOST_WAL.get()).unwrap_or(0) << 20
}

/// Keeps what follows `fork` on the WAL that ends on this timeline, which `what` is about to discard, and says so. What
/// can't be kept holds nothing up.
pub fn before(what: &str, data: &Path, timeline: Timeline, fork: Position) -> Result<Option<Kept>, Stopped> {
    let keeper = Keeper { data, segment_size: xlog::segment_size(), limit: limit() };
    let own = history::read_in(&data.join(history::DIR), timeline).map_err(|e| e.to_string());
    match own.and_then(|own| keeper.keep(&own, fork)) {
        Ok(kept) => {
            for path in kept.removed() {
                super::exit_log(&format!("removed the oldest kept WAL, \"{}\"", path.display()), None);
            }
            super::exit_log(
                &kept.text(),
                Some("SELECT * FROM biha.lost_transactions() lists what was lost."),
            );
            Ok(Some(kept))
        }
        Err(_) if signal::pending(&STOPS) => Err(Stopped),
        Err(text) => {
            let text =
                format!("could not keep the WAL that only this node has, which {what} discards: {text}");
            super::report(PgLogLevel::WARNING, text, None);
            Ok(None)
        }
    }
}

/// What to keep, and where.
pub struct Keeper<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// Size of a WAL segment in bytes.
    pub segment_size: u64,
    /// Most bytes in all sets together.
    pub limit: u64,
}

/// What was kept.
#[derive(Debug)]
pub struct Kept {
    set: Set,
    /// Names of the first and last segment.
    segments: (String, String),
    bytes: u64,
    /// Older sets that gave way.
    removed: Vec<PathBuf>,
}

impl Kept {
    /// For the log.
    pub fn text(&self) -> String {
        let (first, last) = &self.segments;
        format!(
            "kept the WAL that only this node has, from {} on timeline {}, in \"{}\": segments {first} to {last}, \
             {} bytes",
            self.set.fork,
            self.set.timeline,
            self.set.path.display(),
            self.bytes,
        )
    }

    /// The older sets that had to give way.
    pub fn removed(&self) -> &[PathBuf] {
        &self.removed
    }

    /// What is missing, if the rewind found an earlier fork than the run before it: the source got another history in
    /// between.
    pub fn gap(&self, found: Position) -> Option<String> {
        let is_earlier = found.lsn < self.set.fork;
        is_earlier.then(|| format!("the WAL from {} to {} was not kept", found.lsn, self.set.fork))
    }

    /// For when the rewind changed nothing: the WAL is still where it was.
    pub fn discard(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.set.path)
    }
}

impl Keeper<'_> {
    /// Copies, durably, what follows `fork` on the WAL that ends on the last timeline of `own`, its history.
    /// After an error nothing new is left behind.
    pub fn keep(&self, own: &[HistoryEntry], fork: Position) -> Result<Kept, String> {
        let timeline = own.last().map_or(fork.timeline, |last| last.timeline);
        if !history::passes(own, fork) {
            return Err(format!("the history of timeline {timeline} does not pass {fork}"));
        }
        let segments = self.segments(own, fork);
        let (Some(first), Some(last)) = (segments.first().cloned(), segments.last().cloned()) else {
            return Err(format!("the WAL after {fork} is not in pg_wal any more"));
        };
        let mut files = segments.clone();
        files.extend(own.iter().map(|entry| history::file_name(entry.timeline)));
        files.retain(|name| self.wal(name).exists());
        let directory = lost::directory(self.data);
        let set = Set::new(&directory, timeline, fork.lsn);
        let text = |error: io::Error| error.to_string();
        let bytes = files.iter().map(|name| Ok(self.wal(name).metadata()?.len())).sum::<io::Result<u64>>();
        let bytes = bytes.map_err(text)?;
        if bytes > self.limit {
            return Err(format!("it has {bytes} bytes, more than biha.keep_lost_wal allows"));
        }
        let removed = self.make_room(&directory, &set, bytes)?;
        self.copy(&directory, &set, &files).map_err(text)?;
        Ok(Kept { set, segments: (first, last), bytes, removed })
    }

    fn wal(&self, name: &str) -> PathBuf {
        self.data.join(history::DIR).join(name)
    }

    /// Names of the segments from the fork to the end, in order.
    fn segments(&self, own: &[HistoryEntry], fork: Position) -> Vec<String> {
        let size = self.segment_size;
        (fork.lsn.0 / size..)
            .map_while(|number| {
                let name = lost::segment_name(own, number, size)?;
                self.is_in_use(&name, number * size).then_some(name)
            })
            .collect()
    }

    /// Has the segment that begins at `start` been written? Not one that was made, or recycled, for later use.
    fn is_in_use(&self, name: &str, start: u64) -> bool {
        let mut address = [0; 8];
        let read = File::open(self.wal(name)).and_then(|f| f.read_exact_at(&mut address, PAGE_ADDRESS));
        read.is_ok() && u64::from_ne_bytes(address) == start
    }

    /// Removes what earlier attempts left, and the oldest sets as far as the new one needs their place, if it then
    /// finds room at all.
    fn make_room(&self, directory: &Path, new: &Set, bytes: u64) -> Result<Vec<PathBuf>, String> {
        let text = |error: io::Error| error.to_string();
        for leftover in [new.path.clone(), partial(new)] {
            if leftover.exists() {
                fs::remove_dir_all(leftover).map_err(text)?;
            }
        }
        let sets = lost::sets(directory).map_err(text)?;
        let sizes: io::Result<Vec<u64>> = sets.iter().map(Set::bytes).collect();
        let sizes = sizes.map_err(text)?;
        let (gone, _) = sizes.split_at(surplus(&sizes, bytes, self.limit));
        self.check_space(bytes, gone.iter().sum())?;
        let removed: Vec<PathBuf> = sets.into_iter().take(gone.len()).map(|old| old.path).collect();
        removed.iter().try_for_each(fs::remove_dir_all).map_err(text)?;
        Ok(removed)
    }

    /// pg_rewind must not run out of room because of this: it copies the source's pg_wal before it removes what is
    /// here, which may be as much.
    fn check_space(&self, bytes: u64, freed: u64) -> Result<(), String> {
        let measured = lost::bytes_in(&self.data.join(history::DIR)).and_then(|wal| {
            let space = rustix::fs::statvfs(self.data.parent().unwrap_or(self.data))?;
            Ok((wal, space.f_bavail.saturating_mul(space.f_frsize).saturating_add(freed)))
        });
        match measured {
            Ok((wal, free)) if free < bytes.saturating_add(wal) => Err(format!(
                "it has {bytes} bytes, the rewind may need {wal}, and {free} are free beside the data directory"
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn copy(&self, directory: &Path, set: &Set, files: &[String]) -> io::Result<()> {
        let partial = partial(set);
        let filled = self.fill(directory, &partial, files);
        let done =
            filled.and_then(|()| fs::rename(&partial, &set.path)).and_then(|()| sync_directory(directory));
        if done.is_err() {
            // The error that counts is the first one; what is left is removed the next time.
            let _ = fs::remove_dir_all(&partial);
        }
        done
    }

    fn fill(&self, directory: &Path, partial: &Path, files: &[String]) -> io::Result<()> {
        if !directory.exists() {
            make_private(directory)?;
            sync_directory(self.data.parent().unwrap_or(self.data))?;
        }
        make_private(partial)?;
        for name in files {
            if signal::pending(&STOPS) {
                return Err(io::Error::other("the server is being stopped"));
            }
            let to = partial.join(name);
            fs::copy(self.wal(name), &to)?;
            File::open(to)?.sync_all()?;
        }
        sync_directory(partial)
    }
}

/// A copy that is not finished.
fn partial(set: &Set) -> PathBuf {
    let mut name = OsString::from(&set.path);
    name.push(".partial");
    name.into()
}

fn make_private(directory: &Path) -> io::Result<()> {
    fs::create_dir(directory)?;
    fs::set_permissions(directory, PermissionsExt::from_mode(0o700))
}

/// How many of the oldest sets must go, so that with a new one neither `limit` bytes nor [`MAX_SETS`] are exceeded.
fn surplus(sizes: &[u64], new: u64, limit: u64) -> usize {
    let fits = |kept: &[u64]| kept.len() < MAX_SETS && kept.iter().sum::<u64>().saturating_add(new) <= limit;
    (0..sizes.len()).find(|gone| fits(&sizes[*gone..])).unwrap_or(sizes.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use biha_core::Lsn;

    use super::*;

    /// PostgreSQL allows none smaller.
    const SEGMENT: u64 = 1 << 20;

    struct Node(tempfile::TempDir);

    impl Node {
        /// On timeline 1 until 2.5 segments, then on 3 until 4.5, then on 6. Segment 7 was recycled.
        fn new() -> Self {
            let node = Node(tempfile::tempdir().unwrap());
            fs::create_dir_all(node.data().join("pg_wal")).unwrap();
            for (timeline, number, holds) in [
                (1, 1, 1),
                (1, 2, 2),
                (3, 2, 2),
                (3, 3, 3),
                (3, 4, 4),
                (6, 4, 4),
                (6, 5, 5),
                (6, 6, 6),
                (6, 7, 0),
            ] {
                node.segment(timeline, number, holds);
            }
            for name in ["00000003.history", "00000005.history", "00000006.history"] {
                fs::write(node.data().join("pg_wal").join(name), name).unwrap();
            }
            node
        }

        fn segment(&self, timeline: u32, number: u64, holds: u64) {
            let mut content = vec![0; usize::try_from(SEGMENT).unwrap()];
            content[8..16].copy_from_slice(&(holds * SEGMENT).to_ne_bytes());
            fs::write(self.data().join(format!("pg_wal/{timeline:08X}{:08X}{number:08X}", 0)), content)
                .unwrap();
        }

        fn data(&self) -> PathBuf {
            self.0.path().join("data")
        }

        fn own() -> Vec<HistoryEntry> {
            [(1, 0), (3, 5 * SEGMENT / 2), (6, 9 * SEGMENT / 2)]
                .map(|(timeline, fork)| HistoryEntry { timeline, fork: Lsn(fork) })
                .to_vec()
        }

        fn keep(&self, fork: Position, limit: u64) -> Result<Kept, String> {
            Keeper { data: &self.data(), segment_size: SEGMENT, limit }.keep(&Self::own(), fork)
        }

        fn sets(&self) -> Vec<Set> {
            lost::sets(&lost::directory(&self.data())).unwrap()
        }
    }

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline, lsn: Lsn(lsn) }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn from_the_fork_to_the_end_and_the_histories() {
        let node = Node::new();
        let kept = node.keep(at(3, 7 * SEGMENT / 2), u64::MAX).unwrap();
        let [set] = &node.sets()[..] else { panic!("not one set") };
        assert_eq!(
            names(&set.path),
            [
                "00000003.history",
                "000000030000000000000003",
                "00000006.history",
                "000000060000000000000004",
                "000000060000000000000005",
                "000000060000000000000006",
            ]
        );
        assert_eq!((set.timeline, set.fork), (6, Lsn(7 * SEGMENT / 2)));
        assert_eq!(kept.bytes, 4 * SEGMENT + 32);
        assert!(
            kept.text().contains("000000030000000000000003 to 000000060000000000000006"),
            "{}",
            kept.text()
        );
        kept.discard().unwrap();
        assert_eq!(node.sets(), []);
    }

    #[test]
    fn a_fork_that_is_not_on_the_own_history_is_refused() {
        let node = Node::new();
        assert!(node.keep(at(3, 9 * SEGMENT / 2 + 1), u64::MAX).unwrap_err().contains("does not pass"));
        assert!(node.keep(at(6, 20 * SEGMENT), u64::MAX).unwrap_err().contains("not in pg_wal"));
        assert_eq!(node.sets(), []);
    }

    #[test]
    fn what_is_larger_than_the_limit_is_not_kept_and_nothing_gives_way() {
        let node = Node::new();
        node.keep(at(6, 6 * SEGMENT), u64::MAX).unwrap();
        let before = node.sets();
        assert!(node.keep(at(6, 5 * SEGMENT), 2 * SEGMENT).unwrap_err().contains("biha.keep_lost_wal"));
        assert_eq!(node.sets(), before);
    }

    #[test]
    fn the_oldest_give_way() {
        let node = Node::new();
        let oldest = node.keep(at(3, 4 * SEGMENT), u64::MAX).unwrap();
        node.keep(at(6, 5 * SEGMENT), u64::MAX).unwrap();
        let kept = node.keep(at(6, 6 * SEGMENT), 4 * SEGMENT).unwrap();
        assert_eq!(kept.removed(), [oldest.set.path]);
        assert_eq!(node.sets().iter().map(|set| set.fork.0 / SEGMENT).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn a_second_attempt_replaces_the_first_and_what_was_not_finished() {
        let node = Node::new();
        let kept = node.keep(at(6, 6 * SEGMENT), u64::MAX).unwrap();
        fs::write(kept.set.path.join("stale"), "").unwrap();
        fs::create_dir(partial(&kept.set)).unwrap();
        node.keep(at(6, 6 * SEGMENT), SEGMENT + 100).unwrap();
        assert_eq!(names(&lost::directory(&node.data())).len(), 1);
        assert!(!names(&kept.set.path).contains(&"stale".to_string()));
    }

    #[test]
    fn a_rewind_to_an_earlier_fork_leaves_a_gap() {
        let kept = Node::new().keep(at(6, 6 * SEGMENT), u64::MAX).unwrap();
        assert_eq!(kept.gap(at(6, 6 * SEGMENT)), None);
        let text = kept.gap(at(6, 5 * SEGMENT)).unwrap();
        assert_eq!(text, "the WAL from 0/500000 to 0/600000 was not kept");
    }

    #[test]
    fn no_more_than_the_limits() {
        assert_eq!(surplus(&[], 10, 10), 0);
        assert_eq!(surplus(&[3, 3, 3], 1, 10), 0);
        assert_eq!(surplus(&[3, 3, 3], 2, 10), 1);
        assert_eq!(surplus(&[3, 3, 3], 10, 10), 3);
        assert_eq!(surplus(&[1; 4], 1, 100), 0);
        assert_eq!(surplus(&[1; 5], 1, 100), 1);
    }
}
