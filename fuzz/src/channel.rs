//! The control channel ([`biha_io::Network`]): a stranger at the other end of a real connection, whose bytes
//! come in any pieces. What the node makes of them must be what the rules say of the bytes as a whole; a
//! stranger without a certificate is never heard at all.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use biha_core::wire::{self, Header};
use biha_core::*;
use biha_io::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use socket2::SockRef;

use crate::frame::frame;
use crate::input::Input;

const CLUSTER: ClusterId = ClusterId(5);
/// The node under test, and the one that it dials.
const THIS: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
/// Bytes a stranger may send altogether without being cut off for that.
const MOST: usize = 100 * 1024;
/// The network's time stands still until its patience is tried.
const START: Millis = 1;

/// What the stranger sends, and where it pauses.
struct Stream {
    bytes: Vec<u8>,
    pauses: Vec<usize>,
}

/// The target.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mode = input.byte();
    let stream = Stream::of(&mut input);
    match mode % 8 {
        0..4 => {
            let (events, _) = incoming(&stream, None);
            assert_eq!(shown(events), heard(&stream.bytes));
        }
        4..6 => {
            let (events, _) = outgoing(&stream, None);
            assert_eq!(shown(events), welcomed(&stream.bytes));
        }
        6 => nobody(&incoming(&stream, Some(tls()))),
        _ => nobody(&outgoing(&stream, Some(tls()))),
    }
}

impl Stream {
    fn of(input: &mut Input<'_>) -> Stream {
        let mut stream = Stream { bytes: Vec::new(), pauses: Vec::new() };
        while !input.is_empty() && stream.bytes.len() < MOST {
            let piece = piece(input, &mut stream.pauses, stream.bytes.len());
            stream.bytes.extend(piece);
        }
        stream.bytes.truncate(MOST);
        stream.pauses.retain(|at| *at <= MOST);
        stream
    }
}

/// The next piece of a stream: mostly what would be right somewhere.
fn piece(input: &mut Input<'_>, pauses: &mut Vec<usize>, at: usize) -> Vec<u8> {
    match input.byte() % 8 {
        0 => {
            let most = usize::from(input.byte());
            input.bytes(most).to_vec()
        }
        1 => {
            let most = usize::from(input.u16() % 2048);
            let body = [&CLUSTER.0.to_le_bytes(), input.bytes(most)].concat();
            frame(1, body.len() as u32, CLUSTER.0, &body)
        }
        2 => {
            let state = NodeState::Follower;
            envelope(input, Message::Hello(Hello { config: ConfigVersion::default(), state }))
        }
        3 => {
            // Seldom more than is read in one turn.
            let size = if input.byte() < 8 { 60_000 } else { usize::from(input.byte()) };
            let text = CommandError::Failed("x".repeat(size));
            envelope(input, Message::ForwardReply { request: 1, result: Err(text) })
        }
        4 => {
            let node = NodeId(few(input, 2));
            let incarnation = Incarnation(few(input, 1).into());
            wire::encode_welcome(CLUSTER, &wire::Welcome { node, incarnation, tag: 0 }).expect("small")
        }
        5 => {
            let (version, length) = (few(input, 1) as u16, input.u32() >> (input.byte() % 32));
            let most = usize::from(input.byte());
            frame(version, length, few(input, CLUSTER.0 as u32).into(), input.bytes(most))
        }
        6 => envelope(input, Message::Goodbye(Goodbye::Fault)),
        _ => {
            // Within what was sent last.
            pauses.push(at.saturating_sub(usize::from(input.byte())));
            Vec::new()
        }
    }
}

/// Mostly the usual, seldom something else.
fn few(input: &mut Input<'_>, usual: u32) -> u32 {
    match input.byte() {
        n @ 0..8 => n.into(),
        255 => u32::MAX,
        _ => usual,
    }
}

fn envelope(input: &mut Input<'_>, message: Message) -> Vec<u8> {
    let (from, to) = (NodeId(few(input, OTHER.0)), NodeId(few(input, THIS.0)));
    let incarnation = Incarnation(few(input, 1).into());
    let cluster = ClusterId(few(input, CLUSTER.0 as u32).into());
    let term = Term(few(input, 1));
    let (tag, voted_for) = (0, None);
    wire::encode(&Envelope { cluster, from, to, incarnation, tag, term, voted_for, message }).expect("small")
}

