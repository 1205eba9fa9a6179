//! The network between the nodes: loopback ports, or a network namespace per node on one bridge, where links
//! can be cut so that nothing is closed and nobody is told.
//!
//! A cut drops packets at the receiver (nftables, input hook), so the sender's kernel learns nothing, and
//! address resolution goes on: silence, not an error.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::delay::Delay;
use crate::process::alive;
use crate::run::{Runner, is_root, run};

/// Every namespace of the harness is named `biha-<pid>-<number>-<node or hub>`.
const PREFIX: &str = "biha-";
/// Number under which cuts know the client's side of the bridge.
pub const CLIENT: u32 = 0;

/// What a cluster's nodes are connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Ports on 127.0.0.1.
    Loopback,
    /// One network namespace for each node (needs root).
    Namespaces,
}

impl Network {
    /// Namespaces where they can be had, else loopback.
    pub fn best() -> Network {
        if Namespaces::possible() { Network::Namespaces } else { Network::Loopback }
    }
}

/// The namespaces of one cluster; removed on drop.
#[derive(Debug)]
pub struct Namespaces {
    tag: String,
    nodes: Vec<u32>,
    delays: Mutex<Vec<Delay>>,
}

impl Namespaces {
    /// Can namespaces be made here?
    pub fn possible() -> bool {
        is_root() && Command::new("ip").args(["netns", "list"]).output().is_ok_and(|o| o.status.success())
    }

    /// Makes the hub with its bridge, and moves the calling thread into it.
    pub fn create() -> Result<Namespaces> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        remove_stale()?;
        let tag = format!("{PREFIX}{}-{}", id(), MADE.fetch_add(1, Ordering::Relaxed));
        let made = Namespaces { tag, nodes: Vec::new(), delays: Mutex::default() };
        let hub = made.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "address", "add", &format!("{}/24", address(CLIENT)), "dev", "br0"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        made.prepare_cuts(&hub)?;
        enter(&hub)?;
        Ok(made)
    }

    /// Makes a node's namespace and its link to the bridge.
    pub fn add_node(&mut self, node: u32) -> Result<()> {
        let (hub, name, port) = (self.hub(), self.name(node), port(node));
        ip(&["netns", "add", &name])?;
        self.nodes.push(node);
        ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &name, "address", "add", &format!("{}/24", address(node)), "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        self.prepare_cuts(&name)
    }

    /// Does something in a thread of its own in a node's namespace.
    pub fn inside<T: Send>(&self, node: u32, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let name = self.name(node);
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                enter(&name)?;
                body()
            });
            entered.join().map_err(|_| anyhow!("the thread in the namespace of node {node} panicked"))?
        })
    }

    /// How a node's programs are started.
    pub fn runner(&self, node: u32) -> Runner {
        Runner { namespace: Some(self.name(node)), ..Runner::default() }
    }

    /// Silently drops what `from` sends to `to`; one way.
    pub fn cut_one_way(&self, from: u32, to: u32) -> Result<()> {
        let script = format!("add element ip biha cut {{ {} }}\n", address(from));
        nft(&self.name(to), &script)
    }

    /// Silently drops everything between `a` and `b`.
    pub fn cut(&self, a: u32, b: u32) -> Result<()> {
        self.cut_one_way(a, b)?;
        self.cut_one_way(b, a)
    }

    /// Everything flows again, on all links.
    pub fn heal(&self) -> Result<()> {
        let delays = std::mem::take(&mut *self.delays.lock().unwrap_or_else(PoisonError::into_inner));
        delays.into_iter().try_for_each(Delay::end)?;
        for &node in self.nodes.iter().chain([&CLIENT]) {
            nft(&self.name(node), "flush set ip biha cut\nflush chain ip biha losing\n")?;
        }
        for &node in &self.nodes {
            self.set_link(node, true)?;
            if run(Command::new("tc").args(["-n", &self.hub(), "qdisc", "show", "dev", &port(node)]))?
                .contains("tbf")
            {
                self.shape(node, &["del", "dev", &port(node), "root"])?;
            }
        }
        Ok(())
    }

    /// So many percent of the packets that other nodes send to this one are lost. By nftables: netem is a module that
    /// many kernels come without.
    pub fn lose(&self, node: u32, percent: u64) -> Result<()> {
        let from = format!("ip saddr != {} ip saddr {}/24", address(CLIENT), address(CLIENT));
        let rule = format!("add rule ip biha losing {from} numgen random mod 100 < {percent} drop\n");
        nft(&self.name(node), &rule)
    }

    /// Each packet that other nodes send to this one arrives up to so many ms later, by chance: in another order.
    pub fn delay(&self, node: u32, longest: u64, seed: u64) -> Result<()> {
        let delay = Delay::start(&self.name(node), &address(CLIENT), Duration::from_millis(longest), seed)?;
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).push(delay);
        Ok(())
    }

    /// What is sent to this node queues up, for up to 300 ms, in front of a link of so many kbit/s; what does not fit
    /// is dropped.
    pub fn slow_down(&self, node: u32, rate: u64) -> Result<()> {
        let rate = format!("{rate}kbit");
        self.shape(
            node,
            &["add", "dev", &port(node), "root", "tbf", "rate", &rate, "burst", "8kb", "latency", "300ms"],
        )
    }

    fn shape(&self, node: u32, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("tc");
        command.args(["-n", &self.hub(), "qdisc"]).args(arguments);
        run(&mut command).with_context(|| format!("could not shape the link of node {node}")).map(drop)
    }

    /// Takes a node's link down or up, as a pulled cable does: its own kernel sees the carrier go.
    pub fn set_link(&self, node: u32, up: bool) -> Result<()> {
        ip(&["-n", &self.hub(), "link", "set", &port(node), if up { "up" } else { "down" }])
    }

    fn hub(&self) -> String {
        self.name(CLIENT)
    }

    fn name(&self, node: u32) -> String {
        match node {
            CLIENT => format!("{}-hub", self.tag),
            node => format!("{}-n{node}", self.tag),
        }
    }

    fn prepare_cuts(&self, namespace: &str) -> Result<()> {
        nft(
            namespace,
            "table ip biha {
                 set cut { type ipv4_addr; }
                 chain arriving { type filter hook input priority 0; ip saddr @cut drop; jump losing; }
                 chain losing { }
             }\n",
        )
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for node in self.nodes.iter().chain([&CLIENT]) {
            // Nothing better to do about it here; the next run removes what is left.
            ip(&["netns", "delete", &self.name(*node)]).ok();
        }
    }
}

