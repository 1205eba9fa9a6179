//! The request for a restart in place, and the operator's stop that beats it.
//!
//! Both lie in memory that the postmaster shares with its children and that is not PostgreSQL's, which is
//! unmapped when they are read. A request is never on disk: a leader whose disk is sick must be able to step
//! down, and no request can outlive the postmaster that it was made to, which a failing start could repeat.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use biha_core::{Lsn, Position};

use crate::pg::sharedpage::Shareable;

/// Longest conninfo of a repair's source, in bytes.
pub const MAX_SOURCE: usize = 3072;

const FREE: u32 = 0;
const WRITING: u32 = 1;
const ASKED: u32 = 2;

const NO_REPAIR: u32 = 0;
const REWIND: u32 = 1;
const RECLONE: u32 = 2;

/// A restart that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do before the start.
    pub repair: Option<Repair>,
}

/// How the data directory is made one that can follow. The source is a conninfo of keywords and values, without a
/// password: it shows in the process list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// pg_rewind against this server.
    Rewind(String),
    /// A new copy.
    Reclone {
        /// Of this server.
        source: String,
        /// Where this node's WAL ends.
        end: Position,
    },
}

impl Repair {
    fn parts(&self) -> (u32, &str, Position) {
        match self {
            Repair::Rewind(source) => (REWIND, source, Position { timeline: 0, lsn: Lsn(0) }),
            Repair::Reclone { source, end } => (RECLONE, source, *end),
        }
    }
}

/// What postmaster and children tell each other. All zeros: nothing was asked.
#[repr(C)]
pub struct Page {
    state: AtomicU32,
    requester: AtomicI32,
    operator_stop: AtomicBool,
    fast_stop: AtomicBool,
    repair: AtomicU32,
    end_timeline: AtomicU32,
    end_lsn: AtomicU64,
    source_len: AtomicUsize,
    source: [AtomicU8; MAX_SOURCE],
}

// SAFETY: only atomics, for which zero is a value.
unsafe impl Shareable for Page {}

impl Page {
    /// Leaves a request in the name of a process, which then signals the postmaster.
    pub fn ask(&self, requester: i32, request: &Request) -> Result<(), String> {
        let nothing = (NO_REPAIR, "", Position { timeline: 0, lsn: Lsn(0) });
        let (repair, source, end) = request.repair.as_ref().map_or(nothing, Repair::parts);
        let source = source.as_bytes();
        if source.len() > MAX_SOURCE {
            return Err(format!("the source's conninfo is longer than {MAX_SOURCE} bytes"));
        }
        if self.operator_stopping() {
            return Err("the server is being stopped".into());
        }
        self.state
            .compare_exchange(FREE, WRITING, Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| "a restart has already been asked for".to_string())?;
        for (place, byte) in self.source.iter().zip(source) {
            place.store(*byte, Ordering::Relaxed);
        }
        self.source_len.store(source.len(), Ordering::Relaxed);
        self.repair.store(repair, Ordering::Relaxed);
        self.end_timeline.store(end.timeline, Ordering::Relaxed);
        self.end_lsn.store(end.lsn.0, Ordering::Relaxed);
        self.requester.store(requester, Ordering::Relaxed);
        self.state.store(ASKED, Ordering::SeqCst);
        Ok(())
    }

    /// Has this process left a request? Async-signal-safe.
    pub fn asked_by(&self, process: i32) -> bool {
        self.state.load(Ordering::SeqCst) == ASKED && self.requester.load(Ordering::Relaxed) == process
    }

    /// The request, once.
    pub fn take(&self) -> Option<Request> {
        if self.state.load(Ordering::SeqCst) != ASKED {
            return None;
        }
        let len = self.source_len.load(Ordering::Relaxed).min(MAX_SOURCE);
        let source: Vec<u8> = self.source.iter().take(len).map(|b| b.load(Ordering::Relaxed)).collect();
        let source = String::from_utf8_lossy(&source).into_owned();
        let end = Position {
            timeline: self.end_timeline.load(Ordering::Relaxed),
            lsn: Lsn(self.end_lsn.load(Ordering::Relaxed)),
        };
        let repair = match self.repair.load(Ordering::Relaxed) {
            REWIND => Some(Repair::Rewind(source)),
            RECLONE => Some(Repair::Reclone { source, end }),
            _ => None,
        };
        self.forget();
        Some(Request { repair })
    }

    /// Drops a request that led to nothing.
    pub fn forget(&self) {
        self.state.store(FREE, Ordering::SeqCst);
    }

    /// Remembers that somebody else than biha stops the server. Async-signal-safe.
    pub fn note_operator_stop(&self) {
        self.operator_stop.store(true, Ordering::SeqCst);
    }

    /// Has somebody else than biha asked the server to stop?
    pub fn operator_stopping(&self) -> bool {
        self.operator_stop.load(Ordering::SeqCst)
    }

    /// Remembers that a fast shutdown begins, whoever asked for it. Async-signal-safe.
    pub fn note_fast_stop(&self) {
        self.fast_stop.store(true, Ordering::SeqCst);
    }

    /// Has a fast shutdown begun?
    pub fn stopping_fast(&self) -> bool {
        self.fast_stop.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn page() -> Box<Page> {
        Box::new(Page {
            state: AtomicU32::new(0),
            requester: AtomicI32::new(0),
            operator_stop: AtomicBool::new(false),
            fast_stop: AtomicBool::new(false),
            repair: AtomicU32::new(0),
            end_timeline: AtomicU32::new(0),
            end_lsn: AtomicU64::new(0),
            source_len: AtomicUsize::new(0),
            source: [const { AtomicU8::new(0) }; MAX_SOURCE],
        })
    }

    #[test]
    fn a_request_is_taken_once_and_belongs_to_who_made_it() {
        let page = page();
        assert_eq!(page.take(), None);
        let source = "host=a dbname=b".to_string();
        let end = Position { timeline: 7, lsn: Lsn(0x1_0000_00A0) };
        for repair in [Repair::Rewind(source.clone()), Repair::Reclone { source, end }] {
            let request = Request { repair: Some(repair) };
            page.ask(7, &request).unwrap();
            assert!(page.asked_by(7) && !page.asked_by(8));
            assert_eq!(page.take(), Some(request));
            assert_eq!(page.take(), None);
            assert!(!page.asked_by(7));
        }
        page.ask(8, &Request { repair: None }).unwrap();
        assert_eq!(page.take(), Some(Request { repair: None }));
    }

    #[test]
    fn a_second_request_is_refused() {
        let page = page();
        page.ask(7, &Request { repair: None }).unwrap();
        assert!(page.ask(8, &Request { repair: None }).is_err());
        assert!(page.asked_by(7));
    }

    #[test]
    fn no_request_after_an_operators_stop_and_none_too_long() {
        let page = page();
        let long = Repair::Rewind("x".repeat(MAX_SOURCE + 1));
        assert!(page.ask(7, &Request { repair: Some(long) }).is_err());
        page.note_operator_stop();
        assert!(page.ask(7, &Request { repair: None }).is_err());
        assert_eq!(page.take(), None);
    }
}
