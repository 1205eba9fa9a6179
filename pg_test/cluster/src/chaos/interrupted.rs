//! Programs that are killed half-way, and a service that is restarted again and again.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::chaos::damage::half_rewound;
use crate::chaos::inject::{LATER, Remedy, SOON, Struck, hold, struck};
use crate::chaos::operator::remove;
use crate::chaos::plan::Fault;
use crate::chaos::random::Random;
use crate::cluster::Cluster;
use crate::node::{Node, StopMode};
use crate::process;
use crate::provision::{add_command, write_magic};
use crate::wait::wait_until;

/// What `bihactl add` says of a directory that a killed one has left.
const LEFT: [&str; 2] = ["is not empty", "is a biha node already"];

/// `bihactl add` whose base backup is killed half-way, with bihactl, without it, or bihactl alone; then once more, and
/// another node is removed. Nothing of it may disturb the cluster.
pub fn add_killed(cluster: &mut Cluster, node: &Node, fault: &Fault) -> Result<Struck> {
    let mut random = Random::new(fault.chance);
    let leader = cluster.wait_leader(SOON)?;
    let before = (leader.id, leader.own_status()?.term);
    write_magic(cluster)?;
    let added = cluster.next_node()?;
    let mut command = add_command(cluster, &added);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut bihactl = command.spawn().context("could not run bihactl")?;
    let told = kill_half_way(&mut bihactl, &mut random)?;
    let tries = again(cluster, &added)?;
    let leader = cluster.wait_leader(SOON)?;
    let after = (leader.id, leader.own_status()?.term);
    ensure!(before == after, "leader and term were {before:?}, and after an addition {after:?}");
    let others = cluster.others(after.0);
    let may_leave = |other: &&&Node| other.id != added.id;
    let asked = others.iter().find(|other| other.id == node.id);
    let leaving = asked.or(others.iter().find(may_leave)).context("no node can leave")?.id;
    remove(cluster, leaving)?;
    let told = format!("{told}; node {} added in {tries} tries more, node {leaving} removed", added.id);
    let mut done = struck(leaving, Remedy::None, None, told);
    done.promised =
        Some(format!("SELECT bool_and(id <> {leaving}) AND bool_or(id = {}) FROM biha.config()", added.id));
    Ok(done)
}

/// Kills bihactl and what it started, bihactl alone, or pg_basebackup alone, some time after the base backup has begun.
fn kill_half_way(bihactl: &mut Child, random: &mut Random) -> Result<String> {
    let pid = i32::try_from(bihactl.id())?;
    let copying = || {
        let mut found = process::descendants(pid);
        found.retain(|process| process.command == "pg_basebackup");
        found
    };
    wait_until("pg_basebackup", SOON, || {
        let ended = bihactl.try_wait()?;
        ensure!(ended.is_none(), "bihactl ended before: {ended:?}");
        ensure!(!copying().is_empty(), "it is not there yet");
        Ok(())
    })?;
    hold(random.between(0, 300));
    let first = copying().first().map(|process| process.pid);
    let told = match (random.below(3), first) {
        (0, _) | (_, None) => {
            process::signal(pid, Signal::KILL)?;
            "bihactl"
        }
        (1, Some(first)) => {
            // Its child, which receives WAL, is left to bihactl.
            process::signal(first, Signal::KILL)?;
            "pg_basebackup"
        }
        (_, Some(first)) => {
            process::signal(pid, Signal::KILL)?;
            // At once, or one that is just being made would stay.
            process::signal_group(first, Signal::KILL)?;
            "bihactl and all below it"
        }
    };
    let status = bihactl.wait()?;
    Ok(format!("{told} killed, bihactl: {status}"))
}

/// `bihactl add` until it succeeds: a base backup that nobody looks after any more has to end first. What it asks to be
/// removed is removed.
fn again(cluster: &mut Cluster, added: &Node) -> Result<usize> {
    let (started, mut tries) = (Instant::now(), 1);
    loop {
        let Err(error) = cluster.join(added.clone()).map(drop) else { return Ok(tries) };
        let text = format!("{error:#}");
        ensure!(started.elapsed() < LATER, "node {} could not be added: {text}", added.id);
        ensure!(!text.contains("is already a member, and online"), "it was not killed: {text}");
        if LEFT.iter().any(|left| text.contains(left)) {
            process::kill_all(&added.data)?;
            // A base backup that still goes on writes there, or removes it: what is left is seen the next time.
            fs::remove_dir_all(&added.data).ok();
        }
        tries += 1;
        hold(100);
    }
}

/// Stops, kills and starts a node's server, again and again, without waiting for anything; leaves it down.
pub fn storm(node: &Node, chance: u64) -> Result<Struck> {
    let mut random = Random::new(chance);
    let times = random.between(4, 10);
    for time in 1..=times {
        match random.below(4) {
            0 => node.kill_all()?,
            1 => node.kill_postmaster()?,
            // It may not be up so far that pg_ctl finds it.
            2 => node.stop(StopMode::Immediate).or_else(|_| node.kill_all())?,
            _ => node.stop(StopMode::Fast).or_else(|_| node.kill_all())?,
        }
        node.wait_gone(SOON)?;
        if half_rewound(node)? {
            // It is not started any more.
            break;
        }
        if time < times {
            node.start_unawaited()?;
            // Before that nobody finds it, to end it.
            wait_until("a lock file", SOON, || node.postmaster().context("there is none"))?;
            hold(random.between(0, 400));
        }
    }
    let told = format!("{times} times");
    Ok(struck(node.id, Remedy::Start(vec![node.id]), None, told))
}
