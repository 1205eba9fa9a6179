//! An asynchronous leader that is killed with transactions which no other node has: the rewind discards them, but keeps
//! their WAL aside, and biha.lost_transactions() lists them, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use biha_cluster_tests::client::{Session, single};
use biha_cluster_tests::cluster::{Builder, Cluster};
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::process::signal;
use biha_cluster_tests::run::run as run_program;
use biha_cluster_tests::scenario::{Figures, run};
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, expect_stays_down, failover_lines, wait_process};

/// Transaction, what became of it, and when it was committed, by PostgreSQL's own record of that.
type Fact = (String, &'static str, Option<String>);

/// No transactions but the test's own, and their times.
fn builder() -> Builder {
    Cluster::builder()
        .setting("autovacuum", "off")
        .setting("track_commit_timestamp", "on")
        .setting("max_prepared_transactions", "4")
}

/// A client of the leader that keeps book.
struct Client {
    session: Session,
    facts: Vec<Fact>,
}

impl Client {
    fn new(node: &Node) -> Result<Self> {
        let session = Session::open(&node.address, "postgres", A_MINUTE)?;
        session.query("CREATE TABLE IF NOT EXISTS t (n int)")?;
        Ok(Client { session, facts: Vec::new() })
    }

    fn insert(&self) -> Result<String> {
        single(self.session.query("INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()::xid::text")?)
    }

    fn note(&mut self, xid: &str, kind: &'static str) -> Result<()> {
        let time = match kind {
            "prepare" => None,
            _ => Some(single(
                self.session.query(&format!("SELECT pg_xact_commit_timestamp('{xid}'::xid)::text"))?,
            )?),
        };
        self.facts.push((xid.to_string(), kind, time));
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let xid = self.insert()?;
        self.note(&xid, "commit")
    }

    fn roll_back(&self) -> Result<()> {
        self.session.query("BEGIN")?;
        self.insert()?;
        self.session.query("ROLLBACK").map(drop)
    }

    /// One with a subtransaction.
    fn commit_nested(&mut self) -> Result<()> {
        self.session.query("BEGIN")?;
        let xid = self.insert()?;
        self.session.query("SAVEPOINT s; INSERT INTO t VALUES (2); RELEASE s; COMMIT")?;
        self.note(&xid, "commit")
    }

    fn prepare(&mut self, name: &str) -> Result<String> {
        self.session.query("BEGIN")?;
        let xid = self.insert()?;
        self.session.query(&format!("PREPARE TRANSACTION '{name}'"))?;
        self.note(&xid, "prepare")?;
        Ok(xid)
    }

    fn two_phases(&mut self, name: &str) -> Result<()> {
        let xid = self.prepare(name)?;
        self.session.query(&format!("COMMIT PREPARED '{name}'"))?;
        self.note(&xid, "commit prepared")
    }
}

/// Kills the leader when it has transactions that no other node has; it rejoins by a rewind. Gives those transactions.
fn lose(cluster: &Cluster, rows: usize) -> Result<Vec<Fact>> {
    let old = cluster.leader()?;
    let facts = kill_with_more(cluster, old, rows)?;
    let mark = old.log_mark();
    old.start()?;
    cluster.wait_healthy(A_MINUTE)?;
    old.wait_log(mark, "rewinding before the restart in place", TEN_SECONDS)?;
    Ok(facts)
}

/// Kills this leader when it has transactions that no other node has, and gives those.
fn kill_with_more(cluster: &Cluster, old: &Node, rows: usize) -> Result<Vec<Fact>> {
    let mut client = Client::new(old)?;
    for _ in 0..3 {
        client.commit()?;
    }
    cluster.wait_caught_up(A_MINUTE)?;
    old.freeze_walsenders()?;
    // What all nodes have is not lost.
    client.facts.clear();
    for _ in 0..rows {
        client.commit()?;
        client.roll_back()?;
    }
    client.commit_nested()?;
    client.two_phases("first")?;
    // Into more segments than one.
    client.session.query("SELECT pg_switch_wal()")?;
    client.commit()?;
    client.prepare("second")?;
    client.roll_back()?;
    // It is on disk, and all before it.
    client.commit()?;
    let facts = std::mem::take(&mut client.facts);
    drop(client);
    old.kill_all()?;
    cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
    Ok(facts)
}

fn lost_directory(node: &Node) -> PathBuf {
    let mut name = node.data.clone().into_os_string();
    name.push(".biha-lost");
    name.into()
}

/// The node lists these, in this order, and says where each is.
fn expect_listed(node: &Node, facts: &[Fact]) -> Result<()> {
    let sql = "SELECT xid::text, kind, commit_time::text, timeline::text, lsn, wal_directory \
               FROM biha.lost_transactions() ORDER BY wal_directory, lsn::pg_lsn";
    let rows = node.biha(sql)?;
    let listed: Vec<(String, String)> = rows.iter().map(|row| (text(row, 0), text(row, 1))).collect();
    let known: Vec<(String, String)> =
        facts.iter().map(|(xid, kind, _)| (xid.clone(), (*kind).to_string())).collect();
    ensure!(listed == known, "listed are {listed:?}\ninstead of {known:?}");
    for (row, (xid, kind, time)) in rows.iter().zip(facts) {
        let listed = text(row, 2);
        ensure!(
            time.as_ref().is_none_or(|time| *time == listed),
            "{kind} of {xid} at {listed}, not {time:?}"
        );
        // PostgreSQL's own program finds it there.
        let mut dump = node.program("pg_waldump");
        dump.args(["-n", "1", "-t", &text(row, 3), "-s", &text(row, 4), "-p", &text(row, 5)]);
        let found = run_program(&mut dump)?;
        ensure!(found.contains("rmgr: Transaction"), "{kind} of {xid} is not at {}: {found}", text(row, 4));
    }
    Ok(())
}

fn text(row: &[Option<String>], column: usize) -> String {
    row[column].clone().unwrap_or_default()
}

fn sets(node: &Node) -> usize {
    std::fs::read_dir(lost_directory(node)).map_or(0, Iterator::count)
}

#[test]
fn lost_transactions_are_listed_after_each_rewind() {
    let name = "lost_transactions_are_listed_after_each_rewind";
    run(name, builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        expect_listed(old, &[])?;
        let mark = old.log_mark();
        let mut facts = lose(cluster, 50)?;
        old.wait_log(mark, "kept the WAL that only this node has, from ", TEN_SECONDS)?;
        expect_listed(old, &facts)?;
        // Not on the others, which have lost nothing.
        let new = cluster.leader()?;
        expect_listed(new, &[])?;
        // A second time.
        cluster.set_leader(new, old.id)?;
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(cluster.leader()?.id == old.id, "node {} does not lead again", old.id);
        facts.extend(lose(cluster, 5)?);
        expect_listed(old, &facts)?;
        ensure!(sets(old) == 2, "{} sets are kept", sets(old));
        note(figures, &facts);
        Ok(())
    });
}

