//! A cluster of servers: making it, looking at it, breaking its network, and cleaning up after it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::id;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::client::Address;
use crate::disk::{self, Disk};
use crate::network::{CLIENT, Namespaces, Network, address};
use crate::node::Node;
use crate::process::{adopt_orphans, kill_all};
use crate::provision;
use crate::run::{Runner, base_directory, copy_program, find_bihactl, make_directory, pg_bindir};
use crate::wait::wait_until;
use crate::wallclock::{self, WallClock};

/// First port that is tried for the servers. Below those that the system gives to outgoing connections.
const FIRST_PORT: u16 = 21400;
/// Last port that is tried.
const LAST_PORT: u16 = 21990;
/// Ports between two nodes.
const PORTS_A_NODE: u16 = 10;

/// What replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// biha, made with bihactl.
    Biha,
    /// PostgreSQL's own streaming replication, the first node leading: to compare with.
    Plain,
}

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Builder {
    /// What replicates.
    pub kind: Kind,
    /// Number of nodes.
    pub nodes: u32,
    /// What connects them.
    pub network: Network,
    /// k of `ANY k`; 0 is asynchronous.
    pub sync_standbys: u32,
    /// Lines for postgresql.conf.
    pub settings: Vec<(String, String)>,
    /// Heartbeat period in ms and number of heartbeats that may be lost, if not the default.
    pub heartbeat: Option<(u32, u32)>,
    /// Directory to use and to keep; by default a temporary one.
    pub directory: Option<PathBuf>,
    /// Has each node a disk of its own?
    pub disks: bool,
    /// Has each node a wall clock of its own?
    pub clocks: bool,
}

impl Builder {
    /// Number of nodes; 3 by default.
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// What connects them; by default namespaces where they can be had.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// k of `ANY k`.
    pub fn sync_standbys(mut self, k: u32) -> Self {
        self.sync_standbys = k;
        self
    }

    /// A line for every node's postgresql.conf.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Heartbeat period in ms, and how many may be lost.
    pub fn heartbeat(mut self, period: u32, max_lost: u32) -> Self {
        self.heartbeat = Some((period, max_lost));
        self
    }

    /// PostgreSQL's own replication instead of biha.
    pub fn plain(mut self) -> Self {
        self.kind = Kind::Plain;
        self
    }

    /// Gives each node a disk of its own.
    pub fn disks(mut self, disks: bool) -> Self {
        self.disks = disks;
        self
    }

    /// Gives each node a wall clock of its own.
    pub fn clocks(mut self) -> Self {
        self.clocks = true;
        self
    }

    /// Makes the cluster in this directory and keeps it.
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Makes and starts all nodes, and waits until they replicate.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.prepare()?;
        for _ in 1..=cluster.builder.nodes {
            cluster.add_node()?;
        }
        cluster.wait_healthy(Duration::from_secs(60))?;
        if let Some((period, max_lost)) = cluster.builder.heartbeat {
            let leader = cluster.leader()?;
            leader.biha_value(&format!("SELECT biha.set_heartbeat_send_period({period})"))?;
            leader.biha_value(&format!("SELECT biha.set_heartbeat_max_lost({max_lost})"))?;
        }
        Ok(cluster)
    }

    /// Directory, network and programs, but no node yet.
    pub fn prepare(self) -> Result<Cluster> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        adopt_orphans()?;
        disk::remove_stale()?;
        let keep = self.directory.is_some() || env::var_os("BIHA_KEEP").is_some();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let directory = self
            .directory
            .clone()
            .unwrap_or_else(|| base_directory().join(format!("biha-test-{}-{number}", id())));
        make_directory(&directory)?;
        let directory = directory.canonicalize()?;
        let sockets = directory.join("sockets");
        make_directory(&sockets)?;
        let bihactl = match self.kind {
            Kind::Biha => copy_program(&find_bihactl()?, &directory.join("bin"))?,
            Kind::Plain => PathBuf::new(),
        };
        let clock_library = match self.clocks {
            true => Some(wallclock::library(&directory.join("bin"))?),
            false => None,
        };
        let namespaces = match self.network {
            Network::Loopback => None,
            Network::Namespaces => Some(Namespaces::create()?),
        };
        let first_port = if namespaces.is_some() { FIRST_PORT } else { free_ports(self.nodes.max(4))? };
        let bindir = pg_bindir()?;
        let (nodes, last_id) = (Vec::new(), 0);
        Ok(Cluster {
            builder: self,
            directory,
            bihactl,
            bindir,
            namespaces,
            first_port,
            nodes,
            last_id,
            disks: BTreeMap::new(),
            clocks: BTreeMap::new(),
            clock_library,
            keep,
        })
    }
}

/// A cluster; its processes end and its namespaces go when it is dropped, its files too unless kept.
#[derive(Debug)]
pub struct Cluster {
    /// As it was asked for.
    pub builder: Builder,
    /// Where everything is.
    pub directory: PathBuf,
    /// bihactl, where the servers' user can run it.
    pub bihactl: PathBuf,
    bindir: PathBuf,
    namespaces: Option<Namespaces>,
    first_port: u16,
    nodes: Vec<Node>,
    /// The last number that was given to a node: none is used twice.
    last_id: u32,
    disks: BTreeMap<u32, Disk>,
    /// Of nodes that are gone as well: others tell of what they did.
    clocks: BTreeMap<u32, WallClock>,
    clock_library: Option<PathBuf>,
    keep: bool,
}

