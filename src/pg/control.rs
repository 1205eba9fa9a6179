//! `global/pg_control`, read from disk: PostgreSQL's copy in shared memory is gone when a postmaster exits.

use std::ffi::CStr;

use biha_core::Lsn;
use pgrx::pg_sys;

/// What the control file says of the server's last stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// "shut down": ended cleanly as a primary.
    ShutDown,
    /// "shut down in recovery": ended cleanly as a standby.
    ShutDownInRecovery,
    /// Anything else: running, or ended without a shutdown checkpoint.
    Unclean,
}

/// The parts of the control file that biha looks at.
#[derive(Clone, Copy, Debug)]
pub struct ControlFile {
    /// The database system's identifier.
    pub system_identifier: u64,
    /// How the server was stopped.
    pub state: State,
    /// Where the last finished checkpoint's record starts.
    pub checkpoint: Lsn,
    /// Timeline of that checkpoint.
    pub checkpoint_timeline: u32,
    /// How far replay must come; nowhere yet where crash recovery has not ended.
    pub min_recovery: Lsn,
    /// The highest timeline that the data directory has WAL of.
    pub timeline: u32,
    /// Pages have checksums.
    pub checksums: bool,
}

/// Reads the control file of the data directory (this process's working directory); `None` if its checksum is
/// wrong. Raises an ERROR if it cannot be read, which in an exiting postmaster is the end of the exit.
pub fn read() -> Option<ControlFile> {
    read_in(c".")
}

/// [`read`], of another data directory.
pub fn read_in(data: &CStr) -> Option<ControlFile> {
    let mut crc_ok = false;
    // SAFETY: returns a palloc'd copy, or raises an ERROR.
    let raw = unsafe { pg_sys::get_controlfile(data.as_ptr(), &mut crc_ok) };
    // SAFETY: as above; freed once copied.
    let file = unsafe {
        let file = raw.read();
        pg_sys::pfree(raw.cast());
        file
    };
    let state = match file.state {
        pg_sys::DBState::DB_SHUTDOWNED => State::ShutDown,
        pg_sys::DBState::DB_SHUTDOWNED_IN_RECOVERY => State::ShutDownInRecovery,
        _ => State::Unclean,
    };
    crc_ok.then_some(ControlFile {
        system_identifier: file.system_identifier,
        state,
        checkpoint: Lsn(file.checkPoint),
        checkpoint_timeline: file.checkPointCopy.ThisTimeLineID,
        min_recovery: Lsn(file.minRecoveryPoint),
        timeline: file.checkPointCopy.ThisTimeLineID.max(file.minRecoveryPointTLI),
        checksums: file.data_checksum_version != 0,
    })
}
