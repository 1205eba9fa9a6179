//! What strangers may send to biha, and what may stand in its files. Each target takes any bytes and panics
//! where a promise is broken. cargo-fuzz runs them with coverage (`fuzz_targets`), `tests/replay.rs` without.
#![forbid(unsafe_code)]

pub mod channel;
pub mod frame;
pub mod history;
mod input;
pub mod magic;
pub mod statefile;

/// A target: its name, which is also its corpus's, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("frame", frame::run),
    ("channel", channel::run),
    ("statefile", statefile::run),
    ("history", history::run),
    ("magic", magic::run),
];

/// Where files are made: in memory if the host has such a place, as each is synced.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory for files")
}
