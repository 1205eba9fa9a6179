//! Measures what hostile peers cost two members on the loopback interface: how regularly heartbeats arrive, how
//! long the members need to find each other again, and the memory of both. The attacker is a process of its
//! own, at the lowest priority, on addresses of its own.
//! `cargo run --release -p biha-io --example hostile [SECONDS [ROUNDS]]`, for each attack
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "prints; an example")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::scope;
use std::time::{Duration, Instant};

use biha_core::*;
use biha_io::*;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};
use support::{Authority, Peer, config, now, text};

/// Of the heartbeats, in ms: the shortest that can be set.
const PERIOD: Millis = 10;
/// Connections of the attacker.
const CROWD: usize = 1000;
/// New connections of the attacker in a second, where it dials anew what was ended.
const RATE: usize = 1000;
const RECONNECTS: usize = 50;

const ATTACKS: [(&str, &str); 6] = [
    ("quiet", "nobody else"),
    ("idle", "1,000 idle connections, dialled once"),
    ("storm", "the same, each dialled anew when it is ended"),
    ("slow", "1,000 that send a byte every 10 ms, dialled anew"),
    ("noise", "the same, each sending 16 kB that is no TLS"),
    ("foreign", "handshakes with another cluster's certificate"),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [attack, kind, ports @ ..] if attack == "attack" => {
            attacker(kind, &ports.iter().map(|port| port.parse().unwrap()).collect::<Vec<_>>());
        }
        words => {
            let number = |at: usize| words.get(at).map_or(10, |word| word.parse().unwrap());
            measure(number(0), number(1));
        }
    }
}

/// What was seen under one attack.
#[derive(Default)]
struct Seen {
    /// Between two arrivals, in ms.
    gaps: Vec<f64>,
    /// Until both were connected again, in ms.
    again: Vec<f64>,
    /// Memory before and after, in kB.
    before: usize,
    after: usize,
    /// Connections of one member.
    held: usize,
}

/// All attacks, one after the other, again and again: what else this machine does meets all of them.
fn measure(seconds: u64, rounds: u64) {
    let mut seen: Vec<Seen> = ATTACKS.iter().map(|_| Seen::default()).collect();
    for _ in 0..rounds {
        for ((kind, _), seen) in ATTACKS.iter().zip(&mut seen) {
            round(kind, seconds, seen);
        }
    }
    println!(
        "ms between the arrivals of two heartbeats, sent every {PERIOD} ms; ms to connect again; kB; connections"
    );
    println!(
        "{:<50} {:>7} {:>7} {:>7} {:>7} {:>7} | {:>5} {:>7} {:>7} {:>7} | {:>6} {:>6} | {:>4}",
        "", "n", "median", "99 %", "99.9 %", "most", "n", "median", "99 %", "most", "before", "after", "most"
    );
    for ((_, what), mut seen) in ATTACKS.iter().zip(seen) {
        println!(
            "{what:<50} {} | {} | {:>6} {:>6} | {:>4}",
            columns(&mut seen.gaps, 7, &[500, 990, 999, 1000]),
            columns(&mut seen.again, 5, &[500, 990, 1000]),
            seen.before,
            seen.after,
            seen.held,
        );
    }
}

fn columns(values: &mut [f64], width: usize, parts: &[usize]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |part: &usize| format!(" {:>7.2}", values[(values.len() - 1) * part / 1000]);
    format!("{:>width$}{}", values.len(), parts.iter().map(at).collect::<String>())
}

fn round(kind: &str, seconds: u64, seen: &mut Seen) {
    let authority = Authority::new();
    let mut nodes: Vec<Peer> = (1..=2).map(|id| Peer::new(config(id, Some(authority.tls(id))))).collect();
    let ports: Vec<u16> = nodes.iter().map(|node| node.net.local_port()).collect();
    introduce(&mut nodes);
    find_each_other(&mut nodes);
    seen.before = seen.before.max(resident());
    let mut attacker = (kind != "quiet").then(|| start(kind, &ports));
    let begin = now() + 500;
    scope(|threads| {
        let beating: Vec<_> =
            nodes.iter_mut().map(|node| threads.spawn(move || beat(node, begin, seconds * 1000))).collect();
        for node in beating {
            let (gaps, held) = node.join().unwrap();
            seen.gaps.extend(gaps);
            seen.held = seen.held.max(held);
        }
    });
    seen.again.extend((0..RECONNECTS).map(|_| reconnect(&mut nodes)));
    seen.after = seen.after.max(resident());
    if let Some(attacker) = &mut attacker {
        attacker.kill().unwrap();
        attacker.wait().unwrap();
    }
}

fn introduce(nodes: &mut [Peer]) {
    let all: Vec<_> = nodes.iter().map(|n| (n.id, "127.0.0.1".to_owned(), n.net.local_port())).collect();
    nodes.iter_mut().for_each(|node| node.net.set_peers(&all));
}

fn find_each_other(nodes: &mut [Peer]) {
    let found = |node: &Peer| node.active(3 - node.id.0) && node.greeted(3 - node.id.0);
    while !nodes.iter().all(found) {
        nodes.iter_mut().for_each(Peer::turn);
    }
}

