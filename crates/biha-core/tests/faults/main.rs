//! Random faults over a simulated cluster: whatever happens, S1 to S6 of the design hold; and once the faults end,
//! there is a leader in time (L1).
//!
//! `SEED=n` runs one seed and prints its trace, `TRACE="Vote Heartbeat"` with these messages; `SEEDS=n` sets how
//! many are run, `FIRST=n` where they begin, `SURVEY=1` lists all that fail and not only the first.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod bites;
mod fault;
mod figures;
mod operator;
mod plots;
mod recovery;
mod run;
#[path = "../sim/mod.rs"]
mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use figures::Figures;
use run::{Plan, Run, changes, minorities};

/// Seeds in an ordinary run.
const SEEDS: u64 = 10_000;
/// Seeds that have found something once: always run, and first.
const REGRESSIONS: &str = include_str!("../data/seeds");

#[test]
fn safety_under_faults_and_liveness_after_them() {
    if let Some(seed) = number("SEED") {
        return replay(seed, &Plan::default());
    }
    let known: Vec<u64> = REGRESSIONS.lines().filter_map(seed_of).collect();
    for seed in known {
        one(seed, &Plan::default()).unwrap_or_else(|text| panic!("\n{text}"));
    }
    let figures = many(SEEDS, &Plan::default());
    let [died, switched] = figures.planned();
    println!("{died} leaders died alone, {switched} switchovers; {} runs excused", figures.excused);
    let enough = figures.seeds / 2;
    assert!(died > enough && switched > enough && figures.excused < figures.seeds / 20, "most is excused");
}

/// Where commits are guarded, no change of voters and quorums loses one, whatever happens meanwhile.
#[test]
fn safety_while_quorums_change() {
    match number("SEED") {
        Some(seed) => replay(seed, &changes()),
        None => drop(many(SEEDS / 2, &changes())),
    }
}

/// Where any number may elect for a while, there is one leader again as soon as nobody knows of that any more.
#[test]
fn safety_after_quorums_that_were_no_majority() {
    match number("SEED") {
        Some(seed) => replay(seed, &minorities()),
        None => {
            let figures = many(2 * SEEDS / 5, &minorities());
            println!("judged again {} times, as two leaders were possible no more", figures.judged_again);
            assert!(figures.judged_again > figures.seeds / 100, "hardly any run is judged again");
        }
    }
}

/// This many seeds, unless told otherwise.
fn many(usual: u64, plan: &Plan) -> Figures {
    let (first, seeds) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(usual));
    let survey = number("SURVEY").is_some();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut figures = Figures::default();
    std::thread::scope(|scope| {
        let share = |t: u64| {
            let mut figures = Figures::default();
            for seed in (first + t..first + seeds).step_by(threads as usize) {
                match one(seed, plan) {
                    Ok(seen) => figures.add(&seen),
                    Err(text) if survey => println!("{text}"),
                    Err(text) => return Err(text),
                }
            }
            Ok::<_, String>(figures)
        };
        let shares: Vec<_> = (0..threads).map(|t| scope.spawn(move || share(t))).collect();
        for share in shares {
            figures.add(&share.join().unwrap().unwrap_or_else(|text| panic!("\n{text}")));
        }
    });
    println!("{}", figures.table());
    assert!(figures.elections > 2 * seeds && figures.commits > 10 * seeds, "the runs show too little");
    figures
}

/// A line of the file of regressions: the number, then what it had found.
fn seed_of(line: &str) -> Option<u64> {
    line.split_whitespace().next().filter(|word| !word.starts_with('#')).map(|word| word.parse().unwrap())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// One seed, twice: what was seen, if all is well and both runs are the same.
fn one(seed: u64, plan: &Plan) -> Result<Figures, String> {
    let test = match plan {
        Plan { changes: true, .. } => "safety_while",
        Plan { minorities: true, .. } => "safety_after",
        _ => "safety_under",
    };
    let replay = format!("SEED={seed} cargo test -p biha-core --test faults {test} -- --nocapture");
    let once = || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut run = Run::new(seed, plan);
            run.all().map(|()| (run.fingerprint(), run.figures))
        }));
        outcome
            .unwrap_or_else(|_| Err("panic".to_owned()))
            .map_err(|text| format!("seed {seed}: {text}\nreplay: {replay}"))
    };
    let (first, second) = (once()?, once()?);
    if first.0 != second.0 {
        return Err(format!("seed {seed}: two runs of it differ\nreplay: {replay}"));
    }
    Ok(first.1)
}

fn replay(seed: u64, plan: &Plan) {
    let mut run = Run::new(seed, &Plan { tracing: true, ..plan.clone() });
    let kinds = std::env::var("TRACE").unwrap_or_default();
    run.cluster.trace_messages = kinds.split_whitespace().map(str::to_owned).collect();
    let result = catch_unwind(AssertUnwindSafe(|| run.all()));
    for line in &run.cluster.trace {
        println!("{line}");
    }
    for host in run.cluster.hosts.values() {
        println!("{:?}\n", host.controller);
    }
    result.unwrap_or_else(|_| Err("panic".to_owned())).unwrap();
}