impl Cluster {
    /// Three asynchronous nodes with biha, in namespaces where they can be had.
    pub fn builder() -> Builder {
        Builder {
            kind: Kind::Biha,
            nodes: 3,
            network: Network::best(),
            sync_standbys: 0,
            settings: Vec::new(),
            heartbeat: None,
            directory: None,
            disks: false,
            clocks: false,
        }
    }

    /// Makes the next node and starts it: the first with `bihactl init`, the others with `bihactl add`.
    pub fn add_node(&mut self) -> Result<&Node> {
        let node = self.next_node()?;
        self.join(node)
    }

    /// Makes and starts a node that has its number and its host.
    pub fn join(&mut self, node: Node) -> Result<&Node> {
        match (self.builder.kind, self.nodes.first()) {
            (Kind::Biha, None) => provision::init(self, &node)?,
            (Kind::Biha, Some(_)) => provision::add(self, &node)?,
            (Kind::Plain, None) => provision::plain_primary(self, &node)?,
            (Kind::Plain, Some(primary)) => provision::plain_standby(primary, &node)?,
        }
        self.nodes.push(node);
        self.nodes.last().context("no node")
    }

    /// The next node's number, and a host for it.
    pub fn next_node(&mut self) -> Result<Node> {
        self.last_id += 1;
        let id = self.last_id;
        let port = self.first_port + PORTS_A_NODE * u16::try_from(id)?;
        let (host, mut runner) = match &mut self.namespaces {
            None => ("127.0.0.1".to_string(), Runner::default()),
            Some(namespaces) => {
                namespaces.add_node(id)?;
                (address(id), namespaces.runner(id))
            }
        };
        if let Some(library) = &self.clock_library {
            let clock = WallClock::create(self.directory.join(format!("clock{id}")))?;
            runner.environment = clock.environment(library);
            self.clocks.insert(id, clock);
        }
        if self.builder.disks {
            self.disks.insert(id, Disk::create(&self.directory.join(format!("disk{id}")))?);
        }
        Ok(Node {
            id,
            address: Address { host, port },
            control_port: port + 1,
            data: self.data_directory(id),
            log: self.directory.join(format!("n{id}.log")),
            runner,
            bindir: self.bindir.clone(),
        })
    }

    /// Where a node's data directory is.
    pub fn data_directory(&self, id: u32) -> PathBuf {
        let place = self.disks.get(&id).map_or(&self.directory, |disk| &disk.mount);
        place.join(format!("n{id}"))
    }

    /// A node's own disk.
    pub fn disk(&self, id: u32) -> Result<&Disk> {
        self.disks.get(&id).with_context(|| format!("node {id} has no disk of its own"))
    }

    /// A node's own wall clock, also of one that is gone.
    pub fn clock(&self, id: u32) -> Option<&WallClock> {
        self.clocks.get(&id)
    }

    /// Lets all disks answer that hang: what waits for one cannot be killed.
    pub fn thaw_disks(&self) {
        self.disks.values().for_each(Disk::thaw);
    }

    /// Ends what runs of a node that is no longer wanted, and removes its files. Its log stays.
    pub fn clear_away(&mut self, id: u32) -> Result<()> {
        let data = self.data_directory(id);
        kill_all(&data)?;
        if let Some(disk) = self.disks.remove(&id) {
            return disk.destroy();
        }
        if !data.exists() {
            return Ok(());
        }
        fs::remove_dir_all(&data).with_context(|| format!("could not remove {}", data.display()))
    }

