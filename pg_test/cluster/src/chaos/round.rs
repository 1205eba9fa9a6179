//! One round: a cluster, a load, the faults of a seed one after the other, and the judgement.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::chaos::inject::{LATER, Remedy, Struck, hold, strike, undo, wall};
use crate::chaos::judge;
use crate::chaos::operator::{make_anew, remove, tend};
use crate::chaos::plan::{Step, plan};
use crate::chaos::reign::Blow;
use crate::chaos::report::Report;
use crate::chaos::witness::Witness;
use crate::chaos::workload::Workload;
use crate::cluster::{Builder, Cluster};
use crate::disk::Disk;
use crate::logs::{Expected, expect};
use crate::network::Network;
use crate::oracle::{Load, Oracle};
use crate::wait::wait_until;

/// Heartbeat period of the cluster in ms, and how many may be lost.
const HEARTBEAT: (u32, u32) = (50, 8);
/// The shortest lease: nine tenths of the election timeout that the cluster begins with.
pub const LEASE_MIN: Duration = Duration::from_millis(360);
/// No lease is longer: that is the longest election timeout that settings are changed to.
pub const LEASE_MAX: Duration = Duration::from_millis(500);
/// How soon after the last fault somebody must take writes. Some ten times what it takes: the machine is busy.
const WRITABLE: Duration = Duration::from_secs(15);

/// Which round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// What the faults are worked out from.
    pub seed: u64,
    /// Number of nodes: 3 or 5.
    pub nodes: u32,
    /// Do commits wait for standbys, so that nothing may be lost?
    pub lossless: bool,
    /// Number of faults.
    pub faults: usize,
}

/// Short rounds that have every kind of fault between them.
pub const BRIEF: [Round; 2] = [
    Round { seed: 5, nodes: 3, lossless: false, faults: 30 },
    Round { seed: 50, nodes: 3, lossless: true, faults: 30 },
];

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.lossless { " --lossless" } else { "" };
        write!(f, "--seed {} --nodes {} --faults {}{mode}", self.seed, self.nodes, self.faults)
    }
}

/// A step as it was done.
#[derive(Clone, Debug)]
pub struct Past {
    /// What was planned.
    pub step: Step,
    /// When it began.
    pub began: Instant,
    /// When the last fault of it was over.
    pub over: Instant,
    /// When one led and all others streamed again.
    pub healed: Instant,
    /// Leader and term before it.
    pub before: (u32, u32),
    /// Leader and term when it had healed.
    pub after: (u32, u32),
    /// Were clients cut off, so that answers may have come late?
    pub cuts_clients: bool,
}

/// What there is to judge.
#[derive(Debug, Default)]
pub struct Protocol {
    /// All steps.
    pub past: Vec<Past>,
    /// What was done to nodes that may have led.
    pub blows: Vec<Blow>,
    /// All events that any node told of.
    pub witness: Witness,
    /// What was seen to be wrong on the way.
    pub violations: Vec<String>,
}

/// What a round's cluster is made of.
pub fn builder(round: &Round) -> Builder {
    // Of five, quorum three, two standbys must have a commit; of three one.
    let standbys = if !round.lossless {
        0
    } else if round.nodes > 3 {
        2
    } else {
        1
    };
    Cluster::builder()
        .network(Network::Namespaces)
        .nodes(round.nodes)
        .sync_standbys(standbys)
        .heartbeat(HEARTBEAT.0, HEARTBEAT.1)
        .setting("shared_buffers", "16MB")
        .setting("max_wal_size", "128MB")
        .setting("biha.watchdog_timeout", "1s")
        .disks(Disk::possible())
        .clocks()
}

/// Faults of all sorts let servers say all sorts of things: only what is wrong under any fault is looked for.
pub fn expected() -> Vec<Expected> {
    vec![
        expect(" WARNING:  ", "faults"),
        expect(" ERROR:  ", "faults"),
        expect(" FATAL:  ", "faults"),
        expect("was terminated by signal 9", "killed by the test"),
        expect(" PANIC:  *No space left on device", "a full disk"),
        expect(" PANIC:  *Read-only file system", "a disk that refuses writes"),
        expect(" PANIC:  *Input/output error", "a disk that refuses writes"),
        expect("was terminated by signal 6", "a PANIC"),
        expect("pg_rewind: error: ", "its source may go away"),
        expect("pg_rewind: fatal: ", "its source may go away"),
    ]
}

