//! What a fenced leader takes and what it refuses: whatever would have to reach other nodes is refused before
//! it has done anything, whatever needs no other node goes on, and nothing is confirmed late.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::{Session, query, server_message, sqlstate};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::{Expected, expect};
use biha_cluster_tests::network::Network;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// Refused at once with SQLSTATE 25006: they cannot be taken back, or write in any case.
const REFUSED: [&str; 19] = [
    "COMMIT PREPARED 'one'",
    "ROLLBACK PREPARED 'two'",
    "CREATE DATABASE another",
    "DROP DATABASE victim",
    "ALTER DATABASE victim SET TABLESPACE there",
    "CREATE TABLESPACE elsewhere LOCATION ''",
    "DROP TABLESPACE empty",
    "CREATE INDEX CONCURRENTLY another ON t (n)",
    "DROP INDEX CONCURRENTLY t_n",
    "REINDEX TABLE CONCURRENTLY t",
    "REINDEX TABLE t",
    "VACUUM t",
    "VACUUM FULL t",
    "TRUNCATE t",
    "CREATE TABLE another (n int)",
    "CREATE TEMP TABLE another (n int)",
    "INSERT INTO t VALUES (2)",
    "UPDATE t SET n = 2",
    "WITH gone AS (DELETE FROM t RETURNING n) SELECT n FROM gone",
];
/// Refused at their commit with SQLSTATE 40000: only then is it known that they wrote.
const REFUSED_LATE: [&str; 2] = ["SELECT nextval('fresh')", "SELECT n FROM t FOR UPDATE"];
/// Need no other node.
const TAKEN: [&str; 7] = [
    "SELECT count(*) FROM t",
    "SET work_mem = '8MB'",
    "INSERT INTO scratch VALUES (2)",
    "UPDATE scratch SET n = n + 1",
    "SELECT pg_current_xact_id()",
    "EXPLAIN INSERT INTO t VALUES (2)",
    "BEGIN; LOCK TABLE t; ROLLBACK",
];

fn expected() -> Vec<Expected> {
    let mut lines = failover_lines();
    lines.push(expect(" 25006 ERROR:  ", "what must be refused"));
    lines
}

/// A session that is to find out what biha refuses, not what PostgreSQL refuses in a read-only transaction.
fn writing_session(node: &Node) -> Result<Session> {
    let session = Session::open(&node.address, "postgres", TEN_SECONDS)?;
    session.query("SET default_transaction_read_only = off")?;
    Ok(session)
}

fn prepare(session: &Session) -> Result<()> {
    for sql in [
        "CREATE TABLE t AS SELECT 1 AS n",
        "CREATE INDEX t_n ON t (n)",
        "CREATE SEQUENCE fresh",
        "CREATE DATABASE victim",
        "CREATE TABLESPACE there LOCATION ''",
        "CREATE TABLESPACE empty LOCATION ''",
        "BEGIN; CREATE TABLE one (n int); PREPARE TRANSACTION 'one'",
        "BEGIN; CREATE TABLE two (n int); PREPARE TRANSACTION 'two'",
        // Twice: catalogs that are looked at for the first time may be written to.
        "CREATE TEMP TABLE scratch AS SELECT 1 AS n",
        "INSERT INTO scratch VALUES (1)",
        "UPDATE scratch SET n = n + 1",
        "VACUUM ANALYZE",
    ] {
        session.query(sql)?;
    }
    Ok(())
}

