//! A rewind between the two lives of one postmaster.
//!
//! An interrupted pg_rewind leaves a directory on which the server would start without complaint, and without
//! biha, for its configuration is overwritten first. So the directory's mode is 0701 as long as it is not
//! whole: PostgreSQL refuses to start on that, and it outlasts a power failure. Whoever finds it must take a
//! new base backup.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use biha_core::Position;
use pgrx::PgLogLevel;

use super::aside::{Aside, sync_directory};
use super::child::{Running, Tick};
use super::keep::{Keeper, Kept};
use super::report::{self, Ending, Verdict, verdict};
use super::signals::STOPS;
use crate::agent::history;
use crate::pg::{control, exec, postmaster, signal, xlog};
use crate::{guc, paths};

/// Mode of a data directory that must not be started.
const CLOSED: u32 = 0o701;
/// A pg_rewind that has not moved for so long is given up.
const STALLED: Duration = Duration::from_secs(120);
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
    },
}

/// The data directory, closed to any start.
struct Closed {
    path: PathBuf,
    mode: u32,
    pid_file: Vec<u8>,
}

impl Closed {
    fn close() -> io::Result<Self> {
        let path = fs::canonicalize(".")?;
        let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
        let closed = Closed { mode, pid_file: fs::read(paths::PID_FILE)?, path };
        closed.set_mode(CLOSED)?;
        Ok(closed)
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
        fs::write(&path, &self.pid_file)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600 | (self.mode & 0o040)))
    }

    fn open(&self) -> io::Result<()> {
        self.keep_pid_file()?;
        sync_directory(&self.path)?;
        self.set_mode(self.mode)
    }

    /// A sibling of the data directory.
    fn sibling(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".biha-rewind");
        name.into()
    }
}

/// Rewinds this process's working directory, which is the data directory of a server that was shut down
/// cleanly, against the server at `source`, a conninfo of keywords and values.
pub fn run(source: &str) -> Outcome {
    match keep_lost_wal(source) {
        Ok(kept) => run_without_net(source, kept.as_ref()),
        Err(Some(text)) => not_begun(None, &text),
        Err(None) => Outcome::Whole { stop: true },
    }
}

/// Keeps the WAL that the rewind will discard, if that is wanted and can be done. `Err`: the rewind is not to begin,
/// for this reason, or since the operator stops the server.
fn keep_lost_wal(source: &str) -> Result<Option<Kept>, Option<String>> {
    let limit = u64::try_from(guc::KEEP_LOST_WAL.get()).unwrap_or(0) << 20;
    if limit == 0 {
        return Ok(None);
    }
    let data = fs::canonicalize(".").map_err(|e| Some(format!("could not find the data directory: {e}")))?;
    let found = find_fork(&data, source).map_err(|e| Some(format!("could not watch pg_rewind: {e}")))?;
    let fork = match found {
        Ok(fork) => fork,
        Err(ending) if ending.stop => return Err(None),
        // The rewind itself will say why there is nothing to do.
        Err(ending) if ending.success => return Ok(None),
        Err(ending) => return Err(Some(ending.reason())),
    };
    let keeper = Keeper { data: &data, segment_size: xlog::segment_size(), limit };
    let timeline = control::read().map_or(fork.timeline, |file| file.timeline);
    let kept = history::read(timeline).map_err(|e| e.to_string()).and_then(|own| keeper.keep(&own, fork));
    match kept {
        Ok(kept) => {
            for path in kept.removed() {
                super::exit_log(&format!("removed the oldest kept WAL, \"{}\"", path.display()), None);
            }
            super::exit_log(
                &kept.text(),
                Some("SELECT * FROM biha.lost_transactions() lists what was lost."),
            );
            Ok(Some(kept))
        }
        Err(_) if signal::pending(&STOPS) => Err(None),
        Err(text) => {
            let text =
                format!("could not keep the WAL that only this node has, which the rewind discards: {text}");
            super::report(PgLogLevel::WARNING, text, None);
            Ok(None)
        }
    }
}

