//! The startup process from outside: how far it has replayed, and what holds it.

use biha_core::{Lsn, Position};
use pgrx::pg_sys;
use pgrx::pg_sys::RecoveryPauseState::{RECOVERY_NOT_PAUSED, Type as PauseState};
use pgrx::pg_sys::WaitEventIPC::{
    WAIT_EVENT_RECOVERY_CONFLICT_SNAPSHOT, WAIT_EVENT_RECOVERY_CONFLICT_TABLESPACE,
};

/// Is the server in recovery? Once it is not, it stays so until shared memory is made anew.
pub fn in_progress() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
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

fn pause_state() -> PauseState {
    // SAFETY: reads shared memory under its spinlock.
    unsafe { pg_sys::GetRecoveryPauseState() }
}

/// If replay is paused, makes the startup process go round its waiting loop once, where it reads changed
/// settings; by itself it does so only once a second. It stays paused, but may replay the record it waits at.
pub fn stir_pause() {
    if pause_state() != RECOVERY_NOT_PAUSED {
        // SAFETY: changes shared memory under its spinlock, as pg_wal_replay_resume() and _pause() do.
        unsafe {
            pg_sys::SetRecoveryPause(false);
            pg_sys::SetRecoveryPause(true);
        }
    }
}

/// Does a query on this standby keep the startup process from replaying?
pub fn held_by_conflict() -> bool {
    // SAFETY: ProcGlobal and its array live as long as shared memory; auxiliary processes' entries come
    // after those of backends; wait_event_info is a word that others may read at any time.
    unsafe {
        let all = &*pg_sys::ProcGlobal;
        (pg_sys::MaxBackends as usize..all.allProcCount as usize).any(|i| {
            let event = (&raw const (*all.allProcs.add(i)).wait_event_info).read_volatile();
            // Of the auxiliary processes only this one waits for heavyweight locks and buffer pins.
            matches!(event & 0xff00_0000, pg_sys::PG_WAIT_LOCK | pg_sys::PG_WAIT_BUFFER_PIN)
                || matches!(
                    event,
                    WAIT_EVENT_RECOVERY_CONFLICT_SNAPSHOT | WAIT_EVENT_RECOVERY_CONFLICT_TABLESPACE
                )
        })
    }
}

/// Cancels all queries on this standby, and ends sessions that are idle in a transaction, as a recovery
/// conflict does whose delay has passed.
pub fn cancel_conflicting() {
    // SAFETY: signals backends under ProcArrayLock; a backend outside a transaction ignores it.
    unsafe {
        pg_sys::CancelDBBackends(
            pg_sys::InvalidOid,
            pg_sys::ProcSignalReason::PROCSIG_RECOVERY_CONFLICT_SNAPSHOT,
            true,
        );
    }
}