/// Everything that a refused statement could have left behind, or taken away.
fn traces(node: &Node) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for dir in ["base", "pg_tblspc", "pg_twophase"] {
        for entry in fs::read_dir(node.data.join(dir))? {
            let path = entry?.path();
            traces.insert(path.display().to_string());
            // A tablespace in place.
            if dir == "pg_tblspc" {
                for entry in fs::read_dir(path)? {
                    traces.insert(entry?.path().display().to_string());
                }
            }
        }
    }
    let catalogs = "SELECT 'database ' || datname || datconnlimit || ' ' || dattablespace FROM pg_database
        UNION ALL SELECT 'prepared ' || gid FROM pg_prepared_xacts
        UNION ALL SELECT 'tablespace ' || spcname FROM pg_tablespace
        UNION ALL SELECT 'index ' || indexrelid || indisvalid FROM pg_index WHERE indrelid = 't'::regclass
        UNION ALL SELECT 'table ' || relname || relfilenode FROM pg_class WHERE relname IN ('t', 'another')
        UNION ALL SELECT 'row ' || n FROM t
        UNION ALL SELECT 'sequence ' || is_called FROM fresh";
    traces.extend(node.query(catalogs)?.into_iter().flatten().flatten());
    let victim = query(&node.address, "victim", "SELECT count(*) FROM pg_class", TEN_SECONDS);
    victim.context("the database is not usable any more")?;
    Ok(traces)
}

fn expect_refused(session: &Session, sql: &str, code: &str) -> Result<()> {
    let error = session.query(sql).err().with_context(|| format!("taken: {sql}"))?;
    let (message, _, hint) = server_message(&error).with_context(|| format!("{sql}: {error:#}"))?;
    ensure!(sqlstate(&error).as_deref() == Some(code), "{sql} was refused otherwise: {error:#}");
    ensure!(message.ends_with("this node does not accept writes now"), "{sql}: {message}");
    ensure!(!hint.is_empty(), "{sql}: no hint comes with: {message}");
    Ok(())
}

fn expect_fenced(leader: &Node, session: &Session) -> Result<()> {
    leader.wait_state(&["LEADER_RO"], TEN_SECONDS)?;
    let before = traces(leader)?;
    for sql in REFUSED {
        expect_refused(session, sql, "25006")?;
        let after = traces(leader)?;
        let left: Vec<_> = before.symmetric_difference(&after).collect();
        ensure!(left.is_empty(), "{sql} was refused, but has changed: {left:?}");
    }
    for sql in REFUSED_LATE {
        expect_refused(session, sql, "40000")?;
    }
    for sql in TAKEN {
        session.query(sql).context("refused")?;
    }
    leader.wait_state(&["LEADER_RO"], TEN_SECONDS).map(drop)
}

/// All that was refused, in an order in which it can be done.
fn expect_all_taken(leader: &Node) -> Result<()> {
    let session = writing_session(leader)?;
    wait_until("a write", TEN_SECONDS, || session.query("INSERT INTO t VALUES (3)").map(drop))?;
    for sql in REFUSED.iter().chain(&REFUSED_LATE) {
        session.query(sql).context("refused after the fence")?;
        if sql.starts_with("CREATE TABLE another") || sql.starts_with("CREATE INDEX CONCURRENTLY another") {
            session.query(if sql.contains("INDEX") { "DROP INDEX another" } else { "DROP TABLE another" })?;
        }
    }
    ensure!(leader.value("SELECT count(*) FROM pg_prepared_xacts")? == "0", "a prepared transaction is left");
    ensure!(
        leader.value("SELECT to_regclass('one') IS NOT NULL AND to_regclass('two') IS NULL")? == "t",
        "the prepared transactions did not end as asked"
    );
    Ok(())
}

/// Fences the leader with `fence`, and goes on where writes are taken again after `end`.
fn fenced(
    name: &str,
    fence: impl Fn(&Cluster, &Node) -> Result<()> + Sync,
    end: impl Fn(&Cluster, &Node) -> Result<()> + Sync,
) {
    let builder = Cluster::builder()
        .network(Network::Namespaces)
        .setting("max_prepared_transactions", "10")
        .setting("allow_in_place_tablespaces", "on");
    run(name, builder, &expected(), |cluster, _| {
        let leader = cluster.leader()?;
        let session = writing_session(leader)?;
        prepare(&session)?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        fence(cluster, leader)?;
        expect_fenced(leader, &session)?;
        end(cluster, leader)?;
        expect_all_taken(cluster.wait_healthy(A_MINUTE)?)?;
        cluster.wait_caught_up(TEN_SECONDS)
    });
}

