//! Every difference between PostgreSQL 15, 16, 17 and 18 that biha meets.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;

/// The class of waits for a buffer pin.
#[cfg(any(feature = "pg15", feature = "pg16"))]
pub const PG_WAIT_BUFFER_PIN: u32 = pg_sys::PG_WAIT_BUFFER_PIN;
/// The class of waits for a buffer pin.
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub const PG_WAIT_BUFFER_PIN: u32 = pg_sys::PG_WAIT_BUFFERPIN;

/// Has WAL been removed that this slot should have kept?
#[cfg(feature = "pg15")]
pub fn slot_is_lost(data: &pg_sys::ReplicationSlotPersistentData) -> bool {
    data.restart_lsn == 0 && data.invalidated_at != 0
}

/// Has WAL been removed that this slot should have kept?
#[cfg(not(feature = "pg15"))]
pub fn slot_is_lost(data: &pg_sys::ReplicationSlotPersistentData) -> bool {
    data.invalidated != pg_sys::ReplicationSlotInvalidationCause::RS_INVAL_NONE
}

/// Creates and acquires a physical slot that is dropped with its release, unless it is made persistent.
///
/// # Safety
/// This process holds no slot. Raises an ERROR if the name is taken or no slot is free.
pub unsafe fn create_physical_slot(name: &CStr) {
    let persistency = pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL;
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, persistency, false);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        pg_sys::ReplicationSlotCreate(name.as_ptr(), false, persistency, false, false, false);
    }
}

/// Acquires a slot, without waiting for another process to release it.
///
/// # Safety
/// This process holds no slot. Raises an ERROR if there is no such slot or another process has it.
pub unsafe fn acquire_slot(name: &CStr) {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true);
        #[cfg(feature = "pg18")]
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, true);
    }
}

unsafe extern "C-unwind" {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    fn BackendIdGetProc(backend: std::ffi::c_int) -> *mut pg_sys::PGPROC;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    fn ProcNumberGetProc(number: std::ffi::c_int) -> *mut pg_sys::PGPROC;
}

/// The processes that take part in invalidation now: those with a database, and WAL senders.
pub fn backends() -> impl Iterator<Item = *mut pg_sys::PGPROC> {
    // SAFETY: a plain value, the same in all processes.
    let count = unsafe { pg_sys::MaxBackends };
    (0..count)
        // SAFETY: looked up in shared memory under its lock; null for a number that nobody has.
        .map(|number| unsafe {
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            let found = pg_guard_ffi_boundary(|| BackendIdGetProc(number + 1));
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let found = pg_guard_ffi_boundary(|| ProcNumberGetProc(number));
            found
        })
        .filter(|process| !process.is_null())
}
