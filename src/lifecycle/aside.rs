//! Files of a data directory that are this node's and not the database's, kept safe from pg_rewind, which
//! makes everything under the data directory as it is at the source: it overwrites configuration and
//! certificates and deletes what the source lacks. They are kept in a sibling of the data directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What PostgreSQL itself keeps in a data directory. Everything else is the node's own.
const OF_THE_DATABASE: &[&str] = &[
    "PG_VERSION",
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
    "backup_label",
    "tablespace_map",
    "postmaster.pid",
    "lost+found",
];

/// In a data directory that is none ([`super::stub`]).
pub const STUB: &str = "biha.stub";

/// The true control file while pg_rewind is shown another ([`super::newest`]).
pub const CONTROL_FILE: &str = "pg_control";

/// What the source may have lying about and no start should find. Not backup_label: pg_rewind writes it.
const LEFT_OVER: &[&str] = &[
    "backup_label.old",
    "tablespace_map.old",
    "backup_manifest",
    "current_logfiles",
    "postmaster.opts",
    "standby.signal",
    "recovery.signal",
    "promote",
    "fallback_promote",
    "logrotate",
    STUB,
    CONTROL_FILE,
];

/// The files kept aside.
pub struct Aside {
    data: PathBuf,
    sibling: PathBuf,
    /// Moved instead of copied, since it may be large: the directory of the server's log.
    moved: Option<PathBuf>,
}

impl Aside {
    /// Copies this node's own files out of `data` into `sibling`, durably, and moves `log`, a directory named
    /// relative to `data`. What an earlier attempt left in `sibling` is removed. After an error `data` is as
    /// before.
    pub fn put(data: &Path, sibling: &Path, log: Option<&Path>) -> io::Result<Self> {
        remove(sibling)?;
        fs::create_dir(sibling)?;
        fs::set_permissions(sibling, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let mut aside = Aside { data: data.into(), sibling: sibling.into(), moved: None };
        match aside.fill(log) {
            Ok(()) => Ok(aside),
            Err(error) => {
                aside.give_up()?;
                Err(error)
            }
        }
    }

    fn fill(&mut self, log: Option<&Path>) -> io::Result<()> {
        for name in own_files(&self.data)? {
            if Some(name.as_path()) != log {
                copy(&self.data.join(&name), &self.sibling.join(&name))?;
            }
        }
        if let Some(log) = log.filter(|log| self.data.join(log).symlink_metadata().is_ok()) {
            self.moved = Some(log.into());
            relocate(&self.data.join(log), &self.sibling.join(log))?;
        }
        sync_directory(&self.sibling)?;
        sync_parent(&self.sibling)
    }

    /// Where the files are meanwhile.
    pub fn directory(&self) -> &Path {
        &self.sibling
    }

    /// Takes note that the data and these files have changed places.
    pub fn exchanged(&mut self) {
        std::mem::swap(&mut self.data, &mut self.sibling);
    }

    /// For when pg_rewind changed nothing: what was moved comes back, the copies go.
    pub fn give_up(&self) -> io::Result<()> {
        self.return_moved()?;
        remove(&self.sibling)
    }

    /// What was moved comes back.
    pub fn return_moved(&self) -> io::Result<()> {
        if let Some(log) = &self.moved {
            let (there, here) = (self.sibling.join(log), self.data.join(log));
            if there.symlink_metadata().is_ok() {
                remove(&here)?;
                relocate(&there, &here)?;
            }
        }
        sync_directory(&self.data)
    }

    /// [`Aside::bring_back`], but the files stay here as well.
    pub fn copy_back(&self) -> io::Result<()> {
        carry_over(&self.sibling, &self.data, self.moved.as_deref())
    }

    /// For when pg_rewind succeeded: what came from the source goes, this node's own files come back.
    pub fn bring_back(&self) -> io::Result<()> {
        for name in own_files(&self.data)? {
            remove(&self.data.join(name))?;
        }
        for name in entries(&self.sibling)? {
            if !LEFT_OVER.iter().any(|left| name.as_os_str() == *left) {
                relocate(&self.sibling.join(&name), &self.data.join(&name))?;
            }
        }
        sync_directory(&self.data)?;
        remove(&self.sibling)?;
        sync_parent(&self.sibling)
    }
}

/// Puts this node's own files, which are in `from`, into a copy of the source that is to become its data directory,
/// in place of the source's. `log`, a directory, may be large and is still being written: it is linked, where that can
/// be done.
pub fn carry_over(from: &Path, to: &Path, log: Option<&Path>) -> io::Result<()> {
    for name in own_files(to)? {
        remove(&to.join(name))?;
    }
    for name in own_files(from)? {
        if LEFT_OVER.iter().any(|left| name.as_os_str() == *left) {
            continue;
        }
        let put = if Some(name.as_path()) == log { link } else { copy };
        put(&from.join(&name), &to.join(&name))?;
    }
    sync_directory(to)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect()
}

fn own_files(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = entries(data)?;
    names.retain(|name| !OF_THE_DATABASE.iter().any(|theirs| name.as_os_str() == *theirs));
    Ok(names)
}

/// Removes a file or a whole directory; nothing there is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes that a file or a whole directory takes on its disk; 0 if there is none.
pub fn size(path: &Path) -> io::Result<u64> {
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return Ok(own);
    }
    entries(path)?.into_iter().try_fold(own, |sum, name| Ok(sum + size(&path.join(name))?))
}