/// Certificates of a cluster to which the stranger does not belong.
fn tls() -> TlsConfig {
    static TLS: OnceLock<TlsConfig> = OnceLock::new();
    let make = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![certificate_name(CLUSTER, THIS)]).expect("a name");
        let certificate = params.signed_by(&own, &issuer).expect("a certificate").pem();
        TlsConfig::from_pem(authority.as_bytes(), certificate.as_bytes(), own.serialize_pem().as_bytes())
            .expect("they fit together")
    };
    TLS.get_or_init(make).clone()
}

fn network(tls: Option<TlsConfig>) -> Network {
    // Nothing is dialled twice.
    let forever = 1 << 40;
    let limits = Limits { backoff_min: forever, backoff_max: forever, ..Limits::default() };
    let resolver = Box::new(ThreadResolver::new(|_| Err(std::io::ErrorKind::Unsupported.into())));
    let (node, incarnation, tag) = (THIS, Incarnation(1), 1);
    Network::bind(NetworkConfig { cluster: CLUSTER, node, incarnation, tag, port: 0, tls, resolver, limits })
        .expect("listens")
}

/// The stranger dials the node.
fn incoming(stream: &Stream, tls: Option<TlsConfig>) -> (Vec<NetEvent>, Held) {
    let mut network = network(tls);
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, network.local_port())).expect("connects");
    converse(&mut network, socket, stream)
}

/// The node dials the stranger.
fn outgoing(stream: &Stream, tls: Option<TlsConfig>) -> (Vec<NetEvent>, Held) {
    let mut network = network(tls);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let port = listener.local_addr().expect("an address").port();
    network.set_peers(&[(OTHER, "127.0.0.1".to_owned(), port)]);
    network.poll(START, &mut Vec::new()).expect("polls");
    let (socket, _) = listener.accept().expect("dialled");
    drop(listener);
    converse(&mut network, socket, stream)
}

/// Sends everything, and lets the node look at each pause; until the node has given the connection up. Says
/// also what the node held at most.
fn converse(network: &mut Network, mut socket: TcpStream, stream: &Stream) -> (Vec<NetEvent>, Held) {
    // Dropped before the node closes its side, it leaves no trace in the kernel: there will be many.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    let _ = socket.set_nonblocking(true);
    let (mut events, mut sent) = (Vec::new(), 0);
    let mut most = Held::default();
    let mut turn = |network: &mut Network, now| {
        network.poll(now, &mut events).expect("polls");
        let held = network.held();
        most =
            Held { connections: most.connections.max(held.connections), bytes: most.bytes.max(held.bytes) };
        // It may dial anew in the same turn.
        let told = |e: &NetEvent| matches!(e, NetEvent::Disconnected(..) | NetEvent::Rejected { .. });
        held.connections == 0 || events.iter().any(told)
    };
    let mut pauses = stream.pauses.clone();
    pauses.sort_unstable();
    pauses.push(stream.bytes.len());
    turn(network, START);
    let began = Instant::now();
    let mut over = false;
    'sending: for pause in pauses {
        while sent < pause {
            match socket.write(&stream.bytes[sent..pause]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                // The node has ended it.
                Err(_) => break 'sending,
            }
            assert!(began.elapsed() < Duration::from_secs(10), "the node does not read");
            over = turn(network, START);
            if over {
                break 'sending;
            }
        }
        over = turn(network, START);
        if over {
            break;
        }
    }
    let _ = socket.shutdown(std::net::Shutdown::Write);
    while !over {
        over = turn(network, START);
        assert!(began.elapsed() < Duration::from_secs(10), "the node holds what is over");
    }
    (events, most)
}

/// What came of a connection.
#[derive(Debug, PartialEq)]
enum Word {
    Connected(NodeId),
    Heard(Box<Envelope>),
    Ended(NodeId, Disconnect),
    Refused(String),
    Other(String),
}

fn shown(events: Vec<NetEvent>) -> Vec<Word> {
    let word = |event| match event {
        NetEvent::Connected(id) => Word::Connected(id),
        NetEvent::Message(envelope) => Word::Heard(Box::new(envelope)),
        NetEvent::Disconnected(id, how) => Word::Ended(id, how),
        NetEvent::Rejected { why, .. } => Word::Refused(why.to_string()),
        NetEvent::Unresolved(..) => Word::Other(format!("{event:?}")),
    };
    events.into_iter().map(word).collect()
}

