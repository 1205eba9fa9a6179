//! The same server once more, in the same process.

use std::ffi::{CString, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::argv::{self, Paths};
use crate::paths;
use crate::pg::{exec, postmaster};

/// How this server was started.
pub struct Image {
    arguments: Vec<CString>,
    pgdata: Option<PathBuf>,
}

impl Image {
    /// Remembers it. In `_PG_init`.
    pub fn save() -> io::Result<Self> {
        let cmdline = fs::read("/proc/self/cmdline")?;
        let paths = Paths {
            executable: postmaster::executable(),
            data_directory: postmaster::data_directory(),
            config_file: postmaster::config_file(),
            hba_file: postmaster::hba_file(),
            ident_file: postmaster::ident_file(),
        };
        let arguments = argv::absolute_arguments(&cmdline, &paths)
            .into_iter()
            .map(|argument: OsString| CString::new(argument.into_vec()).map_err(io::Error::other))
            .collect::<io::Result<_>>()?;
        let pgdata = argv::absolute_pgdata(std::env::var_os("PGDATA").as_deref(), &cmdline, &paths);
        Ok(Image { arguments, pgdata })
    }

    /// Becomes it. Signals must be blocked: one that comes from now on is the new image's. Returns only if
    /// that fails.
    pub fn start(&self) -> io::Error {
        // The logger's pipe must not be the new image's output: its own logger would inherit the pipe and so
        // keep the old logger alive. What was there before the first logger may be somebody's pipe, so it was
        // not kept open either: who waits for its end, as $(pg_ctl start) does, would wait for ever.
        let mut logger = None;
        if postmaster::collects_log() {
            let early = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(paths::RESTART_LOG)
                .or_else(|_| OpenOptions::new().write(true).open("/dev/null"));
            match early.and_then(|file| exec::redirect_output(&file)) {
                Ok(old) => logger = Some(old),
                Err(error) => return error,
            }
        }
        if let Some(pgdata) = &self.pgdata {
            exec::set_variable("PGDATA", Some(pgdata.as_os_str()));
        }
        exec::set_variable("PG_GRANDPARENT_PID", None);
        let error = match exec::close_others_on_exec() {
            Ok(()) => exec::execute(&self.arguments),
            Err(error) => error,
        };
        if let Some(logger) = logger {
            // Nothing more can be done if this fails too.
            let _ = exec::restore_output(&logger);
        }
        error
    }
}
