//! Faults of every kind from a seed, one after the other and two at once, under load: nothing is lost that must not
//! be, nobody leads beside another, and the cluster heals without hands. `SEED=` and `FAULTS=` choose others.

use std::env;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::chaos::round::{self, BRIEF, Round};
use biha_cluster_tests::scenario::run;

fn number(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

fn chaos(name: &str, round: Round) -> Result<()> {
    let faults = usize::try_from(number("FAULTS", round.faults as u64)?)?;
    let round = Round { seed: number("SEED", round.seed)?, faults, ..round };
    run(name, round::builder(&round), &round::expected(), |cluster, figures| {
        let again = || {
            format!("to play it again: make test-cluster SCENARIO={name} SEED={} FAULTS={faults}", round.seed)
        };
        let report = round::run(cluster, &round).with_context(again)?;
        eprintln!("{}", report.table());
        figures.note("seed", round.seed);
        figures.note("faults", report.faults());
        figures.note("acknowledged", report.acknowledged);
        figures.note("lost", report.lost());
        figures.note("hands", report.hands());
        figures.time("longest without a leader while a majority lived", report.led());
        ensure!(report.faults() >= faults, "only {} faults", report.faults());
        ensure!(report.violations.is_empty(), "{}\n{}", report.violations.join("\n"), again());
        Ok(())
    });
    Ok(())
}

/// Two short rounds, for every day: all kinds of faults between them.
#[test]
fn brief_asynchronous() -> Result<()> {
    chaos("brief_asynchronous", BRIEF[0])
}

#[test]
fn brief_lossless() -> Result<()> {
    chaos("brief_lossless", BRIEF[1])
}

#[test]
fn chaos_asynchronous() -> Result<()> {
    chaos("chaos_asynchronous", Round { seed: 1, nodes: 3, lossless: false, autoreclone: false, faults: 60 })
}

#[test]
fn chaos_lossless() -> Result<()> {
    chaos("chaos_lossless", Round { seed: 2, nodes: 3, lossless: true, autoreclone: true, faults: 60 })
}

#[test]
fn chaos_lossless_of_five() -> Result<()> {
    chaos(
        "chaos_lossless_of_five",
        Round { seed: 3, nodes: 5, lossless: true, autoreclone: false, faults: 30 },
    )
}
