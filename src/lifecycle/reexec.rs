//! The same server once more, in the same process.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::argv::{self, Paths};
use crate::pg::exec::{self, Output};
use crate::pg::postmaster;

/// How this server was started.
pub struct Image {
    arguments: Vec<CString>,
    pgdata: Option<PathBuf>,
    /// Standard output and error before the first logger took them. A new image that began with the logger's
    /// pipe would pass it on to its own logger, and so keep the old one alive.
    output: Option<Output>,
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
        let output = postmaster::collects_log().then(Output::save).transpose()?;
        Ok(Image { arguments, pgdata, output })
    }

    /// Is it `postgres -C`?
    pub fn only_shows_a_setting(&self) -> bool {
        self.arguments.iter().any(|argument| argument.to_bytes().starts_with(b"-C"))
    }

    /// Becomes it. Signals must be blocked: one that comes from now on is the new image's. Returns only if
    /// that fails.
    pub fn start(&self) -> io::Error {
        let logger = match self.output.as_ref().map(Output::put_back).transpose() {
            Ok(logger) => logger,
            Err(error) => return error,
        };
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
            let _ = logger.put_back();
        }
        error
    }
}
