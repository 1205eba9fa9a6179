//! Commits that standbys must have: who cancels, terminates or stops a server must not make anyone believe in a
//! row that no standby has.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use biha_cluster_tests::client::{Session, single, sqlstate};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::process;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::{wait_for, wait_until};
use rustix::process::Signal;

use crate::common::{
    A_MINUTE, IN_PLACE, TEN_SECONDS, failover_lines, has_disks, slow_tablespace, wait_process,
};

const WAITING: &str = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
const VISIBLE: &str = "SELECT count(*) FROM t";
/// For how long nothing must happen. Long against a network round trip, short against the lease.
const A_WHILE: Duration = Duration::from_millis(300);

/// A statement that another thread runs: what came of it, once it is known.
struct Pending(Receiver<Result<()>>);

impl Pending {
    fn start(node: &Node, first: &str, then: &str) -> Result<Pending> {
        Self::start_in("postgres", node, first, then)
    }

    fn start_in(database: &str, node: &Node, first: &str, then: &str) -> Result<Pending> {
        let session = Session::open(&node.address, database, A_MINUTE)?;
        if !first.is_empty() {
            session.query(first)?;
        }
        let (tell, told) = channel();
        let sql = then.to_string();
        thread::spawn(move || {
            let answer = session.query(&sql).map(drop);
            // An answer that is taken back at once is none. Nobody listens any more where the test has failed.
            tell.send(answer.and_then(|()| session.query("SELECT 1").map(drop))).ok();
        });
        Ok(Pending(told))
    }

    fn expect_unanswered(&self) -> Result<()> {
        match self.0.recv_timeout(A_WHILE) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            answer => bail!("it was answered: {answer:?}"),
        }
    }

    fn answer(&self) -> Result<()> {
        self.0.recv_timeout(TEN_SECONDS).context("no answer came")?
    }
}

fn expected() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.extend([
        expect("FATAL:  terminating connection due to administrator command", "terminated by the test"),
        expect("WARNING:  canceling the wait for synchronous replication", "ended by the controller"),
        expect("WARNING:  acknowledged commits can be lost", "a setting of the test"),
        expect("ERROR:  lossless is", "what must be refused"),
        expect("ERROR:  *cannot run inside a transaction block", "what PostgreSQL refuses"),
    ]);
    lines
}

fn builder() -> Builder {
    Cluster::builder().sync_standbys(1).setting("max_prepared_transactions", "4")
}

fn waiting_pid(leader: &Node) -> Result<String> {
    wait_until("a commit that waits", TEN_SECONDS, || leader.value(WAITING))
}

fn thaw(senders: &[i32]) -> Result<()> {
    senders.iter().try_for_each(|pid| process::signal(*pid, Signal::CONT))
}

