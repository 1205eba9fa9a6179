//! What a fenced leader takes and what it refuses: whatever would have to reach other nodes is refused before
//! it has done anything, whatever needs no other node goes on, and nothing is confirmed late.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::{Session, query, server_message, single, sqlstate};
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
    "ALTER DATABASE victim SET TABLESPACE there",
    "DROP DATABASE victim",
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
/// Refused at their commit with SQLSTATE 40000: only then is it known that they write.
const REFUSED_LATE: [&str; 3] =
    ["SELECT nextval('fresh')", "SELECT n FROM t FOR UPDATE", "BEGIN; SELECT 1; PREPARE TRANSACTION 'three'"];
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
    lines.extend([
        expect(" 25006 ERROR:  ", "what must be refused"),
        expect(
            "FATAL:  cannot execute COMMIT: this node",
            "a session that ends can't drop its temporary table",
        ),
        expect("startup*WARNING:  unexpected directory entry", "a tablespace in place, after a crash"),
        expect(
            "startup*WARNING:  removing future two-phase state file",
            "a rewound node replays the PREPARE",
        ),
    ]);
    lines
}

/// A session that is to find out what biha refuses, not what PostgreSQL refuses in a read-only transaction.
fn writing_session(node: &Node) -> Result<Session> {
    let session = Session::open(&node.address, "postgres", TEN_SECONDS)?;
    session.query("SET default_transaction_read_only = off")?;
    Ok(session)
}

/// Can the statement be tried? Several servers of one host can have only tablespaces in place, and a rewind
/// does not work with those.
fn fits(sql: &str, tablespaces: bool) -> bool {
    tablespaces || !sql.contains("TABLESPACE")
}

fn prepare(session: &Session, tablespaces: bool) -> Result<()> {
    let statements = [
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
    ];
    statements.iter().filter(|sql| fits(sql, tablespaces)).try_for_each(|sql| session.query(sql).map(drop))
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

fn expect_fenced(leader: &Node, session: &Session, tablespaces: bool) -> Result<()> {
    leader.wait_state(&["LEADER_RO"], TEN_SECONDS)?;
    let before = traces(leader)?;
    for sql in REFUSED.iter().filter(|sql| fits(sql, tablespaces)) {
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
fn expect_all_taken(leader: &Node, tablespaces: bool) -> Result<()> {
    let session = writing_session(leader)?;
    wait_until("a write", TEN_SECONDS, || session.query("INSERT INTO t VALUES (3)").map(drop))?;
    for sql in REFUSED.iter().chain(&REFUSED_LATE).filter(|sql| fits(sql, tablespaces)) {
        session.query(sql).context("refused after the fence")?;
        if sql.starts_with("CREATE TABLE another") || sql.starts_with("CREATE INDEX CONCURRENTLY another") {
            session.query(if sql.contains("INDEX") { "DROP INDEX another" } else { "DROP TABLE another" })?;
        }
        if sql.contains("PREPARE TRANSACTION") {
            session.query("ROLLBACK PREPARED 'three'")?;
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
    tablespaces: bool,
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
        prepare(&session, tablespaces)?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        fence(cluster, leader)?;
        expect_fenced(leader, &session, tablespaces)?;
        end(cluster, leader)?;
        expect_all_taken(cluster.wait_healthy(A_MINUTE)?, tablespaces)?;
        cluster.wait_caught_up(TEN_SECONDS)
    });
}

#[test]
fn leader_below_minnodes_refuses_what_it_cannot_take_back() {
    let name = "leader_below_minnodes_refuses_what_it_cannot_take_back";
    let lost = |cluster: &Cluster, leader: &Node| cluster.others(leader.id)[0].id;
    fenced(
        name,
        true,
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
        false,
        |cluster, leader| cluster.partition(leader.id),
        |cluster, _| cluster.heal(),
    );
}

/// A commit has passed the first look, and then hangs until the lease is over: in emptying its temporary table, on
/// which another session has a lock. It is durable in the end, no other node will ever have it, and its client must
/// not be told that it is committed.
#[test]
fn commit_that_outlasts_the_lease_is_not_confirmed() {
    let name = "commit_that_outlasts_the_lease_is_not_confirmed";
    let builder = Cluster::builder().network(Network::Namespaces);
    run(name, builder, &expected(), |cluster, _| {
        let old = cluster.leader()?;
        old.query("CREATE TABLE t (n int)")?;
        let commits = Session::open(&old.address, "postgres", A_MINUTE)?;
        commits.query("CREATE TEMP TABLE emptied (n int) ON COMMIT DELETE ROWS")?;
        let backend = single(commits.query("SELECT pg_backend_pid()")?)?;
        let emptied = old.value("SELECT oid::regclass FROM pg_class WHERE relname = 'emptied'")?;
        let holds = Session::open(&old.address, "postgres", TEN_SECONDS)?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        old.freeze_walsenders()?;
        let mark = old.log_mark();
        holds.query(&format!("BEGIN; LOCK TABLE {emptied} IN ACCESS SHARE MODE"))?;
        thread::scope(|scope| -> Result<()> {
            let sql = "BEGIN; INSERT INTO t VALUES (1); INSERT INTO emptied VALUES (1); COMMIT";
            let commit = scope.spawn(move || commits.query(sql));
            let waiting = format!("SELECT wait_event_type FROM pg_stat_activity WHERE pid = {backend}");
            wait_until("the commit to hang", TEN_SECONDS, || {
                let seen = old.value(&waiting)?;
                ensure!(seen == "Lock", "it waits for {seen}");
                Ok(())
            })?;
            cluster.partition(old.id)?;
            cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
            old.wait_state(&["LEADER_RO"], TEN_SECONDS)?;
            holds.query("ROLLBACK")?;
            let answer = commit.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
            let error = answer.err().context("a commit was confirmed after the end of the lease")?;
            ensure!(sqlstate(&error).is_none(), "the client was told something: {error:#}");
            Ok(())
        })?;
        old.wait_log(mark, "lost its leadership during a commit", TEN_SECONDS)?;
        let rows = |node: &Node| node.value("SELECT count(*) FROM t");
        ensure!(rows(old)? == "1", "the commit was refused, not left unconfirmed: this test shows nothing");
        old.thaw()?;
        cluster.heal()?;
        let new = cluster.wait_healthy(A_MINUTE)?;
        ensure!(rows(new)? == "0", "the new leader has what it never received");
        Ok(())
    });
}
