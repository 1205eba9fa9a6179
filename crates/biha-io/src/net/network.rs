//! The network's state, and everything that its owner calls except [`Network::poll`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use biha_core::wire::{self, WireError};
use biha_core::{Disconnect, Envelope, Message, Millis, NodeId};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};

use super::link::{Link, Side, Stage};
use super::peer::{Out, Peer};
use super::resolver::Resolved;
use super::{Answer, ConnState, Held, LinkError, NetEvent, NetworkConfig, TlsConfig};

pub(super) const LISTENER: usize = 0;
pub(super) const WAKER: usize = 1;
const FIRST_LINK: usize = 2;

/// All connections of a node. See the module's text for the rules.
///
/// Its file descriptor becomes readable when [`Network::poll`] has something to do; with
/// [`Network::next_deadline`] that is all that an event loop needs to know. Dropping it closes every
/// connection at once.
pub struct Network {
    pub(super) poll: Poll,
    pub(super) ready: Events,
    pub(super) listener: Option<TcpListener>,
    port: u16,
    pub(super) config: NetworkConfig,
    pub(super) links: BTreeMap<usize, Link>,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// Links that have more to do than one turn took.
    pub(super) again: BTreeSet<usize>,
    /// Links that are over; closed at the next poll.
    pub(super) doomed: Vec<Link>,
    /// Events that happened between polls.
    pub(super) events: Vec<NetEvent>,
    next_token: usize,
    /// Time of the last poll.
    pub(super) now: Millis,
    /// When to try to accept again after the system had no descriptor left.
    pub(super) accept_again: Option<Millis>,
    waker: Arc<Waker>,
    answers: Sender<Resolved>,
    pub(super) resolved: Receiver<Resolved>,
}