/// What an accepting node must make of these bytes: the rules again, without pieces, stages and sockets.
fn heard(mut bytes: &[u8]) -> Vec<Word> {
    let (mut words, mut who) = (Vec::new(), None);
    let refused = loop {
        match next(bytes, who) {
            Ok(Some((envelope, used))) => {
                who = Some((envelope.from, Life::of(&envelope)));
                words.push(Word::Heard(Box::new(envelope)));
                bytes = &bytes[used..];
            }
            Ok(None) => break None,
            Err(why) => break Some(why),
        }
    };
    words.extend(who.map(|(from, _)| Word::Ended(from, Disconnect::Closed)));
    words.extend(refused.map(|why| Word::Refused(why.to_string())));
    words
}

type Who = Option<(NodeId, Life)>;

fn next(bytes: &[u8], who: Who) -> Result<Option<(Envelope, usize)>, LinkError> {
    let Some(header) = Header::read(bytes)? else { return Ok(None) };
    if header.cluster != CLUSTER {
        return Err(LinkError::WrongCluster(header.cluster));
    }
    let Some((envelope, used)) = wire::decode(bytes)? else { return Ok(None) };
    let is_hello = matches!(envelope.message, Message::Hello(_));
    let (from, found) = (envelope.from, Life::of(&envelope));
    match who {
        None if !is_hello => Err(LinkError::Unexpected),
        Some((node, _)) if from != node => Err(LinkError::WrongNode(from)),
        _ if envelope.to != THIS => Err(LinkError::NotForUs(envelope.to)),
        None if from == THIS => Err(LinkError::WrongNode(from)),
        Some((node, known)) if found != known => Err(LinkError::OldIncarnation { node, found, known }),
        _ => Ok(Some((envelope, used))),
    }
}

/// What a dialling node must make of these bytes: one welcome, then nothing but refusals.
fn welcomed(bytes: &[u8]) -> Vec<Word> {
    let refused = |why: LinkError| Word::Refused(why.to_string());
    let first = match welcome(bytes) {
        Ok(Some(used)) => used,
        Ok(None) => return Vec::new(),
        Err(why) => return vec![refused(why)],
    };
    let (mut words, mut rest) = (vec![Word::Connected(OTHER)], &bytes[first..]);
    let end = loop {
        match refusal(rest) {
            Ok(Some((envelope, used))) => {
                words.push(Word::Heard(Box::new(envelope)));
                rest = &rest[used..];
            }
            Ok(None) => break None,
            Err(why) => break Some(refused(why)),
        }
    };
    words.push(Word::Ended(OTHER, Disconnect::Closed));
    words.extend(end);
    words
}

fn refusal(bytes: &[u8]) -> Result<Option<(Envelope, usize)>, LinkError> {
    let Some(header) = Header::read(bytes)? else { return Ok(None) };
    if header.cluster != CLUSTER {
        return Err(LinkError::WrongCluster(header.cluster));
    }
    match wire::decode(bytes)? {
        Some((e, _)) if e.from != OTHER || e.to != THIS || !matches!(e.message, Message::Refused(_)) => {
            Err(LinkError::Unexpected)
        }
        other => Ok(other),
    }
}

fn welcome(bytes: &[u8]) -> Result<Option<usize>, LinkError> {
    let Some(header) = Header::read(bytes)? else { return Ok(None) };
    if header.cluster != CLUSTER {
        return Err(LinkError::WrongCluster(header.cluster));
    }
    match wire::decode_welcome(bytes)? {
        Some((welcome, _)) if welcome.node != OTHER => Err(LinkError::WrongNode(OTHER)),
        other => Ok(other.map(|(_, used)| used)),
    }
}

/// A stranger without a certificate is refused or given up, and nothing more.
fn nobody((events, most): &(Vec<NetEvent>, Held)) {
    for event in events {
        let fine =
            matches!(event, NetEvent::Rejected { .. } | NetEvent::Disconnected(_, Disconnect::Refused));
        assert!(fine, "{event:?}");
    }
    assert!(events.len() <= 2, "{events:?}");
    assert_eq!(most.bytes, 0, "not a byte of it gets past TLS");
}
