//! What an operator does, also while things go wrong: commands that may be refused, and are tried again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::chaos::damage::half_rewound;
use crate::chaos::inject::{LATER, Remedy, SOON, Struck, struck};
use crate::chaos::liveness::Hand;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::provision::write_magic;
use crate::run::run;
use crate::wait::wait_until;

/// So long is a cluster left to itself before an operator looks.
const A_MOMENT: Duration = Duration::from_secs(3);
/// The same where it needs none: what was hindered is tried again after 10 s, and copying takes some, too.
const A_WHILE: Duration = Duration::from_secs(30);
/// The hint of a removal after which a quorum could lack what was acknowledged.
const RAISE: &str = "Raise biha.set_sync_standbys by one first";

/// A command in biha_db of whoever leads, until it answers true: it may be refused, or its leader lost, meanwhile.
fn until_true(cluster: &Cluster, what: &str, sql: &str) -> Result<usize> {
    let mut tries = 0;
    wait_until(what, LATER, || {
        tries += 1;
        let answer = cluster.leader()?.biha_value(sql)?;
        ensure!(answer == "t", "it answered {answer}");
        Ok(())
    })?;
    Ok(tries)
}

/// A switchover to `node`, or to another one where it leads already. With another fault about it may be refused.
pub fn switchover(cluster: &Cluster, node: &Node, leader: u32, spared: &[u32]) -> Result<Struck> {
    let others = cluster.others(leader);
    let reachable = |other: &&&Node| !spared.contains(&other.id);
    let target =
        if node.id == leader { others.iter().find(reachable).map_or(node.id, |n| n.id) } else { node.id };
    // Of a node that does not lead: the leader's own sessions end.
    let at = others.iter().find(|other| other.id == target).context("no target")?;
    if !spared.is_empty() {
        let told = match at.biha_value(&format!("SELECT biha.set_leader({target})")) {
            Ok(answer) => answer,
            Err(error) => format!("{:#}", error.root_cause()),
        };
        return Ok(struck(target, Remedy::None, None, told));
    }
    let started = Instant::now();
    wait_until(&format!("the switchover to node {target}"), SOON, || cluster.set_leader(at, target))?;
    let now = cluster.wait_leader(SOON)?.id;
    ensure!(now == target, "node {now} leads and not node {target}, which the switchover was to");
    Ok(struck(target, Remedy::None, None, format!("after {} ms", started.elapsed().as_millis())))
}

/// Changes a setting; what was answered with true must be there from now on.
pub fn settings(cluster: &Cluster, node: &Node, chance: u64) -> Result<Struck> {
    let heartbeats = 8 + chance % 3;
    let wait = 20_000 + chance % 1000;
    let (name, value) =
        if chance & 1024 == 0 { ("heartbeat_max_lost", heartbeats) } else { ("no_wal_on_follower", wait) };
    let sql = format!("SELECT biha.set_{name}({value})");
    let tries = until_true(cluster, &sql, &sql)?;
    let mut done = struck(node.id, Remedy::None, None, format!("{name} {value}, {tries} tries"));
    done.promised = Some(format!("SELECT bool_and({name} = {value}) FROM biha.config()"));
    Ok(done)
}

/// Adds a node, then removes another: `node`, or a follower where that one leads. With a node down the removal may be
/// refused, where commits wait for standbys; it is done when that node is back.
pub fn membership(cluster: &mut Cluster, node: &Node, spared: &[u32]) -> Result<Struck> {
    let mut tries = 1;
    let started = Instant::now();
    while let Err(error) = add(cluster) {
        ensure!(started.elapsed() < LATER, "no node could be added: {error:#}");
        tries += 1;
        drop_strangers(cluster)?;
    }
    let added = cluster.nodes().last().context("no node was added")?.id;
    let leader = cluster.wait_leader(LATER)?.id;
    let others = cluster.others(leader);
    let may_leave = |other: &&&Node| other.id != added && !spared.contains(&other.id);
    let asked = others.iter().find(|other| other.id == node.id);
    let leaving = asked.or(others.iter().find(may_leave)).context("no node can leave")?.id;
    let added_and = format!("node {added} added in {tries} tries, node {leaving}");
    if !spared.is_empty() && ask_removal(cluster, leaving).is_err() {
        let told = format!("{added_and}'s removal refused, to be done later");
        return Ok(struck(leaving, Remedy::Remove(leaving), None, told));
    }
    remove(cluster, leaving)?;
    let mut done = struck(leaving, Remedy::None, None, format!("{added_and} removed"));
    done.promised =
        Some(format!("SELECT bool_and(id <> {leaving}) AND bool_or(id = {added}) FROM biha.config()"));
    Ok(done)
}

