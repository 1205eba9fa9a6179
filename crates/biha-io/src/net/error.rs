//! Why connections end.

use std::io;

use biha_core::wire::WireError;
use biha_core::{ClusterId, NodeId};

use super::Life;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side closed it.
    #[error("closed by the other side")]
    Closed,
    /// An operation on the socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS failed: another certificate authority, no certificate, expired, or no TLS at all.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Malformed bytes.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// A node of another cluster.
    #[error("it belongs to cluster {0}")]
    WrongCluster(ClusterId),
    /// Another node than the one expected or claimed.
    #[error("it is not node {0}")]
    WrongNode(NodeId),
    /// It took this node for another.
    #[error("it was looking for node {0}")]
    NotForUs(NodeId),
    /// Its incarnation is not the one it had, or below one already seen: two servers with one identity, or an
    /// old copy.
    #[error(
        "incarnation {found} of node {node} where {known} is known: an old copy of the node, or a second one"
    )]
    OldIncarnation {
        /// The node.
        node: NodeId,
        /// What it says.
        found: Life,
        /// What was seen.
        known: Life,
    },
    /// It said something that is not its turn to say.
    #[error("unexpected frame")]
    Unexpected,
    /// Too many bytes before it was known who sends them.
    #[error("too much data before the first message")]
    TooMuch,
    /// It took too long.
    #[error("timed out")]
    Timeout,
    /// Nothing could be sent for too long.
    #[error("data could not be sent for too long")]
    Stalled,
    /// There are too many connections.
    #[error("too many connections")]
    TooMany,
    /// A newer connection, another incarnation or a new configuration took its place.
    #[error("superseded")]
    Superseded,
}

impl LinkError {
    /// Ends that are an everyday matter: the peer stops, restarts, is not there yet.
    pub(super) fn is_ordinary(&self) -> bool {
        match self {
            LinkError::Closed | LinkError::Superseded => true,
            LinkError::Io(e) => matches!(
                e.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            ),
            _ => false,
        }
    }

    /// The host answered that nobody listens there.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, LinkError::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// The address cannot be reached from here at all, as IPv6 on a host without it.
    pub(super) fn is_unreachable(&self) -> bool {
        let LinkError::Io(e) = self else { return false };
        matches!(
            e.kind(),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
        )
    }
}
