//! SIGTERM and SIGKILL to biha's workers, on a leader and on a follower: they come back, there are never two
//! leaders, and the cluster is healthy again without hands.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::Session;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::Node;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::{Process, signal};
use biha_cluster_tests::scenario::{Figures, judge, run};
use biha_cluster_tests::wait::wait_until;
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, expect_little_lost, failover_lines};

const CONTROLLER: &str = "biha controller";
const AGENT: &str = "biha agent";

fn worker(node: &Node, title: &str) -> Result<Process> {
    let mut found = node.processes_titled(title);
    ensure!(found.len() == 1, "node {}: {found:?} for '{title}'", node.id);
    found.pop().context("none")
}

/// Signals a worker and waits for the next one of its kind and for a healthy cluster, whose leader is given.
fn end_worker(cluster: &Cluster, node: &Node, title: &str, with: Signal) -> Result<u32> {
    let old = worker(node, title)?;
    signal(old.pid, with)?;
    wait_until(&format!("another {title} on node {}", node.id), TEN_SECONDS, || {
        let new = worker(node, title)?;
        ensure!(new.pid != old.pid, "it is the old one");
        anyhow::Ok(())
    })?;
    Ok(cluster.wait_healthy(A_MINUTE)?.id)
}

/// A load of ordinary clients, and one at each node that stays with it.
fn under_load(name: &str, body: impl FnOnce(&Cluster, &Oracle, &mut Figures) -> Result<()> + Send) {
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let patient = cluster.nodes().iter().map(|node| node.id).collect();
        let oracle = Oracle::start(cluster, Load { patient, ..Load::default() })?;
        let from = Instant::now();
        body(cluster, &oracle, figures)?;
        oracle.wait_acks(100, TEN_SECONDS)?;
        let record = oracle.stop()?;
        figures.time("longest outage", record.outage(from));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_little_lost(&verdict)
    });
}

/// A leader without its memory gives up its leadership, by a restart in place.
#[test]
fn sigterm_to_a_leaders_controller() {
    under_load("sigterm_to_a_leaders_controller", |cluster, _, figures| {
        let leader = cluster.leader()?;
        let (before, pid) = (leader.own_status()?, leader.postmaster());
        let mark = leader.log_mark();
        let new = end_worker(cluster, leader, CONTROLLER, Signal::TERM)?;
        leader.wait_log(mark, "LOG:  restarting in place", TEN_SECONDS)?;
        let after = cluster.node(new).own_status()?;
        ensure!(after.term > before.term, "term {} after term {}: no election", after.term, before.term);
        ensure!(leader.postmaster() == pid, "the postmaster is another one");
        figures.note("leader before and after", format!("{} {new}", leader.id));
        Ok(())
    });
}

/// Without its agent a leader leads on.
#[test]
fn sigterm_to_a_leaders_agent() {
    under_load("sigterm_to_a_leaders_agent", |cluster, _, _| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        end_worker(cluster, leader, AGENT, Signal::TERM)?;
        ensure!(leader.own_status()? == before, "the leader or its term changed");
        // The new agent does an agent's work.
        let target = cluster.others(leader.id)[0].id;
        cluster.set_leader(leader, target)?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == target, "another node leads than asked for");
        Ok(())
    });
}

#[test]
fn sigterm_to_a_followers_workers() {
    under_load("sigterm_to_a_followers_workers", |cluster, _, _| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        let follower = cluster.others(leader.id)[0];
        for title in [CONTROLLER, AGENT] {
            end_worker(cluster, follower, title, Signal::TERM)?;
            ensure!(leader.own_status()? == before, "{title}: the leader or its term changed");
        }
        // Both do their work: the follower can be elected.
        cluster.set_leader(leader, follower.id)?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == follower.id, "another node leads than asked for");
        Ok(())
    });
}

/// A crash to PostgreSQL, which restarts all children: a leader comes back as a standby.
#[test]
fn kill9_agent_crash_restart() {
    under_load("kill9_agent_crash_restart", |cluster, oracle, figures| {
        let leader = cluster.leader()?;
        let follower = cluster.others(leader.id)[0];
        for node in [follower, leader] {
            let (mark, pid) = (node.log_mark(), node.postmaster());
            let before = leader.own_status()?;
            let new = end_worker(cluster, node, AGENT, Signal::KILL)?;
            node.wait_log(mark, "all server processes terminated; reinitializing", TEN_SECONDS)?;
            node.wait_log(mark, "entering standby mode", TEN_SECONDS)?;
            ensure!(node.postmaster() == pid, "the postmaster is another one");
            let term = cluster.node(new).own_status()?.term;
            ensure!((term > before.term) == (node.id == leader.id), "term {term} after {before:?}");
            figures.note("leader after", new);
            oracle.wait_acks(100, TEN_SECONDS)?;
        }
        Ok(())
    });
}

/// A worker that has been forked and does not handle signals yet is told of a change of the configuration files.
#[test]
fn sighup_to_a_controller_that_starts() {
    under_load("sighup_to_a_controller_that_starts", |cluster, _, _| {
        let leader = cluster.leader()?;
        let follower = cluster.others(leader.id)[0];
        let reload = |sql: &str| -> Result<()> {
            follower.query(sql)?;
            follower.query("SELECT pg_reload_conf()").map(drop)
        };
        let prefix = follower.value("SHOW log_line_prefix")?;
        // All that is forked waits for so many seconds before it does anything else.
        reload("ALTER SYSTEM SET post_auth_delay = 2")?;
        let old = worker(follower, CONTROLLER)?;
        let session = Session::open(&follower.address, "postgres", TEN_SECONDS)?;
        let mark = follower.log_mark();
        signal(old.pid, Signal::TERM)?;
        wait_until("a new controller", TEN_SECONDS, || {
            ensure!(worker(follower, CONTROLLER)?.pid != old.pid, "it is the old one");
            anyhow::Ok(())
        })?;
        session.query(&format!("ALTER SYSTEM SET log_line_prefix = '{prefix}reloaded '"))?;
        session.query("SELECT pg_reload_conf()")?;
        // The first that it says: whatever else is reloaded later brings it up to date.
        let said = format!("LOG:  biha: term {}: STARTED: ", follower.own_status()?.term);
        follower.wait_log(mark, &said, TEN_SECONDS)?;
        follower.wait_log(mark, &format!("reloaded {said}"), TEN_SECONDS)?;
        for setting in ["post_auth_delay", "log_line_prefix"] {
            session.query(&format!("ALTER SYSTEM RESET {setting}"))?;
        }
        session.query("SELECT pg_reload_conf()")?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}
