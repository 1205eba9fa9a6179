//! Processes, latches, signals.

use pgrx::pg_sys;

/// Is this the startup process (recovery)?
pub fn is_startup() -> bool {
    // SAFETY: MyBackendType is a plain value of this process.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_STARTUP }
}

/// Address of this process's latch in shared memory.
pub fn my_latch() -> usize {
    // SAFETY: MyProc is set in every process that reaches shared memory; the latch is part of it.
    unsafe { if pg_sys::MyProc.is_null() { 0 } else { &raw mut (*pg_sys::MyProc).procLatch as usize } }
}

/// Process number of the session that owns a latch (the address comes from [`my_latch`]); 0 for none.
pub fn owner(latch: usize) -> i32 {
    if latch == 0 {
        return 0;
    }
    // SAFETY: such a latch lies in a PGPROC, which is never unmapped.
    unsafe { (&raw const (*(latch as *const pg_sys::Latch)).owner_pid).read_volatile() }
}

/// Has the client of the session that owned this latch as process `pid` the answer to its last word? It has if the
/// session waits for the next one, or has ended. True for 0. Takes no lock: a restart that must come waits for this.
pub fn is_answered(latch: usize, pid: i32) -> bool {
    let Some(process) = latch.checked_sub(std::mem::offset_of!(pg_sys::PGPROC, procLatch)) else {
        return true;
    };
    // SAFETY: the address comes from `my_latch` of a process of this server, whose PGPROC is never unmapped;
    // wait_event_info is a word that others may read at any time.
    let event = unsafe { (&raw const (*(process as *const pg_sys::PGPROC)).wait_event_info).read_volatile() };
    owner(latch) != pid || event == pg_sys::WaitEventClient::WAIT_EVENT_CLIENT_READ
}

/// Wakes the process that owns a latch; 0 does nothing. A latch whose process has gone is harmless: the
/// PGPROC it lies in is never unmapped.
pub fn set_latch(address: usize) {
    if address != 0 {
        // SAFETY: addresses come from `my_latch` of a process of this server.
        unsafe { pg_sys::SetLatch(address as *mut pg_sys::Latch) };
    }
}
