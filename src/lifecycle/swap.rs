//! A directory beside the data directory, which takes its place in one step, renameat2(RENAME_EXCHANGE): at no moment
//! is there anything at the data directory's path but the whole old one or the whole new one, also after a power
//! failure. What lies beside it is of no use to anybody, so that the next start removes it without a question.
//!
//! WAL on a file system of its own (pg_wal is a symbolic link) is made anew beside the old WAL in the same way.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use biha_core::Hindrance;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::aside::{remove, sync_directory};
use super::report::of_own_disk;
use crate::agent::history::DIR as WAL;
use crate::paths;

/// What the names beside end with.
const SUFFIX: &str = ".biha-reclone";

/// Where a new data directory is made.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The data directory.
    pub data: PathBuf,
    /// What is to become the data directory.
    pub beside: PathBuf,
    /// Where pg_wal is, if it is a symbolic link.
    wal: Option<PathBuf>,
}

impl Place {
    /// That of a data directory, named without symbolic links.
    pub fn of(data: &Path) -> io::Result<Self> {
        let link = data.join(WAL);
        let wal = if link.is_symlink() { Some(fs::canonicalize(link)?) } else { None };
        Ok(Place { data: data.into(), beside: beside(data), wal })
    }

    /// Where the new WAL is to be, if not in the directory itself.
    pub fn wal_beside(&self) -> Option<PathBuf> {
        self.wal.as_deref().map(beside)
    }

    /// Can it be done here? Tried on two empty directories, before anything large is copied.
    pub fn check(&self) -> Result<(), Hindrance> {
        is_one_piece(&self.data).map_err(|error| {
            of_own_disk(&format!("exchange \"{}\" for a copy", self.data.display()), &error)
        })?;
        for old in [Some(&self.data), self.wal.as_ref()].into_iter().flatten() {
            let doing = format!("make a directory beside \"{}\" that can take its place", old.display());
            try_exchange(old).map_err(|error| of_own_disk(&doing, &error))?;
        }
        Ok(())
    }

    /// Makes the new directory the data directory; what that was is beside it then.
    pub fn exchange(&self) -> io::Result<()> {
        exchange(&self.beside, &self.data)
    }

    /// Removes what is beside, and gives the WAL the name that the old had. Can be repeated.
    pub fn clear(&self) -> io::Result<()> {
        // What an exchange has put aside is needed until that is durable.
        sync_parent(&self.data)?;
        settle_wal(&self.data)?;
        remove(&self.beside)
    }
}

/// Exchanges two directories.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Makes the exchange durable that has brought a data directory here, and it this process's working directory.
pub fn enter(data: &Path) -> io::Result<()> {
    std::env::set_current_dir(data)?;
    sync_parent(data)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(SUFFIX);
    name.into()
}

/// `DIR` of `DIR.biha-reclone`.
fn without_suffix(path: &Path) -> Option<PathBuf> {
    path.to_str()?.strip_suffix(SUFFIX).map(PathBuf::from)
}

/// Does all of a data directory go with it when it takes another place? What is mounted in it would go along, and not
/// come back at the next mount.
pub fn is_one_piece(data: &Path) -> io::Result<()> {
    let data = fs::canonicalize(data)?;
    let mounts = fs::read("/proc/self/mountinfo")?;
    let mut points = mounts.split(|byte| *byte == b'\n').filter_map(mount_point);
    match points.find(|point| *point != data && point.starts_with(&data)) {
        Some(point) => Err(io::Error::other(format!("a file system is mounted at \"{}\"", point.display()))),
        None => Ok(()),
    }
}

/// The fifth word of a line of /proc/self/mountinfo (proc(5)), in which some characters are written as their number in
/// three octal digits.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut rest = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    Some(OsString::from_vec(path).into())
}

fn try_exchange(old: &Path) -> io::Result<()> {
    let parent = old.parent().ok_or_else(|| io::Error::other("it is the root of all directories"))?;
    if fs::metadata(old)?.dev() != fs::metadata(parent)?.dev() {
        return Err(io::Error::other("a file system is mounted there"));
    }
    let directory = beside(old);
    remove(&directory)?;
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
    let [one, other] = ["1", "2"].map(|name| directory.join(name));
    fs::create_dir(&one)?;
    fs::create_dir(&other)?;
    let tried = exchange(&one, &other);
    remove(&directory)?;
    tried
}

