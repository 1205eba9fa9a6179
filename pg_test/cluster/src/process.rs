//! Processes of a server, found by their working directory: PostgreSQL and everything it starts works in the
//! data directory. So a re-executed postmaster, an orphaned worker and a running pg_rewind are found as well,
//! and nothing that is not ours ever is.
//!
//! The harness adopts the servers' orphans ([`adopt_orphans`]) and reaps them at once: a killed postmaster that
//! nobody has reaped keeps its lock file valid, and init may take seconds.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, waitpid,
};

use crate::wait::wait_for;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's number.
    pub parent: i32,
    /// State as in ps: R, S, D, T (stopped), Z.
    pub state: char,
    /// CPU time used so far, user and system, in clock ticks of 10 ms.
    pub ticks: u64,
    /// The same of its children that have ended.
    pub ended_ticks: u64,
    /// Name of its program.
    pub command: String,
    /// Its title, as in ps.
    pub title: String,
}

/// All living processes whose working directory is `dir`, without zombies.
pub fn in_directory(dir: &Path) -> Vec<Process> {
    living(|process| works(process, |cwd| is_same(cwd, dir)))
}

fn living(wanted: impl Fn(&Process) -> bool) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Process> = entries
        .flatten()
        .filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?))
        .filter(|process| !reaped(process) && process.state != 'Z' && wanted(process))
        .collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// All living processes below a process: its children, their children, and so on.
pub fn descendants(pid: i32) -> Vec<Process> {
    let all = living(|_| true);
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|process| process.parent == parent);
        found.extend(children.inspect(|child| parents.push(child.pid)).cloned());
    }
    found
}

/// From now on orphans below this process become its children.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("could not become the reaper of the servers' orphans")
}

/// Reaps a server process that has ended and is ours.
fn reaped(process: &Process) -> bool {
    let ours = process.parent == getpid().as_raw_nonzero().get() && process.command == "postgres";
    let Some(pid) = Pid::from_raw(process.pid).filter(|_| ours && process.state == 'Z') else { return false };
    matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_)))
}

/// Waits until a process that ends, or has ended, is gone altogether, its number included.
pub fn wait_reaped(pid: i32, timeout: Duration) -> Result<()> {
    wait_for(&format!("process {pid} to be gone"), timeout, || {
        read(pid).is_none_or(|process| reaped(&process))
    })
}

/// How long a stopped process may take to stand still.
const STILL: Duration = Duration::from_secs(10);

/// Lets a process go on a millisecond at a time until the moment has come, and leaves it stopped; false if it ended before.
/// Not looked for by its working directory, which may change its name in between.
pub fn step_until(pid: i32, limit: Duration, is_now: impl Fn() -> bool) -> Result<bool> {
    let start = Instant::now();
    loop {
        signal(pid, Signal::STOP)?;
        wait_for("it to stand still or end", STILL, || stopped(pid) || !alive(pid))?;
        if !alive(pid) {
            return Ok(false);
        }
        if is_now() {
            return Ok(true);
        }
        ensure!(start.elapsed() < limit, "the moment has not come");
        signal(pid, Signal::CONT)?;
        sleep(Duration::from_millis(1));
    }
}

/// What a living program has said on its standard error, if it speaks into a file.
pub fn said(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/fd/2")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// CPU time, from clock ticks.
pub fn cpu_time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 10)
}

/// What a re-clone adds to the name of a data directory, for the copy, and then for the one that was replaced.
pub const RECLONE_SUFFIX: &str = ".biha-reclone";

/// Also under the name that a re-clone gives the directory that it has replaced, there or removed already.
fn is_same(cwd: &Path, dir: &Path) -> bool {
    let (cwd, dir) = (cwd.to_string_lossy(), dir.to_string_lossy());
    let cwd = cwd.strip_suffix(" (deleted)").unwrap_or(&cwd);
    cwd.strip_suffix(RECLONE_SUFFIX).unwrap_or(cwd) == dir
}

/// The kernel forgets where a process worked before it is a zombie that can be reaped: a server's is there until then.
fn works(process: &Process, there: impl Fn(&Path) -> bool) -> bool {
    match fs::read_link(format!("/proc/{}/cwd", process.pid)) {
        Ok(cwd) => there(&cwd),
        Err(error) => error.kind() == ErrorKind::NotFound && process.command == "postgres",
    }
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name in parentheses, may hold anything; the rest follows its last ')'.
    let (begin, end) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat[end + 1..].split_whitespace().collect();
    let sum =
        |a: usize, b: usize| Some(fields.get(a)?.parse::<u64>().ok()? + fields.get(b)?.parse::<u64>().ok()?);
    let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_string();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        ticks: sum(11, 12)?,
        ended_ticks: sum(13, 14)?,
        command: stat[begin + 1..end].to_string(),
        title,
    })
}

/// Does the process live (and is no zombie)?
pub fn alive(pid: i32) -> bool {
    read(pid).is_some_and(|process| process.state != 'Z')
}

/// Does the process stand still (SIGSTOP)?
pub fn stopped(pid: i32) -> bool {
    read(pid).is_some_and(|process| process.state == 'T')
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("process number 0")?;
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("could not send {signal:?} to {pid:?}")),
    }
}

/// Sends a signal to a process group; one that is gone already is no error.
pub fn signal_group(leader: i32, signal: Signal) -> Result<()> {
    match kill_process_group(Pid::from_raw(leader).context("process number 0")?, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("could not send {signal:?} to group {leader}")),
    }
}

/// kill -9 of everything that works in `dir`, until nothing does.
pub fn kill_all(dir: &Path) -> Result<()> {
    kill_while(dir, || in_directory(dir))
}

/// kill -9 of everything that works in `dir` or below, until nothing does.
pub fn kill_below(dir: &Path) -> Result<()> {
    kill_while(dir, || living(|process| works(process, |cwd| cwd.starts_with(dir))))
}

fn kill_while(dir: &Path, there: impl Fn() -> Vec<Process>) -> Result<()> {
    wait_for(&format!("end of all processes in {}", dir.display()), Duration::from_secs(10), || {
        let left = there();
        for process in &left {
            // What can't be killed shows as still there.
            signal(process.pid, Signal::KILL).ok();
        }
        left.is_empty()
    })
}

/// Stops (SIGSTOP) everything that works in `dir`, until all of it stands still.
pub fn freeze_all(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let running: Vec<_> = in_directory(dir).into_iter().filter(|p| p.state != 'T').collect();
        if running.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "processes that can't be stopped: {running:?}");
        for process in running {
            signal(process.pid, Signal::STOP)?;
        }
        yield_now();
    }
}

/// Lets everything that works in `dir` run on.
pub fn thaw_all(dir: &Path) -> Result<()> {
    in_directory(dir).iter().try_for_each(|process| signal(process.pid, Signal::CONT))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn finds_freezes_and_kills_by_directory() {
        let dir = std::env::temp_dir().join(format!("biha-process-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let dir = dir.canonicalize().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&dir).spawn().unwrap();
        let found = in_directory(&dir);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pid, i32::try_from(child.id()).unwrap());
        freeze_all(&dir).unwrap();
        assert_eq!(in_directory(&dir)[0].state, 'T');
        thaw_all(&dir).unwrap();
        kill_all(&dir).unwrap();
        assert!(in_directory(&dir).is_empty());
        child.wait().unwrap();
        fs::remove_dir(&dir).unwrap();
    }
}