/// Copies a file, a link or a whole directory, with permissions, durably but for the entry in `to`'s parent.
/// Sockets and pipes are left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = from.symlink_metadata()?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)
    } else if metadata.is_dir() {
        fs::create_dir(to)?;
        for name in entries(from)? {
            copy(&from.join(&name), &to.join(&name))?;
        }
        fs::set_permissions(to, metadata.permissions())?;
        sync_directory(to)
    } else if metadata.is_file() {
        fs::copy(from, to)?;
        File::open(to)?.sync_all()
    } else {
        Ok(())
    }
}

/// As [`copy`], but files become further names of the same file.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = from.symlink_metadata()?;
    if metadata.is_dir() {
        fs::create_dir(to)?;
        for name in entries(from)? {
            link(&from.join(&name), &to.join(&name))?;
        }
        fs::set_permissions(to, metadata.permissions())?;
        return sync_directory(to);
    }
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(from, to),
        other => other,
    }
}

/// Renames, or copies and removes where the two lie on different file systems.
fn relocate(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, to)?;
            remove(from)
        }
        other => other,
    }
}

/// Makes a directory's entries durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Node {
        root: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            let node = Node { root: tempfile::tempdir().unwrap() };
            for directory in ["base", "pg_wal", "pg_biha", "log", "conf.d"] {
                fs::create_dir_all(node.data().join(directory)).unwrap();
            }
            for (name, text) in [
                ("postgresql.conf", "mine"),
                ("pg_biha/biha.state", "state"),
                ("log/a.log", "old log"),
                ("conf.d/x.conf", "x"),
                ("base/1", "table"),
                ("standby.signal", ""),
                ("backup_label.old", "mine"),
            ] {
                fs::write(node.data().join(name), text).unwrap();
            }
            fs::set_permissions(node.data().join("pg_biha/biha.state"), PermissionsExt::from_mode(0o600))
                .unwrap();
            symlink("/etc/hosts", node.data().join("server.crt")).unwrap();
            node
        }

        fn data(&self) -> PathBuf {
            self.root.path().join("data")
        }

        fn sibling(&self) -> PathBuf {
            self.root.path().join("data.biha-rewind")
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.data().join(name)).ok()
        }

        fn put(&self) -> Aside {
            Aside::put(&self.data(), &self.sibling(), Some("log".as_ref())).unwrap()
        }
    }

    /// What is in a data directory with the source's data and this node's own files.
    const OWN_AND_THEIRS: [(&str, &str); 6] = [
        ("postgresql.conf", "mine"),
        ("pg_biha/biha.state", "state"),
        ("log/a.log", "old log"),
        ("conf.d/x.conf", "x"),
        ("base/1", "theirs"),
        ("backup_label", "theirs"),
    ];

    #[test]
    fn own_files_come_back_and_the_sources_go() {
        let node = Node::new();
        let aside = node.put();
        assert!(node.read("log/a.log").is_none());
        assert_eq!(node.read("postgresql.conf").unwrap(), "mine");
        // What pg_rewind does.
        fs::remove_dir_all(node.data().join("pg_biha")).unwrap();
        fs::remove_dir_all(node.data().join("conf.d")).unwrap();
        for (name, text) in [("postgresql.conf", "theirs"), ("server.key", "theirs"), ("base/1", "theirs")] {
            fs::write(node.data().join(name), text).unwrap();
        }
        for name in ["backup_label", "backup_label.old", "recovery.signal"] {
            fs::write(node.data().join(name), "theirs").unwrap();
        }
        fs::create_dir(node.data().join("log")).unwrap();
        fs::write(node.data().join("log/b.log"), "theirs").unwrap();

        aside.bring_back().unwrap();
        for (name, text) in OWN_AND_THEIRS {
            assert_eq!(node.read(name).as_deref(), Some(text), "{name}");
        }
        for gone in ["server.key", "log/b.log", "backup_label.old", "recovery.signal", "standby.signal"] {
            assert_eq!(node.read(gone), None, "{gone}");
        }
        assert_eq!(fs::read_link(node.data().join("server.crt")).unwrap(), Path::new("/etc/hosts"));
        let mode = fs::metadata(node.data().join("pg_biha/biha.state")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!node.sibling().exists());
    }

    #[test]
    fn own_files_are_carried_over_to_a_copy_of_the_source() {
        let node = Node::new();
        let copy = node.root.path().join("copy");
        fs::create_dir_all(copy.join("base")).unwrap();
        fs::create_dir(copy.join("pg_biha")).unwrap();
        let theirs = [
            "postgresql.conf",
            "server.key",
            "pg_biha/biha.state",
            "backup_label",
            "backup_manifest",
            "base/1",
        ];
        for name in theirs {
            fs::write(copy.join(name), "theirs").unwrap();
        }
        carry_over(&node.data(), &copy, Some("log".as_ref())).unwrap();
        let read = |name: &str| fs::read_to_string(copy.join(name)).ok();
        for (name, text) in OWN_AND_THEIRS {
            assert_eq!(read(name).as_deref(), Some(text), "{name}");
        }
        for gone in ["server.key", "backup_manifest", "backup_label.old", "standby.signal"] {
            assert_eq!(read(gone), None, "{gone}");
        }
        // What is logged meanwhile is in both, and nothing else.
        for name in ["log/a.log", "postgresql.conf"] {
            fs::write(node.data().join(name), "newer").unwrap();
        }
        assert_eq!(read("log/a.log").unwrap(), "newer");
        assert_eq!(read("postgresql.conf").unwrap(), "mine");
        assert_eq!(fs::read_link(copy.join("server.crt")).unwrap(), Path::new("/etc/hosts"));
    }

    #[test]
    fn giving_up_leaves_all_as_it_was() {
        let node = Node::new();
        node.put().give_up().unwrap();
        for name in ["postgresql.conf", "log/a.log", "conf.d/x.conf", "standby.signal", "backup_label.old"] {
            assert!(node.read(name).is_some(), "{name}");
        }
        assert!(!node.sibling().exists());
    }

    #[test]
    fn an_older_sibling_is_replaced() {
        let node = Node::new();
        fs::create_dir(node.sibling()).unwrap();
        fs::write(node.sibling().join("stale"), "").unwrap();
        node.put().bring_back().unwrap();
        assert!(node.read("stale").is_none());
        assert_eq!(node.read("log/a.log").unwrap(), "old log");
    }

    #[test]
    fn a_sibling_that_cannot_be_made_changes_nothing() {
        let node = Node::new();
        let nowhere = node.root.path().join("missing/sibling");
        assert!(Aside::put(&node.data(), &nowhere, Some("log".as_ref())).is_err());
        assert_eq!(node.read("log/a.log").unwrap(), "old log");
    }
}