/// New WAL beside the old takes its place, by steps after each of which pg_wal leads to the WAL that belongs to this
/// data directory; else what is beside is removed.
fn settle_wal(data: &Path) -> io::Result<()> {
    let link = data.join(WAL);
    let Ok(target) = fs::read_link(&link) else { return Ok(()) };
    let real = fs::canonicalize(&link)?;
    let old = without_suffix(&real).unwrap_or_else(|| real.clone());
    let new = beside(&old);
    if target == new {
        if !old.is_symlink() {
            remove(&old)?;
            symlink(&new, &old)?;
            // On another disk than pg_wal, which is about to lead here.
            sync_parent(&old)?;
        }
        let temporary = data.join(paths::WAL_LINK);
        remove(&temporary)?;
        symlink(&old, &temporary)?;
        fs::rename(&temporary, &link)?;
        sync_directory(data)?;
    }
    if fs::read_link(&old).is_ok_and(|target| target == new) {
        exchange(&old, &new)?;
        sync_parent(&old)?;
    }
    remove(&new)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    struct World(tempfile::TempDir);

    impl World {
        /// A data directory, with its WAL elsewhere if that is wanted, and a new one beside it.
        fn new(linked: bool) -> (World, Place) {
            let world = World(tempfile::tempdir().unwrap());
            let (data, wal) = (world.path("data"), world.path("wal"));
            fs::create_dir_all(data.join("pg_biha")).unwrap();
            fs::create_dir(if linked { wal.clone() } else { data.join(WAL) }).unwrap();
            if linked {
                symlink(&wal, data.join(WAL)).unwrap();
            }
            fs::write(data.join(WAL).join("1"), "old").unwrap();
            let place = Place::of(&data).unwrap();
            place.check().unwrap();
            fs::create_dir_all(place.beside.join("pg_biha")).unwrap();
            let new_wal = place.wal_beside().unwrap_or_else(|| place.beside.join(WAL));
            fs::create_dir(&new_wal).unwrap();
            fs::write(new_wal.join("1"), "new").unwrap();
            if linked {
                symlink(&new_wal, place.beside.join(WAL)).unwrap();
            }
            (world, place)
        }

        fn path(&self, name: &str) -> PathBuf {
            fs::canonicalize(self.0.path()).unwrap().join(name)
        }

        fn wal(&self) -> String {
            fs::read_to_string(self.path("data/pg_wal/1")).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn what_is_mounted_in_it_is_not_moved_along() {
        let (_world, place) = World::new(true);
        is_one_piece(&place.data).unwrap();
        let error = is_one_piece("/".as_ref()).unwrap_err().to_string();
        assert!(error.contains("a file system is mounted at \"/"), "{error}");
        let line = br"36 35 98:0 /a /mnt\0402/a\134b rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line).unwrap(), Path::new(r"/mnt 2/a\b"));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn what_was_not_exchanged_leaves_the_old() {
        for (linked, names) in [(false, vec!["data"]), (true, vec!["data", "wal"])] {
            let (world, place) = World::new(linked);
            place.clear().unwrap();
            assert_eq!(
                (world.wal().as_str(), world.names()),
                ("old", names.iter().map(|n| n.to_string()).collect())
            );
            place.clear().unwrap();
            assert_eq!(world.wal(), "old");
        }
    }

    #[test]
    fn what_was_exchanged_is_the_new() {
        for (linked, names) in [(false, vec!["data"]), (true, vec!["data", "wal"])] {
            let (world, place) = World::new(linked);
            place.exchange().unwrap();
            assert_eq!(world.wal(), "new");
            place.clear().unwrap();
            assert_eq!(
                (world.wal().as_str(), world.names()),
                ("new", names.iter().map(|n| n.to_string()).collect())
            );
            assert!(!linked || fs::read_link(world.path("data/pg_wal")).unwrap() == world.path("wal"));
            assert_eq!(Place::of(&place.data).unwrap(), place);
        }
    }

    /// After each of its steps the settling of the WAL may be cut short.
    #[test]
    fn a_settling_of_the_wal_is_finished_by_the_next_one() {
        let steps: [fn(&World); 5] = [
            |world| fs::remove_dir_all(world.path("wal")).unwrap(),
            |world| symlink(world.path("wal.biha-reclone"), world.path("wal")).unwrap(),
            |world| symlink(world.path("wal"), world.path("data").join(paths::WAL_LINK)).unwrap(),
            |world| {
                fs::rename(world.path("data").join(paths::WAL_LINK), world.path("data/pg_wal")).unwrap();
            },
            |world| {
                let (old, new) = (world.path("wal"), world.path("wal.biha-reclone"));
                exchange(&old, &new).unwrap();
            },
        ];
        for count in 0..=steps.len() {
            let (world, place) = World::new(true);
            place.exchange().unwrap();
            for step in &steps[..count] {
                step(&world);
                assert_eq!(world.wal(), "new", "after {count} steps");
            }
            place.clear().unwrap();
            assert_eq!((world.wal().as_str(), world.names()), ("new", vec!["data".into(), "wal".into()]));
            assert_eq!(fs::read_link(world.path("data/pg_wal")).unwrap(), world.path("wal"));
        }
    }

    #[test]
    fn a_place_where_nothing_can_be_made_is_refused() {
        let why = Place::of(Path::new("/proc")).unwrap().check().unwrap_err();
        assert!(why.text.contains("a file system is mounted") && !why.passing, "{why:?}");
    }
}
