//! `make soak-chaos`: round after round of faults, each from a seed of its own, for hours; then a report. And the way
//! to play one round again.

use std::env;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use biha_cluster_tests::chaos::report::Report;
use biha_cluster_tests::chaos::round::{self, Round};
use biha_cluster_tests::logs;

const USAGE: &str = "usage: chaos [--seed N] [--nodes 3|5] [--faults N] [--lossless] [--autoreclone] [--hours H]
Without --hours one round; with it rounds of the seeds from N on, asynchronous, lossless and of five nodes in turn, each
with biha.autoreclone and without.";
/// Failed rounds after which it is enough: each keeps its cluster's files.
const FAILED_MAX: usize = 10;

struct Options {
    round: Round,
    hours: Option<f64>,
}

fn options() -> Result<Options> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut round = Round { seed: now, nodes: 3, lossless: false, autoreclone: false, faults: 40 };
    let mut hours = None;
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().context(USAGE);
        match word.as_str() {
            "--seed" => round.seed = value()?.parse().context(USAGE)?,
            "--nodes" => round.nodes = value()?.parse().context(USAGE)?,
            "--faults" => round.faults = value()?.parse().context(USAGE)?,
            "--hours" => hours = Some(value()?.parse().context(USAGE)?),
            "--lossless" => round.lossless = true,
            "--autoreclone" => round.autoreclone = true,
            _ => bail!(USAGE),
        }
    }
    ensure!(matches!(round.nodes, 3 | 5), USAGE);
    Ok(Options { round, hours })
}

/// Makes a cluster and runs a round on it; keeps its files if anything is wrong.
fn play(round: &Round) -> Result<Report> {
    let mut cluster = round::builder(round).start()?;
    let result = round::run(&mut cluster, round).and_then(|mut report| {
        let lines = logs::check(&cluster.directory, cluster.nodes(), &round::expected())?;
        report.violations.extend(lines);
        Ok(report)
    });
    if !result.as_ref().is_ok_and(|report| report.violations.is_empty()) {
        cluster.keep();
        eprintln!("kept: {}", cluster.directory.display());
    }
    result.map_err(|error| anyhow!("{error:#}\n{}", cluster.dump()))
}

/// In a thread of its own: making network namespaces moves the thread into one.
fn apart(round: Round) -> Result<Report> {
    thread::spawn(move || play(&round)).join().map_err(|_| anyhow!("the round panicked"))?
}

fn soak(first: Round, hours: f64) -> (Report, usize) {
    let end = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    let (mut total, mut failed) = (Report::default(), 0);
    let mut round = first;
    while Instant::now() < end && failed < FAILED_MAX {
        let turn = round.seed - first.seed;
        round.lossless = turn % 2 == 1;
        round.nodes = if turn % 4 >= 2 { 5 } else { 3 };
        // Every second round, and each sort with it and without it.
        round.autoreclone = (turn % 8).count_ones() % 2 == 1;
        eprintln!("round {}: {round}", turn + 1);
        match apart(round) {
            Ok(report) => {
                if !report.violations.is_empty() {
                    failed += 1;
                    eprintln!("{}to play it again: chaos {round}", report.table());
                }
                total.add(report);
            }
            Err(error) => {
                failed += 1;
                eprintln!("{error:#}\nto play it again: chaos {round}");
                total.violations.push(format!("{round} did not heal"));
            }
        }
        round.seed += 1;
    }
    (total, failed)
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn main() -> ExitCode {
    let result = options().and_then(|Options { round, hours }| match hours {
        Some(hours) => Ok(soak(round, hours)),
        None => apart(round).map(|report| (report, 0)),
    });
    match result {
        Ok((report, failed)) => {
            println!("{}", report.table());
            let good = failed == 0 && report.violations.is_empty();
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
