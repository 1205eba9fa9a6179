//! `pg_biha/server.conf`: the PostgreSQL settings that change with the node's role. biha alone writes it; it
//! is included last by postgresql.biha.conf.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::paths;

/// How many changes may follow each other at once without an fsync. A switchover takes two or three on each node.
const SPARES: usize = 16;
/// The size of a file that is overwritten: one block, so that it comes to disk as a whole.
const BLOCK: usize = 4096;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ServerConf {
    /// `primary_conninfo`; empty: receive from nobody.
    pub primary_conninfo: String,
    /// `primary_slot_name`.
    pub primary_slot_name: String,
    /// `synchronous_standby_names`; empty: asynchronous.
    pub synchronous_standby_names: String,
    /// Blank `restore_command`: the archive may hold a dead branch while no leader is known, and it slows a
    /// promotion.
    pub blank_restore_command: bool,
    /// `wal_retrieve_retry_interval` in ms; `None` leaves the operator's.
    pub retry_interval: Option<u32>,
    /// `default_transaction_read_only` on: clients that look for a server to write to pass this one by
    /// (libpq's `target_session_attrs`).
    pub looks_read_only: bool,
    /// `biha.receiver_epoch`.
    pub epoch: i32,
}

impl ServerConf {
    /// The file's text. The epoch stands last: once it is seen, everything before it is in force.
    pub fn text(&self) -> String {
        let mut text = String::from("# Written by biha; changes are lost.\n");
        let mut line = |name: &str, value: &str| {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        };
        line("primary_conninfo", &self.primary_conninfo);
        line("primary_slot_name", &self.primary_slot_name);
        line("synchronous_standby_names", &self.synchronous_standby_names);
        if self.blank_restore_command {
            line("restore_command", "");
        }
        if let Some(ms) = self.retry_interval {
            line("wal_retrieve_retry_interval", &format!("{ms}ms"));
        }
        if self.looks_read_only {
            line("default_transaction_read_only", "on");
        }
        line("biha.receiver_epoch", &self.epoch.to_string());
        text
    }

    /// Writes the file durably; whoever reads it afterwards, over a crash too, reads this.
    pub fn write(&self) -> io::Result<()> {
        biha_io::durable_write(paths::SERVER_CONF.as_ref(), self.text().as_bytes())
    }

    /// Replaces the file as one step, but leaves it to the system when it comes to disk: on the way to a vote or a
    /// new leader an fsync may cost more than everything else. Nothing is lost with it, as every start of the
    /// server begins with a file of its own.
    ///
    /// It must not be a new file: after a power loss that may be full of zero bytes, and a server does not start on
    /// settings that it cannot read. A spare one has its block on disk already: it is blank there, or says this. Nobody
    /// else reads a spare one, and none is used twice.
    pub fn replace(&self) -> io::Result<()> {
        let path = Path::new(paths::SERVER_CONF);
        if replace_by_spare(path, &self.text())? { Ok(()) } else { self.write() }
    }
}

/// Makes the spare files that are missing. They are synced: not for moments that matter.
pub fn keep_spares() -> io::Result<()> {
    make_spares(Path::new(paths::SERVER_CONF))
}

fn spares(path: &Path) -> impl Iterator<Item = PathBuf> {
    (1..=SPARES).map(move |number| path.with_extension(format!("conf.spare{number}")))
}

fn make_spares(path: &Path) -> io::Result<()> {
    let missing = |spare: &PathBuf| !fs::metadata(spare).is_ok_and(|file| file.len() == BLOCK as u64);
    spares(path).filter(missing).try_for_each(|spare| biha_io::durable_write(&spare, &[b'\n'; BLOCK]))
}

/// False: there is no spare file, or it is too small.
fn replace_by_spare(path: &Path, text: &str) -> io::Result<bool> {
    let mut image = text.as_bytes().to_vec();
    image.resize(BLOCK.max(image.len()), b'\n');
    for spare in spares(path) {
        let Ok(file) = OpenOptions::new().write(true).open(&spare) else { continue };
        if file.metadata()?.len() != image.len() as u64 {
            continue;
        }
        file.write_all_at(&image, 0)?;
        fs::rename(&spare, path)?;
        return Ok(true);
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_replaces_the_file_has_its_block_already() {
        let directory = std::env::temp_dir().join(format!("biha-serverconf-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("server.conf");
        assert!(!replace_by_spare(&path, "a = 1\n").unwrap(), "there is no spare file");
        make_spares(&path).unwrap();
        let inodes: Vec<u64> = spares(&path).map(|spare| fs::metadata(spare).unwrap().ino()).collect();
        for (number, inode) in inodes.iter().enumerate() {
            assert!(replace_by_spare(&path, &format!("a = {number}\n")).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().ino(), *inode, "no new file");
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!((text.trim_end(), text.len()), (format!("a = {number}").as_str(), BLOCK));
        }
        assert!(!replace_by_spare(&path, "a = 1\n").unwrap(), "none is used twice");
        make_spares(&path).unwrap();
        assert!(!replace_by_spare(&path, &"a".repeat(BLOCK + 1)).unwrap(), "it does not fit");
        fs::remove_dir_all(&directory).unwrap();
    }
}
