//! What the postmaster knows of itself.

use std::ffi::{CStr, c_char};
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use pgrx::pg_sys;

/// Is this a postmaster that starts a server for use? Not a single-user server, no child, not pg_upgrade's.
/// `postgres -C` looks the same; it just never makes shared memory.
pub fn is_serving() -> bool {
    // SAFETY: plain values of this process, set before libraries are loaded.
    unsafe {
        pg_sys::process_shared_preload_libraries_in_progress
            && pg_sys::IsPostmasterEnvironment
            && !pg_sys::IsUnderPostmaster
            && !pg_sys::IsBinaryUpgrade
    }
}

/// Process number of the postmaster.
pub fn pid() -> i32 {
    // SAFETY: a plain value, set before libraries are loaded.
    unsafe { pg_sys::PostmasterPid }
}

/// Is PostgreSQL's log collected by its own process (`logging_collector`)?
pub fn collects_log() -> bool {
    // SAFETY: a plain value of this process.
    unsafe { pg_sys::Logging_collector }
}

fn path(text: *const c_char) -> PathBuf {
    if text.is_null() {
        return PathBuf::new();
    }
    // SAFETY: PostgreSQL's path variables are null or NUL-terminated and live as long as the process.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}

/// The server's own executable.
pub fn executable() -> PathBuf {
    // An array of the process, filled in at its start.
    path((&raw const pg_sys::my_exec_path).cast())
}

/// The data directory.
pub fn data_directory() -> PathBuf {
    // SAFETY: set before libraries are loaded.
    path(unsafe { pg_sys::DataDir })
}

/// `config_file`, absolute.
pub fn config_file() -> PathBuf {
    // SAFETY: as above.
    path(unsafe { pg_sys::ConfigFileName })
}

/// `hba_file`, absolute.
pub fn hba_file() -> PathBuf {
    // SAFETY: as above.
    path(unsafe { pg_sys::HbaFileName })
}

/// `ident_file`, absolute.
pub fn ident_file() -> PathBuf {
    // SAFETY: as above.
    path(unsafe { pg_sys::IdentFileName })
}

/// `log_directory`, absolute or relative to the data directory.
pub fn log_directory() -> PathBuf {
    // SAFETY: as above.
    path(unsafe { pg_sys::Log_directory })
}

/// Registers what this process does last at its end. Children drop it.
pub fn at_exit(callback: unsafe extern "C-unwind" fn(i32, pg_sys::Datum)) {
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe { pg_sys::on_proc_exit(Some(callback), pg_sys::Datum::from(0)) };
}

/// Ends this process. In an exit callback: with another exit code, and the callbacks that are still to come.
#[allow(unreachable_code)] // The bindings of 18 do not say that it never returns.
pub fn end(code: i32) -> ! {
    // SAFETY: never returns; nothing of this process is used after it.
    unsafe { pg_sys::proc_exit(code) };
    std::process::abort()
}

/// This process's number.
pub fn my_pid() -> i32 {
    // SAFETY: MyProcPid is a plain value of this process.
    unsafe { pg_sys::MyProcPid }
}

/// Signals the postmaster.
pub fn signal(signo: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::kill(pid(), signo) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What stood in a hook before.
pub type PreviousHook = OnceLock<pg_sys::shmem_startup_hook_type>;

/// Puts a function into shmem_startup_hook. In `_PG_init`, once a function.
pub fn chain_shmem_startup(previous: &PreviousHook, hook: unsafe extern "C-unwind" fn()) {
    // SAFETY: libraries are loaded by one thread; the hook lives as long as the library.
    unsafe {
        if previous.set(pg_sys::shmem_startup_hook).is_ok() {
            pg_sys::shmem_startup_hook = Some(hook);
        }
    }
}

/// Calls what stood in shmem_startup_hook before.
pub fn call_previous_shmem_startup(previous: &PreviousHook) {
    if let Some(Some(hook)) = previous.get() {
        // SAFETY: a hook of PostgreSQL's type, called as PostgreSQL would.
        unsafe { pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| hook()) };
    }
}
