//! The leader is cut off from the other nodes but not from its clients: it must stop confirming before the
//! new leader starts, and rejoin when the partition heals.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::Session;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::network::Network;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::wait::wait_until;

use crate::common::{
    A_MINUTE, IN_PLACE, TEN_SECONDS, expect_lost_within_lease, failover_lines, has_disks, slow_tablespace,
};

fn partition(name: &str, cut: impl Fn(&Cluster, u32) -> Result<()> + Sync) {
    let builder = Cluster::builder().network(Network::Namespaces);
    run(name, builder, &failover_lines(), |cluster, figures| {
        let old = cluster.leader()?;
        let patient = cluster.nodes().iter().map(|node| node.id).collect();
        let oracle = Oracle::start(cluster, Load { patient, ..Load::default() })?;
        let fault = Instant::now();
        cut(cluster, old.id)?;
        let new = cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
        oracle.wait_acks(1000, TEN_SECONDS)?;
        ensure!(old.own_status()?.state != "LEADER_RW", "the cut-off leader still thinks it may write");
        wait_until("the cut-off leader to look read-only to libpq", TEN_SECONDS, || {
            ensure!(old.value("SHOW transaction_read_only")? == "on", "it looks writable");
            Ok(())
        })?;
        cluster.heal()?;
        let healed = Instant::now();
        ensure!(cluster.wait_healthy(A_MINUTE)?.id == new.id, "the healed leader led again");
        figures.time("back after healing", healed.elapsed());
        let record = oracle.stop()?;
        figures.time("outage", record.outage_between(fault, healed));
        figures.time("outage by the healing", record.outage(healed));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_lost_within_lease(&verdict)
    });
}

#[test]
fn partition_of_leader_heals() {
    partition("partition_of_leader_heals", |cluster, leader| cluster.partition(leader));
}

/// The others hear nothing from the leader, but it hears them.
#[test]
fn one_way_partition_of_leader_heals() {
    partition("one_way_partition_of_leader_heals", |cluster, leader| {
        cluster.others(leader).iter().try_for_each(|other| cluster.network()?.cut_one_way(leader, other.id))
    });
}

/// A follower that is cut off from the leader alone must not take over while the third node hears the leader.
#[test]
fn follower_cut_off_from_leader_does_not_disturb() {
    let name = "follower_cut_off_from_leader_does_not_disturb";
    let builder = Cluster::builder().network(Network::Namespaces);
    let mut expected = failover_lines();
    expected
        .push(expect("replication slot * is active for PID", "the cut connection's walsender still waits"));
    run(name, builder, &expected, |cluster, figures| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        let cut_off = cluster.others(leader.id)[0];
        let oracle = Oracle::start(cluster, Load::default())?;
        let fault = Instant::now();
        cluster.network()?.cut(leader.id, cut_off.id)?;
        oracle.wait_acks(1000, TEN_SECONDS)?;
        cluster.heal()?;
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(leader.own_status()? == before, "the leader or its term changed");
        let record = oracle.stop()?;
        figures.time("longest pause", record.outage(fault));
        judge(cluster, &record)?.expect_nothing_lost()
    });
}

/// PostgreSQL deletes the files of what was dropped after the commit and before the answer, and that may take longer than
/// the lease.
#[test]
fn a_leader_that_was_cut_off_while_it_deletes_files_confirms_nothing() {
    let name = "a_leader_that_was_cut_off_while_it_deletes_files_confirms_nothing";
    if !has_disks(name) {
        return;
    }
    let builder = Cluster::builder().network(Network::Namespaces).setting("allow_in_place_tablespaces", "on");
    let mut lines = failover_lines();
    lines.push(IN_PLACE);
    run(name, builder, &lines, |cluster, _| {
        let old = cluster.leader()?;
        let disk = slow_tablespace(cluster, old)?;
        old.query("CREATE TABLE t TABLESPACE slow AS SELECT generate_series(1, 1000)")?;
        let [session, other] = [(); 2].map(|()| Session::open(&old.address, "postgres", A_MINUTE));
        let (session, other) = (session?, other?);
        other.query("CREATE TEMP TABLE own TABLESPACE slow AS SELECT generate_series(1, 1000)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        disk.hang()?;
        let answers = thread::scope(|scope| {
            let dropped = scope.spawn(move || session.query("DROP TABLE t"));
            let with_temporary =
                scope.spawn(move || other.query("BEGIN; CREATE TABLE u (); DROP TABLE own; COMMIT"));
            wait_until("both to be committed", TEN_SECONDS, || {
                let tables =
                    old.value("SELECT string_agg(relname, '') FROM pg_class WHERE relname IN ('t', 'u')")?;
                ensure!(tables == "u", "there are {tables}");
                Ok(())
            })?;
            cluster.partition(old.id)?;
            cluster.wait_leader_other_than(old.id, TEN_SECONDS)?;
            let ends = [dropped, with_temporary];
            ensure!(!ends.iter().any(|end| end.is_finished()), "files are deleted already");
            disk.thaw();
            Ok(ends.map(|end| end.join()))
        })?;
        for answer in answers {
            ensure!(
                answer.ok().context("the client panicked")?.is_err(),
                "a leader that is none confirmed a commit"
            );
        }
        old.kill_all()
    });
}
