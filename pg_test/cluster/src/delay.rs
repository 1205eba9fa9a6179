//! Packets that arrive late and in another order than they were sent in: the kernel holds each until it is told to let
//! it go on (NFQUEUE). netem, which does the same, is a module that many kernels come without.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nfq::{Message, Queue, Verdict};

use crate::chaos::random::Random;
use crate::network::enter;
use crate::run::run;

/// Packets that are held at a time; more are lost.
const HELD: u32 = 10_000;
/// Bytes of a packet that are looked at: none matters.
const SHOWN: u16 = 64;
/// How often is looked whose time has come.
const LOOK: Duration = Duration::from_millis(1);

/// Holds up what arrives in a network namespace from others.
#[derive(Debug)]
pub struct Delay {
    namespace: String,
    /// From whom nothing is held up.
    spared: String,
    /// The kernel's number of the queue.
    queue: u16,
    stop: mpsc::Sender<()>,
    holder: JoinHandle<Result<()>>,
}

impl Delay {
    /// Does the kernel hand packets over here?
    pub fn possible() -> bool {
        let handed = Queue::open().and_then(|mut queue| queue.bind(u16::MAX)).is_ok();
        handed && Command::new("iptables").arg("--version").output().is_ok_and(|told| told.status.success())
    }

    /// Each packet is held for up to `longest`, by chance; but not what comes from `spared`.
    pub fn start(namespace: &str, spared: &str, longest: Duration, seed: u64) -> Result<Delay> {
        static STARTED: AtomicU16 = AtomicU16::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = namespace.to_owned();
        let (stop, stopped) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let holder = thread::spawn(move || {
            let queue = open(&name, number)?;
            ready.send(()).ok();
            hold(queue, longest, Random::new(seed), &stopped)
        });
        if is_ready.recv().is_err() {
            return Err(ended(holder).err().unwrap_or_else(|| anyhow!("packets are not delayed")));
        }
        let (namespace, spared) = (namespace.to_owned(), spared.to_owned());
        let delay = Delay { namespace, spared, queue: number, stop, holder };
        delay.rule("-I")?;
        Ok(delay)
    }

    /// Lets everything go on.
    pub fn end(self) -> Result<()> {
        self.rule("-D")?;
        self.stop.send(()).ok();
        ended(self.holder)
    }

    fn rule(&self, change: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "iptables", "-w", change, "INPUT", "-i", "eth0"]);
        command.args(["!", "-s", &self.spared, "-j", "NFQUEUE", "--queue-num", &self.queue.to_string()]);
        run(&mut command).context("could not hand packets over").map(drop)
    }
}

fn ended(holder: JoinHandle<Result<()>>) -> Result<()> {
    holder.join().map_err(|_| anyhow!("the thread that delays packets panicked"))?
}

fn open(namespace: &str, number: u16) -> Result<Queue> {
    enter(namespace)?;
    let mut queue = Queue::open()?;
    queue.bind(number)?;
    queue.set_copy_range(number, SHOWN)?;
    queue.set_queue_max_len(number, HELD)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

/// Until told to stop; then what is held goes on at once.
fn hold(mut queue: Queue, longest: Duration, mut random: Random, stopped: &Receiver<()>) -> Result<()> {
    let longest = u64::try_from(longest.as_micros())?;
    let mut held: BTreeMap<(Instant, u64), Message> = BTreeMap::new();
    let mut number = 0;
    loop {
        let stops = stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout);
        let now = Instant::now();
        while let Some(packet) = next(&mut queue)? {
            number += 1;
            held.insert((now + Duration::from_micros(random.below(longest + 1)), number), packet);
        }
        while let Some(entry) = held.first_entry().filter(|entry| stops || entry.key().0 <= now) {
            queue.verdict(entry.remove()).context("could not let a packet go on")?;
        }
        if stops {
            return Ok(());
        }
    }
}

fn next(queue: &mut Queue) -> Result<Option<Message>> {
    match queue.recv() {
        Ok(mut packet) => {
            packet.set_verdict(Verdict::Accept);
            Ok(Some(packet))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("could not take a packet over"),
    }
}
