//! What must be reachable: a model in which nothing happens shows nothing.

use stateright::Property;

use super::super::scenario::Scenario;
use super::super::state::State;

pub const SERVES: &str = "a gate opens";
pub const SECOND_TERM: &str = "a leader of a second term";
pub const THIRD_TERM: &str = "a leader of a third term";
pub const SERVES_AGAIN: &str = "a gate opens in a second term";
pub const LEASE_ENDS: &str = "a lease ends by itself";
pub const HAND_OVER: &str = "a hand-over finishes";
pub const SETTLED: &str = "a change is settled";
pub const COMMITTED: &str = "a commit is acknowledged";
pub const REWOUND: &str = "a node is rewound";

pub fn all() -> Vec<Property<Scenario>> {
    vec![
        Property::sometimes(SERVES, |model: &Scenario, state: &State| state.open_gates(model) > 0),
        Property::sometimes(SECOND_TERM, |_, state: &State| state.seen.leaders.len() >= 2),
        Property::sometimes(THIRD_TERM, |_, state: &State| state.seen.leaders.len() >= 3),
        Property::sometimes(SERVES_AGAIN, |model: &Scenario, state: &State| {
            state.seen.leaders.len() >= 2 && state.open_gates(model) > 0
        }),
        Property::sometimes(LEASE_ENDS, |_, state: &State| state.seen.lease_ended),
        Property::sometimes(HAND_OVER, |_, state: &State| state.seen.handed_over),
        Property::sometimes(SETTLED, |_, state: &State| !state.seen.settled.is_empty()),
        Property::sometimes(COMMITTED, |_, state: &State| !state.seen.acknowledged.is_empty()),
        Property::sometimes(REWOUND, |_, state: &State| state.seen.rewound),
    ]
}
