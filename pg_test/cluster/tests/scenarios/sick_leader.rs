//! A leader whose disk takes no writes, or that hangs, gives up its office while it can, and is made to where it
//! can't.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process;
use biha_cluster_tests::run::run as run_program;
use biha_cluster_tests::scenario::{Figures, judge, run};
use rustix::process::Signal;

use crate::common::{
    A_MINUTE, TEN_SECONDS, expect_little_lost, failover_lines, has_disks, step_until, wait_process,
};

/// A small file system of its own; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Puts a stopped node's pg_wal on it.
    fn wal_of(node: &Node) -> Result<Mounted> {
        let (wal, away) = (node.data.join("pg_wal"), node.data.with_extension("wal"));
        fs::rename(&wal, &away)?;
        fs::create_dir(&wal)?;
        run_program(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256m", "tmpfs"]).arg(&wal))?;
        let mounted = Mounted(wal.clone());
        run_program(Command::new("cp").arg("-a").arg(format!("{}/.", away.display())).arg(&wal))?;
        run_program(Command::new("chown").arg("--reference").arg(&node.data).arg(&wal))?;
        run_program(Command::new("chmod").arg("700").arg(&wal))?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: the server may still run there, and is ended by its cluster.
        if let Err(error) = run_program(Command::new("umount").arg("-l").arg(&self.0)) {
            eprintln!("could not unmount {}: {error:#}", self.0.display());
        }
    }
}

fn builder() -> Builder {
    Cluster::builder().setting("biha.watchdog_timeout", "1s").setting("max_wal_size", "64MB")
}

fn expected() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.extend([
        expect("WARNING:  a disk takes no writes: ", "what this is about"),
        expect("No space left on device", "the full disk"),
        expect("startup*PANIC:  ", "the sick disk"),
        expect("PANIC:  could not", "the sick disk"),
        expect("FATAL:  could not", "the sick disk"),
        expect("WARNING:  could not", "the sick disk"),
        expect("ERROR:  could not", "the sick disk"),
        expect("was terminated by signal 6", "a PANIC"),
        expect(
            "WARNING:  canceling the wait for synchronous replication",
            "what the deposed leader had begun",
        ),
        expect("ERROR:  replication slot*is active for PID", "a walsender hangs"),
        expect("FATAL:  terminating walreceiver due to timeout", "a walsender hangs"),
    ]);
    lines
}

/// One synchronous standby, and a disk for each node.
fn with_disks(
    name: &str,
    builder: Builder,
    body: impl FnOnce(&mut Cluster, &mut Figures) -> Result<()> + Send,
) {
    if has_disks(name) {
        run(name, builder.disks(true).sync_standbys(1), &expected(), body);
    }
}

#[test]
fn sick_leader_full_wal_disk() {
    run("sick_leader_full_wal_disk", builder(), &expected(), |cluster, figures| {
        let sick = cluster.others(cluster.leader()?.id)[0];
        sick.stop(StopMode::Fast)?;
        let wal = Mounted::wal_of(sick)?;
        sick.start()?;
        let leader = cluster.wait_healthy(A_MINUTE)?;
        cluster.set_leader(leader, sick.id)?;
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(cluster.leader()?.id == sick.id, "the switchover went wrong");
        let oracle = Oracle::start(cluster, Load { rate: Some(20), ..Load::default() })?;
        let fault = Instant::now();
        // Until there is no room: dd fails then, as it should.
        let filler = wal.0.join("filler");
        let of = format!("of={}", filler.display());
        let filled = run_program(Command::new("dd").args(["if=/dev/zero", "bs=1M", &of]));
        ensure!(filled.is_err(), "the disk is not full");
        let new = cluster.wait_leader_other_than(sick.id, A_MINUTE)?;
        figures.time("another leads after", fault.elapsed());
        oracle.wait_acks(50, TEN_SECONDS)?;
        let mended = Instant::now();
        fs::remove_file(filler)?;
        if sick.postmaster().is_none() {
            sick.wait_gone(TEN_SECONDS)?;
            sick.start()?;
        }
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the mended node leads again");
        let record = oracle.stop()?;
        figures.time("outage", record.outage_between(fault, mended));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_little_lost(&verdict)
    });
}

/// Whoever looks after the disks, and restarts the server, hangs: as on a disk that never answers.
#[test]
fn sick_leader_hanging() {
    run("sick_leader_hanging", builder(), &expected(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        let agents = old.processes_titled("biha agent");
        let fault = Instant::now();
        agents.iter().try_for_each(|agent| process::signal(agent.pid, Signal::STOP))?;
        let new = cluster.wait_leader_other_than(old.id, A_MINUTE)?;
        figures.time("another leads after", fault.elapsed());
        oracle.wait_acks(100, TEN_SECONDS)?;
        agents.iter().try_for_each(|agent| process::signal(agent.pid, Signal::CONT))?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the mended node leads again");
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_little_lost(&verdict)
    });
}

