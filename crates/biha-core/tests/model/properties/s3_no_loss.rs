//! S3: where the configuration is lossless, every acknowledged commit is in the WAL of every leader of a later term
//! (Ongaro 2014, §3.6.3 "Leader Completeness"; consensus.md, "Synchronous commit and no loss").

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "S3 no acknowledged commit is lost";

pub fn holds(_: &Scenario, state: &State) -> bool {
    if state.seen.acknowledged.is_empty() {
        return true;
    }
    state.hosts.iter().filter(|h| h.leads()).all(|h| {
        let older = state.seen.acknowledged.iter().filter(|(_, term)| **term < h.term());
        older.into_iter().all(|(number, _)| h.server.log.has_commit(*number))
    })
}
