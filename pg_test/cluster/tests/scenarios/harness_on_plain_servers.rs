//! The harness itself, on servers without biha: what it measures and finds must be right before it may judge.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::LEADER_GONE;
use biha_cluster_tests::network::{Namespaces, Network, address};
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::oracle::{Load, Oracle, rows_of};
use biha_cluster_tests::scenario::{judge, run};

use crate::common::{TEN_SECONDS, failover_lines};

#[test]
fn harness_measures_a_restart_and_a_cut_link() {
    let builder = Cluster::builder().nodes(2).network(Network::Namespaces).plain();
    run("harness_measures_a_restart_and_a_cut_link", builder, &LEADER_GONE, |cluster, figures| {
        let oracle = Oracle::start(cluster, Load::default())?;
        let primary = cluster.leader()?;
        let before = Instant::now();
        primary.restart(StopMode::Fast)?;
        oracle.wait_acks(20, TEN_SECONDS)?;
        let cut = Instant::now();
        cluster.silence(1)?;
        std::thread::sleep(Duration::from_millis(700));
        cluster.heal()?;
        oracle.wait_acks(20, TEN_SECONDS)?;
        let record = oracle.stop()?;
        figures.time("restart", record.outage_between(before, cut));
        figures.time("cut", record.outage(cut));
        ensure!(record.outage(cut) >= Duration::from_millis(700), "the cut did not cut");
        let verdict = judge(cluster, &record)?;
        figures.note("rows", verdict.acknowledged);
        verdict.expect_nothing_lost()
    });
}

#[test]
fn harness_finds_two_leaders_and_lost_rows() {
    let builder = Cluster::builder().nodes(2).network(Network::best()).plain();
    run("harness_finds_two_leaders_and_lost_rows", builder, &failover_lines(), |cluster, figures| {
        let oracle = Oracle::start(cluster, Load { patient: vec![1, 2], ..Load::default() })?;
        let (primary, standby) = (cluster.node(1), cluster.node(2));
        let frozen = Instant::now();
        primary.freeze()?;
        std::thread::sleep(Duration::from_millis(500));
        primary.thaw()?;
        oracle.wait_acks(20, TEN_SECONDS)?;
        primary.freeze_walsenders()?;
        oracle.wait_acks(20, TEN_SECONDS)?;
        standby.promote()?;
        oracle.wait_acks(200, TEN_SECONDS)?;
        primary.kill_all()?;
        oracle.wait_acks(20, TEN_SECONDS)?;
        let record = oracle.stop()?;
        let verdict = record.judge(&rows_of(standby)?);
        figures.time("freeze", record.outage(frozen));
        figures.note("lost", verdict.lost.len());
        figures.note("acknowledged by the old leader", verdict.stale.len());
        ensure!(record.outage(frozen) >= Duration::from_millis(500), "the freeze did not freeze");
        ensure!(verdict.lost.len() >= 20, "rows that were not replicated must count as lost");
        ensure!(verdict.expect_one_leader().is_err(), "two writable servers must be found");
        Ok(())
    });
}

#[test]
fn harness_delays_and_reorders() {
    if !Namespaces::possible() {
        return;
    }
    // It moves its thread into a namespace, where the next test must not begin.
    std::thread::spawn(|| delays_and_reorders().unwrap()).join().unwrap();
}

fn delays_and_reorders() -> Result<()> {
    let mut network = Namespaces::create()?;
    network.add_node(1)?;
    network.add_node(2)?;
    let receiver = network.inside(1, || Ok(UdpSocket::bind("0.0.0.0:7")?))?;
    receiver.set_read_timeout(Some(TEN_SECONDS))?;
    let sender = network.inside(2, || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    sender.connect((address(1).as_str(), 7))?;
    let in_order = |longest: Duration| -> Result<bool> {
        let sent = Instant::now();
        for number in 0..100_u8 {
            sender.send(&[number])?;
        }
        let mut numbers = [0; 100];
        for number in &mut numbers {
            receiver.recv(std::slice::from_mut(number))?;
        }
        ensure!(sent.elapsed() >= longest / 2, "all were there after {:?}", sent.elapsed());
        let ordered = numbers.is_sorted();
        numbers.sort_unstable();
        ensure!(numbers.iter().copied().eq(0..100), "some were lost: {numbers:?}");
        Ok(ordered)
    };
    ensure!(in_order(Duration::ZERO)?, "they changed places by themselves");
    network.delay(1, 50, 1)?;
    ensure!(!in_order(Duration::from_millis(50))?, "they are in order");
    network.heal()?;
    ensure!(in_order(Duration::ZERO)?, "they still change places");
    Ok(())
}
