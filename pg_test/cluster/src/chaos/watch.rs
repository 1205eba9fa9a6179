//! When processes end, whoever ends them: a server whose disk takes no writes cannot note it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::chaos::inject::wall;
use crate::node::Node;

/// How often is looked whether it is still worth waiting.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Waits for the end of the processes without which a node takes no writes.
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
    ends: Vec<JoinHandle<Option<i64>>>,
}

impl Watch {
    /// Of a node's postmaster and controller, as far as they are there.
    pub fn start(node: &Node) -> Watch {
        let controllers = node.processes_titled("biha controller");
        Watch::of(node.postmaster().into_iter().chain(controllers.iter().map(|process| process.pid)))
    }

    fn of(pids: impl Iterator<Item = i32>) -> Watch {
        let over = Arc::new(AtomicBool::new(false));
        let open = |pid| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
        let wait = |process| {
            let over = Arc::clone(&over);
            thread::spawn(move || end_of(&process, &over))
        };
        let ends = pids.filter_map(open).map(wait).collect();
        Watch { over, ends }
    }

    /// When those of them ended that are not there any more, in microseconds since 1970.
    pub fn ended(mut self) -> Vec<i64> {
        self.over.store(true, Ordering::SeqCst);
        std::mem::take(&mut self.ends).into_iter().filter_map(|end| end.join().ok().flatten()).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn end_of(process: &OwnedFd, over: &AtomicBool) -> Option<i64> {
    loop {
        let last = over.load(Ordering::SeqCst);
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&PATIENCE)) {
            Ok(0) | Err(Errno::INTR) if last => return None,
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Some(wall()),
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_end_is_seen_when_it_happens() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(Watch::of([pid].into_iter()).ended(), Vec::new(), "it sleeps");
        let watch = Watch::of([pid].into_iter());
        let before = wall();
        child.kill().unwrap();
        child.wait().unwrap();
        let after = wall();
        let ended = watch.ended();
        let then = |at: &i64| (before..=after + 50_000).contains(at);
        assert!(ended.len() == 1 && ended.iter().all(then), "{before} {ended:?} {after}");
    }
}
