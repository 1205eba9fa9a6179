//! Running one scenario: a cluster, a body, the check of the logs, figures, and a dump where it fails.

use std::env;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::cluster::{Builder, Cluster};
use crate::logs::{self, Expected};
use crate::network::{Namespaces, Network};
use crate::oracle::rows_of;
use crate::verdict::{Run, Verdict};

/// What a scenario measured.
#[derive(Debug, Default)]
pub struct Figures(String);

impl Figures {
    /// Notes a figure.
    pub fn note(&mut self, name: &str, value: impl std::fmt::Display) {
        let separator = if self.0.is_empty() { "" } else { ", " };
        // Writing to a string can't fail.
        write!(self.0, "{separator}{name} {value}").ok();
    }

    /// Notes a time in ms.
    pub fn time(&mut self, name: &str, time: Duration) {
        self.note(name, format!("{:.0} ms", time.as_secs_f64() * 1000.0));
    }
}

/// Runs a scenario in a thread of its own; panics where it fails, with all that is known.
pub fn run(
    name: &str,
    builder: Builder,
    expected: &[Expected],
    body: impl FnOnce(&mut Cluster, &mut Figures) -> Result<()> + Send,
) {
    prepared(name, builder, expected, |builder| builder.start(), body);
}

/// [`run`] without any node yet: the body makes them.
pub fn run_empty(
    name: &str,
    builder: Builder,
    expected: &[Expected],
    body: impl FnOnce(&mut Cluster, &mut Figures) -> Result<()> + Send,
) {
    prepared(name, builder, expected, |builder| builder.prepare(), body);
}

fn prepared(
    name: &str,
    builder: Builder,
    expected: &[Expected],
    make: impl FnOnce(Builder) -> Result<Cluster> + Send,
    body: impl FnOnce(&mut Cluster, &mut Figures) -> Result<()> + Send,
) {
    if builder.network == Network::Namespaces && !Namespaces::possible() {
        assert!(env::var_os("CI").is_none(), "{name} needs network namespaces, that is, root");
        eprintln!("{name}: NOT RUN, it needs network namespaces, that is, root");
        return;
    }
    let started = Instant::now();
    let work = || -> Result<String> {
        let mut cluster = make(builder)?;
        let made = started.elapsed();
        let mut figures = Figures::default();
        let result = body(&mut cluster, &mut figures).and_then(|()| {
            let lines = logs::check(&cluster.directory, cluster.nodes(), expected)?;
            ensure!(lines.is_empty(), "unexpected lines in the server logs:\n  {}", lines.join("\n  "));
            Ok(())
        });
        match result {
            Ok(()) => Ok(format!("{} [made in {:.1} s]", figures.0, made.as_secs_f64())),
            Err(error) => {
                cluster.keep();
                bail!("{error:#}\nfigures: {}\n{}", figures.0, cluster.dump())
            }
        }
    };
    let result = thread::scope(|scope| scope.spawn(work).join());
    match result {
        Ok(Ok(figures)) => eprintln!("{name}: {figures} [{:.1} s]", started.elapsed().as_secs_f64()),
        Ok(Err(error)) => panic!("{name}: {error:#}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Compares the record with the rows of the leader, and all other nodes' rows with the leader's.
pub fn judge(cluster: &Cluster, run: &Run) -> Result<Verdict> {
    let leader = cluster.wait_healthy(Duration::from_secs(60))?;
    cluster.wait_caught_up(Duration::from_secs(30))?;
    let mut rows = rows_of(leader)?;
    rows.sort();
    for node in cluster.others(leader.id) {
        let mut theirs = rows_of(node)?;
        theirs.sort();
        ensure!(theirs == rows, "node {} and the leader, node {}, have different rows", node.id, leader.id);
    }
    Ok(run.judge(&rows))
}
