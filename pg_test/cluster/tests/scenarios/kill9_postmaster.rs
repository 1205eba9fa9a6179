//! kill -9 of the leader's postmaster: another node takes over, and the old one, started again, rejoins
//! without hands, also where its WAL has parted from the new leader's.

use std::time::Instant;

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, diverge, expect_little_lost, failover_lines};

#[test]
fn kill9_postmaster_fails_over_and_rejoins() {
    run(
        "kill9_postmaster_fails_over_and_rejoins",
        Cluster::builder(),
        &failover_lines(),
        |cluster, figures| {
            let old = cluster.leader()?;
            let oracle = Oracle::start(cluster, Load::default())?;
            let fault = Instant::now();
            old.kill_postmaster()?;
            let new = cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
            oracle.wait_acks(200, TEN_SECONDS)?;
            ensure!(new.timeline()? == new.own_status()?.term, "the timeline's number is not the term");
            // Workers must see by themselves that the postmaster is dead.
            old.wait_gone(TEN_SECONDS)?;
            let started = Instant::now();
            old.start()?;
            cluster.wait_healthy(A_MINUTE)?;
            figures.time("rejoin", started.elapsed());
            let record = oracle.stop()?;
            figures.time("outage", record.outage(fault));
            let verdict = judge(cluster, &record)?;
            figures.note("lost", verdict.lost.len());
            expect_little_lost(&verdict)
        },
    );
}

#[test]
fn diverged_leader_is_rewound() {
    run("diverged_leader_is_rewound", Cluster::builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let oracle = Oracle::start(cluster, Load::default())?;
        // More than is replayed before this node has heard where its WAL leaves the leader's.
        diverge(old, 400_000)?;
        old.kill_all()?;
        let new = cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        let started = Instant::now();
        old.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("rejoin", started.elapsed());
        let pid = old.postmaster();
        let rewinds = old.biha_value(&format!(
            "SELECT count(*) FROM biha.history() h WHERE h::text LIKE '%REWIND%' AND h::text LIKE '%{}%'",
            old.id
        ))?;
        ensure!(rewinds != "0", "no rewind is in the history");
        ensure!(
            old.value("SELECT to_regclass('only_here') IS NULL")? == "t",
            "the old branch is still there"
        );
        ensure!(old.value("SHOW biha.id")? == old.id.to_string(), "the rewind took the node's own settings");
        let verdict = judge(cluster, &oracle.stop()?)?;
        figures.note("lost", verdict.lost.len());
        verdict.expect_one_leader()?;
        // What was put back must do for the next start as well.
        old.restart(biha_cluster_tests::node::StopMode::Fast)?;
        ensure!(old.postmaster() != pid, "the restart did not happen");
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "a follower's restart changed the leader");
        Ok(())
    });
}
