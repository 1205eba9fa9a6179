//! Running a program from a postmaster that is on its way out, all signals blocked.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::signals::STOPS;
use crate::pg::{exec, signal};

/// How often the child is looked at. pg_rewind removes postmaster.pid, and pg_ctl looks for it every 100 ms.
const TICK: Duration = Duration::from_millis(1);
/// How often it is seen whether anything moves.
const ACTIVITY: Duration = Duration::from_secs(1);

/// Ends the process group of its argument at the end of its input.
const GUARD: &str = r#"read -r line; kill -s KILL -- "-$1""#;

/// A running program.
pub struct Running {
    child: Child,
    /// Of a program with children of its own, which are its process group.
    guard: Option<Child>,
    activity: String,
    active_at: Instant,
    looked_at: Instant,
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

/// How the waiting for a program came to its end.
pub enum End {
    /// It has ended.
    Ended(ExitStatus),
    /// It was killed, since an operator stops the server.
    Stopped,
    /// It was killed, since nothing has moved for too long.
    Stalled,
}

impl Running {
    /// Starts a program that dies with this process.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let parent = i32::try_from(std::process::id()).unwrap_or(0);
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe { command.pre_exec(move || exec::prepare_child(parent)) };
        let child = command.spawn()?;
        let now = Instant::now();
        Ok(Running { child, guard: None, activity: String::new(), active_at: now, looked_at: now })
    }

    /// Starts a program that dies with this process, and so do its children, of whose parent's parent's death the
    /// kernel does not tell them.
    pub fn start_group(mut command: Command) -> io::Result<Self> {
        command.process_group(0);
        let mut running = Self::start(command)?;
        let mut guard = Command::new("/bin/sh");
        guard.args(["-c", GUARD, "biha", &running.child.id().to_string()]);
        // What this process does not close, its death does.
        match guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(guard) => running.guard = Some(guard),
            Err(error) => {
                running.kill()?;
                return Err(error);
            }
        }
        Ok(running)
    }

    /// Waits for its end, or for what makes that necessary. `look` is called at each tick.
    pub fn wait(mut self, patience: Duration, look: impl Fn()) -> io::Result<End> {
        loop {
            look();
            match self.tick()? {
                Tick::Ended(status) => return Ok(End::Ended(status)),
                Tick::Running { stop: Some(_), .. } => return self.kill().map(|_| End::Stopped),
                Tick::Running { idle, .. } if idle > patience => return self.kill().map(|_| End::Stalled),
                Tick::Running { .. } => {}
            }
        }
    }

    /// Waits for something to happen, one tick at most.
    pub fn tick(&mut self) -> io::Result<Tick> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Tick::Ended(status));
        }
        let [term, int, quit] = STOPS;
        let signal = signal::take(&[term, int, quit, libc::SIGCHLD], TICK);
        if self.looked_at.elapsed() > ACTIVITY {
            self.looked_at = Instant::now();
            let activity = self.read_activity();
            if activity != self.activity {
                self.activity = activity;
                self.active_at = self.looked_at;
            }
        }
        Ok(Tick::Running { stop: signal.filter(|s| STOPS.contains(s)), idle: self.active_at.elapsed() })
    }

    /// Ends it and waits for its end.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        // An error means that it has ended already.
        let _ = self.child.kill();
        if self.guard.is_some() {
            signal::kill_group(self.child.id());
        }
        self.child.wait()
    }

    /// Counters that change while it does anything.
    fn read_activity(&self) -> String {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        read("stat") + &read("io")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            // It waits, or is at its own end.
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }
}