/// Has pg_rewind, which changes nothing meanwhile, say where this node's WAL left the source's: the source's history is
/// not at hand here.
fn find_fork(data: &Path, source: &str) -> io::Result<Result<Position, Ending>> {
    let log = File::create(paths::REWIND_LOG)?;
    let mut command = pg_rewind(data, source, &log)?;
    command.arg("--dry-run");
    let running = match Running::start(command) {
        Ok(running) => running,
        Err(error) => return Ok(Err(Ending::not_started(format!("could not start pg_rewind: {error}")))),
    };
    let read_log = || fs::read_to_string(paths::REWIND_LOG).unwrap_or_default();
    let ending = watch(running, read_log, |signal, _| {
        let known = report::fork(&read_log()).map(|_| "the fork is known");
        Ok(signal.map(|_| "the server was stopped").or(known))
    })?;
    Ok(report::fork(&ending.log).filter(|_| !ending.stop).ok_or(ending))
}

/// Rewinds once nothing more can be kept.
fn run_without_net(source: &str, kept: Option<&Kept>) -> Outcome {
    let closed = match Closed::close() {
        Ok(closed) => closed,
        Err(error) => return not_begun(None, &format!("could not close the data directory: {error}")),
    };
    let sibling = closed.sibling();
    let aside = match Aside::put(&closed.path, &sibling, log_directory(&closed.path).as_deref()) {
        Ok(aside) => aside,
        Err(error) => {
            let text = format!("could not keep this node's files in \"{}\": {error}", sibling.display());
            return not_begun(Some(&closed), &text);
        }
    };
    let broken = |text: String| Outcome::Broken { text, kept: sibling.clone() };
    let ending = match rewind(&closed, &aside, source) {
        Ok(ending) => ending,
        // The child may still have been at work when it was lost sight of.
        Err(error) => return broken(format!("could not watch pg_rewind: {error}")),
    };
    let stop = ending.stop;
    let finished = match verdict(&ending) {
        Verdict::Broken(text) => return broken(text),
        Verdict::Rewound => {
            sync_data(&closed.path).and_then(|()| aside.bring_back()).and_then(|()| note(Some(Ok(()))))
        }
        Verdict::NotNeeded => unchanged(&aside, kept).and_then(|()| note(Some(Ok(())))),
        Verdict::Failed(text) => unchanged(&aside, kept).and_then(|()| note(Some(Err(&text)))),
        Verdict::Stopped => unchanged(&aside, kept).and_then(|()| note(None)),
    };
    match finished.and_then(|()| closed.open()) {
        Ok(()) => Outcome::Whole { stop },
        Err(error) => broken(format!("could not bring this node's files back: {error}")),
    }
}

/// Writes back every file system that the data directory lies on.
fn sync_data(data: &Path) -> io::Result<()> {
    exec::sync_file_system(data)?;
    exec::sync_file_system(&data.join("pg_wal"))?;
    for tablespace in fs::read_dir(data.join("pg_tblspc"))? {
        exec::sync_file_system(&tablespace?.path())?;
    }
    Ok(())
}

/// Nothing was changed, and no pg_rewind has run.
fn not_begun(closed: Option<&Closed>, text: &str) -> Outcome {
    let opened = match closed {
        Some(closed) => closed.open(),
        None => Ok(()),
    };
    match opened.and_then(|()| note(Some(Err(text)))) {
        Ok(()) => Outcome::Whole { stop: false },
        Err(error) => Outcome::Broken {
            text: format!("{text}; {error}"),
            kept: closed.map(|c| c.path.clone()).unwrap_or_default(),
        },
    }
}

/// Writes what came of the rewind for the next start to read; `None`: nothing.
fn note(result: Option<Result<(), &str>>) -> io::Result<()> {
    let text = match result {
        Some(Ok(())) => "ok".to_string(),
        Some(Err(text)) => format!("failed {text}"),
        None => return Ok(()),
    };
    biha_io::durable_write(paths::REWIND_RESULT.as_ref(), text.as_bytes())
}

