//! Faults from a seed against a cluster under load, and the judges: what was acknowledged is there and what was refused
//! is not, sums stay, registers are linearizable, nobody leads beside another, all nodes have the same rows, and the
//! cluster heals without hands.

mod content;
mod damage;
mod deposed;
mod enough;
mod hardware;
pub mod inject;
mod interrupted;
mod judge;
mod liveness;
mod losses;
mod operator;
pub mod plan;
pub mod random;
pub mod register;
pub mod reign;
pub mod report;
pub mod round;
pub mod watch;
pub mod witness;
pub mod workload;
