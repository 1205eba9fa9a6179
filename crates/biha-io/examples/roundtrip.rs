//! Measures what the control channel costs on the loopback interface: from dialling to the hello, and one
//! message there and one back, between two threads that wait for the network's descriptor as a server does.
//! `cargo run --release -p biha-io --example roundtrip`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "prints; an example")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use biha_core::*;
use biha_io::*;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use support::{Authority, Peer, config, now, text};

const ROUNDS: usize = 20_000;

fn main() {
    let authority = Authority::new();
    for tls in [false, true] {
        let mut nodes: Vec<Peer> =
            (1..=2).map(|id| Peer::new(config(id, tls.then(|| authority.tls(id))))).collect();
        let all: Vec<_> = nodes.iter().map(|n| (n.id, "127.0.0.1".to_owned(), n.net.local_port())).collect();
        let start = Instant::now();
        nodes.iter_mut().for_each(|n| n.net.set_peers(&all));
        let (mut two, mut one) = (nodes.pop().unwrap(), nodes.pop().unwrap());
        while !(one.greeted(2) && two.greeted(1) && one.active(2) && two.active(1)) {
            one.turn();
            two.turn();
        }
        println!("tls {tls}: both connections and hellos in {:?}", start.elapsed());
        let echo = std::thread::Builder::new().spawn(move || serve(two)).unwrap();
        let mut times: Vec<Duration> = measure(&mut one);
        one.net.close_all();
        echo.join().unwrap();
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 1000];
        println!("tls {tls}: round trip median {:?}, 99 % {:?}, worst {:?}", at(500), at(990), at(1000));
    }
}

struct Waiter(Poll);

impl Waiter {
    fn new(node: &Peer) -> Waiter {
        let poll = Poll::new().unwrap();
        let fd = node.net.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
        Waiter(poll)
    }

    /// Messages of the next turns that bring some; empty when the other node is gone.
    fn messages(&mut self, node: &mut Peer) -> Vec<Message> {
        let mut events = Vec::new();
        loop {
            node.net.poll(now(), &mut events).unwrap();
            if events.iter().any(|e| matches!(e, NetEvent::Disconnected(..))) {
                return Vec::new();
            }
            let messages: Vec<Message> = events
                .drain(..)
                .filter_map(|e| match e {
                    NetEvent::Message(envelope) => Some(envelope.message),
                    _ => None,
                })
                .collect();
            if !messages.is_empty() {
                return messages;
            }
            let pause = node.net.next_deadline().map_or(1000, |at| at.saturating_sub(now()));
            self.0.poll(&mut Events::with_capacity(4), Some(Duration::from_millis(pause))).unwrap();
        }
    }
}

fn serve(mut node: Peer) {
    let mut waiter = Waiter::new(&node);
    loop {
        let messages = waiter.messages(&mut node);
        if messages.is_empty() {
            return;
        }
        for message in messages {
            node.say(1, message);
        }
    }
}

fn measure(node: &mut Peer) -> Vec<Duration> {
    let mut waiter = Waiter::new(node);
    let round = |_| {
        let start = Instant::now();
        node.say(2, text(100));
        assert!(!waiter.messages(node).is_empty());
        start.elapsed()
    };
    (0..ROUNDS).map(round).collect()
}
