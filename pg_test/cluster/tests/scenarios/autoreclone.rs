//! `biha.autoreclone`: a node that can neither follow nor be rewound copies the leader by itself. Killed at whatever
//! moment, it has its old data directory or a whole new one, and goes on from there.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::node::{CHANGES, Node, StopMode};
use biha_cluster_tests::process::{self, RECLONE_SUFFIX, said, signal};
use biha_cluster_tests::run::run as run_program;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::{wait_for, wait_until};
use rustix::process::Signal;

use crate::common::{
    A_MINUTE, IN_PLACE, TEN_SECONDS, expect_stays_down, has_disks, keeps_little_wal, left_behind,
    left_behind_lines, step_until, wait_process,
};
use crate::rewind_interrupted::{begin_rewind, diverge_without_wal};

/// A setting that `biha.autoreclone` is on or off.
fn builder(autoreclone: &str) -> Builder {
    keeps_little_wal().setting("biha.autoreclone", autoreclone)
}

fn lines() -> Vec<Expected> {
    let mut lines = left_behind_lines();
    lines.extend([
        expect("walsender*FATAL:  connection to client lost", "a copy is killed"),
        expect(
            "walsender*FATAL:  terminating connection due to administrator command",
            "a killed copy's is ended",
        ),
    ]);
    lines
}

/// Something holds the node's slot on the leader, as what a killed copy has left may do.
fn hold_slot(cluster: &Cluster, node: &Node) -> Result<Child> {
    let leader = cluster.leader()?;
    let slot = format!("biha_node_{}", node.id);
    let directory = cluster.directory.join("held");
    run_program(leader.runner.command("mkdir").arg(&directory))?;
    let mut receive = leader.program("pg_receivewal");
    receive.args(["-h", &leader.address.host, "-p", &leader.address.port.to_string()]);
    receive.args(["-U", "biha_replication_user", "-S", &slot, "--no-loop", "-D"]).arg(directory);
    receive.env("PGPASSFILE", leader.data.join("pg_biha/pgpass")).stderr(Stdio::null());
    let holder = receive.spawn()?;
    wait_until("the slot to be held", TEN_SECONDS, || {
        let sql = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
        ensure!(leader.value(&sql)? == "t", "it is not");
        Ok(())
    })?;
    Ok(holder)
}

/// A file that an operator has put into the data directory, and its size in bytes.
const OF_THE_OPERATOR: &str = "operators.file";
const OPERATORS_SIZE: u64 = 256 << 20;

/// Where the copy is made.
fn beside(node: &Node) -> PathBuf {
    let mut name = node.data.clone().into_os_string();
    name.push(RECLONE_SUFFIX);
    name.into()
}

fn inode(node: &Node) -> Result<u64> {
    Ok(fs::metadata(&node.data)?.ino())
}

fn error(node: &Node) -> Result<String> {
    node.biha_value("SELECT type FROM biha.error_details()")
}

/// The node follows, with everything, and nothing is left over.
fn expect_healed(cluster: &Cluster, node: &Node) -> Result<()> {
    cluster.wait_healthy(A_MINUTE)?;
    cluster.wait_caught_up(A_MINUTE)?;
    ensure!(error(node)? == "NO_ERROR", "it is in error");
    ensure!(!beside(node).exists(), "{} is left", beside(node).display());
    let recloned = "SELECT count(*) FROM biha.history() WHERE event = 'RECLONE' AND node_id = ";
    ensure!(node.biha_value(&format!("{recloned}{}", node.id))? != "0", "it was not copied anew");
    let id = node.value("SHOW biha.id")?;
    ensure!(id == node.id.to_string(), "it has the files of node {id}");
    Ok(())
}

