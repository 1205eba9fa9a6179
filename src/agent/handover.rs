//! Work around a planned change of leader.

use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use biha_core::{NodeId, OrderId, OrderResult, Position};

use super::receiver::{self, SUPERSEDED, given_up};
use crate::board;
use crate::gate::drain::drain;
use crate::lifecycle::{self, Repair};
use crate::pg::{control, exec, postmaster, process, wait, walsender, xlog};

/// How long a session may take to pass an answer on to its client.
const ANSWER_LIMIT: Duration = Duration::from_millis(20);
/// How long the checkpoint before a hand-over may take; writes go on meanwhile.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);
/// How often to look for its end.
const CHECKPOINT_LOOK: Duration = Duration::from_millis(2);
/// Bytes of a program's complaint that are passed on.
const MAX_COMPLAINT: u64 = 800;
/// How long `postgres -C` may take.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// See [`biha_core::Order::PrepareHandover`].
pub fn prepare(id: OrderId) -> Result<OrderResult, String> {
    check_files()?;
    checkpoint(id)?;
    drain(|| given_up(id));
    Ok(OrderResult::Done)
}

/// Makes a checkpoint, but not at any price: the leadership may be lost meanwhile, and then this is in the way.
fn checkpoint(id: OrderId) -> Result<(), String> {
    let last = || control::read().map(|file| file.checkpoint);
    wait::caught(|| {
        let before = last();
        xlog::begin_checkpoint();
        let end = Instant::now() + CHECKPOINT_LIMIT;
        while last() <= before {
            if given_up(id) {
                return Err(SUPERSEDED.to_owned());
            }
            if Instant::now() > end {
                return Err("the checkpoint does not end".to_owned());
            }
            wait::latch(CHECKPOINT_LOOK);
        }
        Ok(())
    })
}

/// See [`biha_core::Order::Restart`].
pub fn restart(rewind: Option<NodeId>, drain: bool) -> Result<OrderResult, String> {
    let source = rewind.map(receiver::rewind_conninfo).transpose()?;
    if !drain {
        // One whose follower does not answer would hold up the shutdown until wal_sender_timeout.
        walsender::terminate_all();
    }
    let_answer();
    lifecycle::request_restart(source.map(Repair::Rewind))?;
    Ok(OrderResult::Done)
}

/// See [`biha_core::Order::Reclone`].
pub fn reclone(leader: NodeId, end: Position) -> Result<OrderResult, String> {
    let source = receiver::rewind_conninfo(leader)?;
    walsender::terminate_all();
    let_answer();
    lifecycle::request_restart(Some(Repair::Reclone { source, end }))?;
    Ok(OrderResult::Done)
}

/// Whoever asked for this restart on this very node shall read that it was accepted.
fn let_answer() {
    let latch = board::gate().answered_latch.swap(0, Ordering::SeqCst);
    let pid = board::gate().answered_pid.load(Ordering::SeqCst);
    wait::until(ANSWER_LIMIT, || process::is_answered(latch, pid));
}

/// See [`biha_core::Order::EndWalsenders`].
pub fn end_walsenders() -> OrderResult {
    let ended = walsender::terminate_all();
    pgrx::log!("ended {ended} walsenders");
    OrderResult::Done
}

/// Would the server start again with today's executable and configuration files? A restart in place uses
/// those, and a start that fails would leave the node down.
fn check_files() -> Result<(), String> {
    let could_not = |e: io::Error| format!("could not check the configuration files: {e}");
    let mut child = check_command().and_then(|mut command| command.spawn()).map_err(could_not)?;
    let ended = wait::until(CHECK_LIMIT, || !matches!(child.try_wait(), Ok(None)));
    if !ended {
        child.kill().map_err(could_not)?;
    }
    let (code, text) = outcome(&mut child).map_err(could_not)?;
    match code {
        Some(0) => Ok(()),
        _ => Err(format!("the server would not start with its present files: {}", text.trim())),
    }
}

fn check_command() -> io::Result<Command> {
    let line = fs::read(format!("/proc/{}/cmdline", postmaster::pid()))?;
    let arguments = line.split(|byte| *byte == 0).skip(1).filter(|argument| !argument.is_empty());
    let mut command = Command::new(postmaster::executable());
    command.args(arguments.map(|argument| std::ffi::OsString::from_vec(argument.to_vec())));
    // The last -D counts; a relative one would be looked for in the data directory.
    let files = postmaster::config_file().parent().map(ToOwned::to_owned).unwrap_or_default();
    command.arg("-D").arg(files).args(["-C", "data_directory"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env_remove("NOTIFY_SOCKET");
    let parent = postmaster::my_pid();
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe { command.pre_exec(move || exec::prepare_child(parent)) };
    Ok(command)
}

/// Reaps the child: its exit code and the beginning of what it said, in whatever encoding.
fn outcome(child: &mut Child) -> io::Result<(Option<i32>, String)> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MAX_COMPLAINT).read_to_end(&mut said)?;
    }
    Ok((child.wait()?.code(), String::from_utf8_lossy(&said).into_owned()))
}
