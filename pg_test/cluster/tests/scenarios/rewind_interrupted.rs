//! A rewind that is killed, or whose postmaster is killed, once it has begun to change files: PostgreSQL never starts
//! on what is left, the cluster goes on, and the node comes back as the manual says. Hindered before that, it has
//! changed nothing, and is tried again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::query;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::node::{CHANGES, CLOSED, Node, REWIND};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::{said, signal};
use biha_cluster_tests::run::run as run_program;
use biha_cluster_tests::scenario::{Figures, judge, run};
use biha_cluster_tests::wait::wait_until;
use rustix::process::Signal;

use crate::common::{
    A_MINUTE, TEN_SECONDS, expect_stays_down, failover_lines, has_disks, step_until, wait_process,
};

/// Rows of a table that all nodes have and the old leader alone changes: some 50 MB to be copied back.
const ROWS: u32 = 200_000;
/// What a node says whose rewind did not come to anything.
pub const HINDERED: &str = "REWIND: the rewind was hindered, and is tried again: ";
/// Bytes of room on a disk where a server can start, and then free some more.
const ENOUGH_TO_START: u64 = 512 << 10;
/// Size in bytes of what needs more.
const TOO_LARGE: u64 = 512 << 20;
/// Where WAL is put out of the way, beside the data directories.
const AWAY: &str = "away";

/// How far pg_rewind has come.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// It has changed nothing.
    Unchanged,
    /// The configuration is truncated, and not copied yet: a server would start without biha.
    NoConfiguration,
    /// The configuration is the source's, and tables are being copied: a server would start without complaint.
    Copying,
}

impl Moment {
    fn is_now(self, node: &Node, rewind: i32) -> bool {
        let said = said(rewind);
        let configured = fs::metadata(node.data.join("postgresql.conf")).is_ok_and(|file| file.len() > 0);
        match self {
            Moment::Unchanged => !said.contains(CHANGES),
            Moment::NoConfiguration => said.contains(CHANGES) && !configured,
            Moment::Copying => said.contains(CHANGES) && configured,
        }
    }
}

fn mode(node: &Node) -> Result<u32> {
    Ok(fs::metadata(&node.data)?.permissions().mode() & 0o7777)
}

/// A statement that takes its time.
fn execute(node: &Node, sql: &str) -> Result<()> {
    query(&node.address, "postgres", sql, A_MINUTE).map(drop)
}

/// A leader with WAL of its own, and the load on the cluster.
fn diverge(cluster: &Cluster) -> Result<(&Node, Oracle)> {
    let old = cluster.leader()?;
    let table = "CREATE TABLE common AS SELECT n, repeat('x', 200) AS text";
    execute(old, &format!("{table} FROM generate_series(1, {ROWS}) n"))?;
    cluster.wait_caught_up(A_MINUTE)?;
    let oracle = Oracle::start(cluster, Load::default())?;
    old.freeze_walsenders()?;
    execute(old, "UPDATE common SET n = -n")?;
    Ok((old, oracle))
}

/// A cluster whose old leader is being rewound: gives it, pg_rewind's process and the load on the others.
pub fn begin_rewind(cluster: &Cluster) -> Result<(&Node, i32, Oracle)> {
    let (old, oracle) = diverge(cluster)?;
    old.kill_all()?;
    cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
    let rewind = start_rewound(old)?;
    Ok((old, rewind, oracle))
}

/// Starts a server that is to be rewound: gives pg_rewind's process.
pub fn start_rewound(node: &Node) -> Result<i32> {
    node.start_unawaited()?;
    Ok(wait_process(node, REWIND, A_MINUTE)?.pid)
}

/// [`start_rewound`], and pg_rewind is killed before it has changed anything.
pub fn hinder_rewind(node: &Node) -> Result<()> {
    let rewind = start_rewound(node)?;
    stop_at(node, rewind, Moment::Unchanged)?;
    signal(rewind, Signal::KILL)
}

