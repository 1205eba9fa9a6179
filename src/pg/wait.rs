//! Waiting, and surviving an ERROR, in a background worker.

use std::panic::UnwindSafe;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};

use crate::pg::slots;

/// Waits until this process's latch is set or `timeout` (rounded up to ms) has passed, and resets the latch.
/// Ends the process if the postmaster has died. Main thread only.
pub fn latch(timeout: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let ms = timeout.as_micros().div_ceil(1000).try_into().unwrap_or(i64::MAX);
    // SAFETY: MyLatch is this process's own latch; it is set in every process of the server.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, ms, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// Looks at a condition once a millisecond until it holds or `limit` has passed; tells whether it holds.
pub fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        latch(Duration::from_millis(1));
    }
}

/// Runs something that may raise an ERROR, in a worker without a transaction. After an ERROR everything that
/// it may have left behind is released, as PostgreSQL's own auxiliary processes do it, and its text returned.
pub fn caught<R>(work: impl FnOnce() -> Result<R, String> + UnwindSafe) -> Result<R, String> {
    PgTryBuilder::new(work)
        .catch_others(|cause| match cause {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
                clean_up();
                Err(report.message().to_owned())
            }
            panic => panic.rethrow(),
        })
        .execute()
}

fn clean_up() {
    // SAFETY: no transaction and no resource owner in this process; these are the calls of
    // `CheckpointerMain`'s and `WalWriterMain`'s error handlers for what biha's workers use.
    unsafe {
        pg_sys::LWLockReleaseAll();
        pg_sys::ConditionVariableCancelSleep();
        pg_sys::AtEOXact_Files(false);
        pg_sys::AtEOXact_HashTables(false);
    }
    slots::release_held();
}

/// Has the server asked this worker to end (SIGTERM)?
pub fn stop_requested() -> bool {
    // SAFETY: a word that only this process's signal handler sets.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}
