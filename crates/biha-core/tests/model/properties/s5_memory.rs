//! S5: a vote or a term, once told, survives a crash (Ongaro 2014, §3.8; consensus.md, "Durable state, before any
//! word leaves").

use biha_core::{NodeId, Term};

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "S5 what was told is remembered";

pub fn holds(model: &Scenario, state: &State) -> bool {
    // There the memory itself is put back: it is for the others to notice.
    if model.faults.put_back.is_some() {
        return true;
    }
    let remembers_term = |(id, term): (&NodeId, &Term)| state.host(*id).term() >= *term;
    let remembers_vote = |id: &NodeId, term: &Term, candidate: &NodeId| {
        let hard = &state.host(*id).disk.hard;
        hard.term > *term || hard.term == *term && hard.voted_for == Some(*candidate)
    };
    !state.seen.unwritten
        && state.seen.terms.iter().all(remembers_term)
        && state.seen.votes.iter().all(|((id, term), candidates)| {
            candidates.len() == 1 && candidates.iter().all(|candidate| remembers_vote(id, term, candidate))
        })
}
