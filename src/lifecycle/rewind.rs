//! A rewind between the two lives of one postmaster.
//!
//! An interrupted pg_rewind leaves a directory on which the server would start without complaint, and without
//! biha, for its configuration is overwritten first. So the directory's mode is 0701 as long as it is not
//! whole: PostgreSQL refuses to start on that, and it outlasts a power failure. Whoever finds it must take a
//! new base backup: the operator, or, with `biha.autoreclone`, the stub that stands in its place ([`super::stub`]).

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use biha_core::{Hindrance, Mended, Position};
use pgrx::PgLogLevel;

use super::aside::{self, Aside, sync_directory};
use super::child::{Running, Tick};
use super::keep::{self, Kept};
use super::newest::{Shown, View};
use super::report::{self, Ending, Verdict, of_own_disk, verdict};
use super::said::Said;
use super::{stub, swap, warn};
use crate::pg::{control, exec, postmaster};
use crate::{guc, paths};

/// Mode of a data directory that must not be started.
const CLOSED: u32 = 0o701;
/// A pg_rewind that has not moved for so long is given up.
const STALLED: Duration = Duration::from_secs(120);
/// The notes of those that succeeded.
const REWOUND: &str = "ok";
const COPIED: &str = "copied";
/// How the note of one begins that is worth another attempt.
const HINDERED: &str = "hindered ";
/// How the note of one begins that is not.
const FAILED: &str = "failed ";
/// What the source's conninfo gets unless it says otherwise: a dead source must be noticed.
const CONNECTION: &str = "connect_timeout=10 keepalives_idle=10 keepalives_interval=5 keepalives_count=3 \
                          tcp_user_timeout=20000 application_name=biha_rewind";

/// How a rewind leaves the data directory.
pub enum Outcome {
    /// Fit to start, rewound or as it was; what came of it is noted in the directory.
    Whole {
        /// The operator wants the server to stop.
        stop: bool,
    },
    /// Half rewound, and closed.
    Broken {
        /// What happened.
        text: String,
        /// Where this node's own files are.
        kept: PathBuf,
        /// The operator wants the server to stop.
        stop: bool,
    },
    /// As it was, but closed.
    Shut {
        /// What happened.
        text: String,
        /// The mode that it had.
        mode: u32,
    },
}

/// The data directory, to be closed to any start.
struct Closed {
    path: PathBuf,
    mode: u32,
    pid_file: Vec<u8>,
    shown: Option<Shown>,
}

impl Closed {
    /// This process's working directory, still open.
    fn here() -> io::Result<Self> {
        let path = fs::canonicalize(".")?;
        let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
        Ok(Closed { mode, pid_file: fs::read(paths::PID_FILE)?, path, shown: None })
    }

    fn close(&self) -> io::Result<()> {
        self.set_mode(CLOSED)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode))?;
        sync_directory(&self.path)
    }

    /// pg_rewind removes postmaster.pid, without which pg_ctl takes the server for stopped.
    fn keep_pid_file(&self) -> io::Result<()> {
        let path = self.path.join(paths::PID_FILE);
        if path.exists() {
            return Ok(());
        }
        let new = self.path.join(paths::PID_FILE_NEW);
        fs::write(&new, &self.pid_file)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600 | (self.mode & 0o040)))?;
        // pg_ctl never sees half of it.
        fs::rename(&new, &path)
    }

    /// Shows pg_rewind the newest timeline.
    fn show(&mut self, aside: &Aside) -> io::Result<()> {
        self.shown = Shown::of(&self.path)?;
        self.shown.as_ref().map_or(Ok(()), |shown| shown.put(&self.path, aside.directory()))
    }

    fn open(&self) -> io::Result<()> {
        self.keep_pid_file()?;
        sync_directory(&self.path)?;
        self.set_mode(self.mode)
    }
}

/// The sibling of a data directory where this node's own files are meanwhile.
pub fn sibling(data: &Path) -> PathBuf {
    let mut name = data.to_path_buf().into_os_string();
    name.push(".biha-rewind");
    name.into()
}

/// Rewinds this process's working directory, which is the data directory of a server that was shut down
/// cleanly, against the server at `source`, a conninfo of keywords and values.
pub fn run(source: &str) -> Outcome {
    match keep_lost_wal(source) {
        Ok(kept) => run_without_net(source, kept.as_ref()),
        Err(Some(why)) => not_begun(None, &why),
        Err(None) => Outcome::Whole { stop: true },
    }
}

