//! The WAL senders from outside.

use pgrx::pg_sys;

/// Asks every WAL sender to end; returns how many there were.
pub fn terminate_all() -> usize {
    // SAFETY: the array has max_wal_senders entries and lives as long as shared memory; each entry's pid is
    // read under its spinlock. kill(2) reaches processes of this server only: a WAL sender clears its pid
    // before it ends.
    unsafe {
        let senders = (&raw mut (*pg_sys::WalSndCtl).walsnds).cast::<pg_sys::WalSnd>();
        let mut ended = 0;
        for i in 0..usize::try_from(pg_sys::max_wal_senders).unwrap_or(0) {
            let sender = senders.add(i);
            pg_sys::SpinLockAcquire(&raw mut (*sender).mutex);
            let pid = (*sender).pid;
            pg_sys::SpinLockRelease(&raw mut (*sender).mutex);
            if pid != 0 && libc::kill(pid, libc::SIGTERM) == 0 {
                ended += 1;
            }
        }
        ended
    }
}