/// The base backup of a node that was just started, stopped half-way.
fn backup_half_way(node: &Node) -> Result<i32> {
    let backup = wait_process(node, "pg_basebackup", A_MINUTE)?.pid;
    let copy = beside(node);
    step_until(backup, "half a base backup", || {
        copy.join("base").exists() && !copy.join("backup_manifest").exists()
    })?;
    Ok(backup)
}

/// In place, with its own files and its WAL where it was.
#[test]
fn a_node_whose_wal_is_removed_copies_the_leader() {
    let name = "a_node_whose_wal_is_removed_copies_the_leader";
    run(name, builder("on"), &lines(), |cluster, figures| {
        let away = left_behind(cluster)?;
        let (wal, elsewhere) = (away.data.join("pg_wal"), cluster.directory.join("wal"));
        fs::rename(&wal, &elsewhere)?;
        symlink(&elsewhere, &wal)?;
        fs::write(away.data.join("notes"), "the operator's")?;
        let old = inode(away)?;
        away.start()?;
        let pid = away.postmaster().context("it does not run")?;
        let start = Instant::now();
        wait_for("the new data directory", A_MINUTE, || inode(away).is_ok_and(|new| new != old))?;
        expect_healed(cluster, away)?;
        figures.time("healed after", start.elapsed());
        away.expect_postmaster(pid)?;
        ensure!(fs::read_to_string(away.data.join("notes"))? == "the operator's", "its own file is gone");
        ensure!(fs::read_link(&wal)? == elsewhere, "pg_wal leads to {:?}", fs::read_link(&wal)?);
        ensure!(elsewhere.is_dir() && !elsewhere.is_symlink(), "its WAL is not where it was");
        let others: Vec<_> =
            fs::read_dir(&cluster.directory)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        let left = others.iter().find(|name| name.to_string_lossy().contains("reclone"));
        ensure!(left.is_none(), "{left:?} is left");
        // It lost nothing: it was only behind.
        ensure!(away.biha("SELECT FROM biha.lost_transactions()")?.is_empty(), "something was lost");
        away.restart(StopMode::Fast)?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// Until it is told to.
#[test]
fn without_autoreclone_a_node_waits_for_the_operator() {
    let name = "without_autoreclone_a_node_waits_for_the_operator";
    run(name, builder("off"), &lines(), |cluster, _| {
        let away = left_behind(cluster)?;
        let old = inode(away)?;
        away.start()?;
        away.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        ensure!(error(away)? == "WAL_REMOVED", "the error is {}", error(away)?);
        let remedy = away.biha_value("SELECT what_to_do FROM biha.error_details()")?;
        ensure!(remedy.contains("biha.autoreclone"), "what to do: {remedy}");
        away.restart(StopMode::Fast)?;
        away.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        ensure!(inode(away)? == old, "its data directory is another one");
        wait_until("a leader to be known", TEN_SECONDS, || {
            let leader = away.biha_value("SELECT max(leader_id) IS NOT NULL FROM biha.status()")?;
            ensure!(leader == "t", "none is known");
            Ok(())
        })?;
        let mut holder = hold_slot(cluster, away)?;
        away.biha("SELECT biha.reclone()")?;
        expect_healed(cluster, away)?;
        ensure!(!holder.wait()?.success(), "its slot is still held");
        Ok(())
    });
}

/// The same, told by a reload.
#[test]
fn autoreclone_can_be_turned_on_when_it_is_needed() {
    let name = "autoreclone_can_be_turned_on_when_it_is_needed";
    run(name, builder("off"), &lines(), |cluster, _| {
        let away = left_behind(cluster)?;
        away.start()?;
        away.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        away.append("postgresql.biha.conf", "biha.autoreclone = on\n")?;
        away.query("SELECT pg_reload_conf()")?;
        expect_healed(cluster, away)
    });
}

#[test]
fn killed_in_the_middle_of_the_base_backup() {
    let name = "killed_in_the_middle_of_the_base_backup";
    run(name, builder("on"), &lines(), |cluster, _| {
        let away = left_behind(cluster)?;
        let old = inode(away)?;
        away.start_unawaited()?;
        backup_half_way(away)?;
        away.kill_postmaster()?;
        // pg_basebackup, too, and the child that receives WAL for it.
        away.wait_gone(TEN_SECONDS)?;
        ensure!(inode(away)? == old, "its data directory is another one");
        ensure!(beside(away).exists(), "it was killed too late");
        away.start()?;
        expect_healed(cluster, away)
    });
}

/// The postmaster is killed at a moment of its own work; the copy is complete.
fn killed_when(name: &str, moment: &str, exchanged: bool) {
    run(name, builder("on"), &lines(), |cluster, _| {
        let away = left_behind(cluster)?;
        let old = inode(away)?;
        // Something of the operator's that takes a while to be put into the copy, so that there is a moment to be met.
        fs::File::create(away.data.join(OF_THE_OPERATOR))?.set_len(OPERATORS_SIZE)?;
        away.start_unawaited()?;
        wait_process(away, "pg_basebackup", A_MINUTE)?;
        let pid = away.postmaster().context("it does not run")?;
        step_until(pid, moment, || match exchanged {
            // Its own files are being put into the copy.
            false => beside(away).join(OF_THE_OPERATOR).exists() || inode(away).is_ok_and(|new| new != old),
            true => inode(away).is_ok_and(|new| new != old),
        })?;
        ensure!((inode(away)? != old) == exchanged, "{moment}: too late");
        ensure!(beside(away).exists(), "{moment}: too late, nothing is left to do");
        signal(pid, Signal::KILL)?;
        process::wait_reaped(pid, TEN_SECONDS)?;
        away.wait_gone(TEN_SECONDS)?;
        away.start()?;
        expect_healed(cluster, away)
    });
}

#[test]
fn killed_before_the_new_directory_takes_its_place() {
    let name = "killed_before_the_new_directory_takes_its_place";
    killed_when(name, "before the exchange", false);
}

#[test]
fn killed_after_the_new_directory_has_taken_its_place() {
    let name = "killed_after_the_new_directory_has_taken_its_place";
    killed_when(name, "after the exchange", true);
}

#[test]
fn stop_in_the_middle_of_a_reclone() {
    let name = "stop_in_the_middle_of_a_reclone";
    run(name, builder("on"), &lines(), |cluster, _| {
        let away = left_behind(cluster)?;
        let old = inode(away)?;
        away.start_unawaited()?;
        backup_half_way(away)?;
        away.signal(Signal::INT)?;
        expect_stays_down(away, Duration::from_secs(2))?;
        ensure!(inode(away)? == old && !beside(away).exists(), "the data directory is not as it was");
        away.start()?;
        expect_healed(cluster, away)
    });
}

/// What it cannot copy it does not half copy, and not again and again.
#[test]
fn a_node_with_tablespaces_is_left_as_it_is() {
    let name = "a_node_with_tablespaces_is_left_as_it_is";
    let builder = builder("on").setting("allow_in_place_tablespaces", "on");
    let mut lines = lines();
    lines.push(IN_PLACE);
    run(name, builder, &lines, |cluster, _| {
        cluster.leader()?.query("CREATE TABLESPACE elsewhere LOCATION ''")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let away = left_behind(cluster)?;
        let (old, mark) = (inode(away)?, away.log_mark());
        away.start()?;
        let what = "the re-clone failed: this node has tablespaces";
        away.wait_log(mark, what, A_MINUTE)?;
        away.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        let row = away.biha("SELECT type, message FROM biha.error_details()")?;
        let texts: Vec<String> = row[0].iter().flatten().cloned().collect();
        ensure!(texts[0] == "RECLONE_FAILED" && texts[1].contains(what), "the error is {texts:?}");
        // Not tried again by itself, but when it is told to.
        let mark = away.log_mark();
        std::thread::sleep(Duration::from_secs(3));
        ensure!(away.wait_log(mark, "restarting in place", Duration::ZERO).is_err(), "it was tried again");
        away.biha("SELECT biha.reset_node_error()")?;
        away.wait_log(mark, what, A_MINUTE)?;
        ensure!(inode(away)? == old, "its data directory is another one");
        away.wait_state(&["NODE_ERROR"], A_MINUTE).map(drop)
    });
}

/// Less than the databases of a new cluster have, and enough for a server to start and to note what has happened.
const TOO_LITTLE_ROOM: u64 = 8 << 20;
/// For longer than what is hindered is left alone otherwise.
const BEYOND_THE_PAUSE: Duration = Duration::from_secs(13);

/// Every attempt is a restart: a copy for which there is no room is not tried again before there is.
#[test]
fn a_copy_that_has_no_room_waits_for_it() {
    let name = "a_copy_that_has_no_room_waits_for_it";
    if !has_disks(name) {
        return;
    }
    let full = expect("WARNING:  a disk takes no writes: No space left on device", "the full disk");
    let lines: Vec<_> = lines().into_iter().chain([full]).collect();
    run(name, builder("on").disks(true), &lines, |cluster, _| {
        let away = left_behind(cluster)?;
        let disk = cluster.disk(away.id)?;
        disk.fill(TOO_LITTLE_ROOM)?;
        let mark = away.log_mark();
        away.start()?;
        away.wait_log(mark, "the data directory is as it was: a copy of the leader needs ", A_MINUTE)?;
        let mark = away.log_mark();
        away.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        std::thread::sleep(BEYOND_THE_PAUSE);
        let restarted = away.wait_log(mark, "copying the leader before the restart", Duration::ZERO).is_ok();
        ensure!(!restarted, "it was restarted once more, for nothing");
        disk.empty()?;
        expect_healed(cluster, away)
    });
}

/// How a rewind is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// pg_rewind is killed while tables are being copied.
    Program,
    /// The postmaster is killed then.
    Postmaster,
    /// The same, and the only other node is a leader that takes no writes without this one.
    Alone,
    /// The same, and all other nodes are down.
    Deserted,
    /// An operator stops the server at once then.
    Stop,
}

/// The old leader's rewind is cut short, and it comes back with the leader's data.
fn rewind_cut_short(name: &str, cut: Cut) {
    let builder = Cluster::builder().setting("biha.autoreclone", "on");
    let mut lines = lines();
    if cut == Cut::Deserted {
        lines.push(expect("WARNING:  could not copy the leader: ", "nobody leads"));
    }
    run(name, builder, &lines, |cluster, _| {
        let (old, rewind, oracle) = begin_rewind(cluster)?;
        // The data is there while it is rewound; a copied configuration says that tables are.
        let configured =
            || fs::metadata(old.aside().join("postgresql.conf")).is_ok_and(|file| file.len() > 0);
        step_until(rewind, "tables are copied", || said(rewind).contains(CHANGES) && configured())?;
        let mark = old.log_mark();
        match cut {
            Cut::Program => signal(rewind, Signal::KILL)?,
            Cut::Alone => {
                let leader = cluster.leader()?;
                let third = cluster.others(leader.id).into_iter().find(|node| node.id != old.id);
                let third = third.context("there is no third node")?;
                third.stop(StopMode::Fast)?;
                old.kill_postmaster()?;
                old.wait_gone(TEN_SECONDS)?;
                leader.wait_state(&["LEADER_RO"], TEN_SECONDS)?;
                old.start()?;
                third.start()?;
            }
            Cut::Deserted => {
                old.kill_postmaster()?;
                let others = cluster.others(old.id);
                others.iter().try_for_each(|node| node.kill_all())?;
                old.wait_gone(TEN_SECONDS)?;
                old.start_unawaited()?;
                old.wait_log(mark, "could not copy the leader: ", A_MINUTE)?;
                ensure!(old.aside().join("PG_VERSION").exists(), "the only data there is was thrown away");
                others.iter().try_for_each(|node| node.start())?;
            }
            Cut::Postmaster => {
                old.kill_postmaster()?;
                old.wait_gone(TEN_SECONDS)?;
                old.start()?;
            }
            Cut::Stop => {
                old.signal(Signal::QUIT)?;
                expect_stays_down(old, Duration::from_secs(2))?;
                // And the copy that it became, too.
                old.start_unawaited()?;
                wait_process(old, "pg_basebackup", A_MINUTE)?;
                old.signal(Signal::INT)?;
                expect_stays_down(old, Duration::from_secs(2))?;
                ensure!(old.data.join("biha.stub").exists(), "the stub is gone");
                old.start()?;
            }
        }
        let says = match cut {
            Cut::Program => "the rewind of this node broke off: pg_rewind ended with signal: 9",
            Cut::Postmaster | Cut::Alone | Cut::Deserted | Cut::Stop => {
                "a rewind of this node was cut short: copying the leader instead"
            }
        };
        old.wait_log(mark, says, A_MINUTE)?;
        old.wait_log(mark, "the data directory was replaced by a copy of the leader's", A_MINUTE)?;
        cluster.wait_healthy(A_MINUTE)?;
        oracle.stop()?;
        cluster.wait_caught_up(A_MINUTE)?;
        ensure!(old.value("SELECT count(*) FROM common WHERE n < 0")? == "0", "it has its own rows");
        ensure!(error(old)? == "NO_ERROR", "it is in error");
        for left in [beside(old), old.aside(), old.data.join("biha.stub")] {
            ensure!(!left.exists(), "{} is left", left.display());
        }
        let lost = old.biha_value("SELECT count(*) FROM biha.lost_transactions()")?;
        ensure!(lost != "0", "what only it had was not kept");
        Ok(())
    });
}

/// pg_rewind finds that it cannot work.
#[test]
fn a_rewind_that_fails_becomes_a_copy() {
    let builder = Cluster::builder().setting("biha.autoreclone", "on");
    let mut lines = lines();
    lines.push(expect("WARNING:  could not keep the WAL that only this node has", "it is not there"));
    run("a_rewind_that_fails_becomes_a_copy", builder, &lines, |cluster, _| {
        let (old, oracle) = diverge_without_wal(cluster)?;
        let mark = old.log_mark();
        old.start_unawaited()?;
        old.wait_log(mark, "NODE_ERROR: the rewind failed: error: could not open file", A_MINUTE)?;
        expect_healed(cluster, old)?;
        oracle.stop()?;
        ensure!(old.value("SELECT count(*) FROM common WHERE n < 0")? == "0", "it has its own rows");
        Ok(())
    });
}

#[test]
fn a_rewind_that_breaks_off_becomes_a_copy() {
    rewind_cut_short("a_rewind_that_breaks_off_becomes_a_copy", Cut::Program);
}

#[test]
fn a_rewind_whose_postmaster_is_killed_becomes_a_copy() {
    rewind_cut_short("a_rewind_whose_postmaster_is_killed_becomes_a_copy", Cut::Postmaster);
}

#[test]
fn a_rewind_whose_leader_needs_this_node_becomes_a_copy() {
    rewind_cut_short("a_rewind_whose_leader_needs_this_node_becomes_a_copy", Cut::Alone);
}

/// What the rewind has left may be the last of the database that there is.
#[test]
fn a_rewind_whose_leader_is_gone_keeps_its_data() {
    rewind_cut_short("a_rewind_whose_leader_is_gone_keeps_its_data", Cut::Deserted);
}

#[test]
fn a_rewind_that_is_stopped_at_once_becomes_a_copy() {
    rewind_cut_short("a_rewind_that_is_stopped_at_once_becomes_a_copy", Cut::Stop);
}
