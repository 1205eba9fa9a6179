//! One connection: a socket, TLS over it or not, and the bytes on their way. Knows no peers.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use biha_core::{Millis, NodeId};
use mio::net::TcpStream;
use rustls::Connection;
use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};

use super::{Life, LinkError};

/// Bytes read from one socket in one turn.
const TURN: usize = 256 * 1024;
/// Bytes that may come before it is known who sends them: a TLS handshake and one frame.
const STRANGER: usize = 128 * 1024;

/// Who opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// This node, to reach that one.
    Out(NodeId),
    /// The other node.
    In,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// TCP is connecting.
    Connecting,
    /// The TLS handshake is going on.
    Tls,
    /// Outgoing: waits for the welcome; incoming: for the hello.
    Greeting,
    /// In use.
    Active,
}

pub(super) struct Link {
    socket: TcpStream,
    tls: Option<Connection>,
    /// Bytes for the socket when there is no TLS, and how many of them are gone.
    out: Vec<u8>,
    gone: usize,
    /// Bytes received and not yet taken.
    pub(super) input: Vec<u8>,
    received: usize,
    /// Something has been waiting to go out since then.
    pub(super) waiting_since: Option<Millis>,
    pub(super) addr: SocketAddr,
    pub(super) side: Side,
    pub(super) stage: Stage,
    /// The present stage must be over by then.
    pub(super) deadline: Option<Millis>,
    /// Incoming: who is at the other end, once known.
    pub(super) peer: Option<(NodeId, Life)>,
    /// Outgoing: the hello has been sent.
    pub(super) greeted: bool,
    /// Why it is over; what came before the end is still to be taken.
    pub(super) ended: Option<LinkError>,
}

impl Link {
    pub(super) fn new(socket: TcpStream, tls: Option<Connection>, addr: SocketAddr, side: Side) -> Link {
        Link {
            socket,
            tls,
            out: Vec::new(),
            gone: 0,
            input: Vec::new(),
            received: 0,
            waiting_since: None,
            addr,
            side,
            stage: Stage::Connecting,
            deadline: None,
            peer: None,
            greeted: false,
            ended: None,
        }
    }

    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Has TCP connected? `None` while it tries.
    pub(super) fn connected(&mut self) -> Option<io::Result<()>> {
        match self.socket.take_error() {
            Ok(Some(e)) | Err(e) => return Some(Err(e)),
            Ok(None) => {}
        }
        match self.socket.peer_addr() {
            Ok(_) => Some(Ok(())),
            Err(e) if e.kind() == io::ErrorKind::NotConnected => None,
            Err(e) => Some(Err(e)),
        }
    }

    /// Settings without which it would work as well, only slower: their failure is not an error. The kernel
    /// gives a connection up when data stays unacknowledged for `stall` ms; otherwise a cable that was cut for
    /// a minute would cost the retransmission's pause on top of that minute.
    pub(super) fn tune(&self, stall: Millis) {
        let _ = self.socket.set_nodelay(true);
        let socket = SockRef::from(&self.socket);
        let stall = Duration::from_millis(stall);
        let _ = socket.set_tcp_user_timeout(Some(stall));
        let every = stall.max(Duration::from_secs(1));
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every));
    }

    /// The TLS handshake is going on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// The certificate of the other side, if TLS is used: outer `None` without TLS.
    pub(super) fn certificate(&self) -> Option<Option<&CertificateDer<'static>>> {
        self.tls.as_ref().map(|tls| tls.peer_certificates().and_then(|chain| chain.first()))
    }

    /// Bytes of memory for what is on its way.
    pub(super) fn held(&self) -> usize {
        self.input.capacity() + self.out.capacity()
    }

    /// Gives it bytes to send; [`Link::flush`] sends them.
    pub(super) fn put(&mut self, bytes: &[u8], now: Millis) {
        self.waiting_since.get_or_insert(now);
        match &mut self.tls {
            None => self.out.extend_from_slice(bytes),
            Some(tls) => {
                if let Err(e) = tls.writer().write_all(bytes) {
                    self.end(e.into());
                }
            }
        }
    }

    /// Sends what can be sent now. True if nothing is left.
    pub(super) fn flush(&mut self, now: Millis) -> bool {
        match self.try_flush() {
            Ok(()) => self.waiting_since = None,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.waiting_since.get_or_insert(now);
            }
            Err(e) => self.end(e.into()),
        }
        self.waiting_since.is_none()
    }

    fn try_flush(&mut self) -> io::Result<()> {
        while let Some(tls) = &mut self.tls
            && tls.wants_write()
        {
            retry(|| tls.write_tls(&mut self.socket))?;
        }
        while self.gone < self.out.len() {
            match retry(|| self.socket.write(&self.out[self.gone..]))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => self.gone += n,
            }
        }
        self.out.clear();
        self.gone = 0;
        Ok(())
    }

    /// Reads what there is into `input`. True if more may be there than one turn takes.
    pub(super) fn fill(&mut self, now: Millis) -> bool {
        let mut turn = 0;
        while turn < TURN && self.ended.is_none() {
            match self.read_some() {
                Ok(0) => self.end(LinkError::Closed),
                Ok(n) => {
                    turn += n;
                    self.received += n;
                    if self.stage != Stage::Active && self.received > STRANGER {
                        self.end(LinkError::TooMuch);
                    }
                }
                Err(LinkError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) => {
                    // Tells the other side why, if that is TLS's business.
                    self.flush(now);
                    self.end(e);
                }
            }
        }
        self.ended.is_none()
    }

    /// Bytes that came off the socket; 0 at the end.
    fn read_some(&mut self) -> Result<usize, LinkError> {
        let mut buffer = [0; 16 * 1024];
        let Some(tls) = &mut self.tls else {
            let n = retry(|| self.socket.read(&mut buffer))?;
            self.input.extend_from_slice(&buffer[..n]);
            return Ok(n);
        };
        let n = retry(|| tls.read_tls(&mut self.socket))?;
        let state = tls.process_new_packets()?;
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let got = tls.reader().read(&mut buffer)?;
            self.input.extend_from_slice(&buffer[..got]);
            left = left.saturating_sub(got.max(1));
        }
        Ok(if state.peer_has_closed() { 0 } else { n })
    }

    /// The first reason stays.
    pub(super) fn end(&mut self, why: LinkError) {
        self.ended.get_or_insert(why);
    }

    /// Says good-bye on the level of the transport, as far as it goes without waiting.
    pub(super) fn shut(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        // The connection is over whatever these say.
        let _ = self.try_flush();
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

fn retry(mut f: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match f() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
