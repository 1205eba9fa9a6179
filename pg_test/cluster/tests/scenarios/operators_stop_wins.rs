//! pg_ctl stop and restart, SIGTERM and SIGINT to any node do what the operator asked, at any moment: also in
//! the middle of a demotion, a promotion, a rewind.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::signal;
use biha_cluster_tests::scenario::{judge, run};
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, diverge, expect_little_lost, expect_stays_down, failover_lines};
use crate::rewind_interrupted::start_rewound;

/// How long a node must stay down to be believed.
const DOWN: Duration = Duration::from_secs(3);

#[test]
fn stop_of_leader_fails_over_and_loses_nothing() {
    let name = "stop_of_leader_fails_over_and_loses_nothing";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let oracle = Oracle::start(cluster, Load::default())?;
        for asked in [Some(Signal::INT), Some(Signal::TERM), None] {
            let leader = cluster.leader()?;
            let from = std::time::Instant::now();
            match asked {
                Some(signal) => leader.signal(signal)?,
                None => leader.stop(StopMode::Fast)?,
            }
            if asked == Some(Signal::TERM) {
                // A smart shutdown waits for the clients, as it does without biha.
                leader.signal(Signal::INT)?;
            }
            cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
            figures.time("another leader after", from.elapsed());
            expect_stays_down(leader, DOWN)?;
            leader.start()?;
            cluster.wait_healthy(A_MINUTE)?;
        }
        judge(cluster, &oracle.stop()?)?.expect_nothing_lost()
    });
}

#[test]
fn restart_of_any_node_is_a_restart() {
    run("restart_of_any_node_is_a_restart", Cluster::builder(), &failover_lines(), |cluster, _| {
        let oracle = Oracle::start(cluster, Load::default())?;
        for node in cluster.nodes() {
            for mode in [StopMode::Fast, StopMode::Immediate] {
                let pid = node.postmaster().context("the node does not run")?;
                node.restart(mode)?;
                cluster.wait_healthy(A_MINUTE)?;
                ensure!(node.postmaster().is_some_and(|now| now != pid), "no restart of node {}", node.id);
            }
        }
        expect_little_lost(&judge(cluster, &oracle.stop()?)?)
    });
}

#[test]
fn stop_of_follower_stays() {
    run("stop_of_follower_stays", Cluster::builder(), &failover_lines(), |cluster, _| {
        let leader = cluster.leader()?;
        let follower = cluster.others(leader.id)[0];
        for asked in [Signal::TERM, Signal::INT, Signal::QUIT] {
            follower.signal(asked)?;
            expect_stays_down(follower, DOWN)?;
            follower.start()?;
            ensure!(cluster.wait_healthy(A_MINUTE)?.id == leader.id, "the leader changed");
        }
        Ok(())
    });
}

/// During a demotion PostgreSQL itself ignores a second shutdown request; the operator's must count.
#[test]
fn stop_in_the_middle_of_a_demotion() {
    let mut expected = failover_lines();
    expected.push(expect("set_leader", "the switchover that failed"));
    run("stop_in_the_middle_of_a_demotion", Cluster::builder(), &expected, |cluster, _| {
        for asked in [Signal::INT, Signal::TERM] {
            let leader = cluster.leader()?;
            let target = cluster.others(leader.id)[0].id;
            let mark = leader.log_mark();
            thread::scope(|scope| -> Result<()> {
                // It may fail, as its session ends with the leader; but it must begin.
                let switchover = scope.spawn(|| cluster.set_leader(leader, target));
                let began = leader.wait_log(mark, "received fast shutdown request", TEN_SECONDS);
                let stopped = leader.signal(asked);
                let answer = switchover.join();
                began.with_context(|| format!("set_leader answered {answer:?}")).and(stopped)
            })?;
            expect_stays_down(leader, DOWN)?;
            cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
            leader.start()?;
            cluster.wait_healthy(A_MINUTE)?;
        }
        Ok(())
    });
}

#[test]
fn stop_in_the_middle_of_a_promotion() {
    run("stop_in_the_middle_of_a_promotion", Cluster::builder(), &failover_lines(), |cluster, _| {
        let old = cluster.leader()?;
        let others = cluster.others(old.id);
        let marks: Vec<u64> = others.iter().map(|node| node.log_mark()).collect();
        old.kill_all()?;
        let winner = biha_cluster_tests::wait::wait_until("a promotion", TEN_SECONDS, || {
            let promoted = others.iter().zip(&marks).find(|(node, mark)| {
                node.wait_log(**mark, "received promote request", Duration::ZERO).is_ok()
            });
            promoted.map(|(node, _)| *node).ok_or("none yet")
        })?;
        winner.signal(Signal::INT)?;
        expect_stays_down(winner, DOWN)?;
        old.start()?;
        winner.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// The operator's stop holds, and the node, started later, gets into the cluster by itself.
#[test]
fn stop_in_the_middle_of_a_rewind() {
    run("stop_in_the_middle_of_a_rewind", Cluster::builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        diverge(old, 100_000)?;
        old.kill_all()?;
        cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        let rewind = start_rewound(old)?;
        signal(rewind, Signal::STOP)?;
        let asked = old.signal(Signal::INT);
        signal(rewind, Signal::CONT)?;
        asked?;
        expect_stays_down(old, DOWN)?;
        let started = std::time::Instant::now();
        old.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("rejoin", started.elapsed());
        Ok(())
    });
}
