//! Peers with bad intentions: none is heard, none makes a node hold much, and the members go on meanwhile.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use biha_core::*;
use biha_io::*;
use socket2::{Domain, Socket, Type};
use support::*;

/// Incoming connections that a node among two members holds at most, and its own to the other member.
const MOST: usize = 4 * 2 + 16 + 1;

/// Nobody was heard and nothing is held.
fn nothing_happened(cluster: &mut Cluster) {
    cluster.wait("given up", |nodes| nodes[&1].net.held().connections == 0);
    cluster.pass(5);
    let node = cluster.node(1);
    assert!(node.events.iter().all(|e| matches!(e, NetEvent::Rejected { .. })), "{:?}", node.events);
    assert_eq!(node.net.held(), Held::default());
}

/// Two members that are connected, and the events so far forgotten.
fn pair(authority: Option<&Authority>, limits: Limits) -> Cluster {
    let node = |id| Peer::new(NetworkConfig { limits, ..config(id, authority.map(|a| a.tls(id))) });
    let mut cluster = Cluster::of((1..=2).map(node));
    cluster.introduce("127.0.0.1");
    cluster.await_all_connected();
    cluster.nodes.values_mut().for_each(|node| node.events.clear());
    cluster
}

/// The members' connections did not end, nobody else was heard, and they still hear each other.
fn members_go_on(cluster: &mut Cluster) {
    for (from, to) in [(1, 2), (2, 1)] {
        assert!(cluster.node(from).say(to, text(7)), "{from} has lost {to}");
    }
    cluster.wait("both hear", |nodes| nodes[&1].heard(2) == [&text(7)] && nodes[&2].heard(1) == [&text(7)]);
    let members_only = |event: &NetEvent| match event {
        NetEvent::Rejected { node, .. } => node.is_none(),
        NetEvent::Message(envelope) => envelope.from.0 <= 2,
        _ => false,
    };
    for node in cluster.nodes.values() {
        assert!(node.events.iter().all(members_only), "{:?}", node.events);
    }
}

#[test]
fn certificates_of_others_open_nothing() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let name = |cluster, node| certificate_name(ClusterId(cluster), NodeId(node));
    for (authority, name, why) in [
        (&theirs, name(CLUSTER.0, 2), "TLS: "),
        (&ours, name(CLUSTER.0 + 1, 2), "it is not node 2"),
        (&ours, name(CLUSTER.0, 3), "it is not node 2"),
        (&ours, "db2.example".to_owned(), "it is not node 2"),
    ] {
        let mut cluster = lone(Some(ours.tls(1)));
        let port = cluster.node(1).net.local_port();
        let client = claim(authority, &ours, &name, port, 2);
        cluster.wait("refused", |_| client.is_finished());
        let rejections = cluster.node(1).rejections();
        assert!(rejections.len() == 1 && rejections[0].starts_with(why), "{name}: {rejections:?}");
        nothing_happened(&mut cluster);
    }
}

type Recording = Arc<Mutex<Vec<u8>>>;

/// Copies everything from one socket to the other, and keeps it.
fn record(mut from: TcpStream, mut to: TcpStream) -> (Recording, JoinHandle<()>) {
    let recording = Recording::default();
    let kept = Arc::clone(&recording);
    let copy = move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            kept.lock().unwrap().extend_from_slice(&buffer[..n]);
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    };
    (recording, std::thread::Builder::new().spawn(copy).unwrap())
}

/// What node 2 said to node 1 on the connection that it dialled, and what node 1 answered, up to a first
/// message.
fn recorded(authority: &Authority) -> (Vec<u8>, Vec<u8>) {
    let mut cluster = Cluster::of((1..=2).map(|id| Peer::new(config(id, Some(authority.tls(id))))));
    let middle = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = middle.local_addr().unwrap().port();
    cluster.node(2).net.set_peers(&[(NodeId(1), "127.0.0.1".to_owned(), port)]);
    cluster.pass(5);
    let dialler = middle.accept().unwrap().0;
    let node = TcpStream::connect((Ipv4Addr::LOCALHOST, cluster.node(1).net.local_port())).unwrap();
    let (said, one) = record(dialler.try_clone().unwrap(), node.try_clone().unwrap());
    let (answered, other) = record(node, dialler);
    cluster.wait("greeted", |nodes| nodes[&1].greeted(2));
    assert!(cluster.node(2).say(1, text(100)));
    cluster.wait("heard", |nodes| nodes[&1].heard(2) == [&text(100)]);
    drop(cluster);
    one.join().unwrap();
    other.join().unwrap();
    let bytes = |recording: Recording| recording.lock().unwrap().clone();
    (bytes(said), bytes(answered))
}

