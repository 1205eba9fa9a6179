//! Networks of three nodes on real sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, TcpListener, TcpStream};

use biha_core::*;
use biha_io::*;
use support::*;

#[test]
fn three_nodes_talk_with_tls() {
    let authority = Authority::new();
    everyone_hears_everyone(&mut Cluster::connected(3, Some(&authority)));
}

#[test]
fn three_nodes_talk_without_tls() {
    everyone_hears_everyone(&mut Cluster::connected(3, None));
}

fn everyone_hears_everyone(cluster: &mut Cluster) {
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            assert!(cluster.node(from).say(to, text(from as usize)));
            assert!(cluster.node(from).say(to, text(60_000)), "the largest frames as well");
        }
    }
    cluster.wait("everyone hears everyone", |nodes| {
        nodes.iter().all(|(id, node)| {
            let others = (1..=3).filter(|from| from != id);
            others.into_iter().all(|from| node.heard(from) == [&text(from as usize), &text(60_000)])
        })
    });
    for node in cluster.nodes.values() {
        assert_eq!(node.rejections(), [""; 0]);
        assert!((1..=3).all(|id| node.ends(id).is_empty()));
    }
}

#[test]
fn ipv6_and_names_are_reached() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        let mut cluster = Cluster::of((1..=2).map(|id| Peer::new(config(id, None))));
        cluster.introduce("::1");
        cluster.await_all_connected();
    }
    let mut cluster = Cluster::of((1..=2).map(|id| Peer::new(config(id, None))));
    cluster.introduce("localhost");
    assert_eq!(cluster.node(1).net.connection_state(NodeId(2)), ConnState::Init);
    cluster.await_all_connected();
}

#[test]
fn a_name_that_does_not_resolve_is_told_and_harms_nobody() {
    let mut cluster = Cluster::of((1..=2).map(|id| Peer::new(config(id, None))));
    let port = cluster.node(2).net.local_port();
    let peers = [(NodeId(2), "127.0.0.1".to_owned(), port), (NodeId(3), "no host".to_owned(), 1)];
    cluster.node(1).net.set_peers(&peers);
    cluster.wait("told", |nodes| {
        let told = |e: &NetEvent| matches!(e, NetEvent::Unresolved(NodeId(3), _));
        nodes[&1].active(2) && nodes[&1].events.iter().any(told)
    });
}

#[test]
fn each_state_of_a_connection_is_shown() {
    let authority = Authority::new();
    let mut cluster = Cluster::of([Peer::new(config(1, Some(authority.tls(1))))]);
    let is = |state| move |nodes: &BTreeMap<u32, Peer>| nodes[&1].net.connection_state(NodeId(2)) == state;
    assert!(is(ConnState::Init)(&cluster.nodes));
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    cluster.node(1).net.set_peers(&[(NodeId(2), "127.0.0.1".to_owned(), port)]);
    cluster.wait("TCP connected", is(ConnState::SslConnect));
    drop(silent);
    cluster.wait("closed, then refused", is(ConnState::Idle));
    let _half_open = TcpStream::connect(("127.0.0.1", cluster.node(1).net.local_port())).unwrap();
    cluster.wait("something comes from there", is(ConnState::SslAccept));
}

#[test]
fn the_end_of_a_peer_is_noticed_and_its_return_too() {
    let authority = Authority::new();
    let mut cluster = Cluster::connected(3, Some(&authority));
    let port = cluster.node(3).net.local_port();
    let before = now();
    drop(cluster.take(3));
    cluster.wait("end noticed, and the refusal after it", |nodes| {
        (1..=2).all(|id| nodes[&id].ends(3) == [Disconnect::Closed, Disconnect::Refused])
    });
    assert!(now() - before < 1000);
    assert!(!cluster.node(1).say(3, text(1)), "nobody to send to");

    let again = NetworkConfig { port, incarnation: Incarnation(2), ..config(3, Some(authority.tls(3))) };
    cluster.add(Peer::new(again));
    cluster.introduce("127.0.0.1");
    let returned = |e: &NetEvent| matches!(e, NetEvent::Message(m) if m.incarnation == Incarnation(2));
    cluster.wait("all connected again", |nodes| {
        nodes[&3].greeted(1)
            && nodes[&3].greeted(2)
            && (1..=2).all(|id| nodes[&id].active(3) && nodes[&id].events.iter().any(returned))
    });
    for id in 1..=2 {
        assert_eq!(cluster.node(id).ends(3).len(), 2, "told once");
    }
}

