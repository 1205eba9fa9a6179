//! Where this node's WAL ends, read from the WAL itself once nothing is being received any more.

use biha_core::{HistoryEntry, Position, Timeline};

use super::history;
use crate::pg::recovery;
use crate::pg::walreader::WalReader;

/// The end of the local WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Timeline of the last record, end of the last complete record.
    pub position: Position,
    /// The last record is a shutdown checkpoint.
    pub complete: bool,
}

/// Reads on from the replay position to the end of the local WAL, also onto newer timelines that were
/// received but not replayed yet. Fails if replay has not begun, or the WAL cannot be read.
pub fn read() -> Result<End, String> {
    let replayed = recovery::replayed().ok_or("replay has not begun")?;
    let own = history::read(replayed.timeline).map_err(|e| e.to_string())?;
    let mut best = scan(&own, replayed);
    let numbers = history::numbers().map_err(|e| e.to_string())?;
    for newer in numbers.into_iter().filter(|number| *number > replayed.timeline) {
        let chain = history::read(newer).map_err(|e| e.to_string())?;
        if !history::passes(&chain, replayed) {
            continue;
        }
        // Its first segment repeats what the parent wrote into it.
        if let Ok(end) = scan(&chain, replayed)
            && best.as_ref().map_or(true, |best| end.position > best.position)
        {
            best = Ok(end);
        }
    }
    best
}

/// Highest timeline number that pg_wal knows of, placeholders included; at least `own`.
pub fn max_timeline(own: Timeline) -> Result<Timeline, String> {
    let numbers = history::numbers().map_err(|e| e.to_string())?;
    Ok(numbers.last().map_or(own, |newest| own.max(*newest)))
}

/// Follows one history from `from`, the end of a record, to where the valid WAL ends.
fn scan(chain: &[HistoryEntry], from: Position) -> Result<End, String> {
    let mut reader = WalReader::new(chain.to_vec()).ok_or("out of memory")?;
    let last = reader.seek(from.lsn);
    if last.is_none() && !reader.seek_segment_start(from.lsn) {
        return Err(format!("could not read the WAL before {from}"));
    }
    let mut end = End { position: from, complete: last.is_some_and(|record| record.shutdown_checkpoint) };
    while let Some(record) = reader.next() {
        let timeline = history::timeline_at(chain, record.start).unwrap_or(from.timeline);
        end = End { position: Position { timeline, lsn: record.end }, complete: record.shutdown_checkpoint };
    }
    Ok(end)
}
