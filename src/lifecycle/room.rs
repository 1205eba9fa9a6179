//! Room for a copy of the leader, beside the data directory, which is this process's working directory. Every attempt
//! costs the node a restart and the leader a base backup: where there was too little room, none is made by itself
//! before there is more.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::warn;
use crate::paths;

/// Bytes by which the room must have grown since it was too little for a copy that had been begun: a WAL segment.
const MORE: u64 = 16 << 20;
/// After so long it is tried all the same: the leader's databases may have become smaller.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Bytes that are free beside the data directory.
pub fn free() -> Result<u64, String> {
    let space =
        rustix::fs::statvfs("..").map_err(|e| format!("could not see how much room there is: {e}"))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// How many bytes are to be free after a copy for which there was too little room: `needed` where that is known.
pub fn wanted_after(needed: Option<u64>) -> u64 {
    needed.unwrap_or_else(|| free().unwrap_or(0).saturating_add(MORE))
}

/// Notes how many bytes are to be free before another copy is begun by itself, or that this is not known, as far as the
/// disk lets it.
pub fn note(wanted: Option<u64>) {
    let noted = match wanted {
        Some(bytes) => biha_io::durable_write(Path::new(paths::RECLONE_ROOM), bytes.to_string().as_bytes()),
        None => match fs::remove_file(paths::RECLONE_ROOM) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    };
    noted.unwrap_or_else(|error| warn("note how much room a copy of the leader needs", &error));
}

/// A want of room.
pub struct Wanting {
    bytes: u64,
    since: Instant,
}

impl Wanting {
    /// That of the life before this one, if there was one.
    pub fn noted() -> Option<Self> {
        let text = fs::read_to_string(paths::RECLONE_ROOM).ok()?;
        text.trim().parse().ok().map(Wanting::of)
    }

    /// So many bytes are wanted from now on.
    pub fn of(bytes: u64) -> Self {
        Wanting { bytes, since: Instant::now() }
    }

    /// Is a copy worth an attempt?
    pub fn is_over(&self) -> bool {
        self.since.elapsed() > PATIENCE || free().is_ok_and(|free| free >= self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_when_there_is_room_or_after_an_hour() {
        let is_over = |bytes, since| Wanting { bytes, since }.is_over();
        assert!(is_over(1, Instant::now()));
        assert!(!is_over(u64::MAX, Instant::now()));
        if let Some(long_ago) = Instant::now().checked_sub(PATIENCE + MINUTE) {
            assert!(is_over(u64::MAX, long_ago));
        }
    }

    #[test]
    fn what_was_not_known_before_is_more_than_there_was() {
        assert_eq!(wanted_after(Some(7)), 7);
        assert!(wanted_after(None) >= MORE);
    }

    const MINUTE: Duration = Duration::from_secs(60);
}
