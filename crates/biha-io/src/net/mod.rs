//! The control channel: frames between the nodes, over TCP and TLS 1.3.
//!
//! # Two connections for each pair of nodes
//! Every node dials every other, and says what it has to say on the connection that it opened; what it hears
//! comes on the one that the other opened. So nothing needs to be settled when both dial at the same time, and
//! a dead connection never stands in the way of a living one:
//! - the accepting side's only word is a [`biha_core::wire::Welcome`], after TLS has proven who dialled: only
//!   then is the connection [`NetEvent::Connected`];
//! - the first frame on it must be a Hello, which says who dials. With TLS the certificate must be that
//!   node's ([`certificate_name`]), and every later frame must name the same node and incarnation;
//! - a newer incoming connection of a node replaces its older one, once that has been read to its end;
//! - an incarnation below one that was already seen from a node is refused; the connections of an older one
//!   end when a newer one appears.
//!
//! The end of either connection is reported as [`NetEvent::Disconnected`], once until the node is heard again.
//! Messages live within one connection: what cannot be sent now is lost.
//!
//! **A connection that this side ends is closed only at the poll after the one that reported it**, so that the
//! owner can act (shut its gate, shorten its lease) before the other node can see the end.
//!
//! **Architecture invariant:** no call blocks, and none starts a thread (see [`Resolver`]).

mod error;
mod link;
mod network;
mod peer;
mod queue;
mod resolver;
mod tls;
mod turn;

use std::net::SocketAddr;

use biha_core::{ClusterId, Disconnect, Envelope, Incarnation, Millis, NodeId};

pub use error::LinkError;
pub use network::Network;
pub use peer::Life;
pub use resolver::{Answer, Job, Resolver, ThreadResolver};
pub use tls::{TlsConfig, TlsError, certificate_name};

/// What a [`Network`] needs to know.
pub struct NetworkConfig {
    /// The cluster; frames of any other are refused.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// This life of the node.
    pub incarnation: Incarnation,
    /// Drawn at random for this life.
    pub tag: u32,
    /// Port to listen on, on all addresses of the host; 0 lets the system choose.
    pub port: u16,
    /// `None` sends everything unprotected and believes whatever is said.
    pub tls: Option<TlsConfig>,
    /// Turns host names into addresses.
    pub resolver: Box<dyn Resolver>,
    /// Times and sizes.
    pub limits: Limits,
}

/// Times in ms, and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For TCP to connect, per address.
    pub connect_timeout: Millis,
    /// For TLS, the welcome and the hello.
    pub handshake_timeout: Millis,
    /// An outgoing connection whose data does not go out for so long is given up and dialled anew. Should be
    /// the election timeout or more: the other node sees a connection end whose owner is alive.
    pub stall_timeout: Millis,
    /// First pause between attempts to connect (the very first retry is made at once); doubles up to
    /// `backoff_max`.
    pub backoff_min: Millis,
    /// Longest pause between attempts to connect.
    pub backoff_max: Millis,
    /// Frames that may wait for one peer.
    pub queue_frames: usize,
    /// Bytes that may wait for one peer.
    pub queue_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect_timeout: 1000,
            handshake_timeout: 2000,
            stall_timeout: 2000,
            backoff_min: 10,
            backoff_max: 1000,
            queue_frames: 256,
            queue_bytes: 512 * 1024,
        }
    }
}

/// What happened on the network.
#[derive(Debug)]
pub enum NetEvent {
    /// Messages can be sent to this node; the first must be a Hello.
    Connected(NodeId),
    /// A node said something; its identity is proven (with TLS).
    Message(Envelope),
    /// A connection with this node ended, or could not be made because its host refused it.
    Disconnected(NodeId, Disconnect),
    /// A connection was refused or given up for a reason worth a line in the log. The caller limits how often
    /// the same is logged.
    Rejected {
        /// The other side.
        addr: SocketAddr,
        /// Who it is, or was hoped to be, if known.
        node: Option<NodeId>,
        /// Why.
        why: LinkError,
    },
    /// The addresses of this node's host could not be found; older ones stay in use.
    Unresolved(NodeId, std::io::Error),
}

/// What a [`Network`] holds because of others: bounded, whoever they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Connections that are open, in whatever stage.
    pub connections: usize,
    /// Bytes of memory for what was received and not yet handled, or is still to be sent; without the TLS
    /// library's own.
    pub bytes: usize,
}

/// The state of the connection to a peer, as `biha.nodes_v` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// Its address is not known yet.
    Init,
    /// TCP is connecting.
    Connecting,
    /// This node's TLS handshake with it is going on.
    SslConnect,
    /// An incoming connection from its host is in the TLS handshake, and none is open.
    SslAccept,
    /// Messages can be sent.
    Active,
    /// Waiting for the next attempt.
    Idle,
}

impl ConnState {
    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            ConnState::Init => "INIT",
            ConnState::Connecting => "CONNECTING",
            ConnState::SslConnect => "SSLCONNECT",
            ConnState::SslAccept => "SSLACCEPT",
            ConnState::Active => "ACTIVE",
            ConnState::Idle => "IDLE",
        }
    }
}
