//! Timeline history files (`pg_wal/N.history`). An empty one is a placeholder: a number that an election
//! used up without opening that timeline.

use std::fs;
use std::io;
use std::path::Path;

use biha_core::{HistoryEntry, Lsn, Position, Timeline};

/// Where the WAL is.
pub const DIR: &str = "pg_wal";

/// Name of a timeline's history file, as the archive knows it.
pub fn file_name(timeline: Timeline) -> String {
    format!("{timeline:08X}.history")
}

/// Path of a timeline's history file.
pub fn path(timeline: Timeline) -> String {
    format!("{DIR}/{}", file_name(timeline))
}

/// Numbers of all timelines with a history file in pg_wal, placeholders included, ascending.
pub fn numbers() -> io::Result<Vec<Timeline>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DIR)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".history"));
        if let Some(Ok(number)) = number.map(|digits| Timeline::from_str_radix(digits, 16)) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The history of a timeline, oldest first, itself last. Timeline 1, or one whose file is not there or empty,
/// has only itself.
pub fn read(timeline: Timeline) -> io::Result<Vec<HistoryEntry>> {
    read_in(DIR.as_ref(), timeline)
}

/// [`read`], of the history files in another directory.
pub fn read_in(directory: &Path, timeline: Timeline) -> io::Result<Vec<HistoryEntry>> {
    let path = directory.join(file_name(timeline));
    match fs::read_to_string(&path) {
        Ok(text) => parse(timeline, &text)
            .ok_or_else(|| io::Error::other(format!("file \"{}\" is not valid", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            parse(timeline, "").ok_or_else(|| io::Error::other(""))
        }
        Err(e) => Err(e),
    }
}

/// Reads a history file's text: lines of parent timeline, tab, the position where it was left, tab, reason.
pub fn parse(timeline: Timeline, text: &str) -> Option<Vec<HistoryEntry>> {
    let mut entries = Vec::new();
    let mut fork = Lsn(0);
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let mut fields = line.split_whitespace();
        let parent = fields.next()?.parse().ok()?;
        let (high, low) = fields.next()?.split_once('/')?;
        let left = (u64::from_str_radix(high, 16).ok()? << 32) | u64::from_str_radix(low, 16).ok()?;
        entries.push(HistoryEntry { timeline: parent, fork });
        fork = Lsn(left);
    }
    entries.push(HistoryEntry { timeline, fork });
    Some(entries)
}

/// Does this history go through that position?
pub fn passes(history: &[HistoryEntry], position: Position) -> bool {
    let Some(at) = history.iter().position(|entry| entry.timeline == position.timeline) else {
        return false;
    };
    history.get(at + 1).is_none_or(|next| position.lsn <= next.fork)
}

/// The timeline that a record beginning at `start` belongs to.
pub fn timeline_at(history: &[HistoryEntry], start: Lsn) -> Option<Timeline> {
    history.iter().rev().find(|entry| entry.fork <= start).map(|entry| entry.timeline)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const TEXT: &str = "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t1/A0\tno reason\n";

    fn at(timeline: Timeline, lsn: u64) -> Position {
        Position { timeline, lsn: Lsn(lsn) }
    }

    #[test]
    fn a_history_is_read_with_its_forks() {
        let history = parse(7, TEXT).unwrap();
        let entries: Vec<_> = history.iter().map(|entry| (entry.timeline, entry.fork.0)).collect();
        assert_eq!(entries, [(1, 0), (2, 0x300_0000), (7, 0x1_0000_00A0)]);
    }

    #[test]
    fn a_placeholder_has_only_itself() {
        assert_eq!(parse(5, "").unwrap(), [HistoryEntry { timeline: 5, fork: Lsn(0) }]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["x\t0/1\t", "1\t", "1\t12\t", "1\t0/xyz\t"] {
            assert!(parse(2, text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_history_passes_through_what_it_was_forked_from() {
        let history = parse(7, TEXT).unwrap();
        assert!(passes(&history, at(1, 0x300_0000)));
        assert!(!passes(&history, at(1, 0x300_0001)));
        assert!(passes(&history, at(7, u64::MAX)));
        assert!(!passes(&history, at(3, 1)));
        assert!(!passes(&parse(5, "").unwrap(), at(1, 1)));
    }

    #[test]
    fn a_record_belongs_to_the_timeline_it_begins_on() {
        let history = parse(7, TEXT).unwrap();
        let timelines =
            [0x2FF_FFFF, 0x300_0000, 0x1_0000_009F, 0x1_0000_00A0].map(|lsn| timeline_at(&history, Lsn(lsn)));
        assert_eq!(timelines, [Some(1), Some(2), Some(2), Some(7)]);
    }
}
