//! Networks on the loopback interface, with certificates, driven together by one loop.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each binary uses a part of it")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use biha_core::*;
use biha_io::*;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub const CLUSTER: ClusterId = ClusterId(0xabcd_ef01_2345_6789);
/// How long to wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Milliseconds since the test began.
pub fn now() -> Millis {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as Millis + 1
}

/// A certificate authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for this name.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub fn tls(&self, node: u32) -> TlsConfig {
        let (certificate, key) = self.issue(&certificate_name(CLUSTER, NodeId(node)));
        TlsConfig::from_pem(self.pem.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
    }
}

pub fn resolver() -> Box<dyn Resolver> {
    Box::new(ThreadResolver::new(|job| std::thread::Builder::new().spawn(job).map(|_| ())))
}

pub fn config(node: u32, tls: Option<TlsConfig>) -> NetworkConfig {
    NetworkConfig {
        cluster: CLUSTER,
        node: NodeId(node),
        incarnation: Incarnation(1),
        tag: 1,
        port: 0,
        tls,
        resolver: resolver(),
        limits: Limits::default(),
    }
}

/// A network, and what happened on it.
pub struct Peer {
    pub id: NodeId,
    pub incarnation: Incarnation,
    pub tag: u32,
    pub net: Network,
    pub events: Vec<NetEvent>,
    /// Says hello by itself when connected.
    pub polite: bool,
}

impl Peer {
    pub fn new(config: NetworkConfig) -> Peer {
        let (id, incarnation, tag) = (config.node, config.incarnation, config.tag);
        let net = Network::bind(config).unwrap();
        Peer { id, incarnation, tag, net, events: Vec::new(), polite: true }
    }

    pub fn envelope(&self, to: u32, message: Message) -> Envelope {
        Envelope { tag: self.tag, ..envelope(self.id.0, to, self.incarnation.0, message) }
    }

    pub fn say(&mut self, to: u32, message: Message) -> bool {
        let envelope = self.envelope(to, message);
        self.net.send(NodeId(to), &envelope).unwrap()
    }

    pub fn turn(&mut self) {
        let from = self.events.len();
        self.net.poll(now(), &mut self.events).unwrap();
        let connected = |event: &NetEvent| match event {
            NetEvent::Connected(id) => Some(id.0),
            _ => None,
        };
        let polite = self.polite;
        let new: Vec<u32> = self.events[from..].iter().filter_map(connected).filter(|_| polite).collect();
        for id in new {
            self.say(id, hello());
        }
    }

    /// Messages of one node, without its hellos.
    pub fn heard(&self, from: u32) -> Vec<&Message> {
        self.messages(from).filter(|m| !matches!(m, Message::Hello(_))).collect()
    }

    pub fn messages(&self, from: u32) -> impl Iterator<Item = &Message> {
        self.events.iter().filter_map(move |event| match event {
            NetEvent::Message(e) if e.from == NodeId(from) => Some(&e.message),
            _ => None,
        })
    }

    pub fn greeted(&self, from: u32) -> bool {
        self.messages(from).any(|m| matches!(m, Message::Hello(_)))
    }

    pub fn ends(&self, of: u32) -> Vec<Disconnect> {
        let end = |event: &NetEvent| match event {
            NetEvent::Disconnected(id, how) if *id == NodeId(of) => Some(*how),
            _ => None,
        };
        self.events.iter().filter_map(end).collect()
    }

    /// Texts of the rejections.
    pub fn rejections(&self) -> Vec<String> {
        let why = |event: &NetEvent| match event {
            NetEvent::Rejected { why, .. } => Some(why.to_string()),
            _ => None,
        };
        self.events.iter().filter_map(why).collect()
    }

    pub fn active(&self, id: u32) -> bool {
        self.net.connection_state(NodeId(id)) == ConnState::Active
    }
}

pub fn envelope(from: u32, to: u32, incarnation: u64, message: Message) -> Envelope {
    Envelope {
        cluster: CLUSTER,
        from: NodeId(from),
        to: NodeId(to),
        incarnation: Incarnation(incarnation),
        tag: 1,
        term: Term(1),
        voted_for: None,
        message,
    }
}

pub fn hello() -> Message {
    Message::Hello(Hello { config: ConfigVersion::default(), state: NodeState::Follower })
}

pub fn text(size: usize) -> Message {
    Message::ForwardReply { request: size as u64, result: Err(CommandError::Failed("x".repeat(size))) }
}

/// Nodes by number.
pub struct Cluster {
    pub nodes: BTreeMap<u32, Peer>,
    outer: mio::Poll,
}

impl Cluster {
    pub fn of(nodes: impl IntoIterator<Item = Peer>) -> Cluster {
        let nodes: BTreeMap<u32, Peer> = nodes.into_iter().map(|n| (n.id.0, n)).collect();
        let mut cluster = Cluster { nodes: BTreeMap::new(), outer: mio::Poll::new().unwrap() };
        for node in nodes.into_values() {
            cluster.add(node);
        }
        cluster
    }

