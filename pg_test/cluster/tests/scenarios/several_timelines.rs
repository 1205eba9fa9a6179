//! Followers and timelines that came and went: one that comes back after several changes of leader streams one timeline
//! after the other without PostgreSQL's pause at the end of each, and one that had turned to a timeline in vain turns back.
//! A leader whose timeline was hardly its own is rewound like any other.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::StopMode;
use biha_cluster_tests::process::signal;
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;
use biha_core::{Term, image};
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, diverge, failover_lines, wait_process};
use crate::rewind_interrupted::{HINDERED, hinder_rewind};

/// How many timelines begin while the follower is down.
const TIMELINES: u32 = 4;
/// `wal_retrieve_retry_interval` of the follower, on its command line, where biha's own value does not count: a single
/// pause of that length is more than the limit.
const RETRY: &str = "wal_retrieve_retry_interval=60s";
const LIMIT: Duration = Duration::from_secs(20);
/// So many timelines have been, some day.
const LONG: u32 = 2000;
/// What the receiver says of a timeline that the leader has not got.
const ASTRAY: &str = "of the primary is behind recovery timeline";

#[test]
fn follower_comes_up_through_several_timelines() {
    let name = "follower_comes_up_through_several_timelines";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t AS SELECT 0 AS n")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let (other, late) = (cluster.others(leader.id)[0], cluster.others(leader.id)[1]);
        late.stop(StopMode::Fast)?;
        let before = leader.timeline()?;
        let pair = [leader, other];
        for turn in 1..=TIMELINES {
            let from = pair[usize::try_from(turn + 1)? % 2];
            let to = pair[usize::try_from(turn)? % 2];
            from.query(&format!("INSERT INTO t VALUES ({turn})"))?;
            wait_until("the switchover", A_MINUTE, || {
                // Asked for again where it was done already, or was refused because the target does not stream yet.
                if cluster.leader_among(&pair)?.id != to.id {
                    cluster.set_leader(from, to.id)?;
                }
                ensure!(cluster.leader_among(&pair)?.id == to.id, "node {} does not lead", to.id);
                Ok(())
            })?;
        }
        let leader = cluster.leader_among(&pair)?;
        let after = leader.timeline()?;
        ensure!(after >= before + TIMELINES, "timeline {after} after {before}");
        let mark = late.log_mark();
        let started = Instant::now();
        late.start_with_setting(RETRY)?;
        ensure!(late.value("SHOW wal_retrieve_retry_interval")? == "1min", "biha's own value counts");
        wait_until("the follower to stream the newest timeline", LIMIT, || {
            let sql = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
            ensure!(late.value(sql)? == "1", "it does not stream");
            let timeline = late.timeline()?;
            ensure!(timeline == after, "it streams timeline {timeline}");
            Ok(())
        })?;
        figures.note("timelines", format!("{before} to {after}"));
        figures.time("streams after", started.elapsed());
        // Not by a shorter way.
        for timeline in before..after {
            late.wait_log(mark, &format!("End of WAL reached on timeline {timeline} "), TEN_SECONDS)?;
        }
        cluster.wait_caught_up(TEN_SECONDS)?;
        let rows = late.value("SELECT count(*) FROM t")?;
        ensure!(rows == (TIMELINES + 1).to_string(), "the follower has {rows} rows");
        Ok(())
    });
}

/// A follower is told of a timeline that begins where its WAL ends, and that its leader has never come by: as of a leader
/// that was lost before it wrote anything.
#[test]
fn a_follower_that_was_led_astray_follows_again() {
    let name = "a_follower_that_was_led_astray_follows_again";
    let mut lines = failover_lines();
    lines.push(expect(ASTRAY, "what the test makes it ask for"));
    run(name, Cluster::builder(), &lines, |cluster, figures| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE t (n int)")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let follower = cluster.others(leader.id)[0];
        let (timeline, end) = (leader.timeline()?, follower.value("SELECT pg_last_wal_replay_lsn()")?);
        let history = |number: u32| follower.data.join(format!("pg_wal/{number:08X}.history"));
        let (former, nobodys) = (history(timeline), history(timeline + 1));
        let text = format!("{}{timeline}\t{end}\tnobody's\n", fs::read_to_string(former)?);
        fs::write(&nobodys, text)?;
        let mark = follower.log_mark();
        signal(wait_process(follower, "walreceiver", TEN_SECONDS)?.pid, Signal::TERM)?;
        follower.wait_log(mark, ASTRAY, TEN_SECONDS)?;
        fs::remove_file(&nobodys)?;
        let started = Instant::now();
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("streams after", started.elapsed());
        leader.query("INSERT INTO t VALUES (1)")?;
        cluster.wait_caught_up(TEN_SECONDS)
    });
}