fn note(figures: &mut Figures, facts: &[Fact]) {
    figures.note("lost", facts.iter().filter(|(_, kind, _)| *kind != "prepare").count());
}

#[test]
fn nothing_is_kept_where_nothing_is_wanted() {
    let name = "nothing_is_kept_where_nothing_is_wanted";
    run(name, builder().setting("biha.keep_lost_wal", "0"), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let facts = lose(cluster, 5)?;
        note(figures, &facts);
        ensure!(!lost_directory(old).exists(), "something is kept");
        expect_listed(old, &[])
    });
}

/// A node that cannot keep its WAL rejoins all the same, and says so.
#[test]
fn what_cannot_be_kept_delays_no_rewind() {
    let name = "what_cannot_be_kept_delays_no_rewind";
    let mut lines = failover_lines();
    lines.push(expect(
        "WARNING:  could not keep the WAL that only this node has*more than biha.keep_lost_wal allows",
        "one MB is less than a segment",
    ));
    run(name, builder().setting("biha.keep_lost_wal", "1MB"), &lines, |cluster, figures| {
        let old = cluster.leader()?;
        let mark = old.log_mark();
        let facts = lose(cluster, 5)?;
        note(figures, &facts);
        old.wait_log(mark, "could not keep the WAL that only this node has", TEN_SECONDS)?;
        ensure!(sets(old) == 0, "{} sets are kept", sets(old));
        expect_listed(old, &[])
    });
}

/// The operator's stop holds before the rewind proper, too, and the next start keeps all the same.
#[test]
fn stop_while_the_fork_is_looked_for() {
    let name = "stop_while_the_fork_is_looked_for";
    run(name, builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let facts = kill_with_more(cluster, old, 5)?;
        note(figures, &facts);
        let mark = old.log_mark();
        old.start_unawaited()?;
        let dry_run = wait_process(old, "--dry-run", A_MINUTE)?;
        signal(dry_run.pid, Signal::STOP)?;
        old.signal(Signal::INT)?;
        expect_stays_down(old, Duration::from_secs(3))?;
        ensure!(old.wait_log(mark, "kept the WAL", Duration::ZERO).is_err(), "the stop came too late");
        old.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        expect_listed(old, &facts)
    });
}