/// Keeps the WAL that the rewind will discard, if that is wanted and can be done. `Err`: the rewind is not to begin,
/// for this reason, or since the operator stops the server.
fn keep_lost_wal(source: &str) -> Result<Option<Kept>, Option<Hindrance>> {
    if !keep::is_wanted() {
        return Ok(None);
    }
    let data = fs::canonicalize(".").map_err(|e| Some(of_own_disk("find the data directory", &e)))?;
    let found = find_fork(&data, source).map_err(|e| Some(of_own_disk("watch pg_rewind", &e)))?;
    let fork = match found {
        Ok(fork) => fork,
        Err(ending) if ending.stop => return Err(None),
        // The rewind itself will say why there is nothing to do.
        Err(ending) if ending.success => return Ok(None),
        Err(ending) => return Err(Some(ending.hindrance())),
    };
    let timeline = control::read().map_or(fork.timeline, |file| file.timeline);
    keep::before("the rewind", &data, timeline, fork).map_err(|_| None)
}

/// Has pg_rewind, which changes nothing meanwhile, say where this node's WAL left the source's: the source's history is
/// not at hand here.
fn find_fork(data: &Path, source: &str) -> io::Result<Result<Position, Ending>> {
    let said = Said::shown_in(paths::REWIND_LOG.as_ref())?;
    let view = View::of(data)?;
    let mut command = pg_rewind(view.path(), source, &said)?;
    command.arg("--dry-run");
    let running = match Running::start(command) {
        Ok(running) => running,
        Err(error) => return Ok(Err(Ending::not_started("start pg_rewind", &error))),
    };
    let ending = watch(running, &said, |signal, _| {
        let known = report::fork(&said.text()?).map(|_| "the fork is known");
        Ok(signal.map(|_| "the server was stopped").or(known))
    })?;
    Ok(report::fork(&ending.log).filter(|_| !ending.stop).ok_or(ending))
}

/// Rewinds once nothing more can be kept.
fn run_without_net(source: &str, kept: Option<&Kept>) -> Outcome {
    let mut stub = guc::AUTORECLONE.get() && !has_tablespaces(".".as_ref());
    let mut closed = match Closed::here() {
        Ok(closed) => closed,
        Err(error) => return not_begun(None, &of_own_disk("find the data directory", &error)),
    };
    // A stub that stands in for the directory keeps it from being started; until then it is whole.
    if let Some(error) = if stub { None } else { closed.close().err() } {
        return not_begun(Some(&closed), &of_own_disk("close the data directory", &error));
    }
    let (data, sibling) = (closed.path.clone(), sibling(&closed.path));
    let mut aside = match Aside::put(&closed.path, &sibling, log_directory(&closed.path).as_deref()) {
        Ok(aside) => aside,
        Err(error) => {
            let doing = format!("keep this node's files in \"{}\"", sibling.display());
            return not_begun(Some(&closed), &of_own_disk(&doing, &error));
        }
    };
    stub = stub && stand_in(&data, &sibling, &closed);
    if stub {
        aside.exchanged();
        closed.path.clone_from(&sibling);
    }
    let broken = |text: String, stop| Outcome::Broken { text, kept: aside.directory().into(), stop };
    let ending = match rewind(&mut closed, &aside, source) {
        Ok(ending) => ending,
        // The child may still have been at work when it was lost sight of.
        Err(error) => return broken(format!("could not watch pg_rewind: {error}"), false),
    };
    let stop = ending.stop;
    let unchanged = || unchanged(&closed, &aside, stub, kept);
    let (finished, result) = match verdict(&ending) {
        Verdict::Broken(text) => return broken(text, stop),
        Verdict::Rewound => {
            if let Some(text) = kept.and_then(|kept| kept.gap(report::fork(&ending.log)?)) {
                super::report(PgLogLevel::WARNING, text, None);
            }
            let back = || if stub { aside.copy_back() } else { aside.bring_back() };
            (sync_data(&closed.path).and_then(|()| back()), Some(Ok(Mended::Rewound)))
        }
        Verdict::NotNeeded => (unchanged(), Some(Ok(Mended::Rewound))),
        Verdict::Failed(why) => (unchanged(), Some(Err(why))),
        Verdict::Stopped => (unchanged(), None),
    };
    if let (Ok(()), Some(result)) = (&finished, result) {
        note(&closed.path, result.as_ref().copied());
    }
    let opened = finished.and_then(|()| closed.open());
    match opened.and_then(|()| if stub { give_way(&data, &sibling) } else { Ok(()) }) {
        Ok(()) => Outcome::Whole { stop },
        Err(error) => broken(format!("could not bring this node's files back: {error}"), stop),
    }
}