#[test]
fn lossless_cancelled_wait_shows_no_row() {
    run("lossless_cancelled_wait_shows_no_row", builder(), &expected(), |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let senders = leader.freeze_walsenders()?;
        let timeout = "SET statement_timeout = '50ms'";
        let pending = Pending::start(leader, timeout, "INSERT INTO t VALUES (1)")?;
        let pid = waiting_pid(leader)?;
        leader.value(&format!("SELECT pg_cancel_backend({pid})"))?;
        pending.expect_unanswered()?;
        ensure!(leader.value(VISIBLE)? == "0", "a row is visible that no standby has");
        thaw(&senders)?;
        pending.answer()?;
        ensure!(leader.value(VISIBLE)? == "1", "the acknowledged row is not there");

        let senders = leader.freeze_walsenders()?;
        let pending = Pending::start(leader, "", "INSERT INTO t VALUES (2)")?;
        let pid = waiting_pid(leader)?;
        leader.value(&format!("SELECT pg_terminate_backend({pid})"))?;
        pending.expect_unanswered()?;
        ensure!(leader.value(VISIBLE)? == "1", "a row is visible that no standby has");
        thaw(&senders)?;
        // It is terminated once it has committed.
        let ended = pending.answer();
        wait_until("the row", TEN_SECONDS, || {
            ensure!(leader.value(VISIBLE)? == "2", "it is not visible");
            Ok(())
        })?;
        if let Err(error) = ended {
            ensure!(sqlstate(&error).is_none_or(|state| state == "57P01"), "it failed otherwise: {error:#}");
        }
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// A timeout cancels the statement that it is for, and no commit that has been made: neither in its answer nor after it.
#[test]
fn lossless_timeouts_fail_no_commit() {
    let mut lines = expected();
    lines.push(expect("ERROR:  canceling statement due to statement timeout", "it has had its time"));
    run("lossless_timeouts_fail_no_commit", builder(), &lines, |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int)")?;
        leader.query("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let senders = leader.freeze_walsenders()?;
        let pending = Pending::start(leader, "SET statement_timeout = '50ms'", "COMMIT PREPARED 'one'")?;
        waiting_pid(leader)?;
        pending.expect_unanswered()?;
        thaw(&senders)?;
        pending.answer()?;

        // The second NOTIFY waits for the lock that the first one's commit has.
        let senders = leader.freeze_walsenders()?;
        let notify = "BEGIN; INSERT INTO t VALUES (2); NOTIFY t; COMMIT";
        let first = Pending::start(leader, "", notify)?;
        waiting_pid(leader)?;
        // What comes after it has not waited for anything.
        let second = Pending::start(leader, "SET lock_timeout = '50ms'", &format!("{notify}; SELECT 1"))?;
        let locked = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        wait_until("a commit that waits for another", TEN_SECONDS, || leader.value(locked))?;
        second.expect_unanswered()?;
        thaw(&senders)?;
        first.answer()?;
        second.answer()?;
        ensure!(leader.value(VISIBLE)? == "3", "{} rows", leader.value(VISIBLE)?);

        // A statement of several transactions has its time all the same.
        let senders = leader.freeze_walsenders()?;
        let long = "DO $$BEGIN INSERT INTO t VALUES (3); COMMIT; INSERT INTO t VALUES (4); END$$";
        let pending = Pending::start(leader, "SET statement_timeout = '50ms'", long)?;
        waiting_pid(leader)?;
        pending.expect_unanswered()?;
        thaw(&senders)?;
        let error = pending.answer().err().context("it has had more time than it was given")?;
        ensure!(format!("{error:#}").contains("statement timeout"), "it says {error:#}");
        ensure!(leader.value(VISIBLE)? == "4", "{} rows", leader.value(VISIBLE)?);
        Ok(())
    });
}

/// A commit that began when none had to wait, and takes long before it is written, is one of those that have to wait once
/// the change has been confirmed.
#[test]
fn lossless_change_holds_for_commits_under_way() {
    let name = "lossless_change_holds_for_commits_under_way";
    if !has_disks(name) {
        return;
    }
    let builder = Cluster::builder().setting("allow_in_place_tablespaces", "on");
    let lines: Vec<_> = expected().into_iter().chain([IN_PLACE]).collect();
    run(name, builder, &lines, |cluster, _| {
        let leader = cluster.wait_healthy(TEN_SECONDS)?;
        let disk = slow_tablespace(cluster, leader)?;
        leader.query("CREATE TABLE t (n int)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        // The temporary table is emptied when the commit has begun and is not written yet.
        let session = Session::open(&leader.address, "postgres", A_MINUTE)?;
        for statement in [
            "SET synchronous_commit = local",
            "CREATE TEMP TABLE own (n int) ON COMMIT DELETE ROWS TABLESPACE slow",
            "BEGIN; INSERT INTO own SELECT generate_series(1, 1000); INSERT INTO t VALUES (1)",
        ] {
            session.query(statement)?;
        }
        let backend = single(session.query("SELECT pg_backend_pid()")?)?;
        disk.hang()?;
        let (tell, told) = channel();
        thread::spawn(move || tell.send(session.query("COMMIT").map(drop)).ok());
        let pending = Pending(told);
        wait_until("the commit to hang", TEN_SECONDS, || {
            let stat = std::fs::read_to_string(format!("/proc/{backend}/stat"))?;
            ensure!(stat.contains(") D "), "it is not held up: {stat}");
            Ok(())
        })?;
        leader.biha("SELECT biha.set_sync_standbys(1)")?;
        leader.biha("SELECT biha.set_lossless('require')")?;
        let senders = leader.freeze_walsenders()?;
        disk.thaw();
        pending.expect_unanswered()?;
        ensure!(leader.value(VISIBLE)? == "1", "it is not committed");
        thaw(&senders)?;
        pending.answer()
    });
}

/// A fast shutdown waits for nobody, and acknowledges nothing that no standby has. One of the two commits waits for the
/// other, which holds the lock of NOTIFY until it is over.
#[test]
fn lossless_stop_acknowledges_nothing_alone() {
    run("lossless_stop_acknowledges_nothing_alone", builder(), &expected(), |cluster, figures| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let senders = leader.freeze_walsenders()?;
        let pending = Pending::start(leader, "", "BEGIN; INSERT INTO t VALUES (1); NOTIFY t; COMMIT")?;
        waiting_pid(leader)?;
        let other = Pending::start(leader, "", "BEGIN; INSERT INTO t VALUES (2); NOTIFY t; COMMIT")?;
        let locked = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        wait_until("a commit that waits for another", TEN_SECONDS, || leader.value(locked))?;
        thread::scope(|scope| {
            let stop = scope.spawn(|| leader.stop(StopMode::Fast));
            let ended = pending.0.recv_timeout(TEN_SECONDS);
            let other = other.0.recv_timeout(TEN_SECONDS);
            // The WAL senders have to send everything before the server is down.
            thaw(&senders)?;
            stop.join().ok().context("the stop panicked")??;
            let ended = ended.context("it was left waiting, and the stop with it")?;
            let error = ended.err().context("it was acknowledged, and no standby had it")?;
            let other = other.context("the other one was left waiting")?;
            ensure!(other.is_err(), "the other one was acknowledged, and no standby had it");
            figures.note("told", sqlstate(&error).unwrap_or_else(|| error.root_cause().to_string()));
            Ok::<_, anyhow::Error>(())
        })?;
        cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
        leader.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// A smart shutdown waits for clients only: a worker's commit that waits for standbys is ended when they are gone.
#[test]
fn lossless_smart_stop_waits_for_no_worker() {
    const WORKER: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND wait_event = 'SyncRep'";
    let name = "lossless_smart_stop_waits_for_no_worker";
    run(name, builder().setting("autovacuum_naptime", "1s"), &expected(), |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int) WITH (autovacuum_analyze_threshold = 0)")?;
        leader.biha_value("SELECT biha.set_lossless('require')")?;
        let (pid, senders) = wait_until("a worker's commit that waits", A_MINUTE, || {
            leader.query("INSERT INTO t SELECT * FROM generate_series(1, 1000)")?;
            let senders = leader.freeze_walsenders()?;
            let worker = wait_until("it", Duration::from_secs(3), || leader.value(WORKER));
            // It has been there before its commits had anything to wait for.
            worker.map(|pid| (pid, senders.clone())).inspect_err(|_| drop(thaw(&senders)))
        })?;
        let worker = pid.parse()?;
        thread::scope(|scope| {
            let stop = scope.spawn(|| leader.stop(StopMode::Smart));
            let ended = wait_for("the worker to end", TEN_SECONDS, || !process::alive(worker));
            thaw(&senders)?;
            stop.join().ok().context("the stop panicked")??;
            ended
        })?;
        cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
        leader.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// What PostgreSQL refuses only after the gate, and a savepoint survives: the session takes signals as before, also
/// once it has committed, and a hand-over does not wait for it.
#[test]
fn lossless_refused_commit_prepared_leaves_nothing_behind() {
    run("lossless_refused_commit_prepared_leaves_nothing_behind", builder(), &expected(), |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        for (statement, then) in [
            ("COMMIT PREPARED 'one'", None),
            ("ROLLBACK PREPARED 'one'", None),
            ("COMMIT PREPARED 'one'", Some("ROLLBACK TO s; INSERT INTO t VALUES (1); COMMIT")),
        ] {
            let (session, pid) = refused_in_savepoint(leader, statement)?;
            if let Some(then) = then {
                session.query(then)?;
            }
            leader.value(&format!("SELECT pg_terminate_backend({pid})"))?;
            let left = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            wait_until("the session's end", TEN_SECONDS, || {
                ensure!(leader.value(&left)? == "0", "{statement}, {then:?}: it lives");
                Ok(())
            })?;
        }
        let (_idle, _) = refused_in_savepoint(leader, "COMMIT PREPARED 'one'")?;
        let to = cluster.others(leader.id)[0].id;
        leader.biha(&format!("SELECT biha.set_leader({to})"))?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// A session in a transaction in which a savepoint has caught the statement's refusal, and its process.
fn refused_in_savepoint(leader: &Node, statement: &str) -> Result<(Session, String)> {
    let session = Session::open(&leader.address, "postgres", TEN_SECONDS)?;
    let pid = single(session.query("SELECT pg_backend_pid()")?)?;
    session.query("BEGIN; SAVEPOINT s")?;
    let error = session.query(statement).err().with_context(|| format!("{statement} was done"))?;
    ensure!(sqlstate(&error).as_deref() == Some("25001"), "{statement} was refused otherwise: {error:#}");
    Ok((session, pid))
}

/// A session that asks for less is counted, or overruled.
#[test]
fn lossless_require_overrules_sessions() {
    const LOSSLESS: &str = "SELECT DISTINCT lossless FROM biha.config()";
    run("lossless_require_overrules_sessions", builder(), &expected(), |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        ensure!(leader.biha_value(LOSSLESS)? == "t", "it is lossless by its numbers");
        let senders = leader.freeze_walsenders()?;
        leader.query("SET synchronous_commit = local; INSERT INTO t VALUES (0)")?;
        thaw(&senders)?;
        ensure!(leader.biha_value(LOSSLESS)? == "f", "a commit asked for less");
        leader.biha_value("SELECT biha.set_lossless('require')")?;

        let error =
            leader.biha_value("SELECT biha.set_sync_standbys(0)").err().context("it was not refused")?;
        ensure!(sqlstate(&error).as_deref() == Some("22023"), "it was refused otherwise: {error:#}");
        leader.query("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'")?;
        for (less, sql) in [
            ("SET synchronous_commit = remote_write", "INSERT INTO t VALUES (2)"),
            ("SET synchronous_commit = local", "BEGIN; INSERT INTO t VALUES (3); PREPARE TRANSACTION 'two'"),
            ("SET synchronous_commit = off", "COMMIT PREPARED 'one'"),
        ] {
            let senders = leader.freeze_walsenders()?;
            let pending = Pending::start(leader, less, sql)?;
            waiting_pid(leader)?;
            pending.expect_unanswered().with_context(|| sql.to_string())?;
            thaw(&senders)?;
            pending.answer().with_context(|| sql.to_string())?;
            cluster.wait_caught_up(TEN_SECONDS)?;
        }
        ensure!(leader.value(VISIBLE)? == "3", "{} rows", leader.value(VISIBLE)?);
        leader.query("ROLLBACK PREPARED 'two'")?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// Who ceases to be a voter has acknowledged commits as long as the WAL senders go by the old settings: the change is done
/// when they do not any more.
#[test]
fn lossless_change_waits_until_the_server_has_read_it() {
    let name = "lossless_change_waits_until_the_server_has_read_it";
    run(name, builder(), &expected(), |cluster, _| {
        let leader = cluster.wait_healthy(TEN_SECONDS)?;
        let (out, other) = (cluster.others(leader.id)[0], cluster.others(leader.id)[1]);
        // Nobody writes the settings.
        let agent = wait_process(leader, "biha agent", TEN_SECONDS)?.pid;
        process::signal(agent, Signal::STOP)?;
        let sql = format!("SELECT biha.set_can_vote({}, false)", out.id);
        let change = Pending::start_in("biha_db", leader, "", &sql)?;
        wait_until("the configuration to have come", TEN_SECONDS, || {
            let sql = format!("SELECT can_vote FROM biha.config() WHERE id = {}", out.id);
            ensure!(other.biha_value(&sql)? == "f", "it votes as before");
            Ok(())
        })?;
        change.expect_unanswered()?;
        process::signal(agent, Signal::CONT)?;
        change.answer()
    });
}

/// PostgreSQL has commits wait for standbys once its checkpointer has read that there are any: not before is the change
/// done that says so.
#[test]
fn lossless_change_waits_until_the_checkpointer_has_read_it() {
    let name = "lossless_change_waits_until_the_checkpointer_has_read_it";
    run(name, Cluster::builder(), &expected(), |cluster, _| {
        let leader = cluster.wait_healthy(TEN_SECONDS)?;
        let checkpointer = wait_process(leader, "checkpointer", TEN_SECONDS)?.pid;
        process::signal(checkpointer, Signal::STOP)?;
        let change = Pending::start_in("biha_db", leader, "", "SELECT biha.set_sync_standbys(1)")?;
        wait_until("synchronous standbys", TEN_SECONDS, || {
            let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
            ensure!(leader.value(sql)? == "2", "there are none");
            Ok(())
        })?;
        change.expect_unanswered()?;
        process::signal(checkpointer, Signal::CONT)?;
        change.answer()
    });
}
