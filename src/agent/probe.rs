//! Do the disks take writes? A leader that sends heartbeats but cannot write is worse than a dead one.
//!
//! A thread writes a few bytes and has them flushed, again and again. It may hang with the disk; what others look at
//! is when it last came through.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use pgrx::{log, warning};

use super::history;
use crate::pg::{clock, worker};
use crate::{board, paths};

/// Between two rounds.
const PERIOD: Duration = Duration::from_millis(500);
/// A file system with less room than this, in bytes, is as good as full: two WAL segments of the usual size.
const ROOM: u64 = 32 << 20;
/// Name of the file that is written.
const FILE: &str = "biha.probe";

/// Tells what the thread found.
#[derive(Default)]
pub struct Watch {
    told: i32,
}

impl Watch {
    /// Starts the thread. At the agent's start, once.
    pub fn start() -> Watch {
        let gate = board::gate();
        // An agent that is started anew has not looked for a while. At the server's start nobody has.
        if gate.disk_well_at.load(Ordering::SeqCst) != 0 {
            gate.disk_well_at.store(clock::boottime(), Ordering::SeqCst);
        }
        gate.disk_error.store(0, Ordering::SeqCst);
        if let Err(error) = worker::spawn_without_signals("biha probe", Box::new(probe_for_ever)) {
            warning!("could not start the thread that looks after the disks: {error}");
        }
        Watch::default()
    }

    /// Logs what is new.
    pub fn tell(&mut self) {
        let error = board::gate().disk_error.load(Ordering::SeqCst);
        if error == self.told {
            return;
        }
        self.told = error;
        match error {
            0 => log!("the disks take writes again"),
            _ => warning!("a disk takes no writes: {}", io::Error::from_raw_os_error(error)),
        }
    }
}

fn probe_for_ever() {
    let gate = board::gate();
    loop {
        match probe() {
            Ok(()) => {
                gate.disk_well_at.store(clock::boottime(), Ordering::SeqCst);
                gate.disk_error.store(0, Ordering::SeqCst);
            }
            Err(error) => {
                gate.disk_error.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::SeqCst);
            }
        }
        sleep(PERIOD);
    }
}

/// Writes to each file system that the server cannot do without.
fn probe() -> io::Result<()> {
    let (data, wal) = (Path::new(paths::DIR), Path::new(history::DIR));
    write_to(data)?;
    if fs::metadata(data)?.dev() != fs::metadata(wal)?.dev() {
        write_to(wal)?;
    }
    Ok(())
}

fn write_to(directory: &Path) -> io::Result<()> {
    if room(directory)? < ROOM {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let mut file: File =
        OpenOptions::new().write(true).create(true).truncate(false).open(directory.join(FILE))?;
    file.write_all(&clock::boottime().to_le_bytes())?;
    file.sync_data()
}

/// Bytes that the server may still write to the file system.
fn room(directory: &Path) -> io::Result<u64> {
    let status = rustix::fs::statvfs(directory)?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}