/// Its last checkpoint is on the timeline before, by which alone PostgreSQL 15's pg_rewind would go. What pg_rewind is
/// shown instead no server starts with.
#[test]
fn a_leader_killed_before_its_first_checkpoint_is_rewound() {
    let name = "a_leader_killed_before_its_first_checkpoint_is_rewound";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let first = cluster.leader()?;
        let brief = cluster.others(first.id)[0];
        signal(wait_process(brief, "checkpointer", TEN_SECONDS)?.pid, Signal::STOP)?;
        cluster.set_leader(first, brief.id)?;
        cluster.wait_leader_other_than(first.id, TEN_SECONDS)?;
        brief.query("CREATE TABLE common AS SELECT 1 AS n")?;
        cluster.wait_healthy(A_MINUTE)?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        diverge(brief, 1000)?;
        let timeline = brief.timeline()?;
        let checkpoint: u32 = brief.value("SELECT timeline_id FROM pg_control_checkpoint()")?.parse()?;
        ensure!(checkpoint < timeline, "its last checkpoint is on timeline {checkpoint}, as it is itself");
        brief.kill_all()?;
        let next = cluster.wait_leader_other_than(brief.id, TEN_SECONDS)?;
        let (mark, started) = (brief.log_mark(), Instant::now());
        hinder_rewind(brief)?;
        brief.wait_log(mark, HINDERED, A_MINUTE)?;
        cluster.wait_healthy(A_MINUTE)?;
        figures.time("rejoins after", started.elapsed());
        let tables = "SELECT string_agg(relname, ' ') FROM pg_class WHERE relname IN ('common', 'only_here')";
        ensure!(brief.value(tables)? == "common", "it was not rewound to the fork: {}", brief.value(tables)?);
        brief.wait_log(mark, &format!("on timeline {timeline}, in "), TEN_SECONDS)?;
        let lost = brief.biha_value("SELECT count(*) FROM biha.lost_transactions()")?;
        ensure!(lost == "1", "biha.lost_transactions() lists {lost}");
        next.query("INSERT INTO common VALUES (2)")?;
        cluster.wait_caught_up(TEN_SECONDS)
    });
}

/// More leaders than fit where they are told of one by one: as if each number had been one's.
#[test]
fn a_long_history_of_timelines_hinders_nobody() {
    let name = "a_long_history_of_timelines_hinders_nobody";
    run(name, Cluster::builder().nodes(1), &failover_lines(), |cluster, _| {
        let node = cluster.leader()?.clone();
        node.stop(StopMode::Fast)?;
        let memory = node.data.join("pg_biha/biha.state");
        let mut state = image::decode_state(&fs::read(&memory)?)?;
        (state.term, state.voted_for) = (Term(LONG), None);
        fs::write(&memory, image::encode_state(&state)?)?;
        node.start()?;
        cluster.wait_leader(A_MINUTE)?;
        let opened = node.timeline()?;
        ensure!(opened > LONG, "timeline {opened} was opened");
        node.stop(StopMode::Fast)?;

        let history = node.data.join(format!("pg_wal/{opened:08X}.history"));
        let told = fs::read_to_string(&history)?;
        let last = told.lines().rfind(|line| !line.is_empty()).context("an empty history")?;
        let (last, left) = last.split_once('\t').context("no history")?;
        let others: String =
            (last.parse::<u32>()? + 1..opened).map(|timeline| format!("{timeline}\t{left}\n")).collect();
        fs::write(&history, format!("{}\n{others}", told.trim_end()))?;
        node.start()?;
        cluster.wait_leader(A_MINUTE)?;
        node.query("CREATE TABLE t (n int)")?;
        cluster.add_node()?;
        cluster.wait_healthy(A_MINUTE)?;
        cluster.set_leader(&node, 2)?;
        cluster.wait_leader_other_than(node.id, A_MINUTE)?.query("INSERT INTO t VALUES (1)")?;
        cluster.wait_healthy(A_MINUTE)?;
        cluster.wait_caught_up(TEN_SECONDS)
    });
}
