//! When to dial a peer, and where.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use biha_core::{Envelope, Incarnation, Millis, NodeId, bare_host};

use super::queue::SendQueue;
use super::{Limits, LinkError};

/// One life of a node: its start number, and what was drawn at random for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Life {
    /// The start number.
    pub incarnation: Incarnation,
    /// Tells two lives of the same number apart.
    pub tag: u32,
}

impl Life {
    /// The life in which this was said.
    pub fn of(envelope: &Envelope) -> Life {
        Life { incarnation: envelope.incarnation, tag: envelope.tag }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.incarnation, self.tag)
    }
}

/// The outgoing connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Out {
    /// None; the next attempt is made when it is due.
    Idle,
    /// Being made.
    Opening(usize),
    /// In use since then.
    Active(usize, Millis),
}

/// One round of attempts: each address once.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    started: Millis,
    tried: usize,
    refused: usize,
    unreachable: usize,
}

/// What is to be done after an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The host refuses, on every address that can be reached, and that is news.
    pub(super) refused: bool,
    /// Every address has been tried: they may be out of date.
    pub(super) resolve: bool,
}

pub(super) struct Peer {
    pub(super) id: NodeId,
    /// Host and port; `None` for a node that only dialled us.
    target: Option<(String, u16)>,
    pub(super) addresses: Vec<SocketAddr>,
    /// The address to try next, or the one in use.
    current: usize,
    /// A lookup of its host is going on.
    resolving: bool,
    /// When the next lookup may be made.
    lookup_at: Millis,
    round: Round,
    backoff: Millis,
    next_attempt: Millis,
    pub(super) out: Out,
    /// The incoming connection.
    pub(super) incoming: Option<usize>,
    /// The newest life seen.
    pub(super) life: Life,
    /// Heard or connected since the last Disconnected.
    up: bool,
    refusal_told: bool,
    pub(super) queue: SendQueue,
}

impl Peer {
    pub(super) fn new(id: NodeId, limits: &Limits) -> Peer {
        Peer {
            id,
            target: None,
            addresses: Vec::new(),
            current: 0,
            resolving: false,
            lookup_at: 0,
            round: Round::default(),
            backoff: 0,
            next_attempt: 0,
            out: Out::Idle,
            incoming: None,
            life: Life::default(),
            up: false,
            refusal_told: false,
            queue: SendQueue::new(limits.queue_frames, limits.queue_bytes),
        }
    }

    /// Host and port to dial.
    pub(super) fn target(&self) -> Option<&(String, u16)> {
        self.target.as_ref()
    }

    /// Where it is from now on. True if that is news.
    pub(super) fn set_target(&mut self, target: Option<(String, u16)>) -> bool {
        if self.target == target {
            return false;
        }
        if self.target.is_none() {
            // A member again: its memory may have begun anew.
            self.life = Life::default();
        }
        self.addresses = target.as_ref().and_then(literal).into_iter().collect();
        self.target = target;
        self.current = 0;
        self.resolving = false;
        self.lookup_at = 0;
        self.dial_now();
        true
    }

    /// When to look its host up because no address is known at all.
    pub(super) fn needs_lookup_at(&self) -> Option<Millis> {
        let needed = self.target.is_some() && self.addresses.is_empty() && !self.resolving;
        needed.then_some(self.lookup_at)
    }

    /// Begins a lookup, unless there is nothing to look up or it is too soon after the last one.
    pub(super) fn begin_lookup(&mut self, now: Millis, limits: &Limits) -> Option<(String, u16)> {
        let target = self.target.as_ref().filter(|target| literal(target).is_none())?;
        if self.resolving || now < self.lookup_at {
            return None;
        }
        self.resolving = true;
        self.lookup_at = now + limits.backoff_max;
        Some(target.clone())
    }

    /// The lookup is over. Addresses that work go on being used, and an answer without any changes nothing.
    pub(super) fn looked_up(&mut self, addresses: &[SocketAddr]) {
        self.resolving = false;
        if addresses.is_empty() {
            return;
        }
        if self.addresses.is_empty() {
            self.dial_now();
        }
        let used = self.addresses.get(self.current).copied();
        self.current = addresses.iter().position(|a| Some(*a) == used).unwrap_or(0);
        self.addresses = addresses.to_vec();
        self.round.tried = 0;
    }

