//! Physical replication slots, from a worker without a database connection.

use std::ffi::{CStr, CString};

use biha_core::Lsn;
use pgrx::pg_sys;

use crate::pg::{compat, wait};

/// `ReplicationSlotControlLock` (lwlocknames.txt, the same in all supported versions).
const CONTROL_LOCK: usize = 37;

/// A physical slot as it is now.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// The process that uses it.
    pub user: Option<i32>,
    /// WAL from here on is kept; `None` if it keeps none, or no more.
    pub restart: Option<Lsn>,
    /// WAL that it should have kept has been removed (`max_slot_wal_keep_size`).
    pub lost: bool,
}

/// All physical slots.
pub fn list() -> Vec<Slot> {
    let mut found = Vec::new();
    // SAFETY: the array has max_replication_slots entries and lives as long as shared memory. in_use and the
    // name change only under the lock held here; the rest is read under the slot's spinlock. Nothing in
    // between can raise an ERROR.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(CONTROL_LOCK)).lock;
        let all =
            (&raw mut (*pg_sys::ReplicationSlotCtl).replication_slots).cast::<pg_sys::ReplicationSlot>();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        for i in 0..usize::try_from(pg_sys::max_replication_slots).unwrap_or(0) {
            let slot = all.add(i);
            if !(*slot).in_use {
                continue;
            }
            pg_sys::SpinLockAcquire(&raw mut (*slot).mutex);
            let (data, user) = ((*slot).data, (*slot).active_pid);
            pg_sys::SpinLockRelease(&raw mut (*slot).mutex);
            if data.database != pg_sys::InvalidOid {
                continue;
            }
            found.push(Slot {
                name: CStr::from_ptr(data.name.data.as_ptr()).to_string_lossy().into_owned(),
                user: (user != 0).then_some(user),
                restart: (data.restart_lsn != 0).then_some(Lsn(data.restart_lsn)),
                lost: compat::slot_is_lost(&data),
            });
        }
        pg_sys::LWLockRelease(lock);
    }
    found
}

/// Creates a physical slot that keeps WAL from the last checkpoint's redo point on.
pub fn create(name: &str) -> Result<(), String> {
    let name = CString::new(name).map_err(|e| e.to_string())?;
    wait::caught(move || {
        // SAFETY: this process holds no slot; `caught` releases what an ERROR leaves behind.
        unsafe {
            compat::create_physical_slot(&name);
            pg_sys::ReplicationSlotReserveWal();
            pg_sys::ReplicationSlotPersist();
            pg_sys::ReplicationSlotRelease();
        }
        Ok(())
    })
}

/// Drops a slot that nobody uses.
pub fn drop(name: &str) -> Result<(), String> {
    let name = CString::new(name).map_err(|e| e.to_string())?;
    wait::caught(move || {
        // SAFETY: this process holds no slot; an ERROR if another uses it.
        unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) };
        Ok(())
    })
}

/// Lets a slot that nobody uses keep WAL only from `to` on; never backwards. Durable with the next
/// checkpoint, as in `pg_replication_slot_advance()`.
pub fn advance(name: &str, to: Lsn) -> Result<(), String> {
    let name = CString::new(name).map_err(|e| e.to_string())?;
    wait::caught(move || {
        // SAFETY: once acquired, the slot is this process's own; its position changes under its spinlock.
        unsafe {
            compat::acquire_slot(&name);
            let slot = pg_sys::MyReplicationSlot;
            pg_sys::SpinLockAcquire(&raw mut (*slot).mutex);
            let moves = (*slot).data.restart_lsn != 0 && (*slot).data.restart_lsn < to.0;
            if moves {
                (*slot).data.restart_lsn = to.0;
            }
            pg_sys::SpinLockRelease(&raw mut (*slot).mutex);
            if moves {
                pg_sys::ReplicationSlotMarkDirty();
                pg_sys::ReplicationSlotsComputeRequiredLSN();
            }
            pg_sys::ReplicationSlotRelease();
        }
        Ok(())
    })
}

/// Lets go of a slot that an ERROR left in this process's hands.
pub fn release_held() {
    // SAFETY: MyReplicationSlot is this process's own.
    unsafe {
        if !pg_sys::MyReplicationSlot.is_null() {
            pg_sys::ReplicationSlotRelease();
        }
    }
}