/// Two servers with one identity, as after a host was cloned: the second one is told, and the first one stays.
#[test]
fn a_second_copy_of_a_node_is_told_that_it_is_one() {
    let authority = Authority::new();
    let mut cluster = Cluster::connected(2, Some(&authority));
    let port = cluster.node(1).net.local_port();
    let copy = RefCell::new(Peer::new(NetworkConfig { tag: 9, ..config(2, Some(authority.tls(2))) }));
    copy.borrow_mut().net.set_peers(&[(NodeId(1), "127.0.0.1".to_owned(), port)]);
    let known = Met { incarnation: Incarnation(1), tag: 1, ..Met::default() };
    let told = |e: &NetEvent| matches!(e, NetEvent::Message(m) if m.message == Message::Refused(known));
    cluster.wait("told", |_| {
        copy.borrow_mut().turn();
        copy.borrow().events.iter().any(told)
    });
    assert!(cluster.nodes[&1].active(2) && cluster.nodes[&1].ends(2).is_empty());
}

#[test]
fn the_last_words_arrive_before_the_end() {
    let mut cluster = Cluster::connected(2, None);
    assert!(cluster.node(2).say(1, Message::Goodbye(Goodbye::CleanStop)));
    cluster.node(2).net.close_all();
    cluster.wait("end noticed", |nodes| !nodes[&1].ends(2).is_empty());
    let node = &cluster.nodes[&1];
    let index = |f: &dyn Fn(&NetEvent) -> bool| node.events.iter().position(f).unwrap();
    let word = index(&|e| matches!(e, NetEvent::Message(m) if matches!(m.message, Message::Goodbye(_))));
    assert!(word < index(&|e| matches!(e, NetEvent::Disconnected(..))));
}

#[test]
fn another_authority_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tls = [ours.tls(1), theirs.tls(2)];
    let mut cluster = Cluster::of(tls.into_iter().zip(1..).map(|(tls, id)| Peer::new(config(id, Some(tls)))));
    cluster.introduce("127.0.0.1");
    cluster.wait("both refuse", |nodes| nodes.values().all(|n| n.rejections().len() >= 3));
    for node in cluster.nodes.values() {
        assert!(node.rejections().iter().all(|why| why.starts_with("TLS: ")), "{:?}", node.rejections());
        assert!(!node.events.iter().any(|e| matches!(e, NetEvent::Connected(_) | NetEvent::Message(_))));
    }
}

#[test]
fn the_node_behind_an_address_must_be_the_one_sought() {
    let authority = Authority::new();
    for tls in [false, true] {
        let node = |id| Peer::new(config(id, tls.then(|| authority.tls(id))));
        let mut cluster = Cluster::of([node(1), node(2)]);
        let port = cluster.node(2).net.local_port();
        cluster.node(1).net.set_peers(&[(NodeId(3), "127.0.0.1".to_owned(), port)]);
        cluster.wait("refused", |nodes| !nodes[&1].rejections().is_empty());
        let why = &cluster.node(1).rejections()[0];
        assert!(why.contains("it is not node 3") || why.contains("certificate not valid for name"), "{why}");
        assert!(!cluster.node(1).active(3));
    }
}

#[test]
fn a_certificate_of_another_node_is_refused_at_the_start() {
    let authority = Authority::new();
    let error = Network::bind(config(1, Some(authority.tls(2)))).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("node-1.abcdef0123456789.biha"), "{error}");
    let mut node = Peer::new(config(1, Some(authority.tls(1))));
    assert!(node.net.reload_tls(Some(authority.tls(2))).is_err());
    assert!(node.net.reload_tls(Some(authority.tls(1))).is_ok());
}