    /// The next attempt, if one is to be made.
    pub(super) fn attempt_at(&self) -> Option<Millis> {
        let wanted = self.target.is_some() && self.out == Out::Idle && !self.addresses.is_empty();
        wanted.then_some(self.next_attempt)
    }

    /// Begins an attempt.
    pub(super) fn begin_attempt(&mut self, now: Millis) -> Option<SocketAddr> {
        if self.round.tried == 0 {
            self.round = Round { started: now, ..Round::default() };
        }
        self.addresses.get(self.current).copied()
    }

    /// An attempt has failed. The next address is tried at once; after the last one there is a pause.
    pub(super) fn attempt_failed(&mut self, why: &LinkError, now: Millis, limits: &Limits) -> Failed {
        self.out = Out::Idle;
        self.round.tried += 1;
        self.round.refused += usize::from(why.is_refused());
        self.round.unreachable += usize::from(why.is_unreachable());
        self.current = (self.current + 1) % self.addresses.len().max(1);
        if self.round.tried < self.addresses.len() {
            self.next_attempt = now;
            return Failed { refused: false, resolve: false };
        }
        let round = std::mem::take(&mut self.round);
        self.backoff = longer(self.backoff, limits);
        self.next_attempt = now.max(round.started + self.backoff);
        let refused = round.refused > 0 && round.refused + round.unreachable == round.tried;
        let news = refused && !self.refusal_told;
        self.refusal_told |= refused;
        Failed { refused: news, resolve: true }
    }

    /// A connection was made.
    pub(super) fn connected(&mut self, token: usize, now: Millis) {
        self.out = Out::Active(token, now);
        self.round = Round::default();
        self.queue.clear();
        self.heard();
    }

    /// A connection has ended: the next attempt is made at once, unless this one was short, as with a peer
    /// that ends each.
    pub(super) fn out_ended(&mut self, since: Millis, now: Millis, limits: &Limits) {
        self.out = Out::Idle;
        self.queue.clear();
        if now.saturating_sub(since) >= limits.backoff_max {
            self.backoff = 0;
        }
        self.next_attempt = now + self.backoff;
        self.backoff = longer(self.backoff, limits);
    }

    /// Something has changed at its end: no pause before the next attempt.
    pub(super) fn dial_now(&mut self) {
        self.backoff = 0;
        self.next_attempt = 0;
    }

    /// It lives: the next end of a connection, or refusal, is news again.
    pub(super) fn heard(&mut self) {
        self.up = true;
        self.refusal_told = false;
    }

    /// A connection with it has ended. True if that is news.
    pub(super) fn lost(&mut self) -> bool {
        std::mem::take(&mut self.up)
    }
}

fn literal((host, port): &(String, u16)) -> Option<SocketAddr> {
    let address: IpAddr = bare_host(host).parse().ok()?;
    Some(SocketAddr::new(address, *port))
}