    /// Forgets a node that was removed from the cluster: it is no longer waited for.
    pub fn forget(&mut self, id: u32) -> Result<Node> {
        let index = self.nodes.iter().position(|node| node.id == id).context("no such node")?;
        Ok(self.nodes.remove(index))
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this number. Panics if there is none: the test itself is wrong.
    pub fn node(&self, id: u32) -> &Node {
        self.nodes.iter().find(|node| node.id == id).unwrap_or_else(|| panic!("no node {id}"))
    }

    /// All nodes but one.
    pub fn others(&self, id: u32) -> Vec<&Node> {
        self.nodes.iter().filter(|node| node.id != id).collect()
    }

    /// Addresses of all nodes, for a multi-host string.
    pub fn addresses(&self) -> Vec<Address> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The one node that takes writes.
    pub fn leader(&self) -> Result<&Node> {
        self.leader_among(&self.nodes.iter().collect::<Vec<_>>())
    }

    /// The one node among these that takes writes. Asks only these: a frozen node does not answer.
    pub fn leader_among<'a>(&self, nodes: &[&'a Node]) -> Result<&'a Node> {
        let mut seen = Vec::new();
        let mut leaders = Vec::new();
        for node in nodes {
            let state = self.claim(node);
            if state.as_deref().is_ok_and(|state| state == "LEADER_RW") {
                leaders.push(*node);
            }
            seen.push(format!("{}: {}", node.id, state.unwrap_or_else(|error| format!("{error:#}"))));
        }
        ensure!(leaders.len() < 2, "TWO LEADERS: {}", seen.join(", "));
        leaders.pop().with_context(|| format!("no leader: {}", seen.join(", ")))
    }

    /// What a node says that it is.
    fn claim(&self, node: &Node) -> Result<String> {
        match self.builder.kind {
            Kind::Plain if node.in_recovery()? => Ok("FOLLOWER".into()),
            Kind::Plain => Ok("LEADER_RW".into()),
            Kind::Biha => Ok(node.own_status()?.state),
        }
    }

    /// Waits for the one node that takes writes.
    pub fn wait_leader(&self, timeout: Duration) -> Result<&Node> {
        wait_until("a leader that takes writes", timeout, || self.leader())
    }

    /// Waits for a leader that is not this node, and asks only the others.
    pub fn wait_leader_other_than(&self, id: u32, timeout: Duration) -> Result<&Node> {
        let others = self.others(id);
        wait_until("another leader that takes writes", timeout, || self.leader_among(&others))
    }

    /// Waits until one leader takes writes and all others stream from it and know it.
    pub fn wait_healthy(&self, timeout: Duration) -> Result<&Node> {
        wait_until("one leader and all others streaming", timeout, || {
            let leader = self.leader()?;
            let sql = "SELECT count(*) FROM pg_stat_replication
                WHERE state = 'streaming' AND pid IN (SELECT active_pid FROM pg_replication_slots)";
            let streaming: usize = leader.value(sql)?.parse()?;
            ensure!(streaming + 1 == self.nodes.len(), "{streaming} stream from node {}", leader.id);
            if self.builder.kind == Kind::Plain {
                return Ok(leader);
            }
            let own = leader.own_status()?;
            for node in self.others(leader.id) {
                let status = node.own_status()?;
                ensure!(
                    status.state == "FOLLOWER" && status.leader == Some(leader.id) && status.term == own.term,
                    "{status:?}, leader {own:?}"
                );
            }
            Ok(leader)
        })
    }

    /// Waits until all nodes have replayed what the leader has written by now.
    pub fn wait_caught_up(&self, timeout: Duration) -> Result<()> {
        let leader = self.leader()?;
        let end = leader.value("SELECT pg_current_wal_flush_lsn()")?;
        for node in self.others(leader.id) {
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
            wait_until(&format!("node {} to replay {end}", node.id), timeout, || {
                ensure!(node.value(&sql)? == "t", "it is behind");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The switchover, asked for at `at`.
    pub fn set_leader(&self, at: &Node, target: u32) -> Result<()> {
        let answer = at.biha_value(&format!("SELECT biha.set_leader({target})"))?;
        ensure!(answer == "t", "set_leader answered {answer}");
        Ok(())
    }

    /// The namespaces; an error where the network is loopback.
    pub fn network(&self) -> Result<&Namespaces> {
        self.namespaces.as_ref().context("links can be cut only in network namespaces, which need root")
    }

    /// Silently cuts a node off from everyone, clients included.
    pub fn silence(&self, id: u32) -> Result<()> {
        self.network()?.cut(id, CLIENT)?;
        self.partition(id)
    }

    /// Silently cuts a node off from the other nodes; clients still reach it.
    pub fn partition(&self, id: u32) -> Result<()> {
        self.others(id).iter().try_for_each(|other| self.network()?.cut(id, other.id))
    }

    /// Mends all cuts.
    pub fn heal(&self) -> Result<()> {
        self.network()?.heal()
    }

    /// Keeps the files.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// What a reader of a failed test needs.
    pub fn dump(&self) -> String {
        self.nodes.iter().map(Node::dump).collect()
    }

    /// Ends everything, frozen processes too.
    pub fn end(&self) -> Result<()> {
        self.thaw_disks();
        self.nodes.iter().try_for_each(Node::kill_all)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.thaw_disks();
        self.nodes.iter().for_each(Node::quit);
        if let Err(error) = self.end() {
            eprintln!("could not end the cluster in {}: {error:#}", self.directory.display());
        }
        if self.keep {
            for disk in self.disks.values() {
                eprintln!("kept, to be mounted with -o loop: {}", disk.image().display());
            }
        }
        // Unmounted before the directory goes.
        self.disks.clear();
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.directory)
        {
            eprintln!("could not remove {}: {error}", self.directory.display());
        }
    }
}

/// The first port of a range that is free on loopback. Each node has its server's port and the one after it.
fn free_ports(nodes: u32) -> Result<u16> {
    let range = PORTS_A_NODE * u16::try_from(nodes + 1)?;
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut first = FIRST_PORT;
    while first + range < LAST_PORT {
        if (first..first + range).step_by(PORTS_A_NODE.into()).all(|port| free(port) && free(port + 1)) {
            return Ok(first);
        }
        first += range;
    }
    bail!("no free ports between {FIRST_PORT} and {LAST_PORT}")
}
