//! PostgreSQL's programs: where they are, their version, and running them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, test_kill_process_group};

use crate::{interrupt, ui};

/// The oldest and the newest major version of PostgreSQL that biha knows.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 15..=18;

/// The programs of one installation.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Their directory.
    pub bindir: PathBuf,
    /// Their major version.
    pub version: u32,
}

impl Tools {
    /// Finds the programs: in `bindir` if given; else, for an existing data directory, those of its version.
    pub fn find(bindir: Option<&Path>, version: Option<u32>) -> Result<Tools> {
        if let Some(bindir) = bindir {
            return Tools::at(bindir);
        }
        let fits = |tools: &Tools| version.is_none_or(|version| tools.version == version);
        let mut found: Vec<Tools> = candidates().iter().filter_map(|dir| Tools::at(dir).ok()).collect();
        found.retain(fits);
        if let Some(known) = found.iter().position(|tools| VERSIONS.contains(&tools.version)) {
            return Ok(found.swap_remove(known));
        }
        match version {
            Some(version) => {
                bail!("could not find the programs of PostgreSQL {version}; say where with --bindir")
            }
            None => bail!("could not find PostgreSQL's programs; say where with --bindir"),
        }
    }

    fn at(bindir: &Path) -> Result<Tools> {
        let output = Command::new(bindir.join("postgres"))
            .arg("--version")
            .output()
            .with_context(|| format!("could not run \"{}\"", bindir.join("postgres").display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = major(&text).with_context(|| format!("unexpected version \"{}\"", text.trim()))?;
        Ok(Tools { bindir: bindir.to_owned(), version })
    }

    /// A command that runs one of the programs, speaking plain English and free of PG* variables.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bindir.join(program));
        command.env("LC_ALL", "C").stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
    }

    /// [`Tools::command`] in the operator's own locale: what it makes is to have it.
    pub fn command_in_locale(&self, program: &str) -> Command {
        let mut command = self.command(program);
        match std::env::var_os("LC_ALL") {
            Some(locale) => command.env("LC_ALL", locale),
            None => command.env_remove("LC_ALL"),
        };
        command
    }

    /// Files that biha's installation must have put in place and that are missing.
    pub fn missing_files(&self) -> Vec<PathBuf> {
        let asked = |option: &str| {
            let output = self.command("pg_config").arg(option).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| PathBuf::from(text.trim()))
        };
        let Some(library) = asked("--pkglibdir") else { return Vec::new() };
        let Some(share) = asked("--sharedir") else { return Vec::new() };
        let wanted = [library.join("biha.so"), share.join("extension/biha.control")];
        wanted.into_iter().filter(|file| !file.exists()).collect()
    }
}

/// The major version in the output of `postgres --version`.
fn major(text: &str) -> Option<u32> {
    let word = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    word[..digits].parse().ok()
}

/// Directories that may hold the programs, likeliest first; of the usual places the newest version first.
fn candidates() -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        candidates.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    for version in VERSIONS.rev() {
        candidates.push(PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
        candidates.push(PathBuf::from(format!("/usr/pgsql-{version}/bin")));
    }
    let mut real: Vec<PathBuf> = Vec::new();
    for candidate in candidates {
        // A link such as /usr/local/bin/postgres leads to the installation.
        let Ok(program) = fs::canonicalize(candidate.join("postgres")) else { continue };
        if let Some(directory) = program.parent()
            && !real.iter().any(|known| known == directory)
        {
            real.push(directory.to_owned());
        }
    }
    real
}

/// What a program that was run may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Its output only if it fails.
    Failure,
    /// Its output as it comes.
    All,
}

/// Runs a program to its end; its standard output. A signal to bihactl ends it.
pub fn run(command: &mut Command, show: Show) -> Result<String> {
    let text = run_to_end(command, show, true);
    interrupt::check()?;
    text
}

/// As [`run`], but a signal to bihactl waits for the program's end: a pg_ctl that was killed may leave a postmaster that
/// has not written its PID file yet, and that nobody would find.
pub fn run_through(command: &mut Command) -> Result<String> {
    run_to_end(command, Show::Failure, false)
}

fn run_to_end(command: &mut Command, show: Show, may_end: bool) -> Result<String> {
    let name =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut out = tempfile::tempfile()?;
    let mut err = tempfile::tempfile()?;
    command.stdout(out.try_clone()?);
    if show == Show::Failure {
        command.stderr(err.try_clone()?);
    }
    // A group of its own: pg_basebackup has a child that would outlive it.
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("could not run {name}"))?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (mut noticed, mut told) = (false, false);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt::requested() && !noticed {
            noticed = true;
            if may_end {
                told = true;
                kill_process_group(pid, Signal::TERM)?;
            } else {
                ui::say(&format!("interrupted; waiting for {name} to end, to take back what it does"));
            }
        }
        // The limit is for a signal that comes between the look above and the wait.
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    let text = said(&mut out)?;
    if status.signal().is_some() && !told {
        // What it was killed by spared its children: pg_basebackup's would write, and hold its slot, for ever.
        told = !matches!(kill_process_group(pid, Signal::TERM), Err(Errno::SRCH));
    }
    if told {
        await_group(pid)?;
    }
    if !status.success() {
        bail!("{name} failed ({status})\n{}{}", text, said(&mut err)?.trim_end());
    }
    Ok(text)
}

/// All that was written, in whatever encoding the operator's locale has.
fn said(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for the last process of a group that was told to end: until then it may still write.
fn await_group(group: Pid) -> Result<()> {
    let look = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    for _ in 0..500 {
        if test_kill_process_group(group) == Err(Errno::SRCH) {
            return Ok(());
        }
        match poll(&mut [], Some(&look)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(kill_process_group(group, Signal::KILL)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(major("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("nonsense"), None);
    }

    #[test]
    fn a_failing_program_says_why() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"]), Show::Failure);
        let text = format!("{:#}", error.expect_err("fails"));
        assert!(text.contains("why") && text.contains('3'), "{text}");
        assert_eq!(run(Command::new("echo").arg("x"), Show::Failure).expect("runs"), "x\n");
    }

    #[test]
    fn children_of_a_killed_program_do_not_outlive_it() {
        let error = run(Command::new("sh").args(["-c", "sleep 600 & echo $!; kill -9 $$"]), Show::Failure);
        let text = format!("{:#}", error.expect_err("fails"));
        let child = text.lines().find_map(|line| line.parse().ok()).expect("a process number");
        let child = Pid::from_raw(child).expect("a process");
        let ended = rustix::process::test_kill_process(child) == Err(Errno::SRCH);
        // Nobody may have reaped it yet.
        let state = fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero())).unwrap_or_default();
        assert!(ended || state.contains(") Z "), "{state}");
    }
}
