//! Exhaustive checking of small clusters, within bounds, of the state machine that ships.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod checker;
mod happen;
mod host;
mod mutation;
mod properties;
mod scenario;
mod scenarios;
mod seen;
mod server;
mod shared;
mod state;
#[allow(dead_code, reason = "the simulation uses all of it")]
#[path = "../sim/wal.rs"]
mod wal;

use mutation::Mutation;
use scenario::Scenario;
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;

fn run(model: Scenario, stop: HasDiscoveries) {
    let began = Instant::now();
    let name = model.name;
    let reaches = model.reaches;
    let checker = model.checker().threads(1).finish_when(stop).spawn_dfs().join();
    println!(
        "{name}: {} states, {} unique, depth {}, {:?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    let d = checker.discoveries();
    println!("   not reached: {:?}", reaches.iter().filter(|r| !d.contains_key(**r)).collect::<Vec<_>>());
    for (name, path) in d {
        if reaches.contains(&name) {
            continue;
        }
        println!("   {name}: {:?}", path.into_actions());
    }
}

#[test]
fn explore() {
    let env = |n: &str| std::env::var(n).ok().map(|t| t.parse::<u32>().unwrap());
    let which = std::env::var("S").unwrap_or_default();
    for mut model in scenarios::all() {
        if !which.is_empty() && which != model.name {
            continue;
        }
        if let Some(i) = env("INSTANTS") {
            model.left.instants = i;
        }
        if let Some(i) = env("FAULTS") {
            model.left.faults = i as u8;
        }
        if let Some(i) = env("COMMITS") {
            model.left.commits = i as u8;
        }
        let mut stop = HasDiscoveries::AllFailures;
        if let Ok(m) = std::env::var("M") {
            use Mutation::*;
            let all = [
                ToldBeforeWritten,
                MemoryLost,
                OldLivesHeard,
                StickinessOff,
                PromisesForgotten,
                LeaseTooLong,
                LeaseWithoutMargin,
                ReceiverNotStopped,
                ReceiverKeptOverStart,
                ProductionHidden,
                PositionNotCompared,
                TimelineNotCompared,
                NextFreeTimeline,
                TimelineGoesOn,
                UnelectedWalForgotten,
                ConfigNotCompared,
                RepublishNotAwaited,
                GateOutlivesController,
                WordKeptOverStart,
                LeadershipResumed,
                ClaimBelieved,
                CancelledHandoverReopens,
                CancelledExemptionKept,
            ];
            model.mutation = all.into_iter().find(|x| format!("{x:?}") == m);
            assert!(model.mutation.is_some());
            let p = std::env::var("P").unwrap();
            let p = properties::all(&model).into_iter().find(|x| x.name.starts_with(&p)).unwrap().name;
            stop = HasDiscoveries::AnyOf([p].into());
        }
        run(model, stop);
    }
}
