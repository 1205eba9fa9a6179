//! Exhaustive checking of small clusters, within bounds, of the state machine that ships.
//!
//! What is checked is `biha_core::Node` itself; modelled are what surrounds it: clocks, frames under way, disks,
//! PostgreSQL's servers, clients. A scenario says what a cluster consists of and how much may happen to it; all
//! its runs are looked at that depart from the undisturbed one by at most so many faults: a frame, a deadline, an
//! order's end or WAL that comes late, at any later time or never; a frame that comes twice; a crash before or after
//! any write; a stop; a link that is cut; a host that is frozen. What follows by itself happens in the order in
//! which it was caused. What may come back (a late frame, a host, a link) may do so at any time.
//!
//! `MODEL_DEPTH=n` allows n faults in every scenario (usually 1 or 2), `MODEL_INSTANTS=n` lets time pass n times,
//! `MODEL_THREADS=n` gives n threads to each. Each scenario prints how many states there were.
//!
//! Time is counted in instants, a little longer than a heartbeat's period; three of them are more than an election
//! timeout by every clock. Clocks run at rates that differ by as much as a lease is shorter than a promise.
//!
//! Each rule that matters is taken out once (`mutation.rs`), and the property that needs it must then fail within
//! the same bounds.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod checker;
mod happen;
mod host;
mod mutation;
mod mutations;
mod properties;
mod safety;
mod scenario;
mod scenarios;
mod seen;
mod server;
mod shared;
mod state;
#[allow(dead_code, reason = "the simulation uses all of it")]
#[path = "../sim/wal.rs"]
mod wal;
