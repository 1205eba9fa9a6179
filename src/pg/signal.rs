//! Signals of the postmaster: handlers, masks, waiting.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void, sigaction, siginfo_t, sigset_t};

/// A handler that is told who sent the signal. It may do only what is async-signal-safe.
pub type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// What was installed for a signal before a [`Handler`] took its place.
#[derive(Clone, Copy)]
pub struct Previous(sigaction);

// SAFETY: plain values that are never changed once stored.
unsafe impl Send for Previous {}
// SAFETY: as above.
unsafe impl Sync for Previous {}

impl Previous {
    /// The default action.
    pub fn none() -> Self {
        // SAFETY: all zeros is SIG_DFL with an empty mask and no flags.
        Previous(unsafe { MaybeUninit::zeroed().assume_init() })
    }

    /// What is installed for a signal now.
    pub fn of(signo: c_int) -> io::Result<Self> {
        let mut action = MaybeUninit::<sigaction>::zeroed();
        // SAFETY: only reads the action in force into a place of our own.
        match unsafe { libc::sigaction(signo, ptr::null(), action.as_mut_ptr()) } {
            // SAFETY: filled in by the call.
            0 => Ok(Previous(unsafe { action.assume_init() })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Installs a handler with the mask and flags that this one has.
    pub fn replace(&self, signo: c_int, handler: Handler) -> io::Result<()> {
        let mut action = self.0;
        action.sa_flags |= libc::SA_SIGINFO;
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and lives as long as the library.
        match unsafe { libc::sigaction(signo, &action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Installs this again.
    pub fn restore(&self, signo: c_int) {
        // SAFETY: what was installed before is installed again.
        unsafe { libc::sigaction(signo, &self.0, ptr::null_mut()) };
    }

    /// Calls the handler as if the signal had come to it; does nothing where there is none.
    pub fn call(&self, signo: c_int, info: *mut siginfo_t, context: *mut c_void) {
        let address = self.0.sa_sigaction;
        if address == libc::SIG_DFL || address == libc::SIG_IGN {
            return;
        }
        if self.0.sa_flags & libc::SA_SIGINFO != 0 {
            // SAFETY: the address was installed as a handler with three arguments.
            let handler = unsafe {
                std::mem::transmute::<usize, extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void)>(
                    address,
                )
            };
            handler(signo, info, context);
        } else {
            // SAFETY: the address was installed as a handler with one argument.
            let handler = unsafe { std::mem::transmute::<usize, extern "C-unwind" fn(c_int)>(address) };
            handler(signo);
        }
    }
}

/// Who sent a signal; 0 if the kernel did.
pub fn sender(info: *const siginfo_t) -> i32 {
    // SAFETY: a handler with SA_SIGINFO always gets a valid siginfo.
    if info.is_null() { 0 } else { unsafe { (*info).si_pid() } }
}

/// Sends this process a signal; it is handled before this returns, unless it is blocked.
pub fn raise(signo: c_int) {
    // SAFETY: raise(3) has no preconditions.
    unsafe { libc::raise(signo) };
}

/// Ends all processes of a group of children.
pub fn kill_group(leader: u32) {
    if let Ok(leader) = libc::pid_t::try_from(leader) {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

fn set_of(signals: &[c_int]) -> sigset_t {
    let mut set = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: sigemptyset makes the set; sigaddset only changes it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks every signal in this process, for good.
pub fn block_all() {
    let mut set = set_of(&[]);
    // SAFETY: both calls only work on the set and this thread's mask.
    unsafe {
        libc::sigfillset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Lets every signal through. Async-signal-safe: for a child between fork and exec.
pub fn unblock_all() {
    let set = set_of(&[]);
    // SAFETY: only sets this thread's mask.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut()) };
}

/// Is one of these blocked signals waiting to be delivered?
pub fn pending(signals: &[c_int]) -> bool {
    let mut set = set_of(&[]);
    // SAFETY: sigpending fills the set, sigismember reads it.
    unsafe {
        libc::sigpending(&mut set) == 0 && signals.iter().any(|signal| libc::sigismember(&set, *signal) == 1)
    }
}

/// Takes one of these blocked signals, waiting so long at most.
pub fn take(signals: &[c_int], timeout: Duration) -> Option<c_int> {
    let set = set_of(signals);
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: set and timeout are ours; no siginfo is asked for.
    let signal = unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &timeout) };
    (signal > 0).then_some(signal)
}
