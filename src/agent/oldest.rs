//! How far back pg_wal goes: what a follower needs to know whether this leader can still help it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, io};

use biha_core::Lsn;
use pgrx::warning;

use super::history;
use crate::board;
use crate::pg::{recovery, xlog};

/// How often to look: a follower takes longer to find that it gets nothing.
const PERIOD: Duration = Duration::from_secs(5);

/// Looks now and then.
#[derive(Default)]
pub struct Watch {
    looked: Option<Instant>,
}

impl Watch {
    /// Tells the controller where the oldest WAL starts, as long as this server writes WAL.
    pub fn keep(&mut self) {
        if recovery::in_progress() || self.looked.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        self.looked = Some(Instant::now());
        match oldest() {
            Ok(oldest) => board::gate().oldest_wal.store(oldest.map_or(0, |lsn| lsn.0), Ordering::Relaxed),
            Err(error) => warning!("could not read directory \"{}\": {error}", history::DIR),
        }
    }
}

fn oldest() -> io::Result<Option<Lsn>> {
    let mut oldest = None;
    for entry in fs::read_dir(history::DIR)? {
        let name = entry?.file_name();
        let start = name.to_str().and_then(|name| segment_start(name, xlog::segment_size()));
        oldest = start.into_iter().chain(oldest).min();
    }
    Ok(oldest)
}

/// Where a segment of this name starts; `None` if it is no segment's name (`XLogFileName` in
/// src/include/access/xlog_internal.h).
fn segment_start(name: &str, segment_size: u64) -> Option<Lsn> {
    if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
        return None;
    }
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
    Some(Lsn((number(&name[8..16])? << 32) + number(&name[16..])? * segment_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_starts_where_its_name_says() {
        let mb = 16 << 20;
        assert_eq!(segment_start("000000030000000200000005", mb), Some(Lsn((2 << 32) + 5 * mb)));
        for other in ["00000003.history", "000000030000000200000005.partial", "archive_status", ""] {
            assert_eq!(segment_start(other, mb), None, "{other}");
        }
    }
}
