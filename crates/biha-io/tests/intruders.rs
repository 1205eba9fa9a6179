//! Connections of those who do not keep the rules: raw sockets against one node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Write;
use std::net::TcpStream;

use biha_core::wire;
use biha_core::*;
use biha_io::*;
use support::*;

/// What the node says about a connection on which these bytes come.
fn rejection_of(bytes: &[u8]) -> String {
    let mut cluster = lone(None);
    let mut socket = raw(&mut cluster);
    socket.write_all(bytes).unwrap();
    cluster.wait("ended", |_| ended(&socket));
    let rejections = cluster.node(1).rejections();
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    rejections[0].clone()
}

#[test]
fn whoever_breaks_the_rules_is_told_apart() {
    let mut other_cluster = envelope(2, 1, 1, hello());
    other_cluster.cluster = ClusterId(5);
    let mut newer = frame(2, 1, 1, hello());
    newer[4] = 9;
    let mut oversized = frame(2, 1, 1, hello());
    oversized[6..10].copy_from_slice(&1_000_000u32.to_le_bytes());
    let mut damaged = frame(2, 1, 1, hello());
    damaged[30] ^= 1;
    let mut impostor = frame(2, 1, 1, hello());
    impostor.extend(frame(3, 1, 1, text(1)));
    let mut other_life = frame(2, 1, 7, hello());
    other_life.extend(frame(2, 1, 8, text(1)));
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not a biha frame"),
        (wire::encode(&other_cluster).unwrap(), "cluster 0000000000000005"),
        (newer, "protocol version 9"),
        (oversized, "1000000 bytes"),
        (damaged, "checksum"),
        (impostor, "not node 3"),
        (other_life, "incarnation 8/1 of node 2 where 7/1"),
        (frame(2, 3, 1, hello()), "looking for node 3"),
        (frame(1, 1, 1, hello()), "not node 1"),
        (frame(2, 1, 1, text(1)), "unexpected"),
    ] {
        let found = rejection_of(&bytes);
        assert!(found.contains(why), "{found:?} instead of {why:?}");
    }
}

#[test]
fn a_connection_is_closed_only_after_its_end_was_told() {
    let mut cluster = lone(None);
    let mut socket = raw(&mut cluster);
    socket.write_all(&frame(2, 1, 1, hello())).unwrap();
    cluster.wait("let in", |nodes| nodes[&1].greeted(2));
    socket.write_all(&frame(2, 9, 1, text(1))).unwrap();
    let node = cluster.node(1);
    while node.ends(2).is_empty() {
        node.turn();
    }
    assert!(!ended(&socket), "the owner acts first");
    assert!(node.net.next_deadline().unwrap() <= now(), "and polls again at once");
    node.turn();
    cluster.wait("closed", |_| ended(&socket));
}

