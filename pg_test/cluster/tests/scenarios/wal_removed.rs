//! A follower that was away for longer than the leader keeps WAL says so, and is made anew with `bihactl add`
//! under its own number.

use std::fs;

use anyhow::ensure;
use biha_cluster_tests::provision;
use biha_cluster_tests::scenario::run;

use crate::common::{A_MINUTE, TEN_SECONDS, keeps_little_wal, left_behind, left_behind_lines};

#[test]
fn a_follower_whose_wal_is_removed_says_so() {
    let name = "a_follower_whose_wal_is_removed_says_so";
    run(name, keeps_little_wal(), &left_behind_lines(), |cluster, figures| {
        let away = left_behind(cluster)?;
        let leader = cluster.leader()?;
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
