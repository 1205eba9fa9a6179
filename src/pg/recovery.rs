//! The startup process from outside: how far it has replayed, and what holds it.

use biha_core::{Lsn, Position};
use pgrx::pg_sys;
use pgrx::pg_sys::WaitEventIPC::{
    WAIT_EVENT_RECOVERY_CONFLICT_SNAPSHOT, WAIT_EVENT_RECOVERY_CONFLICT_TABLESPACE,
};

use super::compat::PG_WAIT_BUFFER_PIN;

/// Is the server in recovery? Once it is not, it stays so until shared memory is made anew.
pub fn in_progress() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Has recovery reached a consistent state, so that read-only sessions are let in, or ended?
pub fn past_startup() -> bool {
    // SAFETY: reads shared memory.
    !in_progress() || unsafe { pg_sys::HotStandbyActive() }
}

/// End of the last record replayed, and the timeline of that record; `None` before replay has begun.
pub fn replayed() -> Option<Position> {
    let mut timeline = 0;
    // SAFETY: reads shared memory under its spinlock.
    let lsn = unsafe { pg_sys::GetXLogReplayRecPtr(&mut timeline) };
    (lsn != 0).then_some(Position { timeline, lsn: Lsn(lsn) })
}

/// Wakes the startup process where it waits for WAL: it tries again at once.
pub fn wake() {
    // SAFETY: sets a latch in shared memory.
    unsafe { pg_sys::WakeupRecovery() };
}

/// Ends a pause of replay (`pg_wal_replay_pause()`), as `pg_wal_replay_resume()` does.
pub fn resume() {
    // SAFETY: changes shared memory under its spinlock and wakes the startup process.
    unsafe { pg_sys::SetRecoveryPause(false) };
}

/// The startup process, if queries on this standby keep it from replaying.
pub fn held_by_conflict() -> Option<i32> {
    // SAFETY: ProcGlobal and its array live as long as shared memory; auxiliary processes' entries come
    // after those of backends; the words looked at may be read at any time.
    unsafe {
        let all = &*pg_sys::ProcGlobal;
        (pg_sys::MaxBackends as usize..all.allProcCount as usize).find_map(|i| {
            let process = all.allProcs.add(i);
            let event = (&raw const (*process).wait_event_info).read_volatile();
            is_conflict(event).then(|| (&raw const (*process).pid).read_volatile())
        })
    }
}

/// Of the auxiliary processes only the startup process waits for heavyweight locks and buffer pins.
fn is_conflict(event: u32) -> bool {
    matches!(event & 0xff00_0000, pg_sys::PG_WAIT_LOCK | PG_WAIT_BUFFER_PIN)
        || matches!(event, WAIT_EVENT_RECOVERY_CONFLICT_SNAPSHOT | WAIT_EVENT_RECOVERY_CONFLICT_TABLESPACE)
}

/// Cancels all queries on this standby, and ends sessions that are idle in a transaction, as a recovery
/// conflict does whose delay has passed. The startup process sleeps up to a second before it looks whether
/// they are gone: a signal ends that sleep.
pub fn cancel_conflicting(startup: i32) {
    // SAFETY: signals backends under ProcArrayLock; a backend outside a transaction ignores it. kill(2) on a
    // process of this server that lives as long as recovery; SIGHUP makes it read its settings.
    unsafe {
        pg_sys::CancelDBBackends(
            pg_sys::InvalidOid,
            pg_sys::ProcSignalReason::PROCSIG_RECOVERY_CONFLICT_SNAPSHOT,
            true,
        );
        libc::kill(startup, libc::SIGHUP);
    }
}