/// pg_rewind is stopped (SIGSTOP) at the moment.
fn stop_at(node: &Node, rewind: i32, moment: Moment) -> Result<()> {
    step_until(rewind, &format!("{moment:?}"), || moment.is_now(node, rewind))?;
    ensure!(mode(node)? == CLOSED, "the data directory is open while it is rewound: {:o}", mode(node)?);
    // pg_rewind, which removes it, may just have done so.
    wait_until("postmaster.pid, put back", TEN_SECONDS, || node.postmaster().context("it is not there"))?;
    Ok(())
}

/// A cluster whose old leader, which is down, lacks the WAL that a rewind needs, and the load on the others.
pub fn diverge_without_wal(cluster: &Cluster) -> Result<(&Node, Oracle)> {
    let (old, oracle) = diverge(cluster)?;
    // Recovery begins after all that only it has; what is older goes.
    execute(old, "CHECKPOINT")?;
    let first = old.value("SELECT redo_wal_file FROM pg_control_checkpoint()")?;
    old.kill_all()?;
    let (wal, away) = (old.data.join("pg_wal"), cluster.directory.join(AWAY));
    fs::create_dir(&away)?;
    let is_older = |name: &str| name.len() == first.len() && name < first.as_str();
    for entry in fs::read_dir(&wal)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(is_older) {
            fs::rename(wal.join(&name), away.join(&name))?;
        }
    }
    cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
    Ok((old, oracle))
}

/// [`begin_rewind`], pg_rewind stopped (SIGSTOP) at the moment.
fn rewind_until(cluster: &Cluster, moment: Moment) -> Result<(&Node, i32, Oracle)> {
    let (old, rewind, oracle) = begin_rewind(cluster)?;
    stop_at(old, rewind, moment)?;
    Ok((old, rewind, oracle))
}

/// PostgreSQL refuses the directory, each time, and the node's own files are kept.
fn expect_unusable(node: &Node) -> Result<()> {
    expect_stays_down(node, Duration::from_secs(3))?;
    for _ in 0..2 {
        let mark = node.log_mark();
        ensure!(node.start().is_err(), "node {} was started on a half-rewound directory", node.id);
        node.wait_log(mark, "has invalid permissions", TEN_SECONDS)?;
        ensure!(mode(node)? == CLOSED, "its mode is {:o}", mode(node)?);
    }
    let own = fs::read_to_string(node.aside().join("postgresql.biha.conf"))?;
    let id = format!("biha.id = '{}'\n", node.id);
    ensure!(own.contains(&id), "this node's own configuration is not kept: {own}");
    Ok(())
}

/// What the logs say where PostgreSQL refuses the directory.
fn unusable_lines() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.push(expect("FATAL:  data directory *has invalid permissions", "it is half rewound"));
    lines
}

/// "Making a node anew" of the manual: removed, then added from an empty directory under a new number.
fn make_anew(cluster: &mut Cluster, id: u32) -> Result<()> {
    let leader = cluster.leader()?;
    let mut remove = leader.runner.command(&cluster.bihactl);
    remove.args(["remove", "-D"]).arg(&leader.data).args(["--username", "postgres", "--id", &id.to_string()]);
    run_program(&mut remove)?;
    // It names the node that was asked for it, and the first one may be gone.
    let magic = leader.biha_value("SELECT biha.get_magic_string()")?;
    fs::write(cluster.directory.join("magic"), magic)?;
    cluster.forget(id)?;
    cluster.add_node()?;
    cluster.wait_healthy(A_MINUTE).map(drop)
}

/// The others have served on, and no acknowledged row of theirs is lost.
fn judge_others(cluster: &Cluster, oracle: Oracle, figures: &mut Figures) -> Result<()> {
    oracle.wait_acks(100, TEN_SECONDS)?;
    let verdict = judge(cluster, &oracle.stop()?)?;
    // Those that the old leader alone had.
    figures.note("lost", verdict.lost.len());
    verdict.expect_one_leader()
}

