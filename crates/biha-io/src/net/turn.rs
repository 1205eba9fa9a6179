//! One turn of the network: what [`Network::poll`] does.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use biha_core::wire::{self, Header};
use biha_core::{Disconnect, Envelope, Message, Met, Millis, NodeId, Term};
use mio::net::TcpStream;
use mio::{Interest, Token};

use super::link::{Link, Side, Stage};
use super::network::{LISTENER, Network, WAKER};
use super::peer::{Out, Peer};
use super::{Life, LinkError, NetEvent, NetworkConfig, tls};

/// Connections accepted in one turn.
const ACCEPTS: usize = 64;
/// Turns of reading that a connection gets before a newer one replaces it.
const FINISH_TURNS: usize = 4;
/// How long to wait when the system has no descriptor left, in ms.
const ACCEPT_PAUSE: Millis = 100;

impl Network {
    /// Does what can be done now, without waiting, and appends what happened. `now` must never go back.
    pub fn poll(&mut self, now: Millis, events: &mut Vec<NetEvent>) -> io::Result<()> {
        self.now = now;
        self.doomed.clear();
        let mut tokens = std::mem::take(&mut self.again);
        match self.poll.poll(&mut self.ready, Some(Duration::ZERO)) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
            _ => tokens.extend(self.ready.iter().map(|event| event.token().0)),
        }
        for token in tokens {
            match token {
                LISTENER => self.accept(),
                WAKER => {}
                link => self.drive(link),
            }
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.accept();
        }
        self.take_addresses();
        self.give_up_late();
        self.dial_due();
        events.append(&mut self.events);
        Ok(())
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((socket, addr)) => {
                    // An IPv4 address shall look like one.
                    self.welcome(socket, SocketAddr::new(addr.ip().to_canonical(), addr.port()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    self.accept_again = Some(self.now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.again.insert(LISTENER);
    }

    fn welcome(&mut self, socket: TcpStream, addr: SocketAddr) {
        if !self.make_room() {
            self.events.push(NetEvent::Rejected { addr, node: None, why: LinkError::TooMany });
            return;
        }
        let tls = match self.config.tls.as_ref().map(super::TlsConfig::accept).transpose() {
            Ok(tls) => tls,
            Err(e) => {
                self.events.push(NetEvent::Rejected { addr, node: None, why: e.into() });
                return;
            }
        };
        let mut link = Link::new(socket, tls, addr, Side::In);
        self.transport_up(&mut link);
        self.add_link(link);
    }

    /// Room for one more incoming connection, at the cost of the oldest of those that matter least: those that
    /// have not said who they are, from elsewhere than a member's host first, then those of no member.
    fn make_room(&mut self) -> bool {
        let members = || self.peers.values().filter(|peer| peer.target().is_some());
        let most = 4 * (1 + members().count()) + 16;
        let incoming = || self.links.iter().filter(|(_, link)| link.side == Side::In);
        if incoming().count() < most {
            return true;
        }
        let hosts: BTreeSet<IpAddr> =
            members().flat_map(|peer| &peer.addresses).map(SocketAddr::ip).collect();
        let is_member = |id| self.peers.get(&id).is_some_and(|peer| peer.target().is_some());
        let rank = |link: &Link| match link.peer {
            None if !hosts.contains(&link.addr.ip()) => Some(0),
            None => Some(1),
            Some((id, _)) if !is_member(id) => Some(2),
            Some(_) => None,
        };
        let least = incoming().filter_map(|(token, link)| Some((rank(link)?, *token))).min();
        let Some((_, token)) = least else { return false };
        self.end_link(token, LinkError::TooMany);
        true
    }

    /// Registers a new link and begins with it.
    fn add_link(&mut self, mut link: Link) -> usize {
        let token = self.new_token();
        let registered = self.poll.registry().register(
            link.socket(),
            Token(token),
            Interest::READABLE | Interest::WRITABLE,
        );
        if let Err(e) = registered {
            link.end(e.into());
        }
        self.links.insert(token, link);
        self.again.insert(token);
        token
    }

    /// TCP has connected.
    fn transport_up(&self, link: &mut Link) {
        link.tune(self.config.limits.stall_timeout);
        link.stage = Stage::Tls;
        link.deadline = Some(self.now + self.config.limits.handshake_timeout);
    }

    /// Reads, writes, and takes the link as far as it goes.
    fn drive(&mut self, token: usize) {
        let Some(mut link) = self.links.remove(&token) else { return };
        let more = link.ended.is_none() && self.advance(&mut link);
        // It must be back before frames are handled: they may end other links, or this one.
        self.links.insert(token, link);
        self.handle_frames(token);
        self.drain_queue(token);
        let Some(link) = self.links.get_mut(&token) else { return };
        if let Some(why) = link.ended.take() {
            if let (Side::Out(id), Stage::Active) = (link.side, link.stage)
                && let Some(incoming) = self.peers.get(&id).and_then(|peer| peer.incoming)
            {
                // The peer's last words come before its end.
                self.drive(incoming);
            }
            self.end_link(token, why);
        } else if more {
            self.again.insert(token);
        }
    }

    /// Moves bytes and passes the stages before the greeting. True if there may be more to read.
    fn advance(&self, link: &mut Link) -> bool {
        if link.stage == Stage::Connecting {
            match link.connected() {
                None => return false,
                Some(Err(e)) => {
                    link.end(e.into());
                    return false;
                }
                Some(Ok(())) => self.transport_up(link),
            }
        }
        link.flush(self.now);
        let more = link.fill(self.now);
        if link.stage == Stage::Tls && !link.is_handshaking() {
            link.stage = Stage::Greeting;
            if link.side == Side::In {
                let NetworkConfig { node, incarnation, tag, .. } = self.config;
                let welcome = wire::Welcome { node, incarnation, tag };
                match wire::encode_welcome(self.config.cluster, &welcome) {
                    Ok(frame) => link.put(&frame, self.now),
                    Err(e) => link.end(e.into()),
                }
            }
        }
        link.flush(self.now);
        more
    }

    /// Handles every whole frame that has come.
    fn handle_frames(&mut self, token: usize) {
        let mut taken = 0;
        while let Some(link) = self.links.get(&token)
            && matches!(link.stage, Stage::Greeting | Stage::Active)
        {
            match self.handle_frame(token, taken) {
                Ok(0) => break,
                Ok(used) => taken += used,
                Err(why) => {
                    if let Some(link) = self.links.get_mut(&token) {
                        // What the other side broke is more telling than that it went away afterwards.
                        link.ended = Some(why);
                    }
                    break;
                }
            }
        }
        if let Some(link) = self.links.get_mut(&token) {
            link.input.drain(..taken);
        }
    }

    /// Handles the frame at `at` and says how long it was; 0 if it is not whole.
    fn handle_frame(&mut self, token: usize, at: usize) -> Result<usize, LinkError> {
        let Some(link) = self.links.get(&token) else { return Ok(0) };
        let bytes = &link.input[at..];
        let Some(header) = Header::read(bytes)? else { return Ok(0) };
        if header.cluster != self.config.cluster {
            return Err(LinkError::WrongCluster(header.cluster));
        }
        match (link.side, link.stage) {
            (Side::Out(id), Stage::Greeting) => {
                let Some((welcome, used)) = wire::decode_welcome(bytes)? else { return Ok(0) };
                self.welcomed(token, id, &welcome)?;
                Ok(used)
            }
            (Side::Out(id), _) => {
                let Some((envelope, used)) = wire::decode(bytes)? else { return Ok(0) };
                let expected = envelope.from == id && envelope.to == self.config.node;
                if !expected || !matches!(envelope.message, Message::Refused(_)) {
                    return Err(LinkError::Unexpected);
                }
                self.events.push(NetEvent::Message(envelope));
                Ok(used)
            }
            (Side::In, stage) => {
                let Some((envelope, used)) = wire::decode(bytes)? else { return Ok(0) };
                match stage {
                    Stage::Active => self.check(link, &envelope)?,
                    _ => self.greeted(token, &envelope)?,
                }
                if let Some(peer) = self.peers.get_mut(&envelope.from) {
                    peer.heard();
                }
                self.events.push(NetEvent::Message(envelope));
                Ok(used)
            }
        }
    }

    /// Every frame must name who the first one named.
    fn check(&self, link: &Link, envelope: &Envelope) -> Result<(), LinkError> {
        let Some((node, known)) = link.peer else { return Err(LinkError::Unexpected) };
        if envelope.from != node {
            return Err(LinkError::WrongNode(envelope.from));
        }
        if envelope.to != self.config.node {
            return Err(LinkError::NotForUs(envelope.to));
        }
        match Life::of(envelope) {
            found if found != known => Err(LinkError::OldIncarnation { node, found, known }),
            _ => Ok(()),
        }
    }

    /// The peer that was dialled has accepted this node.
    fn welcomed(&mut self, token: usize, id: NodeId, welcome: &wire::Welcome) -> Result<(), LinkError> {
        if welcome.node != id {
            return Err(LinkError::WrongNode(id));
        }
        let wire::Welcome { incarnation, tag, .. } = *welcome;
        self.see_life(id, Life { incarnation, tag }, token)?;
        if let Some(link) = self.links.get_mut(&token) {
            link.stage = Stage::Active;
            link.deadline = None;
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.connected(token, self.now);
            self.events.push(NetEvent::Connected(id));
        }
        Ok(())
    }

    /// The first frame of an incoming connection: who is it?
    fn greeted(&mut self, token: usize, envelope: &Envelope) -> Result<(), LinkError> {
        let id = envelope.from;
        if !matches!(envelope.message, Message::Hello(_)) {
            return Err(LinkError::Unexpected);
        }
        if envelope.to != self.config.node {
            return Err(LinkError::NotForUs(envelope.to));
        }
        let Some(link) = self.links.get(&token) else { return Err(LinkError::Unexpected) };
        let proven = match link.certificate() {
            None => true,
            Some(certificate) => {
                certificate.is_some_and(|c| tls::is_certificate_of(c, self.config.cluster, id))
            }
        };
        if !proven || id == self.config.node {
            return Err(LinkError::WrongNode(id));
        }
        self.peers.entry(id).or_insert_with(|| Peer::new(id, &self.config.limits));
        let life = Life::of(envelope);
        if let Err(why) = self.see_life(id, life, token) {
            self.tell_refused(id, token);
            return Err(why);
        }
        if let Some(older) = self.peers.get(&id).and_then(|peer| peer.incoming) {
            self.finish(older);
        }
        if let Some(link) = self.links.get_mut(&token) {
            link.stage = Stage::Active;
            link.deadline = None;
            link.peer = Some((id, life));
        }
        // Ending the older one may have forgotten a node that is no member.
        let peer = self.peers.entry(id).or_insert_with(|| Peer::new(id, &self.config.limits));
        peer.life = life;
        peer.incoming = Some(token);
        if peer.out == Out::Idle {
            peer.dial_now();
        }
        Ok(())
    }

    /// A peer has named its life on this link: an older or a second one is refused, and a newer one ends the
    /// connections of the one before.
    fn see_life(&mut self, id: NodeId, found: Life, on: usize) -> Result<(), LinkError> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        let known = peer.life;
        let second = found.incarnation == known.incarnation && known != Life::default();
        if found != known && (found.incarnation < known.incarnation || second) {
            return Err(LinkError::OldIncarnation { node: id, found, known });
        }
        if found == known {
            return Ok(());
        }
        peer.life = found;
        peer.dial_now();
        let (out, incoming) = (peer.out, peer.incoming);
        if let Some(token) = incoming.filter(|token| *token != on) {
            self.finish(token);
        }
        if let Out::Active(token, _) = out
            && token != on
        {
            self.end_link(token, LinkError::Superseded);
        }
        Ok(())
    }

    /// Whoever is refused for its life should know why: it will not get better by itself.
    fn tell_refused(&mut self, id: NodeId, token: usize) {
        let (Some(peer), Some(link)) = (self.peers.get(&id), self.links.get_mut(&token)) else { return };
        let NetworkConfig { cluster, node: from, incarnation, tag, .. } = self.config;
        let known = Met { incarnation: peer.life.incarnation, tag: peer.life.tag, ..Met::default() };
        let (to, message) = (id, Message::Refused(known));
        let (term, voted_for) = (Term(0), None);
        let envelope = Envelope { cluster, from, to, incarnation, tag, term, voted_for, message };
        if let Ok(frame) = wire::encode(&envelope) {
            link.put(&frame, self.now);
            link.flush(self.now);
        }
    }

    /// Ends an incoming connection in favour of a newer one, after it has been read to its end.
    fn finish(&mut self, token: usize) {
        let Some(link) = self.links.get_mut(&token) else { return };
        // What comes faster than this can be read is not worth waiting for.
        for _ in 0..FINISH_TURNS {
            if !link.fill(self.now) {
                break;
            }
        }
        self.handle_frames(token);
        let why = self.links.get_mut(&token).and_then(|link| link.ended.take());
        self.end_link(token, why.unwrap_or(LinkError::Superseded));
    }

    fn take_addresses(&mut self) {
        while let Ok(answer) = self.resolved.try_recv() {
            let target = Some((answer.host, answer.port));
            let (addresses, error) = match answer.result {
                Ok(addresses) => (addresses, None),
                Err(e) => (Vec::new(), Some(e)),
            };
            let mut asked = None;
            for peer in self.peers.values_mut().filter(|peer| peer.target() == target.as_ref()) {
                peer.looked_up(&addresses);
                asked = Some(peer.id);
            }
            if let (Some(id), Some(e)) = (asked, error) {
                self.events.push(NetEvent::Unresolved(id, e));
            }
        }
    }

    fn give_up_late(&mut self) {
        let now = self.now;
        let late = |link: &Link| self.link_deadline(link).is_some_and(|deadline| deadline <= now);
        let tokens: Vec<usize> =
            self.links.iter().filter(|(_, link)| late(link)).map(|(token, _)| *token).collect();
        for token in tokens {
            let active = self.links.get(&token).is_some_and(|link| link.stage == Stage::Active);
            self.end_link(token, if active { LinkError::Stalled } else { LinkError::Timeout });
        }
    }

    fn dial_due(&mut self) {
        let ids: Vec<NodeId> = self.peers.keys().copied().collect();
        for id in ids {
            if self.peers.get(&id).is_some_and(|peer| peer.needs_lookup_at().is_some_and(|at| at <= self.now))
            {
                self.resolve(id);
            }
            let now = self.now;
            let due = |peer: &Peer| peer.attempt_at().is_some_and(|at| at <= now);
            // Addresses that fail at once make room for the next; the pause after the last ends the loop.
            while self.peers.get(&id).is_some_and(due) {
                self.dial(id);
            }
        }
    }

    fn dial(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(addr) = peer.begin_attempt(self.now) else { return };
        let tls = self.config.tls.as_ref().map(|tls| tls.connect(self.config.cluster, id)).transpose();
        let socket = TcpStream::connect(addr);
        let (tls, socket) = match (tls, socket) {
            (Ok(tls), Ok(socket)) => (tls, socket),
            (Err(e), _) => return self.dial_failed(id, addr, e.into()),
            (_, Err(e)) => return self.dial_failed(id, addr, e.into()),
        };
        let mut link = Link::new(socket, tls, addr, Side::Out(id));
        link.deadline = Some(self.now + self.config.limits.connect_timeout);
        let token = self.add_link(link);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.out = Out::Opening(token);
        }
    }

    fn dial_failed(&mut self, id: NodeId, addr: SocketAddr, why: LinkError) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let failed = peer.attempt_failed(&why, self.now, &self.config.limits);
        if failed.refused {
            self.events.push(NetEvent::Disconnected(id, Disconnect::Refused));
        }
        if failed.resolve {
            self.resolve(id);
            if !why.is_ordinary() {
                self.events.push(NetEvent::Rejected { addr, node: Some(id), why });
            }
        }
    }
}
