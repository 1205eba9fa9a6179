//! The target of a switchover dies half-way: the cluster has a leader again without hands.

use std::thread;
use std::time::Instant;

use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{A_MINUTE, TEN_SECONDS, expect_little_lost, failover_lines};

#[test]
fn switchover_target_dies() {
    let mut expected = failover_lines();
    expected.push(expect("set_leader", "the switchover that failed"));
    run("switchover_target_dies", Cluster::builder(), &expected, |cluster, figures| {
        let old = cluster.leader()?;
        let target = cluster.others(old.id)[0];
        let oracle = Oracle::start(cluster, Load::default())?;
        let mark = old.log_mark();
        let fault = Instant::now();
        thread::scope(|scope| {
            // Its answer doesn't matter: the session may end with the old leader.
            let asked = scope.spawn(|| cluster.set_leader(old, target.id).ok());
            let began = old.wait_log(mark, "received fast shutdown request", TEN_SECONDS);
            let killed = target.kill_all();
            drop(asked.join());
            began.and(killed)
        })?;
        cluster.wait_leader_other_than(target.id, A_MINUTE)?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        target.start()?;
        cluster.wait_healthy(A_MINUTE)?;
        let record = oracle.stop()?;
        figures.time("outage", record.outage(fault));
        let verdict = judge(cluster, &record)?;
        figures.note("lost", verdict.lost.len());
        expect_little_lost(&verdict)
    });
}
