//! The transaction of this backend.

use std::ffi::c_void;

use biha_core::Millis;
use pgrx::pg_sys;

unsafe extern "C-unwind" {
    fn PostmasterIsAliveInternal() -> bool;
    /// Set by the signal that the kernel sends when the postmaster dies (src/include/storage/pmsignal.h).
    static mut postmaster_possibly_dead: pg_sys::sig_atomic_t;
}

/// What PostgreSQL tells a transaction callback.
pub type Event = pg_sys::XactEvent::Type;

/// Registers a callback for the events of every transaction. In `_PG_init`.
pub fn register(callback: unsafe extern "C-unwind" fn(Event, *mut c_void)) {
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(callback), std::ptr::null_mut()) };
}

/// Has this transaction a number and written WAL? Then its commit means something to other nodes. The same
/// test as `wrote_xlog` in PostgreSQL's `RecordTransactionCommit`: rows of temporary tables are not it.
#[inline]
pub fn wrote() -> bool {
    // SAFETY: a plain value of this process; the call reads this process's memory.
    unsafe {
        pg_sys::XactLastRecEnd != 0 && pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId
    }
}

/// Is the postmaster alive? A read of memory, and a system call only in doubt.
#[inline]
pub fn postmaster_is_alive() -> bool {
    // SAFETY: a word that only a signal handler of this process sets.
    let doubt = unsafe { (&raw const postmaster_possibly_dead).read_volatile() } != 0;
    // SAFETY: reads a pipe; its errors are FATAL, which does not return here.
    !doubt || unsafe { PostmasterIsAliveInternal() }
}

/// Ends this session without telling the client anything more, as PostgreSQL's `SyncRepWaitForLSN` does: for
/// a commit that is durable, where no ERROR may be raised any more.
pub fn end_session_unacknowledged() {
    // SAFETY: words of this process, set as its own signal handler for SIGTERM sets them.
    unsafe {
        pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone;
        (&raw mut pg_sys::ProcDiePending).write_volatile(1);
        (&raw mut pg_sys::InterruptPending).write_volatile(1);
    }
}

/// Sleeps, without looking at interrupts.
pub fn doze(ms: Millis) {
    std::thread::sleep(std::time::Duration::from_millis(ms));
}