/// It is in no error meanwhile, and was rewound in the end.
fn expect_tried_again(cluster: &Cluster, old: &Node, mark: u64) -> Result<()> {
    old.wait_log(mark, HINDERED, A_MINUTE)?;
    cluster.wait_healthy(A_MINUTE)?;
    let errors = "SELECT count(*) FROM biha.history() WHERE event = 'NODE_ERROR'";
    ensure!(old.biha_value(errors)? == "0", "it was in NODE_ERROR");
    ensure!(old.value("SELECT count(*) FROM common WHERE n < 0")? == "0", "it was not rewound");
    ensure!(!old.aside().exists(), "{} is left", old.aside().display());
    Ok(())
}

#[test]
fn pg_rewind_killed_before_it_changed_anything() {
    let name = "pg_rewind_killed_before_it_changed_anything";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let (old, rewind, oracle) = rewind_until(cluster, Moment::Unchanged)?;
        let mark = old.log_mark();
        signal(rewind, Signal::KILL)?;
        expect_tried_again(cluster, old, mark)?;
        judge_others(cluster, oracle, figures)
    });
}

/// The one node that is left besides the one that is rewound needs its vote.
#[test]
fn the_source_of_a_rewind_is_killed() {
    let name = "the_source_of_a_rewind_is_killed";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let (old, rewind, oracle) = rewind_until(cluster, Moment::Unchanged)?;
        let mark = old.log_mark();
        let source = cluster.leader()?;
        source.kill_all()?;
        signal(rewind, Signal::CONT)?;
        old.wait_log(mark, HINDERED, A_MINUTE)?;
        cluster.wait_leader_other_than(source.id, A_MINUTE)?;
        source.start()?;
        expect_tried_again(cluster, old, mark)?;
        judge_others(cluster, oracle, figures)
    });
}

/// A full disk is no error either, but waited out.
#[test]
fn a_rewind_that_has_no_room_is_tried_again() {
    let name = "a_rewind_that_has_no_room_is_tried_again";
    if !has_disks(name) {
        return;
    }
    let mut lines = failover_lines();
    lines.extend([
        expect("WARNING:  could not keep the WAL that only this node has", "there is no room"),
        expect("WARNING:  a disk takes no writes: No space left on device", "the full disk"),
        expect("could not * No space left on device", "the full disk"),
    ]);
    run(name, Cluster::builder().disks(true), &lines, |cluster, figures| {
        let (old, oracle) = diverge(cluster)?;
        old.kill_all()?;
        cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        // Of holes only, but not so its copy.
        fs::File::create(old.data.join("operators.file"))?.set_len(TOO_LARGE)?;
        let disk = cluster.disk(old.id)?;
        disk.fill(ENOUGH_TO_START)?;
        let mark = old.log_mark();
        old.start_unawaited()?;
        old.wait_log(mark, &format!("{HINDERED}could not keep this node's files in "), A_MINUTE)?;
        disk.empty()?;
        expect_tried_again(cluster, old, mark)?;
        judge_others(cluster, oracle, figures)
    });
}

/// What only the operator can mend is an error until it is mended.
#[test]
fn a_rewind_that_cannot_work_is_an_error() {
    let name = "a_rewind_that_cannot_work_is_an_error";
    let mut lines = failover_lines();
    lines.push(expect("WARNING:  could not keep the WAL that only this node has", "it is not there"));
    run(name, Cluster::builder(), &lines, |cluster, figures| {
        let (old, oracle) = diverge_without_wal(cluster)?;
        old.start()?;
        old.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        ensure!(mode(old)? == 0o700, "its mode is {:o}", mode(old)?);
        let error = old.biha_value("SELECT type || ': ' || message FROM biha.error_details()")?;
        ensure!(error.starts_with("REWIND_FAILED: error: could not open file"), "the error is {error}");
        ensure!(old.value("SELECT count(*) > 0 FROM common WHERE n < 0")? == "t", "its own WAL is gone");
        ensure!(!old.aside().exists(), "{} is left", old.aside().display());
        for entry in fs::read_dir(cluster.directory.join(AWAY))? {
            let entry = entry?;
            fs::rename(entry.path(), old.data.join("pg_wal").join(entry.file_name()))?;
        }
        old.biha("SELECT biha.reset_node_error()")?;
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(old.value("SELECT count(*) FROM common WHERE n < 0")? == "0", "it was not rewound");
        judge_others(cluster, oracle, figures)
    });
}

