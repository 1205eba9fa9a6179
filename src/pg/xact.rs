//! The transaction of this backend.

use std::ffi::{c_int, c_void};

use biha_core::{Lsn, Millis};
use pgrx::pg_sys;

unsafe extern "C-unwind" {
    fn PostmasterIsAliveInternal() -> bool;
    /// Reads this process's memory and raises nothing: called without pgrx's boundary.
    fn GetTopTransactionIdIfAny() -> pg_sys::TransactionId;
    /// As above (src/include/utils/timeout.h).
    fn get_timeout_indicator(id: c_int, reset: bool) -> bool;
    /// Set by the signal that the kernel sends when the postmaster dies (src/include/storage/pmsignal.h).
    static mut postmaster_possibly_dead: pg_sys::sig_atomic_t;
}

/// Timeouts (src/include/utils/timeout.h), in 15 to 18.
const LOCK_TIMEOUT: c_int = 2;
const STATEMENT_TIMEOUT: c_int = 3;

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
    unsafe { pg_sys::XactLastRecEnd != 0 && GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Is this session in a transaction that it has begun itself, or in a part of one that can fail by itself?
pub fn in_block() -> bool {
    // SAFETY: both read this process's memory.
    unsafe { pg_sys::IsTransactionBlock() || pg_sys::IsSubTransaction() }
}

/// Does a commit of this transaction wait until a synchronous standby has it on disk?
pub fn commits_synchronously() -> bool {
    // SAFETY: a plain value of this process.
    unsafe { pg_sys::synchronous_commit >= pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_FLUSH as i32 }
}

/// Has the commit of this transaction do so, as `SET LOCAL synchronous_commit = on` would.
pub fn commit_synchronously() {
    // SAFETY: in a transaction; its end takes the value back.
    unsafe {
        pg_sys::set_config_option(
            c"synchronous_commit".as_ptr(),
            c"on".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// End of the commit record of the transaction that is ending.
pub fn commit_end() -> Lsn {
    // SAFETY: a plain value of this process.
    Lsn(unsafe { pg_sys::XactLastCommitEnd })
}

/// What is on this server's own disk. A prepared transaction's record is, when its events come.
pub fn flushed() -> Lsn {
    // SAFETY: reads shared memory; transactions are written only when recovery has ended.
    Lsn(unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) })
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

/// Forgets that `lock_timeout` or `statement_timeout` has run out, as what they were for is over. False if a statement that
/// is longer than the transaction, such as CALL, has come to the end of its time.
pub fn forget_timeouts() -> bool {
    // SAFETY: plain values of this process, and words that are read and written.
    unsafe {
        let goes_on = !pg_sys::IsTransactionState() && !pg_sys::ActivePortal.is_null();
        get_timeout_indicator(LOCK_TIMEOUT, true);
        !get_timeout_indicator(STATEMENT_TIMEOUT, !goes_on) || !goes_on
    }
}

/// Has `callback` called at the very end of this transaction, when all that it deletes is deleted. Not twice in one.
pub fn at_very_end(callback: unsafe extern "C-unwind" fn(*mut c_void)) {
    static mut ENTRY: pg_sys::MemoryContextCallback =
        pg_sys::MemoryContextCallback { func: None, arg: std::ptr::null_mut(), next: std::ptr::null_mut() };
    // SAFETY: the main thread's. The context ends with the transaction, and forgets the entry before it calls.
    unsafe {
        (&raw mut ENTRY.func).write(Some(callback));
        pg_sys::MemoryContextRegisterResetCallback(pg_sys::TopTransactionContext, &raw mut ENTRY);
    }
}

/// Sleeps, without looking at interrupts.
pub fn doze(ms: Millis) {
    std::thread::sleep(std::time::Duration::from_millis(ms));
}
