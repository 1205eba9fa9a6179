//! The sessions of this server, from outside.

use pgrx::pg_sys;

use crate::pg::{compat, walsender};

/// Processes that are connected to a database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Those whose commit waits for synchronous standbys.
    pub waiting: Vec<i32>,
    /// The others.
    pub others: Vec<i32>,
}

/// Looks at all sessions. WAL senders are none.
pub fn sessions() -> Sessions {
    let senders = walsender::pids();
    let mut sessions = Sessions::default();
    for process in compat::backends() {
        // SAFETY: a PGPROC is never unmapped; the words may be read at any time, and what they say may be over the
        // next moment.
        let (pid, database, waiting) = unsafe {
            (
                (&raw const (*process).pid).read_volatile(),
                (&raw const (*process).databaseId).read_volatile(),
                (&raw const (*process).syncRepState).read_volatile() == pg_sys::SYNC_REP_WAITING as i32,
            )
        };
        if pid == 0 || database == pg_sys::InvalidOid || senders.contains(&pid) {
            continue;
        }
        if waiting {
            sessions.waiting.push(pid);
        } else {
            sessions.others.push(pid);
        }
    }
    sessions
}

/// Ends a session.
pub fn terminate(pid: i32) {
    // SAFETY: kill(2) with the number of a process of this server.
    unsafe { libc::kill(pid, libc::SIGTERM) };
}
