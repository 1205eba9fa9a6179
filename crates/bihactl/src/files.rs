//! Edits of files in place, each as one step that a crash leaves done or not done.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::undo::Undo;

/// A file's text; `None` if there is no such file.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("could not read \"{}\"", path.display())),
    }
}

/// Replaces a file's content: a new file of the same owner and mode beside it, fsync, rename, fsync of the
/// directory. A new file gets `mode`. A symbolic link stays one: what it points to is replaced.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let context = || format!("could not write \"{}\"", path.display());
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(_) => std::path::absolute(path).with_context(context)?,
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = NamedTempFile::with_prefix_in(".bihactl-", directory).with_context(context)?;
    file.write_all(content).with_context(context)?;
    let mut mode = mode;
    if let Ok(old) = fs::metadata(&path) {
        mode = old.mode() & 0o7777;
        let new = file.as_file().metadata().with_context(context)?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(file.as_file(), Some(old.uid()), Some(old.gid())).with_context(context)?;
        }
    }
    file.as_file().set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    file.persist(&path).with_context(context)?;
    sync_directory(directory).with_context(context)
}

/// [`replace`] where the new content is for the owner alone, whatever the old one was for.
pub fn replace_secret(path: &Path, content: &[u8]) -> Result<()> {
    match fs::set_permissions(path, Permissions::from_mode(0o600)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("could not write \"{}\"", path.display()))
        }
        _ => replace(path, content, 0o600),
    }
}

/// Makes a directory's entries survive a crash.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// As [`replace`], and remembers how to put the old content back, or to remove a file that was not there.
/// Does nothing if the content is the same.
pub fn edit(path: &Path, content: &[u8], mode: u32, undo: &mut Undo) -> Result<()> {
    let old = match fs::read(path) {
        Ok(old) if old == content => return Ok(()),
        Ok(old) => Some(old),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("could not read \"{}\"", path.display())),
    };
    replace(path, content, mode)?;
    let path = path.to_owned();
    undo.push(format!("restore \"{}\"", path.display()), move || match old {
        Some(old) => replace(&path, &old, mode),
        None => Ok(fs::remove_file(&path)?),
    });
    Ok(())
}

/// Removes everything in a directory, and the directory itself if `itself`. What is not there is no error.
/// Symbolic links (tablespaces, pg_wal) are removed; what the latter pointed to is emptied by the caller.
pub fn empty(directory: &Path, itself: bool) -> Result<()> {
    empty_but(directory, None)?;
    if itself && directory.exists() {
        fs::remove_dir(directory).with_context(|| format!("could not remove \"{}\"", directory.display()))?;
    }
    Ok(())
}

/// As [`empty`], but leaves the directory itself, and what is of this name in it.
pub fn empty_but(directory: &Path, kept: Option<&str>) -> Result<()> {
    let context = || format!("could not remove \"{}\"", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(context),
    };
    for entry in entries {
        let entry = entry.with_context(context)?;
        if kept.is_some_and(|kept| entry.file_name() == kept) {
            continue;
        }
        if entry.file_type().with_context(context)?.is_dir() {
            fs::remove_dir_all(entry.path()).with_context(context)?;
        } else {
            fs::remove_file(entry.path()).with_context(context)?;
        }
    }
    Ok(())
}

/// The first of `base`, `base.1`, `base.2`, … that does not exist.
pub fn free_name(base: &Path) -> PathBuf {
    let mut path = base.to_owned();
    let mut n = 0;
    while path.symlink_metadata().is_ok() {
        n += 1;
        let mut name = base.as_os_str().to_owned();
        name.push(format!(".{n}"));
        path = PathBuf::from(name);
    }
    path
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_secret_is_the_owners_whatever_the_file_was() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("magic");
        for old in [false, true] {
            if old {
                fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("opened");
            }
            replace_secret(&path, b"secret").expect("written");
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn keeps_mode_and_link_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().expect("directory");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").expect("written");
        fs::set_permissions(&real, Permissions::from_mode(0o640)).expect("mode");
        symlink(&real, &link).expect("link");
        replace(&link, b"new", 0o600).expect("replaced");
        assert_eq!(fs::read_to_string(&real).expect("read"), "new");
        assert_eq!(fs::metadata(&real).expect("there").mode() & 0o777, 0o640);
        assert!(link.symlink_metadata().expect("there").is_symlink());
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 2);
    }

    #[test]
    fn an_edit_is_taken_back() {
        let dir = tempfile::tempdir().expect("directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, "old").expect("written");
        let mut undo = Undo::default();
        edit(&old, b"changed", 0o600, &mut undo).expect("edited");
        edit(&new, b"made", 0o600, &mut undo).expect("edited");
        assert_eq!(fs::metadata(&new).expect("there").mode() & 0o777, 0o600);
        drop(undo);
        assert_eq!(fs::read_to_string(&old).expect("read"), "old");
        assert!(!new.exists());
    }

    #[test]
    fn free_names_count_up() {
        let dir = tempfile::tempdir().expect("directory");
        let base = dir.path().join("a");
        assert_eq!(free_name(&base), base);
        fs::write(&base, "").expect("written");
        assert_eq!(free_name(&base), dir.path().join("a.1"));
    }
}
