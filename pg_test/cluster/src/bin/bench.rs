//! `make bench`: biha's figures on this machine, beside their targets.

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use biha_cluster_tests::bench::steady::Round;
use biha_cluster_tests::bench::{Figure, Target, faults, steady, table};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::network::Network;

const USAGE: &str = "usage: bench [-n TIMES] [-t PGBENCH_SECONDS] [NAME...]
Measures each figure TIMES times (default 10); with names, only figures whose name contains one of them.";

/// Rounds of pgbench on each cluster: single ones differ by ten percent on a machine with two cores.
const ROUNDS: u32 = 4;

struct Options {
    times: usize,
    seconds: u32,
    names: Vec<String>,
}

fn options() -> Result<Options> {
    let mut options = Options { times: 10, seconds: 5, names: Vec::new() };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-n" => options.times = words.next().context(USAGE)?.parse().context(USAGE)?,
            "-t" => options.seconds = words.next().context(USAGE)?.parse().context(USAGE)?,
            _ if word.starts_with('-') => bail!(USAGE),
            _ => options.names.push(word),
        }
    }
    Ok(options)
}

impl Options {
    fn wanted(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }
}

/// A figure that is measured by doing something to a cluster, again and again.
struct Repeated {
    name: &'static str,
    target_ms: f64,
    measure: fn(&Cluster) -> Result<f64>,
}

const fn repeated(name: &'static str, target_ms: f64, measure: fn(&Cluster) -> Result<f64>) -> Repeated {
    Repeated { name, target_ms, measure }
}

/// One cluster after the other, and what is measured on each.
fn plan() -> Vec<(Builder, Vec<Repeated>)> {
    let namespaces = || Cluster::builder().network(Network::Namespaces);
    vec![
        (
            Cluster::builder(),
            vec![
                repeated("switchover", 200.0, faults::switchover),
                repeated("crash of the leader's postmaster", 150.0, faults::crash),
                repeated("rejoin after crash, 64 MB diverged", 3000.0, faults::rejoin_diverged),
            ],
        ),
        (namespaces(), vec![repeated("silent loss, 200 ms × 10", 2400.0, faults::silent_loss)]),
        (namespaces().heartbeat(50, 8), vec![repeated("silent loss, 50 ms × 8", 700.0, faults::silent_loss)]),
        (
            Cluster::builder().sync_standbys(1),
            vec![
                repeated("switchover, one synchronous standby", 250.0, faults::switchover),
                repeated("crash, one synchronous standby", 250.0, faults::crash),
            ],
        ),
    ]
}

fn measure_faults(options: &Options, figures: &mut Vec<Figure>) -> Result<()> {
    for (builder, list) in plan() {
        let list: Vec<Repeated> = list.into_iter().filter(|what| options.wanted(what.name)).collect();
        if list.is_empty() {
            continue;
        }
        let cluster = builder.start()?;
        for Repeated { name, target_ms, measure } in list {
            let mut series = Vec::new();
            for time in 1..=options.times {
                let value = measure(&cluster).with_context(|| format!("{name}\n{}", cluster.dump()))?;
                eprintln!("{name} {time}: {value:.0} ms");
                series.push(value);
            }
            figures.push(Figure { name, unit: "ms", target: Target::AtMost(target_ms), series });
        }
    }
    Ok(())
}

fn measure_steady(options: &Options, figures: &mut Vec<Figure>) -> Result<()> {
    const THROUGHPUT: &str = "pgbench throughput, of plain streaming";
    const CPU: &str = "CPU of a transaction, of plain streaming";
    const IDLE: &str = "idle CPU of biha's workers, each node";
    if options.wanted(IDLE) {
        let cluster = Cluster::builder().start()?;
        let series = steady::idle_cpu(&cluster, Duration::from_secs(60))?;
        figures.push(Figure { name: IDLE, unit: "s a minute", target: Target::AtMost(0.15), series });
    }
    if options.wanted(THROUGHPUT) {
        let (throughput, cpu) = measure_throughput(options)?;
        figures.push(Figure {
            name: THROUGHPUT,
            unit: "%",
            target: Target::AtLeast(98.0),
            series: throughput,
        });
        figures.push(Figure { name: CPU, unit: "%", target: Target::AtMost(102.0), series: cpu });
    }
    Ok(())
}

/// biha's throughput and CPU time a transaction in percent of plain streaming's. Each time two clusters are made anew:
/// where memory and files happen to lie makes a difference of several percent, for as long as a cluster lives.
fn measure_throughput(options: &Options) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut throughput, mut cpu) = (Vec::new(), Vec::new());
    for time in 1..=options.times {
        let (with, without) = throughput_of_a_pair(options.seconds, time % 2 == 0)?;
        eprintln!(
            "pgbench {time}: biha {:.0} tps at {:.0} µs of CPU, plain {:.0} tps at {:.0} µs",
            with.tps, with.cpu, without.tps, without.cpu
        );
        throughput.push(with.tps / without.tps * 100.0);
        cpu.push(with.cpu / without.cpu * 100.0);
    }
    Ok((throughput, cpu))
}

/// With biha, and without, interleaved; each the first in turn, in being made and in being measured.
fn throughput_of_a_pair(seconds: u32, biha_first: bool) -> Result<(Round, Round)> {
    // Two clusters at once: a client is in one network namespace only.
    let make = |plain: bool| {
        let builder = Cluster::builder().network(Network::Loopback);
        if plain { builder.plain().start() } else { builder.start() }
    };
    let clusters = [make(!biha_first)?, make(biha_first)?];
    clusters.iter().try_for_each(steady::prepare)?;
    let mut rounds = [Round::default(), Round::default()];
    for time in 0..ROUNDS {
        for turn in 0..2 {
            let which = ((time + turn) % 2) as usize;
            let round = steady::throughput(&clusters[which], seconds)?;
            rounds[which].tps += round.tps / f64::from(ROUNDS);
            rounds[which].cpu += round.cpu / f64::from(ROUNDS);
        }
    }
    let [first, second] = rounds;
    Ok(if biha_first { (first, second) } else { (second, first) })
}

fn measure() -> Result<String> {
    let options = options()?;
    let mut figures = Vec::new();
    measure_faults(&options, &mut figures)?;
    measure_steady(&options, &mut figures)?;
    Ok(table(&figures))
}

#[expect(clippy::print_stdout, reason = "the table is the program's output")]
fn main() -> ExitCode {
    // In a thread of its own: making network namespaces moves the thread into one.
    let result = std::thread::spawn(measure).join();
    match result {
        Ok(Ok(table)) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}
