//! The commit gate, in every backend: nothing that was written is confirmed unless this node provably leads.
//!
//! It is looked at twice: before the commit record is written, where a transaction can still fail, and before
//! the client is told, where it is durable and can only be left unacknowledged. That look is the very last thing of a
//! transaction: between the event COMMIT and the answer PostgreSQL still deletes files, of what was dropped, of temporary
//! tables and of notifications. Statements that cannot be taken back are stopped before they begin.
//!
//! **Architecture invariant:** nothing here blocks, waits for a lock or makes a system call while the gate is
//! open, but for the moment before it is shut in good order ([`drain`]).

pub mod drain;
mod report;
mod statement;
mod synchronous;

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use biha_core::{Lsn, Millis};
use pgrx::pg_guard;
use pgrx::pg_sys::XactEvent::{
    XACT_EVENT_ABORT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE, XACT_EVENT_PREPARE,
};

use crate::board;
use crate::pg::{clock, process, wait, xact};

pub use statement::{is_bracket, utility_enter, utility_leave};

/// How often a commit looks again while the lease has run out or commits are held back, in ms.
const LOOK_AGAIN: Millis = 5;

/// The incarnation under which this transaction passed the gate; 0 if it has nothing to confirm.
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Puts the gate in the way of every transaction. In `_PG_init`, and only on a configured node.
pub fn init() {
    xact::register(on_xact_event);
    statement::init();
}

/// What the gate's words say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// Writes may be confirmed, in this incarnation.
    Open(u64),
    /// The lease has run out, but the node still leads its term: it may be renewed any moment.
    Lapsed,
    /// Writes may not be confirmed.
    Shut,
}

/// Looks at the gate: is it open for another `reserve` ms at least?
#[inline]
fn look(reserve: Millis) -> Look {
    let gate = board::gate();
    let incarnation = gate.incarnation.load(SeqCst);
    let open = is_leased(reserve);
    let leading = gate.leading.load(SeqCst) == 1;
    judge(incarnation, open, leading, || gate.controller_alive.is_held() && xact::postmaster_is_alive())
}

/// What the words say for themselves: enough before a statement, as its commit looks again. Whether the controller
/// lives is the dear part of a look.
#[inline]
fn says_open() -> bool {
    board::gate().incarnation.load(SeqCst) != 0 && is_leased(0)
}

#[inline]
fn is_leased(reserve: Millis) -> bool {
    board::gate().open_until.load(SeqCst) > clock::boottime() + reserve
}

/// `alive` is asked last: what the words say is worth nothing unless who wrote them lives now.
#[inline]
fn judge(incarnation: u64, open: bool, leading: bool, alive: impl FnOnce() -> bool) -> Look {
    if incarnation == 0 || !(open || leading) || !alive() {
        Look::Shut
    } else if open {
        Look::Open(incarnation)
    } else {
        Look::Lapsed
    }
}

/// As [`look`], but waits for the renewal of a lease that has run out, up to one election timeout, and while commits
/// are held back. May be interrupted, and then raises an ERROR. `None` is shut.
fn await_open(reserve: Millis) -> Option<u64> {
    let end = clock::boottime() + Millis::from(board::gate().patience.load(Relaxed));
    let mut waited = false;
    let seen = loop {
        match look(reserve) {
            Look::Open(incarnation) if !drain::holds_back() => break Some(incarnation),
            Look::Open(_) | Look::Lapsed if clock::boottime() < end => {
                waited = true;
                wait::latch(Duration::from_millis(LOOK_AGAIN));
                pgrx::check_for_interrupts!();
            }
            _ => break None,
        }
    };
    if waited {
        // What set the latch meanwhile may have meant another.
        process::set_latch(process::my_latch());
    }
    seen
}

/// Nearly every transaction ends in [`passes_at_once`], where nothing can panic, nor has anything a destructor that an
/// ERROR would jump over: pgrx's boundary would cost more than what it does.
unsafe extern "C-unwind" fn on_xact_event(event: xact::Event, argument: *mut c_void) {
    if !passes_at_once(event) {
        // SAFETY: the arguments are passed on as they came.
        unsafe { consider(event, argument) }
    }
    if event == XACT_EVENT_PRE_COMMIT && PASSED.load(Relaxed) != 0 {
        xact::at_very_end(on_very_end);
    }
}

