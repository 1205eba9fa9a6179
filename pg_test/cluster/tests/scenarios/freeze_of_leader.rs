//! The whole leader is stopped (SIGSTOP) and later goes on: a new leader meanwhile, and not one commit
//! acknowledged by the old one after the new one's first.

use std::env;
use std::time::{Duration, Instant};

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

#[test]
fn freeze_of_leader_acknowledges_nothing_after_waking() {
    let name = "freeze_of_leader_acknowledges_nothing_after_waking";
    // Long enough for the new leader's first checkpoint and for a good many commits; BIHA_LONG for the rest.
    let frozen_for = Duration::from_secs(if env::var_os("BIHA_LONG").is_some() { 30 } else { 10 });
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let patient = cluster.nodes().iter().map(|node| node.id).collect();
        // Many connections, so that some are frozen in the middle of a commit.
        let oracle = Oracle::start(cluster, Load { workers: 8, rate: None, patient, ..Load::default() })?;
        let fault = Instant::now();
        old.freeze()?;
        let new = cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        std::thread::sleep(frozen_for.saturating_sub(fault.elapsed()));
        old.thaw()?;
        let thawed = Instant::now();
        oracle.wait_acks(200, TEN_SECONDS)?;
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the woken leader led again");
        figures.time("back after waking", thawed.elapsed());
        let record = oracle.stop()?;
        figures.time("outage", record.outage_between(fault, thawed));
        figures.time("outage by the waking", record.outage(thawed));
        let verdict = judge(cluster, &record)?;
        figures.note("acknowledged", verdict.acknowledged);
        figures.note("lost", verdict.lost.len());
        verdict.expect_one_leader()
    });
}
