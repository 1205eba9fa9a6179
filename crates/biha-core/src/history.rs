//! Timeline histories: does one node's WAL lie on another's?

use crate::message::HistoryEntry;
use crate::{Lsn, Position};

/// How many timelines of its history a leader tells of: the newest. A node that was away for longer finds its own in none,
/// and has to be rewound or copied anew; the WAL between is long gone as a rule.
pub const MAX_HISTORY: usize = 1024;

/// The part of a history (oldest first) that is told.
pub fn newest(mut history: Vec<HistoryEntry>) -> Vec<HistoryEntry> {
    history.split_off(history.len().saturating_sub(MAX_HISTORY))
}

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
    fn of_a_long_history_the_newest_is_told_and_fits_a_message() {
        let long: Vec<_> = (1..=5000).map(|at| entry(at, u64::from(at))).collect();
        let told = newest(long.clone());
        assert_eq!(told, long[5000 - MAX_HISTORY..]);
        assert_eq!(ancestry(at(4990, 4991), &told), Ancestry::Contained);
        assert_eq!(ancestry(at(1, 1), &told), Ancestry::Parted(Lsn(0)));
        assert_eq!(newest(long[..3].to_vec()), long[..3]);
        assert!(crate::wire::pack(&told).unwrap().len() < crate::wire::MAX_BODY / 4);
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