#[test]
fn an_oversized_frame_ends_only_its_own_connection() {
    let mut cluster = Cluster::connected(2, None);
    let mut socket = raw(&mut cluster);
    socket.write_all(&frame(7, 1, 1, hello())).unwrap();
    cluster.wait("let in", |nodes| nodes[&1].greeted(7));
    let mut oversized = frame(7, 1, 1, text(1));
    oversized[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
    socket.write_all(&oversized).unwrap();
    cluster.wait("ended", |_| ended(&socket));
    assert_eq!(cluster.node(1).ends(7), [Disconnect::Closed]);
    assert!(cluster.node(1).ends(2).is_empty() && cluster.node(2).ends(1).is_empty());
    assert!(cluster.node(1).say(2, text(3)));
    cluster.wait("the others go on", |nodes| nodes[&2].heard(1) == [&text(3)]);
}

#[test]
fn the_slow_are_closed() {
    for tls in [None, Some(Authority::new().tls(1))] {
        let mut cluster = lone(tls);
        let (silent, mut slow) = (raw(&mut cluster), raw(&mut cluster));
        let bytes = frame(2, 1, 1, hello());
        let start = now();
        let mut sent = 0;
        while !ended(&slow) || !ended(&silent) {
            assert!(now() - start < 5000, "still open");
            // A byte now and then does not keep it alive.
            sent += slow.write(&bytes[sent..(sent + 1).min(bytes.len() - 1)]).unwrap_or(0);
            cluster.pass(20);
        }
        assert!(now() - start >= 150);
        assert!(cluster.node(1).rejections().iter().any(|why| why.contains("timed out")));
    }
}

#[test]
fn many_strangers_do_not_keep_a_peer_out() {
    let limits = Limits { handshake_timeout: 60_000, ..Limits::default() };
    let mut cluster = Cluster::of([Peer::new(NetworkConfig { limits, ..config(1, None) })]);
    let crowd: Vec<TcpStream> = (0..60).map(|_| raw(&mut cluster)).collect();
    cluster.wait("some are turned away", |nodes| nodes[&1].rejections().len() >= 40);
    cluster.wait("closed", |_| crowd.iter().filter(|socket| ended(socket)).count() >= 40);
    cluster.add(Peer::new(config(2, None)));
    cluster.introduce("127.0.0.1");
    cluster.await_all_connected();
}

#[test]
fn a_stranger_cannot_fill_the_memory() {
    let authority = Authority::new();
    let mut cluster = lone(Some(authority.tls(1)));
    let mut socket = raw(&mut cluster);
    // TLS records of a handshake that never ends.
    let record = [&[22, 3, 1, 0x40, 0][..], &[1, 0xff, 0xff, 0xff], &[0; 0x3ffc]].concat();
    while !ended(&socket) {
        let _ = socket.write(&record);
        cluster.pass(1);
    }
    assert_eq!(cluster.node(1).rejections().len(), 1);
}

#[test]
fn a_newer_connection_replaces_an_older_one_after_its_last_word() {
    let mut cluster = lone(None);
    let mut first = raw(&mut cluster);
    first.write_all(&frame(2, 1, 5, hello())).unwrap();
    cluster.wait("let in", |nodes| nodes[&1].greeted(2));
    // Both before the node looks: the last word on the old connection, the hello on the new one.
    first.write_all(&frame(2, 1, 5, text(1))).unwrap();
    let mut second = raw(&mut cluster);
    second.write_all(&[frame(2, 1, 5, hello()), frame(2, 1, 5, text(2))].concat()).unwrap();
    cluster.wait("both heard", |nodes| nodes[&1].heard(2) == [&text(1), &text(2)]);
    cluster.wait("the old one is closed", |_| ended(&first));
    assert!(!ended(&second));
}

#[test]
fn a_newer_incarnation_ends_the_older_one_first_and_an_older_one_is_refused() {
    let mut cluster = lone(None);
    let mut old = raw(&mut cluster);
    old.write_all(&frame(2, 1, 5, hello())).unwrap();
    cluster.wait("let in", |nodes| nodes[&1].greeted(2));
    cluster.node(1).events.clear();
    let mut new = raw(&mut cluster);
    new.write_all(&frame(2, 1, 6, hello())).unwrap();
    cluster.wait("let in", |nodes| nodes[&1].greeted(2));
    let kinds: Vec<&str> = cluster.nodes[&1]
        .events
        .iter()
        .map(|event| match event {
            NetEvent::Disconnected(..) => "end",
            NetEvent::Message(e) if e.incarnation == Incarnation(6) => "hello",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["end", "hello"]);
    cluster.wait("the old one is closed", |_| ended(&old));

    let mut older = raw(&mut cluster);
    older.write_all(&frame(2, 1, 5, hello())).unwrap();
    cluster.wait("refused", |_| ended(&older));
    assert!(cluster.node(1).rejections()[0].contains("incarnation 5/1 of node 2 where 6/1 is known"));
    assert!(!ended(&new));
}

#[test]
fn the_certificate_must_be_that_of_the_node_that_speaks() {
    let authority = Authority::new();
    let mut cluster = lone(Some(authority.tls(1)));
    let port = cluster.node(1).net.local_port();
    let impostor = claim(&authority, &authority, &certificate_name(CLUSTER, NodeId(2)), port, 3);
    cluster.wait("refused", |_| impostor.is_finished());
    assert_eq!(cluster.node(1).rejections(), ["it is not node 3"]);
    assert!(!cluster.node(1).greeted(3));

    let honest = claim(&authority, &authority, &certificate_name(CLUSTER, NodeId(2)), port, 2);
    cluster.wait("let in", |nodes| nodes[&1].greeted(2));
    cluster.wait("stays", |_| honest.is_finished());
    assert_eq!(cluster.node(1).rejections().len(), 1);
}

#[test]
fn no_certificate_is_refused() {
    let authority = Authority::new();
    let mut cluster = lone(Some(authority.tls(1)));
    let mut socket = raw(&mut cluster);
    socket.write_all(&frame(2, 1, 1, hello())).unwrap();
    cluster.wait("refused", |_| ended(&socket));
    assert!(cluster.node(1).rejections()[0].starts_with("TLS: "), "{:?}", cluster.node(1).rejections());
}