/// Runs a round on a cluster that was made for it. An error is a cluster that did not heal; what else is wrong is in
/// the report.
pub fn run(cluster: &mut Cluster, round: &Round) -> Result<Report> {
    if round.lossless {
        let leader = cluster.leader()?;
        leader.biha_value("SELECT biha.set_lossless('require')")?;
        ensure!(
            leader.biha_value("SELECT bool_and(lossless) FROM biha.config()")? == "t",
            "it is not lossless"
        );
    }
    let patient = cluster.nodes().iter().map(|node| node.id).collect();
    let load = Load { rate: Some(100), patient, ..Load::default() };
    let workload = Workload::start(cluster, round.seed)?;
    let oracle = Oracle::start(cluster, load)?;
    let mut protocol = Protocol::default();
    if !cluster.builder.disks {
        eprintln!("NOT DONE: faults of disks, for want of loop devices");
    }
    let steps = plan(round.seed, round.faults, cluster.builder.disks);
    for (number, step) in steps.iter().enumerate() {
        let past = one(cluster, step, &oracle, &workload, &mut protocol)
            .with_context(|| format!("step {} of {}: {step}", number + 1, steps.len()))?;
        eprintln!(
            "{:3}/{} {step}: healed {:.1} s after it was over, term {} to {}",
            number + 1,
            steps.len(),
            (past.healed - past.over).as_secs_f64(),
            past.before.1,
            past.after.1
        );
        protocol.past.push(past);
    }
    let seen = workload.stop()?;
    let record = oracle.stop()?;
    judge::all(cluster, round, &record, &seen, protocol)
}

fn office(cluster: &Cluster) -> Result<(u32, u32)> {
    let leader = cluster.wait_healthy(LATER)?;
    Ok((leader.id, leader.own_status()?.term))
}

fn one(
    cluster: &mut Cluster,
    step: &Step,
    oracle: &Oracle,
    workload: &Workload,
    protocol: &mut Protocol,
) -> Result<Past> {
    let before = office(cluster)?;
    let began = Instant::now();
    let mut done: Vec<Struck> = Vec::new();
    for (index, fault) in step.faults.iter().enumerate() {
        if index > 0 {
            hold(step.gap);
        }
        let spared: Vec<u32> = done.iter().filter_map(|struck| struck.node).collect();
        let struck = strike(cluster, before.0, fault, &spared).with_context(|| format!("{fault}"))?;
        eprintln!("    {} {fault}: node {} {}", time_of_day(), struck.node.unwrap_or(0), struck.told);
        done.push(struck);
    }
    hold(step.faults.iter().map(|fault| fault.duration).max().unwrap_or(0));
    undo(cluster, &mut done)?;
    let over = Instant::now();
    cluster.wait_leader(WRITABLE).context("L1")?;
    for struck in &done {
        match struck.remedy {
            Remedy::MakeAnew(id) => make_anew(cluster, id)?,
            Remedy::Remove(id) => remove(cluster, id)?,
            _ => {}
        }
    }
    let sick = done.iter().any(|struck| struck.sick_disk);
    tend(cluster, sick)?;
    oracle.set_hosts(cluster.addresses());
    oracle.set_patient(cluster.nodes().iter().map(|node| (node.id, node.address.clone())).collect());
    workload.set_hosts(cluster.addresses());
    let after = office(cluster)?;
    let healed = Instant::now();
    oracle.wait_acks(20, LATER)?;
    keep(cluster, protocol, &done)?;
    protocol.blows.extend(done.iter().flat_map(|struck| &struck.blows).copied());
    Ok(Past {
        step: step.clone(),
        began,
        over,
        healed,
        before,
        after,
        cuts_clients: done.iter().any(|struck| struck.cuts_clients),
    })
}

/// Looks whether promises about the configuration were kept, and reads everybody's history while it is there.
fn keep(cluster: &Cluster, protocol: &mut Protocol, done: &[Struck]) -> Result<()> {
    for sql in done.iter().filter_map(|struck| struck.promised.as_ref()) {
        for node in cluster.nodes() {
            let kept = wait_until("a change to be known", LATER, || {
                ensure!(node.biha_value(sql)? == "t", "it is not");
                Ok(())
            });
            if kept.is_err() {
                protocol.violations.push(format!("S6: node {} has lost a change: {sql}", node.id));
            }
        }
    }
    protocol.witness.read(cluster)
}

/// As the servers' logs have it.
fn time_of_day() -> String {
    let ms = wall() / 1000 % 86_400_000;
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::chaos::plan::KINDS;

    #[test]
    fn the_brief_rounds_have_every_kind_between_them() {
        let steps = BRIEF.iter().flat_map(|round| plan(round.seed, round.faults, true));
        let kinds: BTreeSet<_> = steps.flat_map(|step| step.faults).map(|fault| fault.kind).collect();
        let missing: Vec<_> = KINDS.iter().filter(|kind| !kinds.contains(kind)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
