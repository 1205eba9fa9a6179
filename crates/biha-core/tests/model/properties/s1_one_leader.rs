//! S1: at most one leader per term (Ongaro 2014, §3.2 "Election Safety", proved in §3.4 and §3.6.3). A leader is a life of a
//! controller: no life resumes a leadership that it did not win itself.

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "S1 one leader per term";

pub fn holds(_: &Scenario, state: &State) -> bool {
    state.seen.leaders.values().all(|leaders| leaders.len() <= 1)
}
