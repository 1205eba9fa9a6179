//! The WAL receiver from outside.

use pgrx::pg_sys;
use pgrx::pg_sys::WalRcvState::{
    WALRCV_RESTARTING, WALRCV_STARTING, WALRCV_STOPPED, WALRCV_STOPPING, WALRCV_STREAMING, WALRCV_WAITING,
};

/// What the WAL receiver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not there.
    Stopped,
    /// There, but receives nothing: connecting, waiting for a new start point, or ending.
    Idle,
    /// Receives, or is about to.
    Streaming,
}

/// What the WAL receiver does now.
pub fn state() -> State {
    match with_lock(|shared| shared.walRcvState) {
        WALRCV_STOPPED => State::Stopped,
        WALRCV_STREAMING => State::Streaming,
        _ => State::Idle,
    }
}

/// The timeline that is being streamed, if one is.
pub fn timeline() -> Option<u32> {
    with_lock(|shared| (shared.walRcvState == WALRCV_STREAMING).then_some(shared.receiveStartTLI))
}

/// Is it the startup process's turn? No receiver is there, or one that has come to the end of its timeline and waits to
/// be told the next.
pub fn awaits_startup() -> bool {
    matches!(with_lock(|shared| shared.walRcvState), WALRCV_STOPPED | WALRCV_WAITING)
}

/// Asks the WAL receiver to end, if there is one: it flushes what it has received and acknowledges nothing
/// more. Returns without waiting; [`state`] tells. As PostgreSQL's `ShutdownWalRcv` does it.
pub fn terminate() {
    let pid = with_lock(|shared| {
        match shared.walRcvState {
            // Not yet forked: it looks at this first, and ends.
            WALRCV_STARTING => shared.walRcvState = WALRCV_STOPPED,
            WALRCV_STREAMING | WALRCV_WAITING | WALRCV_RESTARTING => shared.walRcvState = WALRCV_STOPPING,
            _ => {}
        }
        if shared.walRcvState == WALRCV_STOPPING { shared.pid } else { 0 }
    });
    if pid != 0 {
        // SAFETY: kill(2) on the receiver of this server; it clears its pid before it ends.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

fn with_lock<R>(look: impl FnOnce(&mut pg_sys::WalRcvData) -> R) -> R {
    // SAFETY: WalRcv lives as long as shared memory; its fields are read and written under its spinlock, and
    // `look` only copies words.
    unsafe {
        let shared = pg_sys::WalRcv;
        pg_sys::SpinLockAcquire(&raw mut (*shared).mutex);
        let seen = look(&mut *shared);
        pg_sys::SpinLockRelease(&raw mut (*shared).mutex);
        seen
    }
}
