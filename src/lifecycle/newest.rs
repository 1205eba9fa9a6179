//! The timeline that a rewind starts from.
//!
//! pg_rewind of PostgreSQL 15 takes the target's from its last checkpoint alone (`getTimelineHistory` in pg_rewind.c;
//! from 16 on, minRecoveryPointTLI counts as well). A leader that was killed before the first checkpoint of its
//! timeline has none there, though it has WAL: pg_rewind would look for the fork on the wrong one. So it is shown a
//! control file that says what 16 finds out by itself.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use super::aside;
use crate::paths;
use crate::pg::control;

const CONTROL_FILE: &str = "global/pg_control";

/// A control file that PostgreSQL must not start with, in the place of the true one.
pub struct Shown {
    edited: Vec<u8>,
    original: Vec<u8>,
}

impl Shown {
    /// What is to be shown; `None` if the true one will do.
    pub fn of(data: &Path) -> io::Result<Option<Self>> {
        if cfg!(not(feature = "pg15")) {
            return Ok(None);
        }
        let original = fs::read(data.join(CONTROL_FILE))?;
        Ok(control::on_newest_timeline(&original).map(|edited| Shown { edited, original }))
    }

    /// Writes it into a data directory that is closed; the true one is kept in `kept`.
    pub fn put(&self, data: &Path, kept: &Path) -> io::Result<()> {
        biha_io::durable_write(&kept.join(aside::CONTROL_FILE), &self.original)?;
        write(data, &self.edited)
    }

    /// Puts the true one back, durably.
    pub fn take_back(&self, data: &Path) -> io::Result<()> {
        write(data, &self.original)
    }
}

fn write(data: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(data.join(CONTROL_FILE))?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

/// As much of a data directory as a pg_rewind that only looks for the fork has to see.
pub struct View {
    path: PathBuf,
    made: bool,
}

impl View {
    /// The directory itself, if it can be shown as it is: it is open, and stays what it is.
    pub fn of(data: &Path) -> io::Result<Self> {
        let view = View { path: data.join(paths::REWIND_VIEW), made: true };
        // An earlier one whose postmaster was killed.
        view.remove()?;
        let Some(shown) = Shown::of(data)? else { return Ok(View { path: data.into(), made: false }) };
        fs::create_dir_all(view.path.join("global"))?;
        fs::write(view.path.join(CONTROL_FILE), &shown.edited)?;
        symlink(data.join("pg_wal"), view.path.join("pg_wal"))?;
        Ok(view)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.made {
            // The next one begins with that.
            let _ = self.remove();
        }
    }
}
