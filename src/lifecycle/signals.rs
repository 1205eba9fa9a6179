//! Whose signal is it? PostgreSQL ignores a stop that comes while it is already stopping, so during a
//! restart in place nobody but biha would notice that the operator wants the server to stay down.
//!
//! A restart in place is asked for with SIGUSR2, which the postmaster does not use itself, and is then done
//! as SIGINT (fast shutdown) would be. SIGINT, SIGTERM and SIGQUIT are thus always an operator's. One signal
//! for both would lose the operator's: of two pending ones of the same number the kernel keeps the first.
//!
//! A restart in place must not tell systemd that the service is stopping, from which there is no way back:
//! `NOTIFY_SOCKET` is hidden from libsystemd, which reads it at each call, by changing its first letter.

use std::ffi::CStr;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use libc::{c_int, c_void, siginfo_t};

use super::page::Page;
use crate::pg::signal::{self, Previous};

/// The signals with which operators stop a server: smart, fast, immediate.
pub const STOPS: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
/// The signal with which biha asks for a restart in place.
pub const RESTART: c_int = libc::SIGUSR2;

const NOTIFY: &CStr = c"NOTIFY_SOCKET";

struct Wrapped {
    page: &'static Page,
    postmaster: i32,
    stops: [Previous; 3],
    restart: Previous,
    /// First letter of the environment's `NOTIFY_SOCKET=`; null if there is none.
    notify: AtomicPtr<u8>,
}

static WRAPPED: OnceLock<Wrapped> = OnceLock::new();

/// Puts biha's handlers before PostgreSQL's. In `_PG_init` of the postmaster, once.
pub fn wrap(page: &'static Page) -> io::Result<()> {
    let wrapped = WRAPPED.get_or_init(|| Wrapped {
        page,
        postmaster: own_pid(),
        stops: STOPS.map(|signo| Previous::of(signo).unwrap_or_else(|_| Previous::none())),
        restart: Previous::of(RESTART).unwrap_or_else(|_| Previous::none()),
        notify: AtomicPtr::new(notify_socket()),
    });
    for (signo, previous) in STOPS.iter().zip(&wrapped.stops) {
        previous.replace(*signo, on_stop)?;
    }
    // With SIGINT's mask, since SIGINT's handler is what runs.
    fast(wrapped).replace(RESTART, on_restart)
}

fn fast(wrapped: &Wrapped) -> &Previous {
    &wrapped.stops[1]
}

fn own_pid() -> i32 {
    // SAFETY: always succeeds; async-signal-safe.
    unsafe { libc::getpid() }
}

/// Where the environment's string for `NOTIFY_SOCKET` begins.
fn notify_socket() -> *mut u8 {
    // SAFETY: getenv returns null or the value within its string in the environment, which begins with the
    // name and '='.
    unsafe {
        let value = libc::getenv(NOTIFY.as_ptr());
        if value.is_null() {
            std::ptr::null_mut()
        } else {
            value.cast::<u8>().sub(NOTIFY.to_bytes().len() + 1)
        }
    }
}

fn set_first_letter(wrapped: &Wrapped, letter: u8) {
    let place = wrapped.notify.load(Ordering::Relaxed);
    if !place.is_null() {
        // SAFETY: a writable byte of this process's environment, which PostgreSQL never moves after start.
        unsafe { AtomicU8::from_ptr(place) }.store(letter, Ordering::Relaxed);
    }
}

/// Lets libsystemd see its socket again.
pub fn show_notify_socket() {
    if let Some(wrapped) = WRAPPED.get() {
        set_first_letter(wrapped, b'N');
    }
}

/// SIGINT, SIGTERM, SIGQUIT: note the operator's wish, then do as PostgreSQL does.
extern "C" fn on_stop(signo: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(wrapped) = WRAPPED.get() else { return };
    if own_pid() == wrapped.postmaster {
        wrapped.page.note_operator_stop();
        if signo == libc::SIGINT {
            wrapped.page.note_fast_stop();
        }
        set_first_letter(wrapped, b'N');
    }
    if let Some(index) = STOPS.iter().position(|stop| *stop == signo) {
        wrapped.stops[index].call(signo, info, context);
    }
}

/// SIGUSR2: if it comes from the process that left a request, shut down fast; else do as PostgreSQL does.
extern "C" fn on_restart(signo: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(wrapped) = WRAPPED.get() else { return };
    let ours = own_pid() == wrapped.postmaster && wrapped.page.asked_by(signal::sender(info));
    if ours && !wrapped.page.operator_stopping() {
        set_first_letter(wrapped, b'X');
        wrapped.page.note_fast_stop();
        fast(wrapped).call(libc::SIGINT, info, context);
    } else {
        wrapped.restart.call(signo, info, context);
    }
}