/// Moves the calling thread into a network namespace.
pub fn enter(name: &str) -> Result<()> {
    let namespace = File::open(format!("/run/netns/{name}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("could not enter the network namespace {name}"))
}

/// A node's address, or the client's.
pub fn address(node: u32) -> String {
    match node {
        CLIENT => "192.0.2.254".into(),
        node => format!("192.0.2.{node}"),
    }
}

fn port(node: u32) -> String {
    format!("port{node}")
}

/// Removes namespaces of harness processes that were killed, and ends what still runs in them.
fn remove_stale() -> Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        let Some(owner) = owner.filter(|pid| !alive(*pid)) else { continue };
        let pids = run(Command::new("ip").args(["netns", "pids", &name]))?;
        for pid in pids.split_whitespace() {
            crate::process::signal(pid.parse()?, rustix::process::Signal::KILL)
                .with_context(|| format!("left behind by process {owner}"))?;
        }
        ip(&["netns", "delete", &name])?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}

/// Runs an nftables script inside a namespace.
fn nft(namespace: &str, script: &str) -> Result<()> {
    let mut child = Command::new("nsenter")
        .args([&format!("--net=/run/netns/{namespace}"), "--", "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not run nft")?;
    child.stdin.take().context("no pipe to nft")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft failed in {namespace}: {text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// A connection from the client's side to a listener in node 1's namespace; cut and healed.
    #[test]
    fn a_cut_is_silent_and_heals() {
        if !Namespaces::possible() {
            return;
        }
        let test = || -> Result<()> {
            let mut network = Namespaces::create()?;
            network.add_node(1)?;
            let listener = network.inside(1, || Ok(TcpListener::bind((address(1), 7000))?))?;
            let target = listener.local_addr()?;
            let dial = || TcpStream::connect_timeout(&target, Duration::from_millis(200));
            dial().context("before the cut")?;
            network.cut(1, CLIENT)?;
            assert_eq!(dial().unwrap_err().kind(), std::io::ErrorKind::TimedOut, "silent, not refused");
            network.heal()?;
            dial().context("after the cut")?;
            Ok(())
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap()).unwrap();
    }
}
