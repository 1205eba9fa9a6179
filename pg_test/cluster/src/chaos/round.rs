//! One round: a cluster, a load, the faults of a seed one after the other, and the judgement.

use std::env;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::chaos::inject::{LATER, Remedy, Struck, hold, strike, undo, wall};
use crate::chaos::judge;
use crate::chaos::liveness::{self, Hand};
use crate::chaos::losses::{self, Listed};
use crate::chaos::operator::{make_anew, remove, tend};
use crate::chaos::plan::{KINDS, Kind, Step, plan};
use crate::chaos::reign::Blow;
use crate::chaos::report::Report;
use crate::chaos::witness::Witness;
use crate::chaos::workload::Workload;
use crate::cluster::{Builder, Cluster};
use crate::delay::Delay;
use crate::disk::Disk;
use crate::logs::{Expected, expect};
use crate::network::Network;
use crate::oracle::{Load, Oracle};
use crate::wait::wait_until;

/// Heartbeat period of the cluster in ms, and how many may be lost.
const HEARTBEAT: (u32, u32) = (50, 8);
/// After which a leader whose disk hangs gives up its office.
const WATCHDOG: &str = "1s";
/// The shortest lease: nine tenths of the election timeout that the cluster begins with.
pub const LEASE_MIN: Duration = Duration::from_millis(360);
/// No lease is longer: that is the longest election timeout that settings are changed to.
pub const LEASE_MAX: Duration = Duration::from_millis(500);

/// Which round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// What the faults are worked out from.
    pub seed: u64,
    /// Number of nodes: 3 or 5.
    pub nodes: u32,
    /// Do commits wait for standbys, so that nothing may be lost?
    pub lossless: bool,
    /// Do nodes that cannot be rewound copy the leader by themselves, so that no hand may be needed?
    pub autoreclone: bool,
    /// Number of faults.
    pub faults: usize,
}

/// Short rounds that have every kind of fault between them, a leader whose disk hangs for longer than the watchdog waits,
/// and rewinds that are killed past the point of no return.
pub const BRIEF: [Round; 2] = [
    Round { seed: 456, nodes: 3, lossless: false, autoreclone: true, faults: 30 },
    Round { seed: 531, nodes: 3, lossless: true, autoreclone: false, faults: 30 },
];

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.lossless { " --lossless" } else { "" };
        let copies = if self.autoreclone { " --autoreclone" } else { "" };
        write!(f, "--seed {} --nodes {} --faults {}{mode}{copies}", self.seed, self.nodes, self.faults)
    }
}

/// A step as it was done.
#[derive(Clone, Debug)]
pub struct Past {
    /// What was planned.
    pub step: Step,
    /// When it began.
    pub began: Instant,
    /// When the last blow had fallen.
    pub blow: Instant,
    /// When the last fault of it was over.
    pub over: Instant,
    /// When one led and all others streamed again.
    pub healed: Instant,
    /// Leader and term before it.
    pub before: (u32, u32),
    /// Leader and term when it had healed.
    pub after: (u32, u32),
    /// Nodes that clients were cut off from, so that their answers may have come late.
    pub cut_off: Vec<u32>,
    /// Was a node removed, and all that it had kept?
    pub gone: bool,
    /// For how long a majority lived when it was over, and nobody took writes.
    pub led: Duration,
    /// When somebody said that it takes writes.
    pub said: Instant,
    /// What an operator had to do for nodes.
    pub hands: usize,
    /// Faults that came too late to happen.
    pub missed: usize,
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
    /// All transactions that any node lists as lost.
    pub listed: Listed,
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
        .setting("biha.watchdog_timeout", WATCHDOG)
        .setting("biha.autoreclone", if round.autoreclone { "on" } else { "off" })
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
        expect(" XX000 FATAL:  could not write init file", "a full disk, at a login"),
        expect("pg_rewind: error: ", "its source may go away"),
        expect("pg_rewind: fatal: ", "its source may go away"),
    ]
}

