//! The small types that everything else is made of. Each is its own type, so that a term can never be
//! passed where a node number is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds of a clock that only ever moves forward, also while the host sleeps (CLOCK_BOOTTIME).
/// Only differences have a meaning; the values of two nodes cannot be compared.
pub type Millis = u64;

/// A timeline number as PostgreSQL counts them (`TimeLineID`). A timeline that biha opened has the number
/// of the term in which its leader was elected.
pub type Timeline = u32;

/// The number of a node: `biha.id`, unique in the cluster, at least 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// An election's number (Raft's term). Never goes down. 0 before the first election.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Term(pub u32);

/// One life of a node's controller process: a durable start number, raised at each start. The upper 32 bits say when
/// the memory that counts was made, in seconds since 1970: a node that is made anew under its own number comes after
/// all lives of the former one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// A random number drawn when the cluster is made; tells it from every other cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

/// A byte position in the WAL (`XLogRecPtr`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

/// Where a node's WAL ends: the timeline of its last record, then the end of the last complete record.
/// The derived order is Raft's comparison of logs (Ongaro 2014, §3.6.1: last term first, then index).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// Timeline of the last record.
    pub timeline: Timeline,
    /// End of the last complete record.
    pub lsn: Lsn,
}

impl Term {
    /// The term after this one. After the last there is none: nobody votes twice in it, so nothing breaks, but nobody
    /// is elected any more.
    pub fn next(self) -> Term {
        Term(self.0.saturating_add(1))
    }
}

impl Incarnation {
    /// What a memory made at this time begins to count from.
    pub fn first(seconds_since_1970: u64) -> Self {
        Incarnation(seconds_since_1970 << 32)
    }

    /// When the memory was made, in seconds since 1970.
    pub fn made(self) -> u64 {
        self.0 >> 32
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.made() {
            0 => self.0.fmt(f),
            made => write!(f, "{made}.{}", self.0 as u32),
        }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// As PostgreSQL prints a `pg_lsn`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// As `timeline:lsn`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.lsn)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
