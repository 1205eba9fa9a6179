//! S2: at most one gate is open at any instant of the true time, while clocks run at rates that differ by no more
//! than the lease is shorter than the promise (Ongaro 2014, §6.4.1; consensus.md, "Lease and commit gate"). Gates
//! open at instants of the model only, so it is enough to look there.

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "S2 one open gate";

pub fn holds(model: &Scenario, state: &State) -> bool {
    !model.leases || state.open_gates(model) <= 1
}
