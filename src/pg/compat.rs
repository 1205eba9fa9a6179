//! Every difference between PostgreSQL 15, 16, 17 and 18 that biha meets.

use std::ffi::CStr;
use std::sync::OnceLock;

use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;

use super::settings;

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

/// Has the checkpointer found synchronous standbys in the settings? From what it says of them in shared memory: a truth
/// value before 15.13, 16.9 and 17.5, bits since (`SYNC_STANDBY_DEFINED`, walsender_private.h).
pub fn has_synchronous_standbys(status: u8) -> bool {
    const DEFINED: u8 = 1 << 1;
    static BITS: OnceLock<bool> = OnceLock::new();
    let bits = *BITS.get_or_init(|| has_standby_bits(server_version()));
    if bits { status & DEFINED != 0 } else { status != 0 }
}

fn has_standby_bits(version: u32) -> bool {
    !matches!(version, 150_000..150_013 | 160_000..160_009 | 170_000..170_005)
}

/// Of the server that runs, as `server_version_num`: it may be of another minor release than what biha was built with.
fn server_version() -> u32 {
    settings::get(c"server_version_num")
        .and_then(|number| number.parse().ok())
        .unwrap_or(pg_sys::PG_VERSION_NUM)
}

/// What keeps libpq from giving its password in clear to whoever asks for it at a member's address.
#[cfg(feature = "pg15")]
pub const PASSWORD_IS_SECRET: &str = "";
/// What keeps libpq from giving its password in clear to whoever asks for it at a member's address.
#[cfg(not(feature = "pg15"))]
pub const PASSWORD_IS_SECRET: &str = " require_auth='!password'";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_say_differently_that_there_are_synchronous_standbys() {
        for (version, bits) in [(150_012, false), (150_013, true), (160_008, false), (160_009, true)] {
            assert_eq!(has_standby_bits(version), bits, "{version}");
        }
        for (version, bits) in [(170_004, false), (170_005, true), (180_000, true)] {
            assert_eq!(has_standby_bits(version), bits, "{version}");
        }
    }
}
