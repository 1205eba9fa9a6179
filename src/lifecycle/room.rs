//! Room for a copy of the leader, beside the data directory, which is this process's working directory. Every attempt
//! costs the node a restart: where there was too little room, none is made by itself before there is enough.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::warn;
use crate::paths;

/// After so long it is tried all the same: the leader's databases may have become smaller.
const PATIENCE: Duration = Duration::from_secs(300);

/// Bytes that are free beside the data directory.
pub fn free() -> Result<u64, String> {
    let space =
        rustix::fs::statvfs("..").map_err(|e| format!("could not see how much room there is: {e}"))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
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
    fn over_when_there_is_room_or_after_a_while() {
        let is_over = |bytes, since| Wanting { bytes, since }.is_over();
        assert!(is_over(1, Instant::now()));
        assert!(!is_over(u64::MAX, Instant::now()));
        if let Some(long_ago) = Instant::now().checked_sub(PATIENCE + MINUTE) {
            assert!(is_over(u64::MAX, long_ago));
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);
}