/// It says things that are not UTF-8, as programs of other encodings do: pg_rewind's own words are understood all the same.
#[test]
fn a_rewind_takes_wal_from_the_archive() {
    let name = "a_rewind_takes_wal_from_the_archive";
    let mut lines = failover_lines();
    lines.push(expect("WARNING:  could not keep the WAL that only this node has", "it is not there"));
    run(name, Cluster::builder(), &lines, |cluster, figures| {
        let (old, oracle) = diverge_without_wal(cluster)?;
        let archive = cluster.directory.join(AWAY);
        // The configuration file halves the backslashes.
        let restore = format!(r#"printf "arr\\352t\\n" >&2; cp "{}/%f" "%p""#, archive.display());
        old.append("postgresql.conf", &format!("restore_command = '{restore}'\n"))?;
        old.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        let said = fs::read(old.data.join("pg_biha/rewind.log"))?;
        ensure!(String::from_utf8(said).is_err(), "the archive was not asked, or said nothing");
        ensure!(old.value("SHOW biha.id")? == old.id.to_string(), "it has the files of another node");
        ensure!(old.value("SELECT count(*) FROM common WHERE n < 0")? == "0", "it was not rewound");
        judge_others(cluster, oracle, figures)
    });
}

fn pg_rewind_killed(name: &str, moment: Moment) {
    run(name, Cluster::builder(), &unusable_lines(), |cluster, figures| {
        let (old, rewind, oracle) = rewind_until(cluster, moment)?;
        ensure!(!old.data.join("backup_label").exists(), "too late: PostgreSQL would see what it is");
        let mark = old.log_mark();
        signal(rewind, Signal::KILL)?;
        old.wait_log(mark, "the rewind of this node broke off: pg_rewind ended with signal: 9", TEN_SECONDS)?;
        old.wait_log(mark, "HINT:  The data directory cannot be started any more.", TEN_SECONDS)?;
        expect_unusable(old)?;
        let id = old.id;
        make_anew(cluster, id)?;
        judge_others(cluster, oracle, figures)
    });
}

#[test]
fn pg_rewind_killed_while_the_configuration_is_empty() {
    pg_rewind_killed("pg_rewind_killed_while_the_configuration_is_empty", Moment::NoConfiguration);
}

#[test]
fn pg_rewind_killed_while_tables_are_copied() {
    pg_rewind_killed("pg_rewind_killed_while_tables_are_copied", Moment::Copying);
}

/// There is nobody left to say what happened; what to do was said before.
#[test]
fn postmaster_killed_during_a_rewind() {
    let name = "postmaster_killed_during_a_rewind";
    run(name, Cluster::builder(), &unusable_lines(), |cluster, figures| {
        let (old, rewind, oracle) = rewind_until(cluster, Moment::NoConfiguration)?;
        old.kill_postmaster()?;
        // pg_rewind, too: a new postmaster would not know of it.
        old.wait_gone(TEN_SECONDS).with_context(|| format!("pg_rewind, process {rewind}"))?;
        let said = "HINT:  If this is cut short, PostgreSQL refuses to start on the data directory";
        old.wait_log(0, said, TEN_SECONDS)?;
        expect_unusable(old)?;
        let id = old.id;
        make_anew(cluster, id)?;
        judge_others(cluster, oracle, figures)
    });
}
