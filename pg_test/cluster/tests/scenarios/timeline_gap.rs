//! Elections without a promotion burn timeline numbers: followers and restores must find their way across the
//! gap, and a node that died on the way to it must start again.
//!
//! A dangling link where the file should be that triggers a promotion makes every promotion fail, at the very moment
//! when a node is elected and has made its placeholders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::{Address, query, single};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::process::kill_all;
use biha_cluster_tests::run::{base_directory, make_directory, run as run_program};
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// The new timeline's number is to be at least so much higher.
const BURNT: u32 = 3;

fn history(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08X}.history"))
}

/// Where PostgreSQL looks for a request to promote.
fn trigger(node: &Node) -> PathBuf {
    node.data.join("promote")
}

/// Stops the leader, and has these two nodes elect each other until numbers are used up without a
/// promotion. Gives the leader's timeline.
fn burn_numbers(leader: &Node, nodes: &[&Node]) -> Result<u32> {
    let before = leader.timeline()?;
    for node in nodes {
        symlink("nowhere/at/all", trigger(node))?;
    }
    leader.stop(StopMode::Fast)?;
    wait_until("elections without a promotion", A_MINUTE, || {
        for node in nodes {
            let term = node.own_status()?.term;
            ensure!(term >= before + BURNT, "node {} is in term {term}", node.id);
        }
        Ok(())
    })?;
    Ok(before)
}

/// Burns numbers, then lets `nodes[0]` be promoted. Gives the timelines before and after the gap.
fn make_gap(cluster: &Cluster, leader: &Node, nodes: [&Node; 2]) -> Result<(u32, u32)> {
    let before = burn_numbers(leader, &nodes)?;
    fs::remove_file(trigger(nodes[0]))?;
    wait_until("the promotion", A_MINUTE, || cluster.leader_among(&nodes).map(drop))?;
    fs::remove_file(trigger(nodes[1]))?;
    let after = nodes[0].timeline()?;
    ensure!(after >= before + BURNT, "timeline {after} follows {before}: there is no gap");
    Ok((before, after))
}

/// Every number of the gap has an empty history file, and the new timeline's says where it comes from.
fn expect_placeholders(directory: &Path, before: u32, after: u32) -> Result<()> {
    for number in before + 1..=after {
        let path = history(directory, number);
        let length = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        ensure!((length == 0) == (number < after), "{} has {length} bytes", path.display());
    }
    Ok(())
}

fn wait_rows(node: &Node, rows: &str) -> Result<()> {
    wait_until(&format!("{rows} rows on node {}", node.id), A_MINUTE, || {
        let seen = node.value("SELECT count(*) FROM t")?;
        ensure!(seen == rows, "there are {seen}");
        Ok(())
    })
}

fn expect_same_everywhere(cluster: &Cluster, before: u32, after: u32, rows: &str) -> Result<()> {
    cluster.wait_caught_up(TEN_SECONDS)?;
    for node in cluster.nodes() {
        expect_placeholders(&node.data.join("pg_wal"), before, after)?;
        ensure!(node.timeline()? == after, "node {} is on another timeline", node.id);
        ensure!(node.value("SELECT count(*) FROM t")? == rows, "node {} has other rows", node.id);
    }
    Ok(())
}

#[test]
fn followers_stream_across_a_gap_of_timelines() {
    let name = "followers_stream_across_a_gap_of_timelines";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let cold = cluster.leader()?;
        cold.query("CREATE TABLE t AS SELECT 1 AS n")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let (winner, live) = (cluster.others(cold.id)[0], cluster.others(cold.id)[1]);
        let pid = live.postmaster();
        let (before, after) = make_gap(cluster, cold, [winner, live])?;
        figures.note("timelines", format!("{before} to {after}"));
        winner.query("INSERT INTO t VALUES (2)")?;
        wait_rows(live, "2")?;
        let started = Instant::now();
        cold.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("the cold follower streams after", started.elapsed());
        expect_same_everywhere(cluster, before, after, "2")?;
        ensure!(live.postmaster() == pid, "the live follower was started again");
        for node in [live, cold] {
            let rewound = node.wait_log(0, "rewinding", Duration::ZERO).is_ok();
            ensure!(!rewound, "node {} was rewound, though nothing had parted", node.id);
        }
        Ok(())
    });
}

/// It leaves empty history files and the intention; without a newer timeline they would make its start hang.
#[test]
fn node_that_died_before_its_promotion_starts() {
    let name = "node_that_died_before_its_promotion_starts";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        old.query("CREATE TABLE t AS SELECT 1 AS n")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let others = cluster.others(old.id);
        let before = burn_numbers(old, &others)?;
        for node in &others {
            node.kill_all()?;
        }
        let left = |node: &&&Node| {
            let file = fs::metadata(history(&node.data.join("pg_wal"), before + 1));
            file.is_ok_and(|file| file.len() == 0)
        };
        let dead: Vec<(&Node, u64)> =
            others.iter().filter(left).map(|node| (*node, node.log_mark())).collect();
        ensure!(!dead.is_empty(), "no node has left a placeholder");
        let started = Instant::now();
        for node in cluster.nodes() {
            node.start()?;
        }
        for (node, mark) in dead {
            node.wait_log(mark, "removed history files of a promotion that did not happen", TEN_SECONDS)?;
        }
        let leader = cluster.wait_healthy(A_MINUTE)?;
        figures.time("healthy after", started.elapsed());
        leader.query("INSERT INTO t VALUES (2)")?;
        expect_same_everywhere(cluster, before, leader.timeline()?, "2")
    });
}