/// Where all that a transaction has to do is done; also when it was aborted after all.
unsafe extern "C-unwind" fn on_very_end(argument: *mut c_void) {
    if !confirms_at_once() {
        // SAFETY: the argument is not used.
        unsafe { consider_at_very_end(argument) }
    }
}

/// Is there nothing to wait for, to refuse and to put back? Then all is done.
fn passes_at_once(event: xact::Event) -> bool {
    match event {
        // A prepared transaction is written down even where it has written nothing.
        XACT_EVENT_PRE_COMMIT if !xact::wrote() => true,
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => match look(0) {
            Look::Open(incarnation) if !synchronous::is_wanted() => {
                synchronous::note_lowering();
                enter(incarnation)
            }
            _ => false,
        },
        XACT_EVENT_PREPARE => confirms_at_once(),
        XACT_EVENT_ABORT if !synchronous::is_guarded() => {
            leave();
            true
        }
        XACT_EVENT_ABORT => false,
        _ => true,
    }
}

/// [`confirm`], where nothing is to be waited for.
fn confirms_at_once() -> bool {
    let passed = PASSED.load(Relaxed);
    let confirmed = passed == 0 || !synchronous::is_needed() && look(0) == Look::Open(passed);
    if confirmed {
        leave();
    }
    confirmed
}

#[pg_guard]
unsafe extern "C-unwind" fn consider(event: xact::Event, _argument: *mut c_void) {
    match event {
        XACT_EVENT_PRE_COMMIT => before("COMMIT"),
        XACT_EVENT_PRE_PREPARE => before("PREPARE TRANSACTION"),
        XACT_EVENT_PREPARE => confirm(xact::flushed),
        XACT_EVENT_ABORT => end(),
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn consider_at_very_end(_argument: *mut c_void) {
    confirm(xact::commit_end);
}

/// Passes the gate in this incarnation; false if commits are held back.
fn enter(incarnation: u64) -> bool {
    let entered = drain::enter();
    if entered {
        PASSED.store(incarnation, Relaxed);
    }
    entered
}

/// The transaction is over; signals count again.
fn end() {
    synchronous::end();
    leave();
}

/// The gate is behind this transaction.
fn leave() {
    if PASSED.load(Relaxed) != 0 {
        PASSED.store(0, Relaxed);
        drain::leave();
    }
}

/// Passes the gate as soon as that may be. May be interrupted, and then raises an ERROR. False if it is shut.
fn await_entrance(reserve: Millis) -> bool {
    while let Some(incarnation) = await_open(reserve) {
        if enter(incarnation) {
            return true;
        }
    }
    false
}

/// First look, at a transaction that wrote: it can still fail.
fn before(command: &str) {
    if !await_entrance(0) {
        report::refuse_commit(command);
    }
    synchronous::begin();
}

/// Second look: the commit is durable. It may be confirmed only if the very leadership under which it passed is
/// still valid, and enough standbys have it where they must; if not, the client learns nothing. Raises no ERROR and
/// cannot be interrupted. `written` tells where it ends.
fn confirm(written: impl FnOnce() -> Lsn) {
    let passed = PASSED.load(Relaxed);
    if passed != 0 {
        let written = synchronous::is_needed().then(written);
        if !is_confirmed(passed, written) {
            report::warn_unacknowledged();
            xact::end_session_unacknowledged();
        }
    }
    end();
}

/// Waits for what may still come, up to one election timeout.
fn is_confirmed(passed: u64, written: Option<Lsn>) -> bool {
    let end = clock::boottime() + Millis::from(board::gate().patience.load(Relaxed));
    loop {
        let seen = look(0);
        if seen == Look::Open(passed) && written.is_none_or(synchronous::is_replicated) {
            return true;
        }
        let may_come = seen == Look::Open(passed) || seen == Look::Lapsed;
        if !may_come || clock::boottime() >= end {
            return false;
        }
        xact::doze(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_only_while_a_living_controller_holds_the_lease() {
        for (incarnation, open, leading, alive, expected) in [
            (7, true, true, true, Look::Open(7)),
            (7, true, false, true, Look::Open(7)),
            (7, false, true, true, Look::Lapsed),
            (7, false, false, true, Look::Shut),
            (7, true, true, false, Look::Shut),
            (7, false, true, false, Look::Shut),
            (0, true, true, true, Look::Shut),
        ] {
            let case = (incarnation, open, leading, alive);
            assert_eq!(judge(incarnation, open, leading, || alive), expected, "{case:?}");
        }
    }
}
