//! What a program says, kept in memory: what became of a data directory is read from it, and a full disk must not hide
//! that. A file shows it to people, as far as that can be written.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

/// Bytes that can be said whatever becomes of the memory: far more than pg_rewind says before it changes anything.
const RESERVED: u64 = 64 << 10;

/// All that a program has said, on its standard output and error.
pub struct Said {
    memory: File,
    shown: Option<File>,
    /// Bytes of `memory` that have been shown.
    shown_until: Cell<u64>,
}

impl Said {
    /// Nothing yet. It is shown in a file of this name.
    pub fn shown_in(path: &Path) -> io::Result<Self> {
        let memory = File::from(memfd_create("biha", MemfdFlags::CLOEXEC)?);
        // Where memory is short that is to be known now.
        fallocate(&memory, FallocateFlags::KEEP_SIZE, 0, RESERVED)?;
        Ok(Said { memory, shown: File::create(path).ok(), shown_until: Cell::new(0) })
    }

    /// Has a program speak here.
    pub fn listen_to(&self, command: &mut Command) -> io::Result<()> {
        command.stdout(self.memory.try_clone()?).stderr(self.memory.try_clone()?);
        Ok(())
    }

    /// All of it. Bytes that are not UTF-8, such as a server's words in its own encoding, are replaced.
    pub fn text(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.since(0)?).into_owned())
    }

    /// Shows what has come since the last time.
    pub fn show(&self) {
        let from = self.shown_until.get();
        let Ok(new) = self.since(from) else { return };
        if let Some(mut shown) = self.shown.as_ref().filter(|_| !new.is_empty()) {
            // Nothing depends on it.
            let _ = shown.write_all(&new);
            self.shown_until.set(from + new.len() as u64);
        }
    }

    fn since(&self, from: u64) -> io::Result<Vec<u8>> {
        let length = self.memory.metadata()?.len().saturating_sub(from);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.memory.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn shell(said: &Said, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        said.listen_to(&mut command).unwrap();
        assert!(command.status().unwrap().success());
    }

    #[test]
    fn words_in_any_encoding_are_heard_to_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let said = Said::shown_in(&path).unwrap();
        assert_eq!(said.text().unwrap(), "");
        shell(&said, r"echo one; printf 'arr\352t\n' >&2");
        said.show();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\narr\xeat\n");
        shell(&said, "echo need to copy");
        assert_eq!(said.text().unwrap(), "one\narr\u{fffd}t\nneed to copy\n");
        said.show();
        said.show();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\narr\xeat\nneed to copy\n");
    }

    #[test]
    fn a_file_that_cannot_be_written_hides_nothing() {
        for path in ["/dev/full", "/nowhere/log"] {
            let said = Said::shown_in(path.as_ref()).unwrap();
            shell(&said, "echo need to copy");
            said.show();
            assert_eq!(said.text().unwrap(), "need to copy\n", "{path}");
        }
    }
}