/// Both forget each other; ms until both are connected again.
fn reconnect(nodes: &mut [Peer]) -> f64 {
    nodes.iter_mut().for_each(|node| node.net.set_peers(&[]));
    while nodes.iter().any(|node| node.active(3 - node.id.0)) {
        nodes.iter_mut().for_each(Peer::turn);
    }
    nodes.iter_mut().for_each(Peer::turn);
    nodes.iter_mut().for_each(|node| node.events.clear());
    let start = Instant::now();
    introduce(nodes);
    find_each_other(nodes);
    start.elapsed().as_secs_f64() * 1000.0
}

/// Sends heartbeats until so many ms after `begin`. Gives the ms between the arrivals of two of the other node's
/// since `begin`, and the most connections that were held.
fn beat(node: &mut Peer, begin: Millis, time: Millis) -> (Vec<f64>, usize) {
    let other = 3 - node.id.0;
    let mut poll = Poll::new().unwrap();
    let fd = node.net.as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
    let (mut gaps, mut last, mut held) = (Vec::new(), None, 0);
    let mut next = now();
    while now() < begin + time {
        node.turn();
        held = held.max(node.net.held().connections);
        for _ in node.heard(other).iter().filter(|_| now() >= begin) {
            let arrival = Instant::now();
            gaps.extend(last.replace(arrival).map(|last| (arrival - last).as_secs_f64() * 1000.0));
        }
        let gone = node.ends(other).len();
        assert_eq!(gone, 0, "the members lost each other");
        node.events.clear();
        if now() >= next {
            node.say(other, text(200));
            next += PERIOD;
        }
        let until = node.net.next_deadline().map_or(next, |at| at.min(next));
        poll.poll(&mut Events::with_capacity(4), Some(Duration::from_millis(until.saturating_sub(now()))))
            .unwrap();
    }
    (gaps, held)
}

/// Memory of this process, in kB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn start(kind: &str, ports: &[u16]) -> Child {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(std::env::current_exe().unwrap()).args(["attack", kind]);
    command.args(ports.iter().map(u16::to_string)).spawn().unwrap()
}

/// Attacks these ports until it is killed.
fn attacker(kind: &str, ports: &[u16]) {
    let theirs = Arc::new(foreign());
    let mut crowd: VecDeque<Stranger> = VecDeque::new();
    let (mut dialled, start) = (0, Instant::now());
    // The watched process may end first.
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        let due = match kind {
            "idle" => CROWD,
            _ => (start.elapsed().as_secs_f64() * RATE as f64) as usize,
        };
        while dialled < due && crowd.len() < CROWD {
            crowd.extend(Stranger::dial(dialled, ports[dialled % ports.len()], kind, &theirs));
            dialled += 1;
        }
        dialled = dialled.max(due);
        crowd.retain_mut(|stranger| stranger.go_on() || kind == "idle");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Stranger {
    socket: Socket,
    /// To be sent, so much at a time.
    bytes: VecDeque<u8>,
    pace: usize,
    tls: Option<ClientConnection>,
}

impl Stranger {
    fn dial(number: usize, port: u16, kind: &str, theirs: &Arc<ClientConfig>) -> Option<Stranger> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Nothing of it stays in the kernel.
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        let from = Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1);
        socket.bind(&SocketAddr::from((from, 0)).into()).ok()?;
        socket.set_nonblocking(true).unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // It connects meanwhile.
        let _ = socket.connect(&to.into());
        // The beginning of a TLS ClientHello of 512 bytes, or none at all.
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 501]].concat();
        let (bytes, pace) = match kind {
            "slow" => (hello, 1),
            "noise" => (vec![7; 16 * 1024], 16 * 1024),
            _ => (Vec::new(), 0),
        };
        let client = || ClientConnection::new(Arc::clone(theirs), "anyone".try_into().unwrap()).unwrap();
        let tls = (kind == "foreign").then(client);
        Some(Stranger { socket, bytes: bytes.into(), pace, tls })
    }

    /// False once the node has ended it.
    fn go_on(&mut self) -> bool {
        if let Some(tls) = &mut self.tls {
            let done = tls.complete_io(&mut self.socket);
            return !done.is_err_and(|e| e.kind() != ErrorKind::WouldBlock);
        }
        let now: Vec<u8> = self.bytes.iter().copied().take(self.pace).collect();
        let sent = if now.is_empty() { Ok(0) } else { self.socket.write(&now) };
        match sent {
            Ok(n) => drop(self.bytes.drain(..n)),
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return false,
            Err(_) => {}
        }
        !matches!(self.socket.read(&mut [0; 64]), Ok(0) | Err(_)) || waits(&self.socket)
    }
}

/// Nothing to read, and no end either.
fn waits(socket: &Socket) -> bool {
    let read = socket.peek(&mut [std::mem::MaybeUninit::uninit(); 1]);
    read.is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected))
}

/// With a certificate of another cluster's authority.
fn foreign() -> ClientConfig {
    let (certificate, key) = Authority::new().issue(&certificate_name(support::CLUSTER, NodeId(2)));
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust::Anyone))
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap()
}

/// The attacker does not mind whom it reaches.
mod trust {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub struct Anyone;

    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
}