/// What came of the last rewind, once. Of a running server.
pub fn take_result() -> io::Result<Option<Result<(), String>>> {
    let text = match fs::read_to_string(paths::REWIND_RESULT) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    fs::remove_file(paths::REWIND_RESULT)?;
    sync_directory(paths::DIR.as_ref())?;
    Ok(Some(match text.as_str() {
        "ok" => Ok(()),
        other => Err(other.strip_prefix("failed ").unwrap_or(other).to_string()),
    }))
}

/// pg_rewind changed nothing: everything stays where it is, and its log is kept. So nothing was lost, either.
fn unchanged(aside: &Aside, kept: Option<&Kept>) -> io::Result<()> {
    if let Some(Err(error)) = kept.map(Kept::discard) {
        super::report(PgLogLevel::WARNING, format!("could not remove the WAL that was kept: {error}"), None);
    }
    fs::copy(aside.directory().join(paths::REWIND_LOG), paths::REWIND_LOG)?;
    aside.give_up()
}

/// The server's log directory, if it is in the data directory: the name of the entry that holds it.
fn log_directory(data: &Path) -> Option<PathBuf> {
    let log = fs::canonicalize(postmaster::log_directory()).ok()?;
    let inside = log.strip_prefix(data).ok()?;
    Some(PathBuf::from(inside.components().next()?.as_os_str()))
}

/// Runs pg_rewind to its end, or to an end that an operator's stop or its own standstill makes necessary.
fn rewind(closed: &Closed, aside: &Aside, source: &str) -> io::Result<Ending> {
    let log_path = aside.directory().join(paths::REWIND_LOG);
    let log = File::create(&log_path)?;
    let read_log = || fs::read_to_string(&log_path).unwrap_or_default();
    let running = match Running::start(rewinding(closed, source, &log)?) {
        Ok(running) => running,
        Err(error) => {
            return Ok(Ending::not_started(format!("could not start pg_rewind: {error}")));
        }
    };
    watch(running, read_log, |signal, stop| {
        closed.keep_pid_file()?;
        Ok(if signal == Some(libc::SIGQUIT) {
            Some("the server was stopped in immediate mode")
        } else if stop && !Ending::changes_begun(&read_log()) {
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
    read_log: impl Fn() -> String,
    enough: impl Fn(Option<i32>, bool) -> io::Result<Option<&'static str>>,
) -> io::Result<Ending> {
    let mut stop = false;
    loop {
        let (signal, idle) = match running.tick()? {
            Tick::Ended(status) => return Ok(ending(read_log(), status, stop, None)),
            Tick::Running { stop, idle } => (stop, idle),
        };
        stop |= signal.is_some();
        let mut given_up = enough(signal, stop)?.map(str::to_string);
        if given_up.is_none() && idle > STALLED {
            given_up = Some(format!("pg_rewind stood still for {} s", STALLED.as_secs()));
        }
        if given_up.is_some() {
            let status = running.kill()?;
            return Ok(ending(read_log(), status, stop, given_up));
        }
    }
}

fn ending(log: String, status: ExitStatus, stop: bool, given_up: Option<String>) -> Ending {
    Ending { log, success: status.success(), status: status.to_string(), stop, given_up }
}

/// pg_rewind of a data directory against a source, but for what it is to do.
fn pg_rewind(data: &Path, source: &str, log: &File) -> io::Result<Command> {
    let mut command = Command::new(postmaster::executable().with_file_name("pg_rewind"));
    command.arg("--target-pgdata").arg(data);
    command.arg("--source-server").arg(format!("{CONNECTION} {source}"));
    command.arg("--no-ensure-shutdown");
    quiet(&mut command).stdout(log.try_clone()?).stderr(log.try_clone()?);
    Ok(command)
}

fn rewinding(closed: &Closed, source: &str, log: &File) -> io::Result<Command> {
    let mut command = pg_rewind(&closed.path, source, log)?;
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