#[test]
fn reloaded_certificates_count_for_new_connections() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut cluster = Cluster::connected(2, Some(&old));
    for id in 1..=2 {
        cluster.node(id).net.reload_tls(Some(new.tls(id))).unwrap();
    }
    cluster.pass(50);
    assert!(cluster.node(1).say(2, text(1)), "open connections stay");
    cluster.node(2).net.set_peers(&[]);
    cluster.wait("ended", |nodes| !nodes[&1].ends(2).is_empty());
    cluster.node(1).events.clear();
    cluster.node(2).events.clear();
    cluster.introduce("127.0.0.1");
    cluster.await_all_connected();
}

#[test]
fn nothing_is_sent_before_the_hello() {
    let mut nodes: Vec<Peer> = (1..=2).map(|id| Peer::new(config(id, None))).collect();
    nodes[0].polite = false;
    let mut cluster = Cluster::of(nodes);
    cluster.introduce("127.0.0.1");
    cluster.wait("connected", |nodes| nodes[&1].active(2));
    assert!(!cluster.node(1).say(2, text(1)));
    assert!(cluster.node(1).say(2, hello()));
    assert!(cluster.node(1).say(2, text(2)));
    cluster.wait("heard", |nodes| nodes[&2].heard(1) == [&text(2)]);
}

#[test]
fn too_large_a_message_is_refused_and_the_connection_stays() {
    let mut cluster = Cluster::connected(2, None);
    let node = cluster.node(1);
    assert!(node.net.send(NodeId(2), &node.envelope(2, text(70_000))).is_err());
    assert!(node.say(2, text(1)));
    cluster.wait("heard", |nodes| nodes[&2].heard(1) == [&text(1)]);
}

#[test]
fn a_peer_that_does_not_read_gets_the_newest_heartbeat_when_it_does() {
    let mut nodes: Vec<Peer> = (1..=2).map(|id| Peer::new(config(id, None))).collect();
    nodes[0] = Peer::new(NetworkConfig {
        limits: Limits { stall_timeout: 60_000, ..Limits::default() },
        ..config(1, None)
    });
    let mut cluster = Cluster::of(nodes);
    cluster.introduce("127.0.0.1");
    cluster.await_all_connected();
    let mut frozen = cluster.take(2);
    // Fills the kernel's buffers, then the queue.
    let ack = |seq| {
        Message::HeartbeatAck(HeartbeatAck {
            seq,
            leader_incarnation: Incarnation(1),
            handover: 0,
            config: ConfigVersion::default(),
            state: NodeState::Follower,
            position: None,
            streaming: false,
        })
    };
    for seq in 0..2000 {
        let node = cluster.node(1);
        node.say(2, text(60_000));
        node.say(2, ack(seq));
        node.turn();
    }
    frozen.events.clear();
    cluster.add(frozen);
    cluster.wait("the newest arrives", |nodes| nodes[&2].heard(1).contains(&&ack(1999)));
    cluster.pass(20);
    let heard = cluster.nodes[&2].heard(1).len();
    assert!(heard < 3000, "{heard} of 4000: the rest was replaced or dropped");
    assert!(cluster.node(1).ends(2).is_empty());
}

#[test]
fn a_peer_that_never_reads_is_given_up() {
    let limits = Limits { stall_timeout: 300, handshake_timeout: 300, ..Limits::default() };
    let mut cluster = Cluster::of((1..=2).map(|id| Peer::new(NetworkConfig { limits, ..config(id, None) })));
    cluster.introduce("127.0.0.1");
    cluster.await_all_connected();
    let frozen = cluster.take(2);
    let start = now();
    while cluster.node(1).ends(2).is_empty() {
        assert!(now() - start < 5000);
        cluster.node(1).say(2, text(60_000));
        cluster.pass(1);
    }
    assert!(now() - start >= 250);
    // It wakes up, and both find each other again.
    cluster.node(1).events.clear();
    cluster.add(frozen);
    cluster.wait("connected again", |nodes| nodes[&1].active(2) && nodes[&2].active(1));
    cluster.pass(20);
    cluster.node(1).say(2, text(5));
    cluster.wait("heard", |nodes| nodes[&2].heard(1).contains(&&text(5)));
}
