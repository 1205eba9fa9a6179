//! A disk of its own for a node: an ext4 file system in a file. It can be full, refuse writes, hang, be slow, and lose
//! its power, and with that what was not synced.
//!
//! Frozen file systems hang: a process that writes to one cannot even be killed. So everything that ends servers thaws
//! their disks first, and whoever starts looks for what a killed run has left behind.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::process::{alive, kill_below};
use crate::run::{is_root, make_directory, run};
use crate::wait::{wait_for, wait_until};

/// Size of a disk. The file has holes: it takes what is written.
const SIZE: u64 = 2 << 30;
/// Directories of clusters are named `biha-test-<pid>-<number>`.
const CLUSTER: &str = "biha-test-";
/// What fills a disk.
const BALLAST: &str = "ballast";
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` (linux/ext4.h): nothing that is only in memory reaches the
/// disk any more.
const POWER_OFF: &str =
    "my $how = pack('L', 2); open(my $d, '<', $ARGV[0]) or die $!; ioctl($d, 0x8004587d, $how) or die $!";
/// A slow disk hangs for so long, in ms, and then answers for so long.
const SLOW: (u64, u64) = (60, 15);

/// One disk; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: PathBuf,
    image: PathBuf,
    slow: Mutex<Option<(Arc<AtomicBool>, JoinHandle<()>)>>,
}

impl Disk {
    /// Can disks be made here?
    pub fn possible() -> bool {
        let works = |program: &str, argument: &str| {
            Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
        };
        is_root() && works("losetup", "--find") && works("mkfs.ext4", "-V")
    }

    /// Makes a disk and mounts it at `mount`.
    pub fn create(mount: &Path) -> Result<Disk> {
        let image = mount.with_extension("image");
        fs::File::create(&image)?.set_len(SIZE)?;
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-m", "0", "-J", "size=16", "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
        run(make.arg(&image))?;
        make_directory(mount)?;
        let disk = Disk { mount: mount.to_path_buf(), image, slow: Mutex::default() };
        disk.attach()?;
        make_directory(mount)?;
        Ok(disk)
    }

    fn attach(&self) -> Result<()> {
        // Not with discard: ext4 discards what a transaction freed that its loss of power undoes.
        let options = "loop,noatime,errors=remount-ro";
        run(Command::new("mount").args(["-t", "ext4", "-o", options]).args([&self.image, &self.mount]))
            .map(drop)
    }

    /// Leaves so many bytes of room on it, whole blocks at most.
    pub fn fill(&self, left: u64) -> Result<()> {
        let ballast = fs::File::create(self.mount.join(BALLAST))?;
        // What was deleted is free when the file system has said so on its disk.
        rustix::fs::syncfs(&ballast)?;
        let mut end = 0;
        // What is free changes meanwhile, and the ballast itself takes some.
        loop {
            let free = statvfs(&self.mount)?;
            let mut piece = free.f_bavail * free.f_frsize;
            while piece > 0 && fallocate(ballast.as_fd(), FallocateFlags::empty(), end, piece).is_err() {
                piece /= 2;
            }
            if piece == 0 {
                // What failed has taken what there was.
                let length = ballast.metadata()?.len();
                return Ok(ballast.set_len(length.saturating_sub(left))?);
            }
            end += piece;
        }
    }

    /// Takes the ballast away.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.mount.join(BALLAST)).context("could not make room on a full disk")
    }

    /// From now on it refuses writes, as after an error that the kernel could not mend. [`Disk::mend`] it.
    pub fn refuse_writes(&self) -> Result<()> {
        let device = run(Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.mount))?;
        let device = Path::new(device.trim()).file_name().context("a disk without a device")?;
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "biha's cluster tests").with_context(|| trigger.display().to_string())
    }

    /// Cuts its power: what was not synced is lost. Nothing may run there. [`Disk::mend`] it.
    pub fn lose_power(&self) -> Result<()> {
        run(Command::new("perl").args(["-e", POWER_OFF]).arg(&self.mount)).map(drop)
    }

    /// Unmounts it, checks it, and mounts it again. Nothing may run there.
    pub fn mend(&self) -> Result<()> {
        wait_until("a disk to be unmounted", Duration::from_secs(10), || self.detach(&[]))?;
        let output = Command::new("e2fsck").args(["-p"]).arg(&self.image).output()?;
        // 1: errors were corrected.
        ensure!(matches!(output.status.code(), Some(0 | 1)), "e2fsck: {output:?}");
        self.attach()
    }

    fn detach(&self, options: &[&str]) -> Result<()> {
        run(Command::new("umount").args(options).arg(&self.mount)).map(drop)
    }

    /// Whoever writes to it waits.
    pub fn hang(&self) -> Result<()> {
        freeze(&self.mount)
    }

    /// It hangs again and again, until [`Disk::thaw`].
    pub fn slow_down(&self) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, mount) = (stop.clone(), self.mount.clone());
        let work = move || {
            while !theirs.load(Ordering::Relaxed) && freeze(&mount).is_ok() {
                sleep(Duration::from_millis(SLOW.0));
                thaw(&mount);
                sleep(Duration::from_millis(SLOW.1));
            }
        };
        let thread = Builder::new().name("slow disk".into()).spawn(work)?;
        *self.slow.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, thread));
        Ok(())
    }

    /// It answers again, if it hung or was slow.
    pub fn thaw(&self) {
        let slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = slow {
            stop.store(true, Ordering::Relaxed);
            // It has nothing to tell; what hangs is thawed below.
            thread.join().ok();
        }
        thaw(&self.mount);
    }

    /// The file that it is in, for a reader of a failed test.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Unmounts it for good, and removes it.
    pub fn destroy(self) -> Result<()> {
        self.thaw();
        let image = self.image.clone();
        wait_until("a disk to be unmounted", Duration::from_secs(10), || self.detach(&[]))?;
        fs::remove_file(&image).with_context(|| image.display().to_string())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        if !is_mounted(&self.mount) {
            return;
        }
        // Lazily: what still runs there is ended by whoever started it.
        if let Err(error) = self.detach(&[]).or_else(|_| self.detach(&["-l"])) {
            eprintln!("could not unmount {}: {error:#}", self.mount.display());
        }
    }
}

fn freeze(mount: &Path) -> Result<()> {
    run(Command::new("fsfreeze").arg("-f").arg(mount)).map(drop)
}

/// It is an error of fsfreeze where nothing was frozen.
fn thaw(mount: &Path) {
    run(Command::new("fsfreeze").arg("-u").arg(mount)).ok();
}

fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect()
}

fn is_mounted(mount: &Path) -> bool {
    mounts().iter().any(|other| other == mount)
}

/// The harness's process that made what is at this path, if it is a disk of a cluster.
fn owner(mount: &Path) -> Option<i32> {
    let directory = mount.parent()?.file_name()?.to_str()?;
    directory.strip_prefix(CLUSTER)?.split('-').next()?.parse().ok()
}

/// Thaws and unmounts disks of harness processes that were killed, and ends what still runs on them.
pub fn remove_stale() -> Result<()> {
    for mount in mounts() {
        if owner(&mount).is_none_or(alive) {
            continue;
        }
        let disk = Disk { image: mount.with_extension("image"), mount, slow: Mutex::default() };
        disk.thaw();
        kill_below(&disk.mount)?;
        let (mount, image) = (disk.mount.clone(), disk.image.clone());
        drop(disk);
        wait_for("a left disk to be unmounted", Duration::from_secs(10), || !is_mounted(&mount))?;
        fs::remove_file(&image).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn made(pid: i32, name: &str) -> (PathBuf, Disk) {
        let directory = std::env::temp_dir().join(format!("{CLUSTER}{pid}-{name}"));
        fs::create_dir_all(&directory).unwrap();
        let directory = directory.canonicalize().unwrap();
        let disk = Disk::create(&directory.join("disk1")).unwrap();
        (directory, disk)
    }

    #[test]
    fn a_disk_is_full_refuses_hangs_and_forgets() {
        if !Disk::possible() {
            return;
        }
        let (directory, disk) = made(i32::try_from(std::process::id()).unwrap(), "disk");
        let path = disk.mount.join("file");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.sync_all().unwrap();
        disk.fill(0).unwrap();
        let full = file.write_all(&[2; 1 << 20]);
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        disk.empty().unwrap();
        disk.hang().unwrap();
        let writer = std::thread::scope(|scope| {
            let writer = scope.spawn(|| fs::write(disk.mount.join("late"), "x"));
            sleep(Duration::from_millis(200));
            let hung = !writer.is_finished();
            disk.thaw();
            writer.join().unwrap().unwrap();
            hung
        });
        assert!(writer, "a write to a disk that hung came through");
        file.set_len(4096).unwrap();
        file.sync_all().unwrap();
        fs::write(disk.mount.join("unsynced"), [3; 4096]).unwrap();
        drop(file);
        disk.lose_power().unwrap();
        disk.mend().unwrap();
        let unsynced = fs::read(disk.mount.join("unsynced")).unwrap_or_default();
        assert!(unsynced.is_empty(), "what was not synced is lost");
        let mut bytes = Vec::new();
        fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [1; 4096], "what was synced is there");
        disk.refuse_writes().unwrap();
        assert!(fs::write(&path, "x").is_err());
        disk.mend().unwrap();
        fs::write(&path, "x").unwrap();
        disk.destroy().unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_disk_that_a_killed_run_left_is_removed() {
        assert_eq!(owner(Path::new("/tmp/biha-test-12-0/disk1")), Some(12));
        assert_eq!(owner(Path::new("/tmp/other/disk1")), None);
        if !Disk::possible() {
            return;
        }
        let mut killed = Command::new("true").spawn().unwrap();
        killed.wait().unwrap();
        let (directory, disk) = made(i32::try_from(killed.id()).unwrap(), "left");
        let mut server = Command::new("sleep").arg("600").current_dir(&disk.mount).spawn().unwrap();
        disk.hang().unwrap();
        let mount = disk.mount.clone();
        std::mem::forget(disk);
        remove_stale().unwrap();
        assert!(!is_mounted(&mount));
        assert!(!server.wait().unwrap().success(), "what ran there was ended");
        fs::remove_dir_all(&directory).unwrap();
    }
}
