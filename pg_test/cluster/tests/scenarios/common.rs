//! What several scenarios need.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::disk::Disk;
use biha_cluster_tests::logs::{Expected, LEADER_GONE, expect};
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::process::{self, Process};
use biha_cluster_tests::provision;
use biha_cluster_tests::run::run as run_program;
use biha_cluster_tests::verdict::Verdict;
use biha_cluster_tests::wait::wait_until;

/// A limit for what takes a fraction of a second.
pub const TEN_SECONDS: Duration = Duration::from_secs(10);
/// A limit for what may include an election, a rewind and a checkpoint.
pub const A_MINUTE: Duration = Duration::from_secs(60);
/// Most acknowledged rows that an asynchronous failover may lose at 200 rows a second: those of half a second.
const LOST_MAX: usize = 100;
/// Most that a leader may acknowledge which is cut off from the others only: those of its lease (1.8 s), of all
/// workers and patient clients, and again of half a second.
const LOST_IN_LEASE_MAX: usize = 260 * 18 / 10 + LOST_MAX;

/// Removes a node, empties its data directory, and adds it again.
pub fn make_anew(cluster: &Cluster, leader: &Node, node: &Node) -> Result<()> {
    leader.biha_value(&format!("SELECT biha.remove_node({})", node.id))?;
    node.kill_all()?;
    fs::remove_dir_all(&node.data)?;
    provision::write_magic(cluster)?;
    provision::add(cluster, node)
}

/// Makes a tablespace "slow" on a disk of its own, which can hang. The cluster allows tablespaces in place.
pub fn slow_tablespace(cluster: &Cluster, leader: &Node) -> Result<Disk> {
    leader.query("CREATE TABLESPACE slow LOCATION ''")?;
    let disk = Disk::create(&cluster.directory.join("slow"))?;
    let number = leader.value("SELECT oid FROM pg_tablespace WHERE spcname = 'slow'")?;
    let (place, away) = (leader.data.join("pg_tblspc").join(&number), disk.mount.join(&number));
    run_program(Command::new("cp").arg("-a").args([&place, &away]))?;
    fs::remove_dir_all(&place)?;
    symlink(&away, &place)?;
    Ok(disk)
}

/// What PostgreSQL says of a tablespace in place.
pub const IN_PLACE: Expected =
    expect("unexpected directory entry * found in pg_tblspc", "so PostgreSQL calls such a tablespace");

/// What the logs of a failover may say.
pub fn failover_lines() -> Vec<Expected> {
    let mut lines = LEADER_GONE.to_vec();
    lines.extend(FENCED);
    lines
}

/// What a fenced leader and a crashed one say.
const FENCED: [Expected; 7] = [
    expect("ERROR:  cannot execute*: this node does not accept writes now", "a fenced leader is written to"),
    expect(
        "FATAL:  terminating autovacuum process due to administrator command",
        "a leader restarts in place",
    ),
    expect("WARNING:  terminating connection because this node lost its leadership", "a commit at its end"),
    expect("was terminated by signal 9", "killed by the test"),
    expect("because of crash of another server process", "killed by the test"),
    expect("FATAL:  the database system is in recovery mode", "a client dials after a crash"),
    expect("FATAL:  terminating connection due to unexpected postmaster exit", "killed by the test"),
];

/// In an asynchronous cluster the rows that no other node had yet may be lost, but only those.
pub fn expect_little_lost(verdict: &Verdict) -> Result<()> {
    expect_lost_at_most(verdict, LOST_MAX)
}

/// [`expect_little_lost`] where the old leader's clients still reached it, and only they.
pub fn expect_lost_within_lease(verdict: &Verdict) -> Result<()> {
    expect_lost_at_most(verdict, LOST_IN_LEASE_MAX)
}

fn expect_lost_at_most(verdict: &Verdict, most: usize) -> Result<()> {
    verdict.expect_one_leader()?;
    let lost = verdict.lost.len();
    ensure!(lost <= most, "{lost} acknowledged rows are lost, more than replication can have been behind");
    Ok(())
}

/// The node is down, and nothing brings it up again within `time`.
pub fn expect_stays_down(node: &Node, time: Duration) -> Result<()> {
    node.wait_gone(TEN_SECONDS)?;
    let end = Instant::now() + time;
    while Instant::now() < end {
        let pid = node.postmaster();
        ensure!(pid.is_none(), "node {} came up again against the operator's will: {pid:?}", node.id);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits for a process of the node with this title, without any pause: it may be short-lived.
pub fn wait_process(node: &Node, title: &str, timeout: Duration) -> Result<Process> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(process) = node.processes_titled(title).pop() {
            return Ok(process);
        }
        ensure!(Instant::now() < end, "no process '{title}' of node {} was seen", node.id);
        yield_now();
    }
}

/// Makes the leader's WAL part from everyone else's: rows that no other node gets, in a table of their own.
pub fn diverge(leader: &Node, rows: u32) -> Result<()> {
    leader.freeze_walsenders()?;
    leader.query(&format!(
        "CREATE TABLE only_here AS SELECT n, repeat('x', 100) FROM generate_series(1, {rows}) n"
    ))?;
    Ok(())
}

/// A cluster whose leaders keep little WAL for followers that are away.
pub fn keeps_little_wal() -> Builder {
    Cluster::builder()
        .setting("max_slot_wal_keep_size", "16MB")
        .setting("wal_keep_size", "0")
        .setting("max_wal_size", "64MB")
}

/// What the logs of such a cluster may say.
pub fn left_behind_lines() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.extend([
        expect("requested WAL segment * has already been removed", "what this is about"),
        expect("has lost WAL that its node needs", "the leader says it too"),
        expect("invalidating slot", "what this is about"),
        expect("cannot read from replication slot", "the slot was invalidated"),
    ]);
    lines
}

/// A follower that was away for longer than the leader keeps WAL, still down.
pub fn left_behind(cluster: &Cluster) -> Result<&Node> {
    let leader = cluster.leader()?;
    leader.biha_value("SELECT biha.set_no_wal_on_follower(1000)")?;
    let away = cluster.others(leader.id)[0];
    away.stop(StopMode::Fast)?;
    leader.query("CREATE TABLE much (n int, filler text)")?;
    let fill = "INSERT INTO much SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n";
    let kept_up =
        "SELECT coalesce(bool_and(flush_lsn >= pg_current_wal_lsn()), false) FROM pg_stat_replication";
    wait_until("its slot to be lost", A_MINUTE, || {
        leader.query(fill)?;
        // The other follower must not be left behind as well.
        wait_until("the WAL to be streamed", A_MINUTE, || {
            ensure!(leader.value(kept_up)? == "t", "some of it is not");
            Ok(())
        })?;
        leader.query("CHECKPOINT")?;
        let slot =
            format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'biha_node_{}'", away.id);
        ensure!(leader.value(&slot)? == "lost", "it is not lost yet");
        Ok(())
    })?;
    Ok(away)
}

/// Can nodes have disks of their own here? If not it is said that the scenario is not run.
pub fn has_disks(name: &str) -> bool {
    let possible = Disk::possible();
    if !possible {
        eprintln!("{name}: NOT RUN, it needs loop devices, that is, root");
    }
    possible
}

/// Leaves a process stopped once the moment has come.
pub fn step_until(pid: i32, moment: &str, is_now: impl Fn() -> bool) -> Result<()> {
    let met = process::step_until(pid, A_MINUTE, is_now).with_context(|| format!("before {moment}"))?;
    ensure!(met, "it ended before {moment}");
    Ok(())
}
