//! Every scenario: all properties hold in every state, and what must be reachable is reached.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use super::scenario::Scenario;
use super::scenarios;
use super::state::{Action, State};

/// One test for each scenario, so that each can be run and fails by its name.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(scenarios::$name()); })*
    };
}

scenarios! {
    by_hand
    change
    change_of_sides
    cut_off
    cut_off_lossless
    failover
    hand_over
    lossless
    lossless_outages
    missed_change
    outages
    put_back
    put_back_by_one
    referee
    refused
    respawn
    respawn_lossless
    start
    two_changes
    two_tails
    unanswered_hand_over
}

fn check(mut model: Scenario) {
    let usual = (model.left.faults, model.left.instants);
    model.left.faults = number("MODEL_DEPTH").unwrap_or(usual.0);
    model.left.instants = number("MODEL_INSTANTS").unwrap_or(usual.1);
    let as_usual = (model.left.faults, model.left.instants) == usual;
    let (name, left) = (model.name, model.left);
    let began = Instant::now();
    let checker = model.checker().threads(threads()).finish_when(HasDiscoveries::AnyFailures);
    let limit = number("MODEL_SECONDS").map(Duration::from_secs);
    let checker = if let Some(limit) = limit { checker.timeout(limit) } else { checker };
    // Depth first: the states that wait are few.
    let checker = checker.spawn_dfs().join();
    println!(
        "{name}: {} faults, {} instants: {} states, {} unique, depth {}, {:.1} s{}",
        left.faults,
        left.instants,
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64(),
        if limit.is_some_and(|limit| began.elapsed() >= limit) { ", not all of them" } else { "" }
    );
    let found = checker.discoveries();
    for property in checker.model().properties() {
        match (property.expectation, found.get(property.name)) {
            (Expectation::Always, Some(path)) => {
                print_run(checker.model(), path.clone());
                panic!("{name}: {} does not hold", property.name);
            }
            (Expectation::Sometimes, None) if as_usual => panic!("{name}: never {}", property.name),
            _ => {}
        }
    }
}

/// Takes a rule out: the property must fail. `faults` are what it takes.
pub fn bites(model: Scenario, faults: u8, property: &'static str) {
    let (mutation, name) = (model.mutation.expect("a rule to take out"), model.name);
    assert!(faults <= model.left.faults, "the scenario itself is not checked as far");
    let left = super::state::Left { faults, ..model.left };
    let stop = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let began = Instant::now();
    let checker = Scenario { left, ..model }.checker().threads(1).finish_when(stop).spawn_dfs().join();
    let path = checker.discovery(property);
    println!(
        "{mutation:?} breaks \"{property}\" in {name} with {faults} faults: {} states, {:.1} s",
        checker.state_count(),
        began.elapsed().as_secs_f64()
    );
    let path = path.unwrap_or_else(|| panic!("{name}: {property} holds without the rule: {mutation:?}"));
    println!("  {:?}", path.into_actions());
}

/// One line for each step: the instant, what was chosen, what was first in the queue, and how the hosts are then.
fn print_run(model: &Scenario, path: Path<State, Action>) {
    let mut path = path.into_vec().into_iter().peekable();
    while let Some((state, action)) = path.next() {
        let head = state.head().map_or_else(|| "time passes".to_owned(), |at| state.queue[at].to_string());
        let Some((after, _)) = path.peek() else { break };
        let hosts: Vec<String> =
            after.hosts.iter().map(|h| h.summary(model.local(h.id, after.now))).collect();
        println!(
            "{:>3} {:<14} {head:<34} {}",
            state.now,
            action.map_or_else(String::new, |a| format!("{a:?}")),
            hosts.join(", ")
        );
    }
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().ok().unwrap_or_else(|| panic!("{name} is not a number: {text}")))
}

/// The tests themselves run side by side; a single one may have all processors.
fn threads() -> usize {
    number("MODEL_THREADS").unwrap_or(1)
}
