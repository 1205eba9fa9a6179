//! The cluster harness: real PostgreSQL servers with biha, faults on command, and an oracle client that
//! remembers every acknowledgement.
//!
//! **Architecture invariant:** nothing here links against biha. The harness sees a cluster as a user and an
//! operator see it: `bihactl`, SQL, signals, links, log files. So it can't be right by sharing a mistake with
//! the code under test.
//!
//! # Threads
//! A scenario runs in a thread of its own ([`scenario::run`]), because a thread that entered a network
//! namespace stays in it. The oracle has one thread more, which inherits that namespace.

pub mod bench;
pub mod chaos;
pub mod client;
pub mod cluster;
pub mod delay;
pub mod disk;
pub mod logs;
pub mod network;
pub mod node;
pub mod oracle;
pub mod process;
pub mod provision;
pub mod run;
pub mod scenario;
pub mod service;
pub mod verdict;
pub mod wait;
pub mod wallclock;
