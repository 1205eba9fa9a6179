//! A follower that was away for longer than the leader keeps WAL says so, and is made anew with `bihactl add`
//! under its own number.

use std::fs;

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::provision;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

#[test]
fn a_follower_whose_wal_is_removed_says_so() {
    let mut expected = failover_lines();
    expected.extend([
        expect("requested WAL segment * has already been removed", "what this is about"),
        expect("has lost WAL that its node needs", "the leader says it too"),
        expect("invalidating slot", "what this is about"),
        expect("cannot read from replication slot", "the slot was invalidated"),
    ]);
    let builder = Cluster::builder()
        .setting("max_slot_wal_keep_size", "16MB")
        .setting("wal_keep_size", "0")
        .setting("max_wal_size", "64MB");
    run("a_follower_whose_wal_is_removed_says_so", builder, &expected, |cluster, figures| {
        let leader = cluster.leader()?;
        leader.biha_value("SELECT biha.set_no_wal_on_follower(1000)")?;
        let away = cluster.others(leader.id)[0];
        away.stop(StopMode::Fast)?;
        leader.query("CREATE TABLE much (n int, filler text)")?;
        let fill = "INSERT INTO much SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n";
        wait_until("its slot to be lost", A_MINUTE, || {
            leader.query(fill)?;
            leader.query("CHECKPOINT")?;
            let slot = format!(
                "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'biha_node_{}'",
                away.id
            );
            ensure!(leader.value(&slot)? == "lost", "it is not lost yet");
            Ok(())
        })?;
        away.start()?;
        away.wait_state(&["NODE_ERROR"], A_MINUTE)?;
        let kind = away.biha_value("SELECT type FROM biha.error_details()")?;
        ensure!(kind == "WAL_REMOVED", "the error is {kind}");
        figures.note("hint", away.biha_value("SELECT what_to_do FROM biha.error_details()")?);
        leader.biha_value(&format!("SELECT biha.remove_node({})", away.id))?;
        away.kill_all()?;
        fs::remove_dir_all(&away.data)?;
        provision::add(cluster, away)?;
        cluster.wait_healthy(A_MINUTE)?;
        cluster.wait_caught_up(TEN_SECONDS)
    });
}
