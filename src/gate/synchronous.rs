//! Commits that standbys must have: what the gate adds to PostgreSQL's synchronous replication.
//!
//! PostgreSQL commits first and waits afterwards; a cancelled or terminated wait shows a row that no standby may
//! have, and a released one acknowledges whatever the settings said at that moment. So from the gate to the
//! acknowledgement a session takes no cancel and no termination but the controller's, and before it acknowledges
//! it sees for itself that enough standbys have the commit.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed, Ordering::SeqCst};

use biha_core::Lsn;
use libc::{SIGINT, SIGTERM, c_int, c_void, siginfo_t};

use crate::board;
use crate::pg::signal::{self, Previous};
use crate::pg::{postmaster, walsender, xact};

/// The signals that end PostgreSQL's wait.
const HELD: [c_int; 2] = [SIGINT, SIGTERM];

/// This transaction's commit must be on standbys.
static GUARDED: AtomicBool = AtomicBool::new(false);
/// The session's own `synchronous_commit` asks for less.
static LOWERED: AtomicBool = AtomicBool::new(false);
/// Signals that came meanwhile, as bits.
static CAME: AtomicI32 = AtomicI32::new(0);
/// A timeout of this session's own has run out meanwhile.
static TIMED_OUT: AtomicBool = AtomicBool::new(false);
/// What handles them usually; only this process's main thread and its signal handlers look.
static mut USUAL: Option<[Previous; 2]> = None;

/// Shall commits be on standbys before they are acknowledged?
#[inline]
pub fn is_wanted() -> bool {
    board::gate().sync_standbys.load(SeqCst) != 0
}

/// Notes what the session wants of its commit, which it may not say any more when that is over.
#[inline]
pub fn note_lowering() {
    LOWERED.store(!xact::commits_synchronously(), Relaxed);
}

/// Begins to guard the commit that is about to be made, if it shall be synchronous. May raise an ERROR.
pub fn begin() {
    note_lowering();
    if !is_wanted() {
        return;
    }
    if LOWERED.load(Relaxed) {
        if !is_required() {
            board::gate().lowered_commits.fetch_add(1, Relaxed);
            return;
        }
        xact::commit_synchronously();
    }
    if !GUARDED.swap(true, Relaxed) {
        hold_signals();
    }
    // One that came a moment ago would still end the wait.
    pgrx::check_for_interrupts!();
}

/// Is a session refused that wants less of its commits?
fn is_required() -> bool {
    board::gate().lossless_required.load(SeqCst) != 0
}

/// Is the commit that is being made guarded?
#[inline]
pub fn is_guarded() -> bool {
    GUARDED.load(Relaxed)
}

/// Must the commit that was made be on standbys? Also one that began when that was not wanted yet: who wanted it has been
/// told meanwhile that it is in force.
#[inline]
pub fn is_needed() -> bool {
    is_guarded() || is_wanted() && (!LOWERED.load(Relaxed) || is_required())
}

/// Have enough standbys what ends here?
pub fn is_replicated(end: Lsn) -> bool {
    walsender::synchronous_at(end) >= board::gate().sync_standbys.load(SeqCst)
}

/// The transaction is over: signals count again, those that came as well.
pub fn end() {
    if !GUARDED.swap(false, Relaxed) {
        return;
    }
    // SAFETY: the main thread's; the handlers that read it are replaced here.
    let Some(usual) = (unsafe { (&raw const USUAL).read() }) else { return };
    for (signo, previous) in HELD.iter().zip(&usual) {
        previous.restore(*signo);
    }
    let came = CAME.swap(0, SeqCst);
    // A timeout's cancel would fail what has committed, or whatever comes next.
    if TIMED_OUT.swap(false, SeqCst) && !xact::forget_timeouts() {
        signal::raise(SIGINT);
    }
    for signo in HELD {
        if came & 1 << signo != 0 {
            signal::raise(signo);
        }
    }
}

fn hold_signals() {
    let usual = HELD.map(|signo| Previous::of(signo).unwrap_or_else(|_| Previous::none()));
    // SAFETY: written before the handlers that read it are installed.
    unsafe { (&raw mut USUAL).write(Some(usual)) };
    for (signo, previous) in HELD.iter().zip(&usual) {
        if let Err(error) = previous.replace(*signo, on_signal) {
            pgrx::warning!("could not install a signal handler: {error}");
        }
    }
}

/// The controller's signal is PostgreSQL's business: the wait ends, and nothing is acknowledged. Any other is kept
/// for later, unless there is no controller that could ever end the wait.
extern "C" fn on_signal(signo: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let (controller, sender) = (board::gate().controller_pid.load(SeqCst), signal::sender(info));
    if controller != 0 && signo == SIGINT && sender == postmaster::my_pid() {
        TIMED_OUT.store(true, SeqCst);
        return;
    }
    if controller != 0 && controller != sender {
        CAME.fetch_or(1 << signo, SeqCst);
        return;
    }
    // SAFETY: written before this handler was installed.
    if let Some(usual) = unsafe { (&raw const USUAL).read() }
        && let Some(index) = HELD.iter().position(|held| *held == signo)
    {
        usual[index].call(signo, info, context);
    }
}