/// How long a disk hangs: the watchdog's second, and more than three election timeouts.
const HANGS: Duration = Duration::from_secs(8);

/// The disk of the leader hangs, so that whoever writes to it cannot even be killed, and what else is done to it: the
/// leader gives up by itself, and another one takes writes long before the disk thaws.
fn hanging_disk(name: &str, builder: Builder, also: impl FnOnce(&Node) -> Result<Vec<i32>> + Send) {
    with_disks(name, builder, |cluster, figures| {
        let old = cluster.leader()?;
        let others = cluster.others(old.id);
        let marks: Vec<u64> = others.iter().map(|node| node.log_mark()).collect();
        let oracle = Oracle::start(cluster, Load::default())?;
        // Longer than an election timeout: what the nodes have told of themselves is in the state file by then.
        oracle.wait_acks(600, A_MINUTE)?;
        let fault = Instant::now();
        cluster.disk(old.id)?.hang()?;
        let frozen = also(old)?;
        let new = cluster.wait_leader_other_than(old.id, HANGS)?;
        figures.time("another leads after", fault.elapsed());
        oracle.wait_acks(100, TEN_SECONDS)?;
        ensure!(fault.elapsed() < HANGS, "the first writes came after {:?} only", fault.elapsed());
        sleep(HANGS.saturating_sub(fault.elapsed()));
        for (node, mark) in others.iter().zip(marks) {
            let gone = format!("LEADER_LOST: node {} is gone: ", old.id);
            ensure!(
                node.log_since(mark)?.contains(&gone),
                "node {} was not told by the sick leader",
                node.id
            );
        }
        cluster.disk(old.id)?.thaw();
        // Those that have ended meanwhile need no signal.
        frozen.iter().for_each(|pid| drop(process::signal(*pid, Signal::CONT)));
        let thawed = Instant::now();
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the mended node leads again");
        figures.time("healthy after the thaw", thawed.elapsed());
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        judge(cluster, &record)?.expect_nothing_lost()
    });
}

#[test]
fn sick_leader_hanging_disk() {
    hanging_disk("sick_leader_hanging_disk", builder(), |_| Ok(Vec::new()));
}

/// What sends WAL hangs with the disk, so that no follower streams, and only one that tries to counts as if it did.
#[test]
fn sick_leader_hanging_disk_and_walsenders() {
    let name = "sick_leader_hanging_disk_and_walsenders";
    hanging_disk(name, builder().setting("wal_receiver_timeout", "500ms"), Node::freeze_walsenders);
}

#[test]
fn sick_leader_read_only_disk() {
    let name = "sick_leader_read_only_disk";
    with_disks(name, builder(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        oracle.wait_acks(100, TEN_SECONDS)?;
        let fault = Instant::now();
        cluster.disk(old.id)?.refuse_writes()?;
        let new = cluster.wait_leader_other_than(old.id, A_MINUTE)?;
        figures.time("another leads after", fault.elapsed());
        oracle.wait_acks(100, TEN_SECONDS)?;
        old.quit();
        cluster.disk(old.id)?.mend()?;
        old.start()?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the mended node leads again");
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        judge(cluster, &record)?.expect_nothing_lost()
    });
}

/// The leader gives up, and its disk answers before its controller has ended: the server stops then, and whoever waits for
/// standbys keeps the postmaster's signal for a controller that will not be there.
#[test]
fn sick_leader_gives_up_as_its_disk_thaws() {
    let name = "sick_leader_gives_up_as_its_disk_thaws";
    with_disks(name, builder(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        oracle.wait_acks(600, A_MINUTE)?;
        let mark = old.log_mark();
        let controller = wait_process(old, "biha controller", TEN_SECONDS)?.pid;
        let fault = Instant::now();
        cluster.disk(old.id)?.hang()?;
        old.wait_log(mark, "DEMOTED: hands over to node", TEN_SECONDS)?;
        let gives_up = "DEMOTED: the server does not stop for the hand-over";
        // It waits a moment for its last event to be written.
        step_until(controller, "it has said that it gives up", || {
            old.log_since(mark).is_ok_and(|log| log.contains(gives_up))
        })?;
        let new = cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        cluster.disk(old.id)?.thaw();
        let thawed = Instant::now();
        old.wait_log(mark, "aborting any active transactions", TEN_SECONDS)?;
        process::signal(controller, Signal::CONT)?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the old leader leads again");
        let ended = "canceling the wait for synchronous replication";
        ensure!(old.log_since(mark)?.contains(ended), "no commit waited");
        figures.time("healthy after the thaw", thawed.elapsed());
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        judge(cluster, &record)?.expect_nothing_lost()
    });
}
