//! Nodes that lose their power, and with it what they had not synced, come up again by themselves, also while a change of
//! leader has just had their settings rewritten.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::disk::Disk;
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::network::Namespaces;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// How often. What is on a disk when the power goes is a matter of milliseconds.
const TIMES: usize = 3;
/// How many spare files a node has for its settings.
const SPARES: usize = 4;

fn expected() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.push(expect("ERROR:  cannot execute*in a read-only transaction", "the leader has changed"));
    lines
}

/// The spare files of a node's settings, by their inodes: their blocks are on disk, unlike those of a new file.
fn spares(node: &Node) -> Result<Vec<u64>> {
    let inode = |number| -> Result<u64> {
        let path = node.data.join(format!("pg_biha/server.conf.spare{number}"));
        Ok(fs::metadata(&path).with_context(|| path.display().to_string())?.ino())
    };
    wait_until(&format!("spare files of node {}", node.id), A_MINUTE, || (1..=SPARES).map(inode).collect())
}

/// Both followers at once, as soon as the new leader takes writes: they have rewritten their settings twice.
fn lose_followers(cluster: &Cluster, leader: u32) -> Result<()> {
    let followers = cluster.others(leader);
    followers.iter().try_for_each(|node| node.kill_all())?;
    followers.iter().try_for_each(|node| cluster.disk(node.id)?.lose_power())?;
    for node in followers {
        cluster.disk(node.id)?.mend()?;
        let file = node.data.join("pg_biha/server.conf");
        let settings = fs::read(&file).with_context(|| file.display().to_string())?;
        ensure!(!settings.contains(&0), "{} holds zero bytes: no server starts with it", file.display());
        node.start()?;
    }
    Ok(())
}

#[test]
fn power_loss_of_followers_after_a_change_of_leader() {
    let name = "power_loss_of_followers_after_a_change_of_leader";
    if !Disk::possible() || !Namespaces::possible() {
        eprintln!("{name}: NOT RUN, it needs loop devices, that is, root");
        return;
    }
    run(name, Cluster::builder().sync_standbys(1).disks(true), &expected(), |cluster, figures| {
        let oracle = Oracle::start(cluster, Load::default())?;
        let started = Instant::now();
        for _ in 0..TIMES {
            let leader = cluster.wait_healthy(A_MINUTE)?;
            let target = cluster.others(leader.id)[0];
            let third = cluster.others(leader.id)[1];
            let spares = spares(third)?;
            cluster.set_leader(target, target.id)?;
            cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
            let settings = fs::metadata(third.data.join("pg_biha/server.conf"))?.ino();
            ensure!(spares.contains(&settings), "the settings of node {} are in a new file", third.id);
            lose_followers(cluster, target.id)?;
        }
        cluster.wait_healthy(A_MINUTE)?;
        oracle.wait_acks(50, TEN_SECONDS)?;
        figures.note("losses", 2 * TIMES);
        figures.time("all of them", started.elapsed());
        judge(cluster, &oracle.stop()?)?.expect_nothing_lost()
    });
}

/// What a power loss leaves when it comes between the first byte of a timeline's stream and its first flush.
#[test]
fn power_loss_before_the_first_flush_of_a_timeline() {
    let name = "power_loss_before_the_first_flush_of_a_timeline";
    run(name, Cluster::builder(), &expected(), |cluster, figures| {
        let leader = cluster.leader()?;
        let (target, victim) = (cluster.others(leader.id)[0], cluster.others(leader.id)[1]);
        cluster.set_leader(target, target.id)?;
        cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
        cluster.wait_healthy(A_MINUTE)?;
        victim.kill_all()?;
        let timeline = format!("{:08X}", target.timeline()?);
        let mut emptied = 0;
        for entry in fs::read_dir(victim.data.join("pg_wal"))? {
            let path = entry?.path();
            let is_segment = |name: &str| name.starts_with(&timeline) && name.len() == 24;
            if path.file_name().and_then(|name| name.to_str()).is_some_and(is_segment) {
                let length = usize::try_from(fs::metadata(&path)?.len())?;
                fs::write(&path, vec![0; length])?;
                emptied += 1;
            }
        }
        ensure!(emptied > 0, "node {} has received nothing of timeline {timeline}", victim.id);
        let mark = victim.log_mark();
        let started = Instant::now();
        victim.start()?;
        victim.wait_log(mark, "removed WAL segments that were never flushed", TEN_SECONDS)?;
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("healthy after", started.elapsed());
        Ok(())
    });
}
