//! PostgreSQL's own settings: reading them, and having the configuration files read.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

/// The value of a setting as text, or `None` if there is none of that name. Not for settings whose value is
/// only known at run time.
pub fn get(name: &CStr) -> Option<String> {
    // SAFETY: returns null for an unknown name; the text is valid until the next call, and copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}

/// Reads the configuration files as SIGHUP does. Faults in them are logged, and then nothing changes.
pub fn reload() {
    // SAFETY: main thread; only settings that may change at run time are changed.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
}

/// Sets a value as if it came from the configuration files: the next change of those replaces it.
pub fn set_as_file(name: &CStr, value: &str) {
    let Ok(value) = CString::new(value) else { return };
    // SAFETY: both strings are copied; an unknown name raises an ERROR.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SIGHUP,
            pg_sys::GucSource::PGC_S_FILE,
        );
    }
}