#[test]
fn leader_below_minnodes_refuses_what_it_cannot_take_back() {
    let name = "leader_below_minnodes_refuses_what_it_cannot_take_back";
    let lost = |cluster: &Cluster, leader: &Node| cluster.others(leader.id)[0].id;
    fenced(
        name,
        |cluster, leader| {
            leader.biha_value("SELECT biha.set_minnodes(3)")?;
            cluster.node(lost(cluster, leader)).kill_all()
        },
        |cluster, leader| cluster.node(lost(cluster, leader)).start(),
    );
}

/// The leader's term is over when it is healed: what was prepared under it is ended by the next leader.
#[test]
fn leader_cut_off_refuses_what_it_cannot_take_back() {
    fenced(
        "leader_cut_off_refuses_what_it_cannot_take_back",
        |cluster, leader| cluster.partition(leader.id),
        |cluster, _| cluster.heal(),
    );
}

/// A commit has passed the first look and then hangs behind another one's NOTIFY until the lease is over. It is
/// durable, no other node will ever have it, and its client must not be told otherwise.
#[test]
fn commit_that_outlasts_the_lease_is_not_confirmed() {
    let name = "commit_that_outlasts_the_lease_is_not_confirmed";
    let builder = Cluster::builder().network(Network::Namespaces).sync_standbys(1);
    let mut expected = expected();
    expected.push(expect("WARNING:  canceling the wait for synchronous replication", "ended by the test"));
    run(name, builder, &expected, |cluster, _| {
        let old = cluster.leader()?;
        old.query("CREATE TABLE t (who text)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        old.freeze_walsenders()?;
        let mark = old.log_mark();
        let (first, second) = thread::scope(|scope| -> Result<_> {
            let commit = |who: &str, synchronous: &str| {
                let sql = format!(
                    "SET synchronous_commit = {synchronous}; SET application_name = '{who}';
                     BEGIN; INSERT INTO t VALUES ('{who}'); NOTIFY {who}; COMMIT"
                );
                scope.spawn(move || query(&old.address, "postgres", &sql, A_MINUTE))
            };
            let first = commit("first", "on");
            wait_event(old, "first", "SyncRep")?;
            let second = commit("second", "local");
            wait_event(old, "second", "object")?;
            cluster.partition(old.id)?;
            cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
            old.wait_state(&["LEADER_RO"], TEN_SECONDS)?;
            old.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'first'",
            )?;
            let answer = |session: thread::ScopedJoinHandle<'_, _>| {
                session.join().map_err(|_| anyhow::anyhow!("the client panicked"))
            };
            Ok((answer(first)?, answer(second)?))
        })?;
        ensure!(first.is_err(), "a commit was confirmed that no standby has");
        let error = second.err().context("a commit was confirmed after the end of the lease")?;
        ensure!(sqlstate(&error).is_none(), "the client was told something: {error:#}");
        old.wait_log(mark, "lost its leadership during a commit", TEN_SECONDS)?;
        ensure!(
            old.value("SELECT count(*) FROM t WHERE who = 'second'")? == "1",
            "the commit was refused, not left unconfirmed: this test shows nothing"
        );
        old.thaw()?;
        cluster.heal()?;
        let new = cluster.wait_healthy(A_MINUTE)?;
        ensure!(new.value("SELECT count(*) FROM t")? == "0", "the new leader has what it never received");
        Ok(())
    });
}

fn wait_event(node: &Node, application: &str, event: &str) -> Result<()> {
    let sql = format!("SELECT wait_event FROM pg_stat_activity WHERE application_name = '{application}'");
    wait_until(&format!("session {application} to wait for {event}"), TEN_SECONDS, || {
        let seen = node.value(&sql)?;
        ensure!(seen == event, "it waits for {seen}");
        Ok(())
    })
}