fn longer(backoff: Millis, limits: &Limits) -> Millis {
    (backoff * 2).clamp(limits.backoff_min, limits.backoff_max)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const LIMITS: fn() -> Limits = Limits::default;

    fn refused() -> LinkError {
        io::Error::from(io::ErrorKind::ConnectionRefused).into()
    }

    fn peer(addresses: &[&str]) -> Peer {
        let mut peer = Peer::new(NodeId(2), &LIMITS());
        peer.set_target(Some(("db2".to_owned(), 1)));
        peer.looked_up(&parsed(addresses));
        peer
    }

    fn parsed(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().filter_map(|a| a.parse().ok()).collect()
    }

    fn fail(peer: &mut Peer, why: LinkError, now: Millis) -> Failed {
        peer.begin_attempt(now);
        peer.attempt_failed(&why, now, &LIMITS())
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut peer = peer(&["127.0.0.1:1"]);
        let mut now = 1000;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            fail(&mut peer, LinkError::Timeout, now);
            let next = peer.attempt_at().unwrap_or(0);
            pauses.push(next - now);
            now = next;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    #[test]
    fn an_attempt_that_took_long_is_followed_by_the_next_at_once() {
        let mut peer = peer(&["127.0.0.1:1"]);
        peer.begin_attempt(0);
        peer.attempt_failed(&LinkError::Timeout, 1000, &LIMITS());
        assert_eq!(peer.attempt_at(), Some(1000));
    }

    #[test]
    fn the_end_of_a_connection_is_followed_by_an_attempt_at_once_unless_it_was_short() {
        let mut peer = peer(&["127.0.0.1:1"]);
        peer.connected(5, 10_000);
        peer.out_ended(10_000, 90_000, &LIMITS());
        assert_eq!(peer.attempt_at(), Some(90_000));
        peer.connected(5, 90_001);
        peer.out_ended(90_001, 90_002, &LIMITS());
        assert_eq!(peer.attempt_at(), Some(90_012));
        peer.connected(5, 90_013);
        peer.out_ended(90_013, 90_014, &LIMITS());
        assert_eq!(peer.attempt_at(), Some(90_034));
    }

    #[test]
    fn addresses_are_tried_in_turn_without_a_pause() {
        let mut peer = peer(&["[::1]:1", "127.0.0.1:1"]);
        assert_eq!(peer.begin_attempt(7), "[::1]:1".parse().ok());
        assert_eq!(fail(&mut peer, refused(), 7), Failed { refused: false, resolve: false });
        assert_eq!(peer.attempt_at(), Some(7));
        assert_eq!(peer.begin_attempt(7), "127.0.0.1:1".parse().ok());
        assert_eq!(fail(&mut peer, refused(), 7), Failed { refused: true, resolve: true });
        assert_eq!(peer.attempt_at(), Some(17));
    }

    #[test]
    fn a_refusal_is_news_once_until_the_peer_is_heard() {
        let mut peer = peer(&["127.0.0.1:1"]);
        assert!(fail(&mut peer, refused(), 1).refused);
        assert!(!fail(&mut peer, refused(), 2).refused);
        peer.heard();
        assert!(fail(&mut peer, refused(), 3).refused);
    }

    #[test]
    fn one_address_that_does_not_refuse_is_no_refusal() {
        let mut mixed = peer(&["127.0.0.2:1", "127.0.0.1:1"]);
        fail(&mut mixed, LinkError::Timeout, 1);
        assert!(!fail(&mut mixed, refused(), 2).refused);
        let mut without_v6 = peer(&["[::1]:1", "127.0.0.1:1"]);
        fail(&mut without_v6, io::Error::from(io::ErrorKind::NetworkUnreachable).into(), 1);
        assert!(fail(&mut without_v6, refused(), 2).refused);
    }

    #[test]
    fn new_addresses_keep_the_one_in_use() {
        let mut peer = peer(&["127.0.0.1:1", "127.0.0.2:1"]);
        fail(&mut peer, LinkError::Timeout, 1);
        peer.looked_up(&parsed(&["127.0.0.3:1", "127.0.0.2:1"]));
        assert_eq!(peer.begin_attempt(2), "127.0.0.2:1".parse().ok());
        peer.looked_up(&[]);
        assert_eq!(peer.begin_attempt(2), "127.0.0.2:1".parse().ok(), "no answer is no reason to forget");
    }

    #[test]
    fn addresses_are_read_without_asking() {
        let mut peer = Peer::new(NodeId(2), &LIMITS());
        for (host, literal) in [("127.0.0.1", true), ("::1", true), ("[::1]", true), ("db1", false)] {
            peer.set_target(Some((host.to_owned(), 5)));
            assert_eq!(peer.attempt_at().is_some(), literal, "{host}");
            assert_eq!(peer.needs_lookup_at().is_none(), literal, "{host}");
            assert_eq!(peer.begin_lookup(0, &LIMITS()).is_none(), literal, "{host}");
        }
    }

    #[test]
    fn lookups_are_made_one_at_a_time_and_not_too_often() {
        let mut peer = Peer::new(NodeId(2), &LIMITS());
        peer.set_target(Some(("db2".to_owned(), 1)));
        assert_eq!(peer.needs_lookup_at(), Some(0));
        assert!(peer.begin_lookup(5, &LIMITS()).is_some());
        assert_eq!(peer.needs_lookup_at(), None);
        assert!(peer.begin_lookup(5000, &LIMITS()).is_none(), "one is going on");
        peer.looked_up(&[]);
        assert_eq!(peer.needs_lookup_at(), Some(1005));
        assert!(peer.begin_lookup(1004, &LIMITS()).is_none(), "too soon");
        assert!(peer.begin_lookup(1005, &LIMITS()).is_some());
    }
}
