//! The postmaster's last act: start the server again, if that was asked for.
//!
//! By now PostgreSQL's shared memory is unmapped and the ports are closed; no child lives but the logger.

use biha_core::Hindrance;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::page::Repair;
use super::source::Failure;
use super::{Life, exit_log, reclone, reexec::Image, rewind, rewind::Outcome, signals, stub};
use crate::pg::control::{self, State};
use crate::pg::{postmaster, signal};
use crate::{guc, paths};

/// What an exiting postmaster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// End, as PostgreSQL meant to.
    End,
    /// Start again; rewind before if that was asked for.
    Restart,
    /// Start again without a rewind, which needs a clean shutdown.
    RestartUnclean,
}

/// Decides by the exit code and by what the control file says: code 0 is also that of an immediate stop. A
/// server that a child's crash has kept from shutting down cleanly (code 1) comes back as a standby and
/// recovers.
fn act(operator_stop: bool, code: i32, state: Option<State>) -> Act {
    match (operator_stop, code, state) {
        (true, ..) => Act::End,
        (false, 0, Some(State::ShutDown | State::ShutDownInRecovery)) => Act::Restart,
        (false, 1, Some(_)) => Act::RestartUnclean,
        _ => Act::End,
    }
}

/// Runs as on_proc_exit callback.
pub fn run(life: &Life, code: i32) {
    // First of all: what is blocked from here on reaches the new image, or ends this one below.
    signal::block_all();
    signals::show_notify_socket();
    let Some(request) = life.page.take().filter(|_| life.has_started()) else { return };
    let stopping = || life.page.operator_stopping() || signal::pending(&signals::STOPS);
    match (act(stopping(), code, control::read().map(|file| file.state)), request.repair) {
        (Act::End, _) => return exit_log("not restarting in place: the server is to be stopped", None),
        (Act::Restart, Some(Repair::Rewind(source))) => {
            let hint = if guc::AUTORECLONE.get() {
                "If this is cut short, the next start copies the leader."
            } else {
                "If this is cut short, PostgreSQL refuses to start on the data directory, which has mode 0701 \
                 meanwhile. Then make this node anew."
            };
            exit_log("rewinding before the restart in place", Some(hint));
            if rewind(&source) || stopping() {
                return;
            }
        }
        (Act::Restart, Some(Repair::Reclone { source, end })) => {
            exit_log("copying the leader before the restart in place", None);
            if reclone::run(&source, end) || stopping() {
                return;
            }
        }
        (Act::Restart | Act::RestartUnclean, _) => {}
    }
    start_again(&life.image);
}

/// Rewinds, or where that breaks off and it is allowed, makes a new copy. Returns whether the operator wants the server
/// to stop.
fn rewind(source: &str) -> bool {
    let (text, hint) = match rewind::run(source) {
        Outcome::Whole { stop } => return stop,
        Outcome::Shut { text, mode } => {
            let hint = format!(
                "The data directory is as it was but for its mode. Set that to {mode:04o} and start the server."
            );
            (text, hint)
        }
        Outcome::Broken { text, stop, .. } if stub::is_here() => {
            exit_log(
                &format!("the rewind of this node broke off: {text}"),
                Some("The leader is copied instead, at the next start at the latest."),
            );
            return stop || copy_instead(source);
        }
        Outcome::Broken { text, kept, .. } => {
            let hint = format!(
                "The data directory cannot be started any more. Empty it and make a new copy of the leader with \
                 bihactl add. This node's own files are kept in \"{}\".",
                kept.display()
            );
            (text, hint)
        }
    };
    exit_log(&format!("the rewind of this node broke off: {text}"), Some(&hint));
    give_up();
}

fn start_again(image: &Image) -> ! {
    exit_log("restarting in place", None);
    // The new image removes postmaster.pid and makes it anew. A second link keeps the kernel from freeing the
    // old file in between, so that pg_ctl hardly ever finds none. Without it the gap is only longer.
    let _ = std::fs::hard_link(paths::PID_FILE, paths::PID_FILE_LINK);
    let error = image.start();
    exit_log(&format!("could not restart in place: {error}"), Some("Start the server again."));
    give_up()
}

/// Returns whether the operator wants the server to stop. What cannot be done now the stub does when it is started.
fn copy_instead(source: &str) -> bool {
    match reclone::after_rewind(source) {
        Ok(()) => false,
        Err(Failure::Stopped) => true,
        Err(Failure::Failed(Hindrance { text, .. }) | Failure::Full { text, .. }) => {
            exit_log(&format!("the re-clone failed: {text}"), None);
            false
        }
    }
}

/// Ends with a code that a service manager takes for a failure, lock files removed: goes on with the exit
/// from where it has come to, as PostgreSQL itself does after an error in a callback.
fn give_up() -> ! {
    postmaster::end(1)
}

/// Registered with PostgreSQL by [`super::init`].
#[pg_guard]
pub unsafe extern "C-unwind" fn at_exit(code: i32, _argument: pg_sys::Datum) {
    if let Some(life) = super::LIFE.get() {
        run(life, code);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_operators_stop_beats_everything() {
        for state in [State::ShutDown, State::ShutDownInRecovery, State::Primary] {
            for code in [0, 1] {
                assert_eq!(act(true, code, Some(state)), Act::End);
            }
        }
    }

    #[test]
    fn a_clean_shutdown_restarts_and_an_immediate_one_does_not() {
        assert_eq!(act(false, 0, Some(State::ShutDown)), Act::Restart);
        assert_eq!(act(false, 0, Some(State::ShutDownInRecovery)), Act::Restart);
        assert_eq!(act(false, 0, Some(State::Primary)), Act::End);
    }

    #[test]
    fn a_crash_during_the_shutdown_restarts_without_a_rewind() {
        assert_eq!(act(false, 1, Some(State::Recovery)), Act::RestartUnclean);
        assert_eq!(act(false, 2, Some(State::ShutDown)), Act::End);
        assert_eq!(act(false, 0, None), Act::End);
    }
}
