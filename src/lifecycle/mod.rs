//! The life of a member's server: every start is a standby's start, and a leader that steps down is restarted
//! by its own postmaster, in the same process, rewound in between if its WAL has parted from the cluster's, or made anew
//! where that cannot work.
//!
//! Runs in the postmaster, but for [`request_restart`], [`is_stopping`] and what came of a rewind.
//!
//! **Architecture invariant:** nothing here knows of terms, leaders or elections, and nothing here promotes: only
//! an elected leader's agent does.

mod argv;
mod aside;
mod child;
mod exit;
mod keep;
mod newest;
mod page;
mod reclone;
mod reexec;
mod report;
mod rewind;
mod room;
mod said;
mod signals;
mod source;
mod start;
mod stub;
mod swap;
mod unwritten;

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use biha_core::{Hindrance, Mended};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{PgLogLevel, PgSqlErrorCode};

pub use self::page::Repair;
use self::page::{Page, Request};
use self::reexec::Image;
pub use self::room::Wanting;
use crate::pg::{postmaster, sharedpage, status};
use crate::{board, guc, paths};

/// What the postmaster keeps for its end.
struct Life {
    page: &'static Page,
    image: Image,
    /// Shared memory has been made in this process: it is a server, and not `postgres -C`.
    started: AtomicBool,
}

impl Life {
    fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }
}

static LIFE: OnceLock<Life> = OnceLock::new();
static PREVIOUS_STARTUP_HOOK: postmaster::PreviousHook = OnceLock::new();

/// Is this the postmaster of a member of a cluster, to be led by biha? Not a single-user server, not
/// pg_upgrade's, not one that recovers to a point in time. In `_PG_init`, after the settings are registered.
pub fn leads_this_server() -> bool {
    if !postmaster::is_serving() || !guc::configured() {
        return false;
    }
    if !start::is_member() {
        if start::has_memory() {
            report(
                PgLogLevel::FATAL,
                format!(
                    "file \"{}\" is missing, though this node has been a member of a cluster",
                    paths::CONF
                ),
                Some("Without it nothing keeps two nodes from taking writes. Make this node anew."),
            );
        }
        return false;
    }
    match start::recovery_target() {
        None => true,
        Some(target) => {
            report(
                PgLogLevel::WARNING,
                format!("biha stands aside: \"{target}\" asks for a recovery to a point in time"),
                Some("This server is no member of its cluster until it is started without it."),
            );
            postmaster::chain_shmem_startup(&PREVIOUS_STARTUP_HOOK, shmem_startup_aside);
            false
        }
    }
}

/// [`shmem_startup`] of a server that biha stands aside from. Not in `_PG_init`, which `postgres -C` runs too.
#[pg_guard]
unsafe extern "C-unwind" fn shmem_startup_aside() {
    postmaster::call_previous_shmem_startup(&PREVIOUS_STARTUP_HOOK);
    if let Err(error) = start::let_go() {
        report(PgLogLevel::FATAL, format!("could not empty file \"{}\": {error}", paths::SERVER_CONF), None);
    }
}

/// Takes this server's life in hand. In `_PG_init`, if [`leads_this_server`], after [`board::register`].
pub fn init() {
    let image = Image::save();
    let page = sharedpage::map::<Page>();
    let (Ok(image), Ok(page)) = (image, page) else {
        return report(
            PgLogLevel::FATAL,
            "could not prepare restarts in place".into(),
            Some("biha needs /proc and a page of memory."),
        );
    };
    if stub::is_here() && !image.only_shows_a_setting() {
        return stub::resume(&image);
    }
    if let Err(error) = signals::wrap(page) {
        report(PgLogLevel::FATAL, format!("could not install signal handlers: {error}"), None);
    }
    if LIFE.set(Life { page, image, started: AtomicBool::new(false) }).is_err() {
        return;
    }
    postmaster::at_exit(exit::at_exit);
    postmaster::chain_shmem_startup(&PREVIOUS_STARTUP_HOOK, shmem_startup);
}

/// Runs at every making of shared memory, after biha's own parts of it have been made.
#[pg_guard]
unsafe extern "C-unwind" fn shmem_startup() {
    postmaster::call_previous_shmem_startup(&PREVIOUS_STARTUP_HOOK);
    let Some(life) = LIFE.get() else { return };
    board::gate().controller_alive.init();
    life.page.forget();
    if let Err(refusal) = start::prepare(!life.has_started()) {
        report(PgLogLevel::FATAL, refusal.text, Some(refusal.hint));
    }
    if !life.has_started() && !start::can_be_rewound() {
        report(
            PgLogLevel::WARNING,
            "this node cannot be rewound if its WAL parts from the leader's".into(),
            Some("Set wal_log_hints to on, or enable data checksums."),
        );
    }
    if let Some(first) = start::first_status(status::system_identifier()) {
        board::publish(&first);
    }
    life.started.store(true, Ordering::Relaxed);
}

/// Asks the postmaster to shut the server down and to start it again in place, as a standby, repaired in between if
/// that is wanted. Of any child of the postmaster. Returns once the postmaster has been told. Fails if the
/// server is being stopped, or has been asked already.
pub fn request_restart(repair: Option<Repair>) -> Result<(), String> {
    let life = LIFE.get().ok_or("biha does not lead this server")?;
    let request = Request { repair };
    life.page.ask(postmaster::my_pid(), &request)?;
    postmaster::signal(signals::RESTART).map_err(|error| {
        life.page.forget();
        format!("could not signal the postmaster: {error}")
    })
}

/// Has the postmaster been told to shut the server down, by whomever? Of any child of the postmaster; it is true before any
/// of them gets the postmaster's signal. (What postmaster.pid says may be old: it is on a disk, which may be sick.)
pub fn is_stopping() -> bool {
    LIFE.get().is_some_and(|life| life.page.operator_stopping() || life.page.stopping_fast())
}

/// [`is_stopping`], without waiting for clients.
pub fn is_stopping_fast() -> bool {
    LIFE.get().is_some_and(|life| life.page.stopping_fast())
}

/// What came of the rewind or re-clone that this start was preceded by; `None` if there was none. One that was asked for
/// and has left no result was not tried, or given up because the operator stopped the server, or cut short.
pub fn rewind_result() -> Option<Result<Mended, Hindrance>> {
    rewind::result().unwrap_or_else(|error| {
        let text = format!("could not read the rewind's result: {error}");
        Some(Err(Hindrance { text, passing: false }))
    })
}

/// Removes it: what it says is in the node's own memory, and durable.
pub fn forget_rewind_result() -> Result<(), String> {
    rewind::forget_result().map_err(|error| format!("could not remove the rewind's result: {error}"))
}

fn report(level: PgLogLevel, text: String, hint: Option<&str>) {
    let mut report = ErrorReport::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, text, "biha");
    if let Some(hint) = hint {
        report = report.set_hint(hint.to_string());
    }
    report.report(level);
}

/// Tells of something that went wrong and stops nothing.
fn warn(what: &str, error: &io::Error) {
    report(PgLogLevel::WARNING, format!("could not {what}: {error}"), None);
}

/// Writes to the server's log from an exiting postmaster.
fn exit_log(text: &str, hint: Option<&str>) {
    report(PgLogLevel::LOG, text.to_string(), hint);
}