    /// Nodes 1..=n that know each other and are all connected.
    pub fn connected(n: u32, authority: Option<&Authority>) -> Cluster {
        let node = |id| Peer::new(config(id, authority.map(|a| a.tls(id))));
        let mut cluster = Cluster::of((1..=n).map(node));
        cluster.introduce("127.0.0.1");
        cluster.await_all_connected();
        cluster
    }

    pub fn add(&mut self, node: Peer) {
        let fd = node.net.as_raw_fd();
        let interest = Interest::READABLE;
        self.outer.registry().register(&mut SourceFd(&fd), Token(node.id.0 as usize), interest).unwrap();
        self.nodes.insert(node.id.0, node);
    }

    /// Takes a node away: from now on it does nothing, but its connections stay as long as it lives.
    pub fn take(&mut self, id: u32) -> Peer {
        let node = self.nodes.remove(&id).unwrap();
        let fd = node.net.as_raw_fd();
        self.outer.registry().deregister(&mut SourceFd(&fd)).unwrap();
        node
    }

    /// Tells everyone where everyone is.
    pub fn introduce(&mut self, host: &str) {
        let all: Vec<_> = self.nodes.values().map(|n| (n.id, host.to_owned(), n.net.local_port())).collect();
        for node in self.nodes.values_mut() {
            node.net.set_peers(&all);
        }
    }

    pub fn await_all_connected(&mut self) {
        let ids: Vec<u32> = self.nodes.keys().copied().collect();
        let others = |id: u32| ids.iter().copied().filter(move |other| *other != id);
        self.wait("all connected", |nodes| {
            nodes.iter().all(|(id, n)| others(*id).all(|other| n.active(other) && n.greeted(other)))
        });
    }

    pub fn node(&mut self, id: u32) -> &mut Peer {
        self.nodes.get_mut(&id).unwrap()
    }

    /// Turns all nodes as their descriptors and deadlines ask for, until it is so.
    pub fn wait(&mut self, what: &str, done: impl Fn(&BTreeMap<u32, Peer>) -> bool) {
        let start = Instant::now();
        while !done(&self.nodes) {
            let shown: Vec<_> = self.nodes.values().map(|n| (n.id, &n.events)).collect();
            assert!(start.elapsed() < PATIENCE, "not in time: {what}; {shown:#?}");
            self.step(50);
        }
    }

    /// Lets this much time pass.
    pub fn pass(&mut self, time: Millis) {
        let end = now() + time;
        while now() < end {
            self.step(end - now().min(end));
        }
    }

    /// Waits until there is something to do, but no longer than `most` ms, and does it.
    fn step(&mut self, most: Millis) {
        let at = self.nodes.values().filter_map(|n| n.net.next_deadline()).min();
        let pause = at.map_or(most, |at| at.saturating_sub(now()).min(most));
        let mut ready = mio::Events::with_capacity(16);
        self.outer.poll(&mut ready, Some(Duration::from_millis(pause))).unwrap();
        for node in self.nodes.values_mut() {
            node.turn();
        }
    }
}

/// One node that lets nobody wait long.
pub fn lone(tls: Option<TlsConfig>) -> Cluster {
    let limits = Limits { handshake_timeout: 200, ..Limits::default() };
    Cluster::of([Peer::new(NetworkConfig { limits, ..config(1, tls) })])
}

/// A stranger's connection with node 1.
pub fn raw(cluster: &mut Cluster) -> TcpStream {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, cluster.node(1).net.local_port())).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Has the node ended this connection?
pub fn ended(mut socket: &TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// An envelope's bytes.
pub fn frame(from: u32, to: u32, incarnation: u64, message: Message) -> Vec<u8> {
    wire::encode(&envelope(from, to, incarnation, message)).unwrap()
}

/// A blocking TLS client that trusts `ours` and has a certificate of `issuer` for `name`; says it is node
/// `claims`.
pub fn claim(
    issuer: &Authority,
    ours: &Authority,
    name: &str,
    port: u16,
    claims: u32,
) -> std::thread::JoinHandle<std::io::Result<usize>> {
    let (certificate, key) = issuer.issue(name);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ours.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let name = certificate_name(CLUSTER, NodeId(1)).try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    std::thread::Builder::new()
        .spawn(move || {
            let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut stream = rustls::Stream::new(&mut tls, &mut socket);
            stream.write_all(&frame(claims, 1, 1, hello()))?;
            let mut welcome = [0; wire::HEADER_SIZE];
            stream.read_exact(&mut welcome)?;
            // Until the node ends it, or says nothing for a while.
            stream.sock.set_read_timeout(Some(Duration::from_millis(300)))?;
            stream.read_to_end(&mut Vec::new())
        })
        .unwrap()
}
