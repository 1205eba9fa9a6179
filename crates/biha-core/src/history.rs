//! Timeline histories: does one node's WAL lie on another's?

use crate::message::HistoryEntry;
use crate::{Lsn, Position};

/// Where a position stands to a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ancestry {
    /// It lies on the history: its owner can stream.
    Contained,
    /// Its owner's WAL left the history at this point, or before it where the timeline itself is foreign:
    /// it must be rewound.
    Parted(Lsn),
}

/// Does `position` lie on `history` (oldest first)? A timeline's part of a history ends where the next one
/// begins (PostgreSQL: timeline.c, `tliSwitchPoint`).
pub fn ancestry(position: Position, history: &[HistoryEntry]) -> Ancestry {
    let Some(at) = history.iter().position(|e| e.timeline == position.timeline) else {
        return Ancestry::Parted(Lsn(0));
    };
    match history.get(at + 1) {
        Some(next) if position.lsn > next.fork => Ancestry::Parted(next.fork),
        _ => Ancestry::Contained,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(timeline: u32, fork: u64) -> HistoryEntry {
        HistoryEntry { timeline, fork: Lsn(fork) }
    }

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline, lsn: Lsn(lsn) }
    }

    #[test]
    fn a_position_before_or_at_the_fork_is_contained() {
        let history = [entry(1, 0), entry(4, 100), entry(7, 250)];
        assert_eq!(ancestry(at(1, 99), &history), Ancestry::Contained);
        assert_eq!(ancestry(at(1, 100), &history), Ancestry::Contained);
        assert_eq!(ancestry(at(4, 250), &history), Ancestry::Contained);
        assert_eq!(ancestry(at(7, 9999), &history), Ancestry::Contained);
    }

    #[test]
    fn a_position_past_the_fork_has_parted_there() {
        let history = [entry(1, 0), entry(4, 100), entry(7, 250)];
        assert_eq!(ancestry(at(1, 101), &history), Ancestry::Parted(Lsn(100)));
        assert_eq!(ancestry(at(4, 251), &history), Ancestry::Parted(Lsn(250)));
    }

    #[test]
    fn a_foreign_timeline_has_parted() {
        assert_eq!(ancestry(at(5, 10), &[entry(1, 0), entry(4, 100)]), Ancestry::Parted(Lsn(0)));
    }
}
