//! What rewinds of this node discarded, read from the WAL that was kept of it.

use std::path::Path;

use pgrx::prelude::*;

use super::error_with_hint;
use crate::agent::history;
use crate::lost::{self, Set};
use crate::pg::postmaster;
use crate::pg::walreader::{Transaction, WalReader};

/// How many records to read between two looks whether the query was cancelled.
const STEPS: usize = 1000;

/// A transaction that was lost.
struct Lost {
    /// Place of its set.
    set: usize,
    timeline: u32,
    transaction: Transaction,
    lsn: biha_core::Lsn,
}

#[pg_extern(stable, parallel_safe)]
#[allow(clippy::type_complexity, reason = "pgrx derives the columns from this type")]
fn lost_transactions() -> TableIterator<
    'static,
    (
        name!(timeline, i64),
        name!(xid, i64),
        name!(commit_time, TimestampWithTimeZone),
        name!(lsn, String),
        name!(kind, String),
        name!(wal_directory, String),
    ),
> {
    let data = std::fs::canonicalize(postmaster::data_directory()).unwrap_or_default();
    let directory = lost::directory(&data);
    let sets = lost::sets(&directory).unwrap_or_else(|error| unreadable(&directory, &error.to_string()));
    let mut rows = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        if let Err(text) = read(number, set, &mut rows) {
            unreadable(&set.path, &text);
        }
    }
    TableIterator::new(rows.into_iter().map(move |row| {
        (
            i64::from(row.timeline),
            i64::from(row.transaction.xid),
            TimestampWithTimeZone::try_from(row.transaction.time)
                .unwrap_or_else(|_| TimestampWithTimeZone::negative_infinity()),
            row.lsn.to_string(),
            row.transaction.kind.name().to_owned(),
            sets[row.set].path.display().to_string(),
        )
    }))
}

fn unreadable(path: &Path, text: &str) -> ! {
    error_with_hint(
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        format!("could not read the kept WAL in \"{}\": {text}", path.display()),
        "Move what cannot be read elsewhere; nothing else refers to it.",
    )
}

fn read(number: usize, set: &Set, rows: &mut Vec<Lost>) -> Result<(), String> {
    let chain = history::read_in(&set.path, set.timeline).map_err(|e| e.to_string())?;
    let mut reader = WalReader::of_directory(set.path.clone(), chain.clone()).ok_or("out of memory")?;
    if !reader.seek_first(set.fork) {
        return Err(format!("no record follows {}", set.fork));
    }
    for step in 1.. {
        let Some(record) = reader.next() else { break };
        if let Some(transaction) = reader.transaction() {
            let timeline = history::timeline_at(&chain, record.start).unwrap_or(set.timeline);
            rows.push(Lost { set: number, timeline, transaction, lsn: record.start });
        }
        if step % STEPS == 0 {
            pgrx::check_for_interrupts!();
        }
    }
    Ok(())
}
