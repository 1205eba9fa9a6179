//! Segments that a power loss has left without the WAL that was to be in them.
//!
//! A timeline's first segment repeats what its parent wrote into it. A follower makes the file, durably, when it begins
//! to receive the new timeline; what it receives is durable only when it is flushed. After a power loss in between
//! the file is there and holds zeros. PostgreSQL reads the newest timeline's file and no other, finds no checkpoint in
//! it, and would wait for a leader's stream; but a node of biha follows nobody before it has read where its WAL ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use biha_core::{HistoryEntry, Timeline};

use super::aside::sync_directory;
use crate::agent::history;
use crate::lost;

/// Size of what is looked at as a whole: a WAL page.
const PAGE: u64 = 8192;

/// Removes first segments of timelines newer than `known` that were never flushed, where an older timeline's file has
/// what they were to repeat. Gives their names.
pub fn remove(wal: &Path, known: Timeline, segment_size: u64) -> io::Result<Vec<String>> {
    let mut newer: Vec<Timeline> = Vec::new();
    for entry in fs::read_dir(wal)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".history"));
        newer.extend(number.and_then(|digits| Timeline::from_str_radix(digits, 16).ok()));
    }
    newer.retain(|number| *number > known);
    // Parents first: one that is gone is nobody's model.
    newer.sort_unstable();
    let mut removed = Vec::new();
    for timeline in newer {
        // One that cannot be read is PostgreSQL's to complain of.
        let Ok(chain) = history::read_in(wal, timeline) else { continue };
        if let Some(name) = unwritten(wal, &chain, segment_size)? {
            fs::remove_file(wal.join(&name))?;
            removed.push(name);
        }
    }
    if !removed.is_empty() {
        sync_directory(wal)?;
    }
    Ok(removed)
}

/// The first segment of the newest timeline of a history, if it is there and was never flushed.
fn unwritten(wal: &Path, chain: &[HistoryEntry], size: u64) -> io::Result<Option<String>> {
    let Some((newest, older)) = chain.split_last() else { return Ok(None) };
    let (number, repeated) = (newest.fork.0 / size, newest.fork.0 % size);
    let open = |timeline| -> io::Result<Option<(String, File)>> {
        let Some(name) = lost::segment_name(&[HistoryEntry { timeline, ..*newest }], number, size) else {
            return Ok(None);
        };
        match File::open(wal.join(&name)) {
            Ok(file) => Ok(Some((name, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    };
    let Some((name, file)) = open(newest.timeline)? else { return Ok(None) };
    for parent in older.iter().rev() {
        if let Some((_, model)) = open(parent.timeline)? {
            return Ok(lacks(&file, &model, repeated)?.then_some(name));
        }
    }
    Ok(None)
}

/// Is there a page of zeros among the first `repeated` bytes, where the other file has something, and nothing but the
/// same before it? WAL is written in order, and a flush is of all that was written: so nothing was flushed since that
/// page was written, and what was flushed before, the other file has as well.
fn lacks(file: &File, model: &File, repeated: u64) -> io::Result<bool> {
    let (mut own, mut other) = ([0; PAGE as usize], [0; PAGE as usize]);
    for start in (0..repeated).step_by(PAGE as usize) {
        let length = usize::try_from(PAGE.min(repeated - start)).map_err(io::Error::other)?;
        let (own, other) = (&mut own[..length], &mut other[..length]);
        file.read_exact_at(own, start)?;
        model.read_exact_at(other, start)?;
        let blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if own != other || blank(own) {
            return Ok(blank(own) && !blank(other));
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const SIZE: u64 = 4 * PAGE;

    fn segment(wal: &Path, timeline: u32, pages: [u8; 4]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|byte| [*byte; PAGE as usize]).collect();
        fs::write(wal.join(format!("{timeline:08X}0000000000000001")), bytes).unwrap();
    }

    /// Timelines 1 to 3; the forks are in the third page of segment 1, and in its fourth.
    fn wal() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let forks = [SIZE + 2 * PAGE + 100, SIZE + 3 * PAGE + 100];
        let second = format!("1\t0/{:X}\treason\n", forks[0]);
        fs::write(directory.path().join("00000002.history"), &second).unwrap();
        let third = format!("{second}2\t0/{:X}\treason\n", forks[1]);
        fs::write(directory.path().join("00000003.history"), third).unwrap();
        directory
    }

    #[test]
    fn only_what_was_never_flushed_is_removed() {
        let full = [1, 2, 3, 4];
        for (parent, child, gone) in [
            (full, full, false),
            (full, [0; 4], true),
            (full, [1, 2, 0, 0], true),
            // What follows the fork is the child's own.
            (full, [1, 2, 3, 0], false),
            // The parent has less, or something else.
            ([1, 0, 0, 0], full, false),
            ([0; 4], [0; 4], false),
            (full, [1, 9, 0, 0], false),
        ] {
            let wal = wal();
            segment(wal.path(), 1, parent);
            segment(wal.path(), 2, child);
            let removed = remove(wal.path(), 1, SIZE).unwrap();
            assert_eq!(!removed.is_empty(), gone, "{parent:?} {child:?} {removed:?}");
            assert!(remove(wal.path(), 2, SIZE).unwrap().is_empty(), "that timeline was flushed");
        }
    }

    #[test]
    fn a_file_without_an_older_one_stays_and_one_that_is_gone_is_no_model() {
        let wal = wal();
        segment(wal.path(), 3, [0; 4]);
        assert!(remove(wal.path(), 1, SIZE).unwrap().is_empty());
        segment(wal.path(), 1, [1, 2, 3, 4]);
        segment(wal.path(), 2, [1, 0, 0, 0]);
        assert_eq!(remove(wal.path(), 1, SIZE).unwrap().len(), 2);
    }
}
