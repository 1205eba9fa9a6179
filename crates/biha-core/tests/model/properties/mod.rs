//! What must hold in every state, and what must be reachable.

mod core_itself;
pub mod reachable;
pub mod s1_one_leader;
pub mod s2_one_gate;
pub mod s3_no_loss;
pub mod s4_timelines;
pub mod s5_memory;
pub mod s6_configuration;

use stateright::Property;

use super::scenario::Scenario;

/// All safety properties, and what this scenario must reach.
pub fn all(model: &Scenario) -> Vec<Property<Scenario>> {
    let mut all = vec![
        Property::always(core_itself::NAME, core_itself::holds),
        Property::always(s1_one_leader::NAME, s1_one_leader::holds),
        Property::always(s2_one_gate::NAME, s2_one_gate::holds),
        Property::always(s3_no_loss::NAME, s3_no_loss::holds),
        Property::always(s4_timelines::NAME, s4_timelines::holds),
        Property::always(s5_memory::NAME, s5_memory::holds),
        Property::always(s6_configuration::NAME, s6_configuration::holds),
    ];
    all.extend(reachable::all().into_iter().filter(|p| model.reaches.contains(&p.name)));
    all
}
