//! What a background worker needs that has no database.

use std::os::fd::RawFd;

use biha_core::Millis;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::pg_sys;

use crate::pg::{postmaster, settings};

/// Why a wait ended; several may be true.
#[derive(Clone, Copy, Debug)]
pub struct Woken {
    /// The postmaster is dead.
    pub postmaster_died: bool,
}

/// Lets SIGHUP and SIGTERM set flags and the latch, and unblocks signals.
pub fn handle_signals() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // Until now SIGHUP was ignored (bgworker.c, `StartBackgroundWorker`): one that came since the fork is lost.
    settings::reload();
}

/// Was a SIGTERM received since the last call?
pub fn told_to_stop() -> bool {
    BackgroundWorker::sigterm_received()
}

/// Re-reads the configuration files if a SIGHUP was received since the last call; true if so.
pub fn reload_if_told() -> bool {
    if !BackgroundWorker::sighup_received() {
        return false;
    }
    settings::reload();
    true
}

/// Waits for this process's latch, the descriptor, the postmaster's death or `timeout` ms, and resets the latch.
pub fn wait(descriptor: RawFd, timeout: Millis) -> Woken {
    let events =
        pg_sys::WL_LATCH_SET | pg_sys::WL_SOCKET_READABLE | pg_sys::WL_TIMEOUT | pg_sys::WL_POSTMASTER_DEATH;
    // SAFETY: MyLatch is this process's own; the descriptor stays open during the call.
    let woken = unsafe {
        let woken = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            descriptor,
            i64::try_from(timeout).unwrap_or(i64::MAX),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        woken as u32
    };
    Woken { postmaster_died: woken & pg_sys::WL_POSTMASTER_DEATH != 0 }
}

/// Ends the worker so that the postmaster starts it again: a worker that returns, or exits with 0, is gone for
/// good (bgworker.c).
pub fn end() -> ! {
    postmaster::end(1)
}

/// Runs `callback` when this process leaves shared memory, whichever way it ends.
pub fn before_leaving(callback: unsafe extern "C-unwind" fn(i32, pg_sys::Datum)) {
    // SAFETY: the callback is a plain function.
    unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::from(0)) };
}

/// Runs a job in a new thread in which no signal is ever handled: a handler of PostgreSQL's must not run
/// outside the main thread.
pub fn spawn_without_signals(name: &str, job: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: plain sigset operations; the thread inherits the full mask, this one gets its own back.
    unsafe {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
    }
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(job);
    // SAFETY: `old` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut()) };
    started.map(drop)
}
