//! The WAL senders from outside.

use biha_core::Lsn;
use pgrx::pg_sys;

use super::compat;

/// One WAL sender, as it was a moment ago.
#[derive(Clone, Copy, Debug)]
struct Sender {
    pid: i32,
    /// Its standby is one of the synchronous ones.
    counts: bool,
    /// And has caught up.
    synchronous: bool,
    /// What its standby has on disk.
    flushed: u64,
}

/// Calls `look` for each WAL sender there is.
fn each(mut look: impl FnMut(Sender)) {
    // SAFETY: the array has max_wal_senders entries and lives as long as shared memory.
    let senders = unsafe { (&raw mut (*pg_sys::WalSndCtl).walsnds).cast::<pg_sys::WalSnd>() };
    // SAFETY: a plain value, the same in all processes.
    for i in 0..usize::try_from(unsafe { pg_sys::max_wal_senders }).unwrap_or(0) {
        // SAFETY: an entry of the array; its words are read under its spinlock.
        let sender = unsafe {
            let entry = senders.add(i);
            pg_sys::SpinLockAcquire(&raw mut (*entry).mutex);
            let caught_up = (*entry).state == pg_sys::WalSndState::WALSNDSTATE_STREAMING;
            let counts = (*entry).sync_standby_priority > 0;
            let sender = Sender {
                pid: (*entry).pid,
                counts,
                synchronous: caught_up && counts,
                flushed: (*entry).flush,
            };
            pg_sys::SpinLockRelease(&raw mut (*entry).mutex);
            sender
        };
        if sender.pid != 0 {
            look(sender);
        }
    }
}

/// Asks every WAL sender to end; returns how many there were.
pub fn terminate_all() -> usize {
    let mut ended = 0;
    each(|sender| {
        // SAFETY: kill(2); a WAL sender clears its pid before it ends, so this reaches processes of this server.
        if unsafe { libc::kill(sender.pid, libc::SIGTERM) } == 0 {
            ended += 1;
        }
    });
    ended
}

/// Process numbers of all WAL senders.
pub fn pids() -> Vec<i32> {
    let mut pids = Vec::new();
    each(|sender| pids.push(sender.pid));
    pids
}

/// Process numbers of those whose standbys PostgreSQL takes for synchronous.
pub fn counted() -> Vec<i32> {
    let mut pids = Vec::new();
    each(|sender| pids.extend(sender.counts.then_some(sender.pid)));
    pids
}

/// How many synchronous standbys have flushed the WAL up to here. Allocates nothing and raises no ERROR.
pub fn synchronous_at(end: Lsn) -> u32 {
    let mut count = 0;
    each(|sender| count += u32::from(sender.synchronous && sender.flushed >= end.0));
    count
}

/// What `count` synchronous standbys have flushed; 0 if there are fewer, or as long as commits do not wait for them. Each
/// counts once: a member streams through its own slot, which has one sender.
pub fn flushed_by(count: u32) -> Lsn {
    if !commits_wait() {
        return Lsn(0);
    }
    let mut flushed = Vec::new();
    each(|sender| flushed.extend(sender.synchronous.then_some(sender.flushed)));
    flushed.sort_unstable_by(|a, b| b.cmp(a));
    let enough = (count as usize).checked_sub(1).and_then(|index| flushed.get(index));
    Lsn(enough.copied().unwrap_or(0))
}

/// Do commits wait for synchronous standbys? Not before the checkpointer has read that there are any, whatever the others
/// have read: they go by its word (syncrep.c:SyncRepWaitForLSN), and it reads nothing in the middle of a checkpoint that
/// somebody waits for.
fn commits_wait() -> bool {
    // SAFETY: a byte of shared memory that the checkpointer alone writes; a look without the lock is as good as an earlier
    // one. It follows `lsn` in all releases, and has not the same name in all.
    let status = unsafe { (&raw const (*pg_sys::WalSndCtl).lsn).add(1).cast::<u8>().read_volatile() };
    compat::has_synchronous_standbys(status)
}