fn add(cluster: &mut Cluster) -> Result<()> {
    write_magic(cluster)?;
    cluster.add_node().map(drop)
}

/// Removes members that are none of ours: an addition that failed after its half.
fn drop_strangers(cluster: &mut Cluster) -> Result<()> {
    let members = cluster.wait_leader(LATER)?.biha("SELECT id FROM biha.config()")?;
    for row in members {
        let id: u32 = row[0].as_deref().context("a member without a number")?.parse()?;
        if cluster.nodes().iter().all(|node| node.id != id) {
            let sql = format!("SELECT biha.remove_node({id})");
            until_true(cluster, &format!("the removal of node {id}, half added"), &sql)?;
            cluster.clear_away(id)?;
        }
    }
    Ok(())
}

fn ask_removal(cluster: &Cluster, id: u32) -> Result<()> {
    let leader = cluster.leader()?;
    if leader.biha_value(&format!("SELECT bool_and(id <> {id}) FROM biha.config()"))? == "t" {
        // It was removed, and the answer was lost.
        return Ok(());
    }
    let mut command = leader.runner.command(&cluster.bihactl);
    command.args(["remove", "-D"]).arg(&leader.data);
    run(command.args(["--username", "postgres", "--id", &id.to_string()])).map(drop)
}

/// Removes a member, ends it, and forgets it. Where it may hold a commit that no quorum of the others has, as the
/// refusal says how.
pub fn remove(cluster: &mut Cluster, id: u32) -> Result<()> {
    let synchronous = |count: u32| -> Result<usize> {
        let sql = format!("SELECT biha.set_sync_standbys({count})");
        until_true(cluster, &sql, &sql)
    };
    let standbys = cluster.builder.sync_standbys;
    let mut raised = false;
    wait_until(&format!("the removal of node {id}"), LATER, || {
        let answer = ask_removal(cluster, id);
        if answer.as_ref().is_err_and(|error| error.to_string().contains(RAISE)) && !raised {
            synchronous(standbys + 1)?;
            raised = true;
        }
        answer
    })?;
    if raised {
        synchronous(standbys)?;
    }
    cluster.forget(id)?;
    cluster.clear_away(id)
}

/// "Making a node anew" of the manual, under a new number.
pub fn make_anew(cluster: &mut Cluster, id: u32) -> Result<()> {
    remove(cluster, id)?;
    add(cluster)
}

/// What an operator does about nodes that are not back in a while: one whose rewind was cut short by a fault is made
/// anew, and one whose rewind a sick disk hindered is told that the disk is well. Whatever else is wrong stays so.
/// Gives what was done.
pub fn tend(cluster: &mut Cluster, sick_disk: bool, autoreclone: bool) -> Result<Vec<Hand>> {
    let (started, mut hands) = (Instant::now(), Vec::new());
    let patience = if autoreclone { A_WHILE } else { A_MOMENT };
    while started.elapsed() < LATER && cluster.wait_healthy(patience).is_err() {
        let mut broken = None;
        for node in cluster.nodes() {
            if half_rewound(node)? {
                broken = Some(node.id);
            } else if sick_disk && node.own_status().is_ok_and(|own| own.state == "NODE_ERROR") {
                let told = node.biha("SELECT biha.error_details()::text")?;
                eprintln!("    node {}: {told:?}, reset", node.id);
                node.biha("SELECT biha.reset_node_error()")?;
                hands.push(Hand::Reset(node.id, format!("{told:?}")));
            }
        }
        if let Some(id) = broken {
            eprintln!("    node {id} lies half rewound and is made anew");
            make_anew(cluster, id)?;
            hands.push(Hand::HalfRewound(id));
        }
    }
    Ok(hands)
}
