//! A stream of WAL that breaks again and again while its leader is there is asked for again at once: PostgreSQL by
//! itself pauses from the second time on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// `wal_retrieve_retry_interval` of the follower.
const RETRY: &str = "wal_retrieve_retry_interval=60s";
/// Shorter than any pause of PostgreSQL's: something else wakes the startup process after 5 s at the earliest.
const LIMIT: Duration = Duration::from_secs(4);
/// Not every startup process is caught in its pause.
const RESTARTS: usize = 4;
const BREAKS: usize = 3;

#[test]
fn stream_that_breaks_again_is_asked_for_at_once() {
    let mut lines = failover_lines();
    lines.extend([
        expect("walsender*FATAL:  terminating connection due to administrator command", "the fault"),
        expect("walreceiver*FATAL:  *terminating connection due to administrator command", "the fault"),
    ]);
    let name = "stream_that_breaks_again_is_asked_for_at_once";
    run(name, Cluster::builder(), &lines, |cluster, figures| {
        let leader = cluster.leader()?;
        let follower = cluster.others(leader.id)[0];
        let mut longest = Duration::ZERO;
        for _ in 0..RESTARTS {
            follower.stop(StopMode::Fast)?;
            follower.start_with_setting(RETRY)?;
            cluster.wait_healthy(A_MINUTE)?;
            for _ in 0..BREAKS {
                longest = longest.max(break_stream(leader, follower)?);
            }
        }
        figures.time("longest pause", longest);
        cluster.wait_caught_up(TEN_SECONDS)
    });
}

/// Ends the leader's WAL sender of this follower, and tells how long it took until it streamed again.
fn break_stream(leader: &Node, follower: &Node) -> Result<Duration> {
    let receiver = "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    let before = follower.value(receiver)?;
    let broken = leader.value(&format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication WHERE application_name = 'biha_node_{}'",
        follower.id
    ))?;
    ensure!(broken == "1", "{broken} streams were broken");
    let started = Instant::now();
    wait_until("the follower to stream again", LIMIT, || {
        let now = follower.value(receiver)?;
        ensure!(!now.is_empty() && now != before, "receiver {before}, then '{now}'");
        Ok(())
    })?;
    Ok(started.elapsed())
}
