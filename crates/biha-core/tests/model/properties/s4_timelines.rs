//! S4: a timeline number is never used by two terms, nor by two nodes (consensus.md, "The timeline number is the
//! term"). So whoever streams from another has a beginning of the other's WAL, byte by byte (Ongaro 2014, §3.5
//! "Log Matching").

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "S4 one term per timeline";

pub fn holds(_: &Scenario, state: &State) -> bool {
    !state.seen.parted && state.seen.written.values().all(|writers| writers.len() <= 1)
}