/// Has a data directory tablespaces, which a re-clone does not copy?
pub fn has_tablespaces(data: &Path) -> bool {
    fs::read_dir(data.join("pg_tblspc")).is_ok_and(|mut entries| entries.next().is_some())
}

/// Has a stub stand in for the data directory; it goes without where that cannot be done.
fn stand_in(data: &Path, own: &Path, closed: &Closed) -> bool {
    let result = stub::stand_in(data, own, closed.mode).map(|()| swap::enter(data));
    match &result {
        Ok(Ok(())) => {}
        Ok(Err(error)) | Err(error) => {
            let text = format!("a rewind that is cut short will not become a copy: {error}");
            super::report(PgLogLevel::WARNING, text, None);
        }
    }
    result.is_ok()
}

/// The stub gives way to the data directory, which is whole again.
fn give_way(data: &Path, whole: &Path) -> io::Result<()> {
    swap::exchange(whole, data)?;
    // The stub is at the other place now. What remains of it the next start removes.
    swap::enter(data)
        .and_then(|()| aside::remove(whole))
        .unwrap_or_else(|error| warn("remove what the rewind left", &error));
    Ok(())
}

/// Writes back every file system that the data directory lies on.
pub fn sync_data(data: &Path) -> io::Result<()> {
    exec::sync_file_system(data)?;
    exec::sync_file_system(&data.join("pg_wal"))?;
    for tablespace in fs::read_dir(data.join("pg_tblspc"))? {
        exec::sync_file_system(&tablespace?.path())?;
    }
    Ok(())
}

/// Nothing was changed, and no pg_rewind has run.
fn not_begun(closed: Option<&Closed>, why: &Hindrance) -> Outcome {
    if let Some(closed) = closed
        && let Err(error) = closed.open()
    {
        let text = format!("{}; could not open the data directory: {error}", why.text);
        return Outcome::Shut { text, mode: closed.mode };
    }
    note(".".as_ref(), Err(why));
    Outcome::Whole { stop: false }
}

/// Writes what came of a rewind or a re-clone, as far as the disk lets it: without, it is asked for again.
pub fn note(data: &Path, result: Result<Mended, &Hindrance>) {
    note_in(data, result).unwrap_or_else(|error| warn("note what came of this node's repair", &error));
}

/// Writes what came of a rewind or a re-clone for the next start of this data directory to read.
pub fn note_in(data: &Path, result: Result<Mended, &Hindrance>) -> io::Result<()> {
    let text = match result {
        Ok(Mended::Rewound) => REWOUND.to_string(),
        Ok(Mended::Copied) => COPIED.to_string(),
        Err(Hindrance { text, passing }) => format!("{}{text}", if *passing { HINDERED } else { FAILED }),
    };
    biha_io::durable_write(&data.join(paths::REWIND_RESULT), text.as_bytes())
}

/// What came of the last one. Of a running server, which is to [`forget_result`] once it has made a note of it.
pub fn result() -> io::Result<Option<Result<Mended, Hindrance>>> {
    let text = match fs::read_to_string(paths::REWIND_RESULT) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (passing, why) = match text.strip_prefix(HINDERED) {
        Some(why) => (true, why),
        None => (false, text.strip_prefix(FAILED).unwrap_or(&text)),
    };
    Ok(Some(match text.as_str() {
        REWOUND => Ok(Mended::Rewound),
        COPIED => Ok(Mended::Copied),
        _ => Err(Hindrance { text: why.to_string(), passing }),
    }))
}

/// The result has been noted elsewhere.
pub fn forget_result() -> io::Result<()> {
    match fs::remove_file(paths::REWIND_RESULT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sync_directory(paths::DIR.as_ref())),
    }
}

/// pg_rewind changed nothing: everything stays where it is, and its log is kept. So nothing was lost, either. An error is
/// one of the data; the rest is tried.
fn unchanged(closed: &Closed, aside: &Aside, stub: bool, kept: Option<&Kept>) -> io::Result<()> {
    if let Some(Err(error)) = kept.map(Kept::discard) {
        warn("remove the WAL that was kept", &error);
    }
    closed.shown.as_ref().map_or(Ok(()), |shown| shown.take_back(&closed.path))?;
    if let Err(error) =
        fs::copy(aside.directory().join(paths::REWIND_LOG), closed.path.join(paths::REWIND_LOG))
    {
        warn("keep the log of pg_rewind", &error);
    }
    let back = if stub { aside.return_moved() } else { aside.give_up() };
    back.unwrap_or_else(|error| warn("bring the server's log back", &error));
    Ok(())
}

