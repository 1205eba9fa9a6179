//! Running a program from a postmaster that is on its way out, all signals blocked.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use super::signals::STOPS;
use crate::pg::{exec, signal};

/// How often the child is looked at.
const TICK: Duration = Duration::from_millis(20);

/// A running program.
pub struct Running {
    child: Child,
    activity: String,
    active_at: Instant,
}

/// What a tick saw.
pub enum Tick {
    /// It has ended.
    Ended(ExitStatus),
    /// It runs; an operator's stop may have come.
    Running {
        /// A signal with which operators stop servers.
        stop: Option<i32>,
        /// How long nothing has moved: no processor time, no input or output.
        idle: Duration,
    },
}

impl Running {
    /// Starts a program that dies with this process.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let parent = i32::try_from(std::process::id()).unwrap_or(0);
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe { command.pre_exec(move || exec::prepare_child(parent)) };
        let child = command.spawn()?;
        Ok(Running { child, activity: String::new(), active_at: Instant::now() })
    }

    /// Waits for something to happen, one tick at most.
    pub fn tick(&mut self) -> io::Result<Tick> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Tick::Ended(status));
        }
        let [term, int, quit] = STOPS;
        let signal = signal::take(&[term, int, quit, libc::SIGCHLD], TICK);
        let activity = self.read_activity();
        if activity != self.activity {
            self.activity = activity;
            self.active_at = Instant::now();
        }
        Ok(Tick::Running { stop: signal.filter(|s| STOPS.contains(s)), idle: self.active_at.elapsed() })
    }

    /// Ends it and waits for its end.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait()
    }

    /// Counters that change while it does anything.
    fn read_activity(&self) -> String {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        read("stat") + &read("io")
    }
}
