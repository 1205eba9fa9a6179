//! Host names to addresses, without blocking the one who asks.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use mio::Waker;

/// Looks host names up somewhere else than in the caller's thread.
pub trait Resolver: Send {
    /// Starts to look `host` up; the answer goes to `answer`, from any thread. Must not block.
    fn start(&self, host: &str, port: u16, answer: Answer);
}

pub(super) struct Resolved {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) result: io::Result<Vec<SocketAddr>>,
}

/// Where a [`Resolver`] gives its answer. Dropped without one, it tells a failure.
pub struct Answer {
    question: Option<(String, u16)>,
    to: Sender<Resolved>,
    waker: Arc<Waker>,
}

impl Answer {
    pub(super) fn new(host: String, port: u16, to: Sender<Resolved>, waker: Arc<Waker>) -> Answer {
        Answer { question: Some((host, port)), to, waker }
    }

    /// Gives the answer, and wakes the network's owner.
    pub fn give(mut self, result: io::Result<Vec<SocketAddr>>) {
        self.tell(result);
    }

    fn tell(&mut self, result: io::Result<Vec<SocketAddr>>) {
        if let Some((host, port)) = self.question.take() {
            // Neither can fail unless the network is gone, and then nobody waits.
            let _ = self.to.send(Resolved { host, port, result });
            let _ = self.waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.tell(Err(io::Error::other("the lookup was given up")));
    }
}

/// Work for a thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Looks each name up in a thread of its own with the system's resolver (getaddrinfo). Threads are started by
/// a function of the caller's: inside PostgreSQL they must have all signals blocked.
pub struct ThreadResolver<S> {
    spawn: S,
}

impl<S: Fn(Job) -> io::Result<()> + Send> ThreadResolver<S> {
    /// `spawn` runs a job in a new thread.
    pub fn new(spawn: S) -> Self {
        ThreadResolver { spawn }
    }
}

impl<S: Fn(Job) -> io::Result<()> + Send> Resolver for ThreadResolver<S> {
    fn start(&self, host: &str, port: u16, answer: Answer) {
        let host = host.to_owned();
        let job = move || answer.give((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
        // If no thread can be started the job is dropped, and its answer with it, which tells a failure.
        let _ = (self.spawn)(Box::new(job));
    }
}
