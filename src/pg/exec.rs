//! Becoming another image of the same process, and what must be put right before.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

/// Marks every descriptor above 2 to be closed by `execv`. Not closed at once: if `execv` fails, this process
/// must still be able to say so.
pub fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: only sets flags on descriptors.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } == 0 {
        return Ok(());
    }
    // Linux before 5.11, or a sandbox that does not know the call.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        if let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()).filter(|fd| *fd > 2) {
            // SAFETY: only sets a flag; a descriptor that is gone by now gives an error that does not matter.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Duplicates of this process's standard output and error, closed by `execv`.
pub struct Output([OwnedFd; 2]);

impl Output {
    /// Keeps what they are now.
    pub fn save() -> io::Result<Self> {
        Ok(Output([io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?]))
    }

    /// Makes them that again. What they were meanwhile is returned.
    pub fn put_back(&self) -> io::Result<Self> {
        let now = Self::save()?;
        for (kept, standard) in self.0.iter().zip([libc::STDOUT_FILENO, libc::STDERR_FILENO]) {
            // SAFETY: both are descriptors of this process.
            if unsafe { libc::dup2(kept.as_raw_fd(), standard) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(now)
    }
}

/// Sets or removes a variable of the environment. Only where this process has one thread.
pub fn set_variable(name: &str, value: Option<&std::ffi::OsStr>) {
    // SAFETY: the postmaster has one thread.
    unsafe {
        match value {
            Some(value) => std::env::set_var(name, value),
            None => std::env::remove_var(name),
        }
    }
}

/// Runs another image in this process, with the environment as it is. Returns only if that fails.
pub fn execute(arguments: &[CString]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: a NULL-terminated array of NUL-terminated strings, with at least the NULL.
    unsafe { libc::execv(pointers[0], pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// For a child between fork and exec: dies with its parent, has no signal blocked, ends on a broken pipe.
pub fn prepare_child(parent: i32) -> io::Result<()> {
    // SAFETY: all of these are async-signal-safe.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for signo in [libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR2] {
            libc::signal(signo, libc::SIG_DFL);
        }
    }
    super::signal::unblock_all();
    Ok(())
}

/// Has everything that was written to the file system of this directory reach the disk (syncfs(2)).
pub fn sync_file_system(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    // SAFETY: the descriptor stays open during the call.
    match unsafe { libc::syncfs(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
