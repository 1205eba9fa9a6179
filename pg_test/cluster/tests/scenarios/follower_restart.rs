//! A follower is restarted, stopped hard, killed: the leader stays, writes go on, the follower streams again.

use std::time::{Duration, Instant};

use anyhow::ensure;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, failover_lines};

#[test]
fn follower_restart_disturbs_nobody() {
    run("follower_restart_disturbs_nobody", Cluster::builder(), &failover_lines(), |cluster, figures| {
        let leader = cluster.leader()?;
        let before = leader.own_status()?;
        let follower = cluster.others(leader.id)[0];
        let oracle = Oracle::start(cluster, Load::default())?;
        let from = Instant::now();
        for mode in [StopMode::Fast, StopMode::Smart, StopMode::Immediate] {
            follower.restart(mode)?;
            cluster.wait_healthy(A_MINUTE)?;
        }
        follower.kill_all()?;
        follower.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        ensure!(leader.own_status()? == before, "the leader or its term changed");
        let record = oracle.stop()?;
        let pause = record.outage(from);
        figures.time("longest pause", pause);
        ensure!(pause < Duration::from_secs(1), "writes stood still");
        judge(cluster, &record)?.expect_nothing_lost()
    });
}

/// A reader writes WAL, too (hint bits, pruned pages), and nobody flushes it if its transaction fails. PostgreSQL's
/// background writer would after 15 s, and a follower that was rewound meanwhile is not consistent before.
#[test]
fn what_readers_write_reaches_followers_soon() {
    let name = "what_readers_write_reaches_followers_soon";
    run(name, Cluster::builder(), &[], |cluster, _| {
        let leader = cluster.leader()?;
        for turn in 0..4 {
            leader.query(&format!("CREATE TABLE t{turn} AS SELECT n FROM generate_series(1, 1000) n"))?;
            leader.query("CHECKPOINT")?;
            let pages = "SELECT pg_current_wal_insert_lsn() - '0/0'";
            let before: u64 = leader.value(pages)?.parse()?;
            leader.query(&format!("BEGIN; SELECT count(*) FROM t{turn}; ROLLBACK"))?;
            let after: u64 = leader.value(pages)?.parse()?;
            ensure!(after > before, "the reader has written nothing");
            for node in cluster.others(leader.id) {
                let received = "SELECT pg_last_wal_receive_lsn() - '0/0'";
                wait_until("what the reader wrote to be received", Duration::from_secs(4), || {
                    let received: u64 = node.value(received)?.parse()?;
                    // The place for the next record may be behind the header of a page that is not there yet.
                    ensure!(received + 40 >= after, "node {} has {received} of {after}", node.id);
                    Ok(())
                })?;
            }
        }
        Ok(())
    });
}