/// A node whose own promotion failed follows another across the gap, dies before its control file knows the new
/// timeline, and is needed as leader: its placeholders are part of the history by then.
#[test]
fn node_whose_promotion_failed_can_lead_later() {
    let name = "node_whose_promotion_failed_can_lead_later";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        old.query("CREATE TABLE t AS SELECT 1 AS n")?;
        let (failed, third) = (cluster.others(old.id)[0], cluster.others(old.id)[1]);
        old.biha_value(&format!("SELECT biha.set_can_be_leader({}, false)", third.id))?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let before = burn_numbers(old, &[failed, third])?;
        let placeholder = history(&failed.data.join("pg_wal"), before + 1);
        ensure!(placeholder.exists(), "node {} has no placeholders", failed.id);
        old.start()?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == old.id, "a node was promoted that can't be");
        let after = old.timeline()?;
        // The third must not hold more than the one that is to lead.
        third.freeze()?;
        old.query("INSERT INTO t VALUES (2)")?;
        wait_rows(failed, "2")?;
        failed.kill_all()?;
        old.kill_all()?;
        third.thaw()?;
        let started = Instant::now();
        failed.start()?;
        wait_until("the node to lead", A_MINUTE, || cluster.leader_among(&[failed, third]).map(drop))?;
        figures.time("leads after", started.elapsed());
        ensure!(failed.timeline()? > after, "timeline {after} again");
        ensure!(failed.value("SELECT count(*) FROM t")? == "2", "a row is lost");
        old.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// `archive_command` of all nodes, into one directory.
fn archiving(archive: &Path) -> Builder {
    let command = format!("cp %p {}/%f", archive.display());
    Cluster::builder().setting("archive_mode", "on").setting("archive_command", &command)
}

/// A base backup from before the gap, restored by plain PostgreSQL to the latest timeline that the archive has,
/// holds what was written after the gap.
#[test]
fn archive_leads_across_a_gap_of_timelines() {
    let archive = base_directory().join(format!("biha-archive-{}", std::process::id()));
    make_directory(&archive).expect("the archive's directory");
    run(
        "archive_leads_across_a_gap_of_timelines",
        archiving(&archive),
        &failover_lines(),
        |cluster, figures| {
            let old = cluster.leader()?;
            old.query("CREATE TABLE t AS SELECT 1 AS n")?;
            cluster.wait_caught_up(TEN_SECONDS)?;
            let backup = cluster.directory.join("restored");
            let mut command = old.program("pg_basebackup");
            command.args(["-h", &old.address.host, "-p", &old.address.port.to_string()]);
            run_program(command.args(["-U", "postgres", "-c", "fast", "-D"]).arg(&backup))?;
            let others = cluster.others(old.id);
            let (before, after) = make_gap(cluster, old, [others[0], others[1]])?;
            old.start()?;
            let leader = cluster.wait_healthy(A_MINUTE)?;
            leader.query("INSERT INTO t SELECT n FROM generate_series(2, 1000) n")?;
            let last = leader.value("SELECT pg_walfile_name(pg_switch_wal())")?;
            wait_until(&format!("segment {last} in the archive"), A_MINUTE, || {
                ensure!(archive.join(&last).exists(), "it is not there");
                Ok(())
            })?;
            expect_placeholders(&archive, before, after)?;
            let (rows, timeline) = restore(leader, &backup, &archive)?;
            figures.note("timelines", format!("{before} to {after}, restored {timeline}"));
            ensure!(rows == "1000", "{rows} rows of 1000 were restored");
            ensure!(timeline == after + 1, "the restored server opened timeline {timeline}, after {after}");
            Ok(())
        },
    );
    fs::remove_dir_all(&archive).expect("the archive's directory");
}

/// Restores the backup without biha, on `host`'s network; gives the rows and the timeline that it opened.
fn restore(host: &Node, backup: &Path, archive: &Path) -> Result<(String, u32)> {
    let address = Address { port: host.address.port + 5, ..host.address.clone() };
    // Not one of the cluster's settings, and so no library of biha's.
    let settings = format!(
        "port = {}\nlisten_addresses = '*'\nunix_socket_directories = ''\nmax_wal_senders = 20\n\
         max_replication_slots = 20\nmax_worker_processes = 32\nmax_connections = 200\n\
         restore_command = 'cp {}/%f %p'\nrecovery_target_timeline = latest\n",
        address.port,
        archive.display(),
    );
    let restored =
        Node { address, data: backup.to_path_buf(), log: backup.with_extension("log"), ..host.clone() };
    fs::write(backup.join("postgresql.conf"), settings)?;
    fs::write(backup.join("postgresql.auto.conf"), "")?;
    fs::write(backup.join("recovery.signal"), "")?;
    let result = (|| {
        restored.start()?;
        wait_until("the restored server to end recovery", A_MINUTE, || {
            ensure!(!restored.in_recovery()?, "it is in recovery");
            Ok(())
        })?;
        ensure!(restored.value("SHOW shared_preload_libraries")?.is_empty(), "the restored server has biha");
        let rows = query(&restored.address, "postgres", "SELECT count(*) FROM t", TEN_SECONDS)?;
        Ok((single(rows)?, restored.timeline()?))
    })();
    kill_all(backup)?;
    result
}