#[test]
fn what_was_recorded_cannot_be_played_again_whole_or_cut() {
    let authority = Authority::new();
    let (said, answered) = recorded(&authority);
    assert!(said.len() > 500 && answered.len() > 500, "{} and {} bytes", said.len(), answered.len());
    let mut cluster = lone(Some(authority.tls(1)));
    for cut in (0..=16).map(|part| said.len() * part / 16) {
        let mut socket = raw(&mut cluster);
        socket.write_all(&said[..cut]).unwrap();
        cluster.wait("taken", |nodes| nodes[&1].net.held().connections == 1);
        nothing_happened(&mut cluster);
        assert!(ended(&socket), "cut at {cut}");
    }
    assert!(cluster.node(1).rejections().iter().any(|why| why.starts_with("TLS: ")));
    assert!(cluster.node(1).rejections().iter().any(|why| why == "timed out"));
    drop(cluster);

    // The other way round: whoever sits at a member's address plays the member's part.
    let mut cluster = Cluster::of([Peer::new(config(2, Some(authority.tls(2))))]);
    let impostor = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = impostor.local_addr().unwrap().port();
    cluster.node(2).net.set_peers(&[(NodeId(1), "127.0.0.1".to_owned(), port)]);
    for _ in 0..3 {
        cluster.wait("dialled", |nodes| nodes[&2].net.held().connections == 1);
        let mut socket = impostor.accept().unwrap().0;
        socket.write_all(&answered).unwrap();
        cluster.wait("refused", |nodes| nodes[&2].net.held().connections == 0);
    }
    let events = &cluster.node(2).events;
    assert!(events.iter().all(|e| matches!(e, NetEvent::Rejected { .. })), "{events:?}");
}

#[test]
fn a_thousand_idle_connections_are_held_to_a_few() {
    let authority = Authority::new();
    for tls in [None, Some(&authority)] {
        let mut cluster = pair(tls, Limits { handshake_timeout: 60_000, ..Limits::default() });
        let mut crowd = VecDeque::new();
        let (mut connections, mut bytes) = (0, 0);
        for _ in 0..1000 {
            crowd.push_back(raw(&mut cluster));
            if crowd.len() > 300 {
                // As many as a process may have open anywhere.
                crowd.pop_front();
            }
            cluster.pass(0);
            cluster.nodes.values_mut().for_each(Peer::turn);
            let held = cluster.node(1).net.held();
            (connections, bytes) = (connections.max(held.connections), bytes.max(held.bytes));
        }
        cluster.wait("the last are seen", |nodes| nodes[&1].rejections().len() >= 1000 - MOST);
        assert_eq!(connections, MOST);
        // Frames are small here; what was read of one lies in what was made for the greetings.
        assert!(bytes < 2 * 1024 * 1024, "{bytes} bytes");
        members_go_on(&mut cluster);
    }
}

#[test]
fn bytes_one_at_a_time_hold_nothing_up() {
    let authority = Authority::new();
    let (said, _) = recorded(&authority);
    let limits = Limits { handshake_timeout: 300, ..Limits::default() };
    let mut cluster = pair(Some(&authority), limits);
    let mut slow: Vec<TcpStream> = (0..20).map(|_| raw(&mut cluster)).collect();
    let mut most = 0;
    for at in 0..500 {
        for socket in &mut slow {
            // Until the node ends it.
            let _ = socket.write(&said[at..=at]);
        }
        cluster.pass(1);
        most = most.max(cluster.node(1).net.held().bytes);
    }
    cluster.wait("all ended", |_| slow.iter().all(ended));
    assert_eq!(most, cluster.node(1).net.held().bytes, "nothing is kept for them");
    members_go_on(&mut cluster);
}

/// Somebody else's hosts do not push away what comes from a member's host, whoever that turns out to be.
#[test]
fn a_crowd_from_elsewhere_does_not_push_a_members_host_away() {
    let limits = Limits { handshake_timeout: 60_000, ..Limits::default() };
    let mut cluster = pair(None, limits);
    let slow_member = raw(&mut cluster);
    cluster.wait("taken", |nodes| nodes[&1].net.held().connections == 3);
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.node(1).net.local_port()));
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        crowd.push(socket);
        cluster.pass(1);
    }
    cluster.wait("some are turned away", |nodes| nodes[&1].rejections().len() >= 100 - MOST);
    assert!(!ended(&slow_member));
    members_go_on(&mut cluster);
}

/// Without TLS anybody may say to be any node. That is believed, but keeps no member out.
#[test]
fn strangers_that_say_hello_do_not_keep_a_member_out() {
    let mut cluster = lone(None);
    // The member is known, but not there yet.
    cluster.node(1).net.set_peers(&[(NodeId(2), "127.0.0.1".to_owned(), 1)]);
    let mut crowd = Vec::new();
    for id in 100..160 {
        let mut socket = raw(&mut cluster);
        socket.write_all(&frame(id, 1, 1, hello())).unwrap();
        cluster.pass(1);
        crowd.push(socket);
    }
    assert!(cluster.node(1).net.held().connections <= MOST);
    cluster.add(Peer::new(config(2, None)));
    cluster.introduce("127.0.0.1");
    cluster.await_all_connected();
}

#[test]
fn a_member_that_never_reads_costs_its_queue_and_no_more() {
    let authority = Authority::new();
    for tls in [None, Some(&authority)] {
        let limits = Limits { stall_timeout: 60_000, ..Limits::default() };
        let mut cluster = pair(tls, limits);
        let _frozen = cluster.take(2);
        let mut most = 0;
        for _ in 0..1000 {
            // 60 MB, much more than the kernel takes.
            cluster.node(1).say(2, text(60_000));
            cluster.node(1).turn();
            most = most.max(cluster.node(1).net.held().bytes);
        }
        // The kernel may still find room when it has tidied its buffers up: not full at every moment.
        assert!(most >= limits.queue_bytes - 64 * 1024, "it was to be filled: {most} bytes");
        assert!(most <= limits.queue_bytes + 2 * wire::MAX_FRAME, "{most} bytes");
    }
}