/// Runs a round on a cluster that was made for it. An error is a cluster that did not heal; what else is wrong is in
/// the report.
pub fn run(cluster: &mut Cluster, round: &Round) -> Result<Report> {
    let (disks, delay) = (cluster.builder.disks, Delay::possible());
    let can = |kind: Kind| (disks || !kind.needs_disk()) && (delay || kind != Kind::Delay);
    let left_out: Vec<String> =
        KINDS.iter().filter(|kind| !can(**kind)).map(|kind| format!("{kind:?}")).collect();
    liveness::complete(&left_out, env::var_os("CI").is_some())?;
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
    let steps = plan(round.seed, round.faults, can);
    for (number, step) in steps.iter().enumerate() {
        let past = one(cluster, round, step, &oracle, &workload, &mut protocol)
            .with_context(|| format!("step {} of {}: {step}", number + 1, steps.len()))?;
        eprintln!(
            "{:3}/{} {step}: led after {:.1} s, healed {:.1} s after it was over, term {} to {}",
            number + 1,
            steps.len(),
            past.led.as_secs_f64(),
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
    round: &Round,
    step: &Step,
    oracle: &Oracle,
    workload: &Workload,
    protocol: &mut Protocol,
) -> Result<Past> {
    let before = office(cluster)?;
    let members = numbers(cluster);
    let began = Instant::now();
    let (mut done, mut struck_at): (Vec<Struck>, Vec<Instant>) = (Vec::new(), Vec::new());
    for (index, fault) in step.faults.iter().enumerate() {
        if index > 0 {
            hold(step.gap);
        }
        let spared: Vec<u32> = done.iter().filter_map(|struck| struck.node).collect();
        let struck = strike(cluster, before.0, fault, &spared).with_context(|| format!("{fault}"))?;
        eprintln!("    {} {fault}: node {} {}", time_of_day(), struck.node.unwrap_or(0), struck.told);
        struck_at.push(struck.fell.unwrap_or_else(Instant::now));
        done.push(struck);
    }
    hold(step.faults.iter().map(|fault| fault.duration).max().unwrap_or(0));
    undo(cluster, &mut done)?;
    let over = Instant::now();
    // Who leads may have been added meanwhile.
    dial(cluster, oracle, workload);
    let (led, said) = liveness::wait_leader(cluster)?;
    protocol.violations.extend(liveness::late(step, led));
    let hands = mend(cluster, round, &done)?;
    protocol.violations.extend(liveness::needless(round.autoreclone, step, &hands));
    dial(cluster, oracle, workload);
    let after = office(cluster)?;
    let healed = Instant::now();
    oracle.wait_acks(20, LATER)?;
    keep(cluster, protocol, &done)?;
    if !round.lossless && after.1 > before.1 {
        losses::read_listed(cluster, &mut protocol.listed)?;
    }
    protocol.blows.extend(done.iter().flat_map(|struck| &struck.blows).copied());
    let lasts = step.faults.iter().any(|fault| fault.kind.lasts());
    let now = numbers(cluster);
    Ok(Past {
        step: step.clone(),
        began,
        blow: if lasts { over } else { struck_at.into_iter().max().unwrap_or(began) },
        over,
        healed,
        before,
        after,
        cut_off: done.iter().filter(|s| s.cuts_clients).filter_map(|s| s.node).collect(),
        gone: members.iter().any(|id| !now.contains(id)),
        led,
        said,
        hands: hands.len(),
        missed: done.iter().filter(|struck| struck.missed).count(),
    })
}

/// Tells clients who the members are.
fn dial(cluster: &Cluster, oracle: &Oracle, workload: &Workload) {
    oracle.set_hosts(cluster.addresses());
    oracle.set_patient(cluster.nodes().iter().map(|node| (node.id, node.address.clone())).collect());
    workload.set_hosts(cluster.addresses());
}

fn numbers(cluster: &Cluster) -> Vec<u32> {
    cluster.nodes().iter().map(|node| node.id).collect()
}

/// What an operator does when the faults are over: what was put off, and what nodes need. Gives the latter.
fn mend(cluster: &mut Cluster, round: &Round, done: &[Struck]) -> Result<Vec<Hand>> {
    let mut hands = Vec::new();
    for struck in done {
        match &struck.remedy {
            Remedy::MakeAnew(hand) => {
                make_anew(cluster, hand.node())?;
                hands.push(hand.clone());
            }
            Remedy::Remove(id) => remove(cluster, *id)?,
            _ => {}
        }
    }
    let sick = done.iter().any(|struck| struck.sick_disk);
    hands.extend(tend(cluster, sick, round.autoreclone)?);
    Ok(hands)
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
    use crate::chaos::damage::past_return;
    use crate::chaos::plan::{Kind, Target};

    /// A leader's disk hangs, two seconds longer than the watchdog waits.
    fn hangs_the_leader(step: &Step) -> bool {
        let fault = step.faults[0];
        let long = fault.kind == Kind::DiskHangs && fault.target == Target::Leader && fault.duration >= 3000;
        long && step.faults.len() == 1
    }

    fn rewinds(round: &Round) -> Vec<bool> {
        let steps = plan(round.seed, round.faults, |_| true);
        let faults = steps.into_iter().flat_map(|step| step.faults);
        faults.filter(|fault| fault.kind == Kind::RewindKilled).map(|fault| past_return(&fault)).collect()
    }

    #[test]
    fn the_brief_rounds_have_every_kind_between_them() {
        let steps = || BRIEF.iter().flat_map(|round| plan(round.seed, round.faults, |_| true));
        let kinds: BTreeSet<_> = steps().flat_map(|step| step.faults).map(|fault| fault.kind).collect();
        let missing: Vec<_> = KINDS.iter().filter(|kind| !kinds.contains(kind)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(steps().any(|step| hangs_the_leader(&step)), "no hang is longer than the watchdog waits");
        // With copies that nodes make by themselves, and without.
        assert!(BRIEF[0].autoreclone && !BRIEF[1].autoreclone);
        assert!(BRIEF.iter().all(|round| rewinds(round).contains(&true)), "no rewind is killed past return");
    }
}