/// The server's log directory, if it is in the data directory: the name of the entry that holds it.
pub fn log_directory(data: &Path) -> Option<PathBuf> {
    let log = fs::canonicalize(postmaster::log_directory()).ok()?;
    let inside = log.strip_prefix(data).ok()?;
    Some(PathBuf::from(inside.components().next()?.as_os_str()))
}

/// Runs pg_rewind to its end, or to an end that an operator's stop or its own standstill makes necessary.
fn rewind(closed: &mut Closed, aside: &Aside, source: &str) -> io::Result<Ending> {
    if let Err(error) = closed.close() {
        return Ok(Ending::not_started("close the data directory", &error));
    }
    if let Err(error) = closed.show(aside) {
        return Ok(Ending::not_started("prepare the control file", &error));
    }
    let begun = Said::shown_in(&aside.directory().join(paths::REWIND_LOG))
        .and_then(|said| Ok((Running::start(rewinding(closed, source, &said)?)?, said)));
    let (running, said) = match begun {
        Ok(begun) => begun,
        Err(error) => return Ok(Ending::not_started("start pg_rewind", &error)),
    };
    watch(running, &said, |signal, stop| {
        // The next look tries again, and the directory is not opened without.
        let _ = closed.keep_pid_file();
        Ok(if signal == Some(libc::SIGQUIT) {
            Some("the server was stopped in immediate mode")
        } else if stop && !Ending::changes_begun(&said.text()?) {
            Some("the server was stopped")
        } else {
            None
        })
    })
}

/// Waits for pg_rewind's end. At each tick `enough` is told of the signal that came, if any, and whether one ever did;
/// what it returns is why pg_rewind is killed now. One that stands still is killed, too.
fn watch(
    mut running: Running,
    said: &Said,
    enough: impl Fn(Option<i32>, bool) -> io::Result<Option<&'static str>>,
) -> io::Result<Ending> {
    let mut stop = false;
    loop {
        said.show();
        let (signal, idle) = match running.tick()? {
            Tick::Ended(status) => return ending(said, status, stop, None),
            Tick::Running { stop, idle } => (stop, idle),
        };
        stop |= signal.is_some();
        let mut given_up = enough(signal, stop)?.map(str::to_string);
        if given_up.is_none() && idle > STALLED {
            given_up = Some(format!("pg_rewind stood still for {} s", STALLED.as_secs()));
        }
        if given_up.is_some() {
            let status = running.kill()?;
            return ending(said, status, stop, given_up);
        }
    }
}

fn ending(said: &Said, status: ExitStatus, stop: bool, given_up: Option<String>) -> io::Result<Ending> {
    said.show();
    let killed = matches!(status.signal(), Some(libc::SIGKILL | libc::SIGTERM));
    let (log, success) = (said.text()?, status.success());
    Ok(Ending { log, success, status: status.to_string(), killed, stop, given_up })
}

/// pg_rewind of a data directory against a source, but for what it is to do.
fn pg_rewind(data: &Path, source: &str, said: &Said) -> io::Result<Command> {
    let mut command = Command::new(postmaster::executable().with_file_name("pg_rewind"));
    command.arg("--target-pgdata").arg(data);
    command.arg("--source-server").arg(format!("{CONNECTION} {source}"));
    command.arg("--no-ensure-shutdown");
    said.listen_to(quiet(&mut command))?;
    Ok(command)
}

fn rewinding(closed: &Closed, source: &str, said: &Said) -> io::Result<Command> {
    let mut command = pg_rewind(&closed.path, source, said)?;
    // --progress says when the first change is about to be made.
    // It syncs file by file, which takes seconds; what it wrote is synced at once afterwards.
    command.args(["--no-sync", "--progress"]);
    let config_file = postmaster::config_file();
    if restore_command_is_set(&postmaster::executable(), &closed.path, &config_file) {
        command.arg("--restore-target-wal").arg("--config-file").arg(config_file);
    }
    Ok(command)
}

/// The messages are read by a program.
fn quiet(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C").stdin(Stdio::null())
}

/// Has the operator a restore_command? biha blanks it while no leader is known, so without biha's own
/// settings, which the next start writes anew.
fn restore_command_is_set(postgres: &Path, data: &Path, config_file: &Path) -> bool {
    if fs::remove_file(paths::SERVER_CONF).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
        return false;
    }
    let mut config = std::ffi::OsString::from("config_file=");
    config.push(config_file);
    let mut command = Command::new(postgres);
    command.arg("-D").arg(data).arg("-c").arg(config).args(["-C", "restore_command"]);
    quiet(&mut command).stderr(Stdio::null());
    let parent = i32::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || exec::prepare_child(parent))
    };
    command.output().is_ok_and(|output| output.status.success() && !output.stdout.trim_ascii().is_empty())
}
