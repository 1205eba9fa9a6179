//! PostgreSQL's WAL: promotion, checkpoints, the archive.

use std::ffi::CString;

use biha_core::Timeline;
use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;

use crate::pg::{postmaster, recovery};

unsafe extern "C-unwind" {
    fn RequestCheckpoint(flags: std::ffi::c_int);
    fn XLogArchiveNotify(xlog: *const std::ffi::c_char);
}

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
