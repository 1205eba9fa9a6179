//! PostgreSQL's WAL: promotion, checkpoints, the archive.

use std::ffi::CString;

use biha_core::Timeline;
use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;

use crate::pg::{postmaster, recovery, xact};

unsafe extern "C-unwind" {
    fn RequestCheckpoint(flags: std::ffi::c_int);
    fn XLogArchiveNotify(xlog: *const std::ffi::c_char);
}

/// Size of a WAL page's header in bytes, of a segment's first page and of the others: PostgreSQL's `SizeOfXLogLongPHD` and
/// `SizeOfXLogShortPHD`.
const LONG_PAGE_HEADER: u64 = 40;
const SHORT_PAGE_HEADER: u64 = 24;

/// The file that asks for a promotion; PostgreSQL's `PROMOTE_SIGNAL_FILE`.
pub const PROMOTE_FILE: &str = "promote";

/// Size of a WAL segment in bytes.
pub fn segment_size() -> u64 {
    // SAFETY: a plain value, read from the control file at start.
    u64::try_from(unsafe { pg_sys::wal_segment_size }).unwrap_or(1)
}

/// The timeline that a server in production writes.
pub fn timeline_in_production() -> Option<Timeline> {
    // SAFETY: reads shared memory; only valid once recovery has ended, which is looked at first.
    (!recovery::in_progress()).then(|| unsafe { pg_sys::GetWALInsertionTimeLine() })
}

/// Has the checkpointer make a checkpoint, as fast as it can be made and even if nothing has been written since
/// the last one; does not wait for it.
pub fn begin_checkpoint() {
    let flags = (pg_sys::CHECKPOINT_IMMEDIATE | pg_sys::CHECKPOINT_FORCE) as i32;
    // SAFETY: sets flags in shared memory and wakes the checkpointer; the boundary makes its ERROR a panic.
    unsafe { pg_guard_ffi_boundary(|| RequestCheckpoint(flags)) };
}

/// Has the WAL writer flush all WAL, if there is some that is not flushed. What a transaction has written that failed (hint
/// bits, pruned pages) PostgreSQL leaves in memory until the next commit or the background writer's next snapshot: 15 s on
/// an idle server (`RecordTransactionAbort` in xact.c).
pub fn flush_soon() {
    // SAFETY: reads shared memory; the server is in production.
    let inserted = page_end(unsafe { pg_sys::GetXLogInsertRecPtr() }, segment_size());
    if inserted > xact::flushed().0 {
        // SAFETY: sets a position in shared memory and wakes the WAL writer.
        unsafe { pg_sys::XLogSetAsyncXactLSN(inserted) };
    }
}

/// The end of WAL that the place for the next record stands for. At the beginning of a page that place is behind a page
/// header, which nobody has written yet.
fn page_end(place: u64, segment_size: u64) -> u64 {
    let page = u64::from(pg_sys::XLOG_BLCKSZ);
    let header = if place % segment_size < page { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER };
    if place % page == header { place - header } else { place }
}

/// Is WAL archived?
pub fn archiving() -> bool {
    // SAFETY: a plain value, the same in all processes.
    unsafe { pg_sys::XLogArchiveMode != pg_sys::ArchiveMode::ARCHIVE_MODE_OFF as i32 }
}

/// Has the archiver archive a file of pg_wal. A file that cannot be marked is logged as a WARNING.
pub fn archive(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: creates a file in pg_wal/archive_status and wakes the archiver; as above.
        unsafe { pg_guard_ffi_boundary(|| XLogArchiveNotify(name.as_ptr())) };
    }
}

/// Sends the postmaster a signal.
pub fn signal_postmaster(signal: i32) {
    // SAFETY: kill(2) on this process's own postmaster, whose death ends this process.
    unsafe { libc::kill(postmaster::pid(), signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_header_that_nobody_has_written_is_not_waited_for() {
        const SEGMENT: u64 = 16 << 20;
        for (place, end) in [(40, 0), (41, 41), (8192 + 24, 8192), (8192 + 40, 8192 + 40), (8192, 8192)] {
            assert_eq!(page_end(3 * SEGMENT + place, SEGMENT), 3 * SEGMENT + end);
        }
    }
}
