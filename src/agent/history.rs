//! Timeline history files (`pg_wal/N.history`). An empty one is a placeholder: a number that an election
//! used up without opening that timeline.

use std::fs;
use std::io;

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
    match fs::read_to_string(path(timeline)) {
        Ok(text) => parse(timeline, &text)
            .ok_or_else(|| io::Error::other(format!("file \"{}\" is not valid", path(timeline)))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => parse(timeline, "").ok_or_else(|| io::Error::other("")),
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
