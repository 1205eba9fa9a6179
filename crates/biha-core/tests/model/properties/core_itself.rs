//! The core's own assertions hold after every step (`Node::check`; ARCHITECTURE.md, "biha-core").

use super::super::scenario::Scenario;
use super::super::state::State;

pub const NAME: &str = "the core's own assertions";

pub fn holds(_: &Scenario, state: &State) -> bool {
    !state.seen.panicked
}