impl Network {
    /// Listens. Fails if the port is taken, or with [`io::ErrorKind::InvalidInput`] if the certificate is not
    /// this node's.
    pub fn bind(config: NetworkConfig) -> io::Result<Network> {
        check_certificate(&config, config.tls.as_ref())?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listen(config.port)?);
        let port = listener.local_addr()?.port();
        poll.registry().register(&mut listener, Token(LISTENER), Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), Token(WAKER))?);
        let (answers, resolved) = mpsc::channel();
        Ok(Network {
            poll,
            ready: Events::with_capacity(256),
            listener: Some(listener),
            port,
            config,
            links: BTreeMap::new(),
            peers: BTreeMap::new(),
            again: BTreeSet::new(),
            doomed: Vec::new(),
            events: Vec::new(),
            next_token: FIRST_LINK,
            now: 0,
            accept_again: None,
            waker,
            answers,
            resolved,
        })
    }

    /// The port that it listens on.
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// The nodes to be connected with: all members but this one. Others are disconnected; a node whose host
    /// or port has changed is dialled anew.
    pub fn set_peers(&mut self, peers: &[(NodeId, String, u16)]) {
        let this = self.config.node;
        let ids: BTreeSet<NodeId> = peers.iter().map(|(id, ..)| *id).collect();
        for (id, host, port) in peers.iter().filter(|(id, ..)| *id != this) {
            let peer = self.peers.entry(*id).or_insert_with(|| Peer::new(*id, &self.config.limits));
            if peer.set_target(Some((host.clone(), *port))) {
                self.end_out(*id);
            }
        }
        let gone: Vec<NodeId> = self.peers.keys().filter(|id| !ids.contains(id)).copied().collect();
        for id in gone {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if peer.set_target(None) {
                let incoming = peer.incoming;
                self.end_out(id);
                if let Some(token) = incoming {
                    self.end_link(token, LinkError::Superseded);
                }
            }
        }
    }

    /// Certificates for connections made from now on. `Err` leaves the old ones in use.
    pub fn reload_tls(&mut self, tls: Option<TlsConfig>) -> io::Result<()> {
        check_certificate(&self.config, tls.as_ref())?;
        self.config.tls = tls;
        Ok(())
    }

    /// Sends a message, or leaves it to the next polls if it cannot go out at once. `Ok(false)`: there is no
    /// connection, or its Hello is still to be sent; the message is lost. Fails if it is too large.
    pub fn send(&mut self, to: NodeId, envelope: &Envelope) -> Result<bool, WireError> {
        let Some(peer) = self.peers.get_mut(&to) else { return Ok(false) };
        let Out::Active(token, _) = peer.out else { return Ok(false) };
        let Some(link) = self.links.get_mut(&token) else { return Ok(false) };
        if !link.greeted && !matches!(envelope.message, Message::Hello(_)) {
            return Ok(false);
        }
        peer.queue.push(&envelope.message, wire::encode(envelope)?);
        link.greeted = true;
        self.drain_queue(token);
        Ok(true)
    }

    /// The time at which [`Network::poll`] is to be called even if the descriptor has not become readable.
    pub fn next_deadline(&self) -> Option<Millis> {
        if !self.doomed.is_empty() || !self.again.is_empty() || !self.events.is_empty() {
            return Some(self.now);
        }
        let links = self.links.values().filter_map(|link| self.link_deadline(link));
        let peers = self.peers.values().filter_map(|peer| peer.attempt_at().or(peer.needs_lookup_at()));
        links.chain(peers).chain(self.accept_again).min()
    }

    /// When this link is given up.
    pub(super) fn link_deadline(&self, link: &Link) -> Option<Millis> {
        match link.stage {
            Stage::Active => link.waiting_since.map(|since| since + self.config.limits.stall_timeout),
            _ => link.deadline,
        }
    }

    /// The state of the connection to a peer.
    pub fn connection_state(&self, id: NodeId) -> ConnState {
        let Some(peer) = self.peers.get(&id) else { return ConnState::Init };
        let from_its_host = |link: &Link| {
            link.side == Side::In
                && link.stage == Stage::Tls
                && peer.addresses.iter().any(|a| a.ip() == link.addr.ip())
        };
        match peer.out {
            Out::Active(..) => ConnState::Active,
            Out::Opening(token) => match self.links.get(&token).map(|link| link.stage) {
                Some(Stage::Tls | Stage::Greeting) if self.config.tls.is_some() => ConnState::SslConnect,
                _ => ConnState::Connecting,
            },
            Out::Idle if self.links.values().any(from_its_host) => ConnState::SslAccept,
            Out::Idle if peer.addresses.is_empty() => ConnState::Init,
            Out::Idle => ConnState::Idle,
        }
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        let links = self.links.values().chain(&self.doomed).map(Link::held);
        let queues = self.peers.values().map(|peer| peer.queue.held());
        Held { connections: self.links.len(), bytes: links.chain(queues).sum() }
    }

    /// Sends what can be sent without waiting, then ends every connection and stops listening. For the end of
    /// the process; nothing happens on this network afterwards.
    pub fn close_all(&mut self) {
        self.listener = None;
        self.accept_again = None;
        let tokens: Vec<usize> = self.links.keys().copied().collect();
        for token in &tokens {
            self.drain_queue(*token);
        }
        // What this node said must arrive before its end is seen anywhere.
        for side_out in [true, false] {
            let links = self.links.values_mut().filter(|link| (link.side != Side::In) == side_out);
            links.for_each(Link::shut);
        }
        self.links.clear();
        self.peers.clear();
        self.doomed.clear();
        self.again.clear();
        self.events.clear();
    }

    /// Moves frames from the peer's queue to the link as long as they go out.
    pub(super) fn drain_queue(&mut self, token: usize) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let (Side::Out(id), Stage::Active) = (link.side, link.stage) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        while link.ended.is_none() && link.flush(self.now) {
            let Some(frame) = peer.queue.pop() else { break };
            link.put(&frame, self.now);
        }
        if link.ended.is_some() {
            self.again.insert(token);
        }
    }

    pub(super) fn new_token(&mut self) -> usize {
        self.next_token += 1;
        self.next_token - 1
    }

    /// Starts to look a peer's host up, if there is reason to.
    pub(super) fn resolve(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((host, port)) = peer.begin_lookup(self.now, &self.config.limits) else { return };
        let (answers, waker) = (self.answers.clone(), Arc::clone(&self.waker));
        let answer = Answer::new(host.clone(), port, answers, waker);
        self.config.resolver.start(&host, port, answer);
    }

    /// Gives the outgoing connection of this peer up, whatever its stage.
    pub(super) fn end_out(&mut self, id: NodeId) {
        match self.peers.get(&id).map(|peer| peer.out) {
            Some(Out::Opening(token) | Out::Active(token, _)) => self.end_link(token, LinkError::Superseded),
            Some(Out::Idle) | None => {}
        }
    }

    /// A connection is over: its peer gets to know, its socket is closed at the next poll.
    pub(super) fn end_link(&mut self, token: usize, why: LinkError) {
        let Some(link) = self.links.remove(&token) else { return };
        self.again.remove(&token);
        let (addr, side) = (link.addr, link.side);
        let id = match side {
            Side::Out(id) => Some(id),
            Side::In => link.peer.map(|(id, _)| id),
        };
        self.doomed.push(link);
        if let Some(id) = id {
            self.tell_peer(id, side, token, &why);
            self.forget_stranger(id);
        }
        if !why.is_ordinary() {
            self.events.push(NetEvent::Rejected { addr, node: id, why });
        }
    }

    /// The link of this peer is over.
    fn tell_peer(&mut self, id: NodeId, side: Side, token: usize, why: &LinkError) {
        let limits = &self.config.limits;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut resolve = false;
        let news = match (side, peer.out) {
            (Side::In, out) if peer.incoming == Some(token) => {
                peer.incoming = None;
                if out == Out::Idle {
                    peer.dial_now();
                }
                peer.lost().then_some(Disconnect::Closed)
            }
            (Side::Out(_), Out::Active(current, since)) if current == token => {
                peer.out_ended(since, self.now, limits);
                peer.lost().then_some(Disconnect::Closed)
            }
            (Side::Out(_), Out::Opening(current)) if current == token => {
                let failed = peer.attempt_failed(why, self.now, limits);
                resolve = failed.resolve;
                failed.refused.then_some(Disconnect::Refused)
            }
            _ => None,
        };
        self.events.extend(news.map(|how| NetEvent::Disconnected(id, how)));
        if resolve {
            self.resolve(id);
        }
    }

    /// A node that is no member is remembered only as long as it is connected.
    fn forget_stranger(&mut self, id: NodeId) {
        let stranger =
            |peer: &Peer| peer.target().is_none() && peer.incoming.is_none() && peer.out == Out::Idle;
        if self.peers.get(&id).is_some_and(stranger) {
            self.peers.remove(&id);
        }
    }
}

impl AsRawFd for Network {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

fn check_certificate(config: &NetworkConfig, tls: Option<&TlsConfig>) -> io::Result<()> {
    match tls {
        None => Ok(()),
        Some(tls) => tls
            .check_name(config.cluster, config.node)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e)),
    }
}

/// On all addresses, IPv6 and IPv4, or IPv4 alone on a host without IPv6.
fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let bind = |domain, addr: SocketAddr| {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // A node that restarts must not wait for its old connections to be forgotten.
        socket.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(128)?;
        Ok(socket.into())
    };
    let both: io::Result<_> = bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into());
    match both {
        Err(e) if e.kind() != io::ErrorKind::AddrInUse => {
            bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        result => result,
    }
}
