//! `global/pg_control`, read from disk: PostgreSQL's copy in shared memory is gone when a postmaster exits.

use std::ffi::CStr;
use std::mem::{offset_of, size_of};

use biha_core::Lsn;
use pgrx::pg_sys;

/// What the control file says of the server: running, or how it ended (`DBState` in catalog/pg_control.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// "shut down": ended cleanly as a primary.
    ShutDown,
    /// "shut down in recovery": ended cleanly as a standby.
    ShutDownInRecovery,
    /// "in production" or "shutting down": a primary, or one that ended without a shutdown checkpoint.
    Primary,
    /// Anything else: a recovery that goes on, or was not ended cleanly.
    Recovery,
}

impl State {
    /// Has the server left recovery since it was started last?
    pub fn was_primary(self) -> bool {
        matches!(self, State::ShutDown | State::Primary)
    }
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
        pg_sys::DBState::DB_IN_PRODUCTION | pg_sys::DBState::DB_SHUTDOWNING => State::Primary,
        _ => State::Recovery,
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

const CRC: usize = offset_of!(pg_sys::ControlFileData, crc);
const MIN_RECOVERY_TIMELINE: usize = offset_of!(pg_sys::ControlFileData, minRecoveryPointTLI);
const CHECKPOINT_TIMELINE: usize =
    offset_of!(pg_sys::ControlFileData, checkPointCopy) + offset_of!(pg_sys::CheckPoint, ThisTimeLineID);

/// A control file's bytes, but with the newest timeline that was replayed (minRecoveryPointTLI) as its last checkpoint's;
/// `None` if that is what they say, or if their checksum is wrong. PostgreSQL does not start with it (xlogrecovery.c,
/// "requested timeline is not a child of this server's history").
pub fn on_newest_timeline(bytes: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| bytes.get(at..at + size_of::<u32>())?.try_into().ok().map(u32::from_ne_bytes);
    let crc = |bytes: &[u8]| bytes.get(..CRC).map(crc32c::crc32c);
    let (checkpoint, newest) = (number(CHECKPOINT_TIMELINE)?, number(MIN_RECOVERY_TIMELINE)?);
    if number(CRC) != crc(bytes) || checkpoint >= newest {
        return None;
    }
    let mut edited = bytes.to_vec();
    edited.get_mut(CHECKPOINT_TIMELINE..)?.first_chunk_mut().map(|place| *place = newest.to_ne_bytes())?;
    let crc = crc(&edited)?;
    edited.get_mut(CRC..)?.first_chunk_mut().map(|place| *place = crc.to_ne_bytes())?;
    Some(edited)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn file(checkpoint: u32, recovered: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..8192_usize).map(|n| n.to_le_bytes()[0]).collect();
        for (place, value) in [(CHECKPOINT_TIMELINE, checkpoint), (MIN_RECOVERY_TIMELINE, recovered)] {
            bytes[place..place + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..CRC]);
        bytes[CRC..CRC + 4].copy_from_slice(&crc.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_checkpoint_on_an_older_timeline_is_put_on_the_newest() {
        assert_eq!(on_newest_timeline(&file(2, 3)), Some(file(3, 3)));
    }

    #[test]
    fn what_is_newest_already_torn_or_short_stays() {
        // minRecoveryPointTLI is 0 where crash recovery has not ended.
        for whole in [file(3, 3), file(3, 0)] {
            assert_eq!(on_newest_timeline(&whole), None);
        }
        let mut torn = file(2, 3);
        torn[0] ^= 1;
        assert_eq!(on_newest_timeline(&torn), None);
        assert_eq!(on_newest_timeline(&file(2, 3)[..CRC]), None);
    }
}
