//! A member's data directory in hands that want no member: `postgres -C`, single-user mode, a copy that recovers to
//! a point in time. biha does nothing there, and such a copy has nothing to do with the cluster any more.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::client::Address;
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::expect;
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::run::{both_streams, run as run_program};
use biha_cluster_tests::scenario::run;
use biha_cluster_tests::wait::wait_until;

use crate::common::{A_MINUTE, TEN_SECONDS, failover_lines};

/// Every file below a directory with its content.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(contents(&path)?);
        } else {
            all.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(all)
}

/// A clean stop of all, the leader last; gives the leader and a follower.
fn stop_all(cluster: &Cluster) -> Result<[&Node; 2]> {
    let leader = cluster.leader()?;
    let others = cluster.others(leader.id);
    others.iter().try_for_each(|node| node.stop(StopMode::Fast))?;
    leader.stop(StopMode::Fast)?;
    Ok([leader, others[0]])
}

#[test]
fn postgres_c_leaves_no_trace() {
    run("postgres_c_leaves_no_trace", Cluster::builder().nodes(2), &failover_lines(), |cluster, _| {
        for node in stop_all(cluster)? {
            let before = contents(&node.data)?;
            // One that is computed when all libraries are loaded, and one that is not.
            for name in ["shared_memory_size", "shared_buffers"] {
                let said =
                    run_program(node.program("postgres").arg("-D").arg(&node.data).args(["-C", name]))?;
                ensure!(said.lines().last().is_some_and(|line| !line.is_empty()), "it said nothing: {said}");
            }
            let after = contents(&node.data)?;
            let changed: Vec<_> = before
                .iter()
                .filter(|(path, content)| after.get(*path) != Some(content))
                .map(|(path, _)| path)
                .chain(after.keys().filter(|path| !before.contains_key(*path)))
                .collect();
            ensure!(changed.is_empty(), "node {}: postgres -C has changed {changed:?}", node.id);
        }
        cluster.nodes().iter().try_for_each(Node::start)?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// Runs statements in single-user mode, one a line.
fn single_user(node: &Node, data: &Path, statements: &str) -> Result<Output> {
    let mut command = node.program("postgres");
    command.args(["--single", "-D"]).arg(data).arg("postgres");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A server that has refused to start reads nothing.
    child.stdin.take().context("no standard input")?.write_all(statements.as_bytes()).ok();
    Ok(child.wait_with_output()?)
}

#[test]
fn single_user_mode_is_postgresqls_own() {
    run(
        "single_user_mode_is_postgresqls_own",
        Cluster::builder().nodes(2),
        &failover_lines(),
        |cluster, _| {
            let [leader, follower] = stop_all(cluster)?;
            let copied = |node: &Node| -> Result<PathBuf> {
                let copy = cluster.directory.join(format!("single{}", node.id));
                run_program(node.runner.command("cp").arg("-a").arg(&node.data).arg(&copy))?;
                Ok(copy)
            };
            let copy = copied(leader)?;
            let before = contents(&copy.join("pg_biha"))?;
            let written = single_user(leader, &copy, "CREATE TABLE by_hand AS SELECT 42 AS n\n")?;
            ensure!(written.status.success(), "single-user mode failed: {}", both_streams(&written));
            let read = both_streams(&single_user(leader, &copy, "SELECT n FROM by_hand\n")?);
            ensure!(read.contains("\"42\""), "nothing was written: {read}");
            ensure!(!copy.join("standby.signal").exists(), "standby.signal was made");
            ensure!(contents(&copy.join("pg_biha"))? == before, "pg_biha has changed");
            // PostgreSQL's own refusal.
            let copy = copied(follower)?;
            let before = contents(&copy.join("pg_biha"))?;
            let refused = single_user(follower, &copy, "SELECT 1\n")?;
            let said = both_streams(&refused);
            ensure!(!refused.status.success(), "a standby ran in single-user mode: {said}");
            ensure!(said.contains("standby mode is not supported by single-user servers"), "it said {said}");
            ensure!(contents(&copy.join("pg_biha"))? == before, "pg_biha has changed");
            Ok(())
        },
    );
}

/// A server on a base backup of a member, ended with the test.
struct Copy(Node);

impl Copy {
    /// Takes the backup, and has it configured to recover.
    fn of(cluster: &Cluster, node: &Node, settings: &str) -> Result<Copy> {
        let name = format!("copy{}", node.id);
        let address = Address { port: node.address.port + 5, ..node.address.clone() };
        let (data, log) = (cluster.directory.join(&name), cluster.directory.join(format!("{name}.log")));
        let mut backup = node.program("pg_basebackup");
        backup.args(["-h", &node.address.host, "-p", &node.address.port.to_string()]);
        run_program(backup.args(["-U", "postgres", "-c", "fast", "-X", "stream", "-D"]).arg(&data))?;
        let copy = Copy(Node { address, data, log, ..node.clone() });
        copy.0.append("postgresql.conf", &format!("port = {}\n", copy.0.address.port))?;
        // Before biha's own include, as an operator's edits are.
        copy.0.prepend("postgresql.conf", settings)?;
        Ok(copy)
    }

    /// Starts it: it says that it stands aside, and why.
    fn start(&self, why: &str) -> Result<()> {
        let Copy(node) = self;
        node.start()?;
        node.wait_log(0, &format!("biha stands aside: \"{why}\""), TEN_SECONDS)?;
        ensure!(node.processes_titled(": biha ").is_empty(), "biha's workers run");
        for name in ["primary_conninfo", "primary_slot_name", "synchronous_standby_names"] {
            let value = node.value(&format!("SHOW {name}"))?;
            ensure!(value.is_empty(), "{name} is still {value}");
        }
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill_all() {
            eprintln!("could not end the server in {}: {error:#}", self.0.data.display());
        }
    }
}

/// A restore as an operator does it who knows PostgreSQL but forgot about biha.
#[test]
fn a_restored_copy_of_any_member_is_a_server_of_its_own() {
    let name = "a_restored_copy_of_any_member_is_a_server_of_its_own";
    // A copy that still wanted the cluster's standbys would never commit.
    run(name, Cluster::builder().sync_standbys(1), &failover_lines(), |cluster, _| {
        let leader = cluster.leader()?;
        leader.query("CREATE TABLE kept AS SELECT 42 AS n")?;
        cluster.wait_caught_up(TEN_SECONDS)?;
        let before = leader.own_status()?;
        for node in [leader, cluster.others(leader.id)[0]] {
            // All that is needed is in the backup.
            let copy = Copy::of(cluster, node, "restore_command = 'false'\n")?;
            let Copy(server) = &copy;
            fs::remove_file(server.data.join("standby.signal")).ok();
            run_program(node.runner.command("touch").arg(server.data.join("recovery.signal")))?;
            copy.start("recovery.signal")?;
            wait_until("the end of the recovery", TEN_SECONDS, || {
                ensure!(!server.in_recovery()?, "in recovery");
                anyhow::Ok(())
            })?;
            server.query("INSERT INTO kept VALUES (43)").context("a restored server takes writes")?;
            ensure!(server.value("SELECT sum(n) FROM kept")? == "85", "other rows than those of the backup");
            server.stop(StopMode::Fast)?;
        }
        ensure!(cluster.wait_healthy(A_MINUTE)?.own_status()? == before, "the leader or its term changed");
        ensure!(leader.value("SELECT sum(n) FROM kept")? == "42", "a copy's rows came to the cluster");
        Ok(())
    });
}

/// With standby.signal in the backup PostgreSQL looks for WAL for ever: not at the cluster's leader, and not
/// through the slot of the member that it is a copy of.
#[test]
fn a_copy_with_a_recovery_target_does_not_stream() {
    let name = "a_copy_with_a_recovery_target_does_not_stream";
    run(name, Cluster::builder(), &failover_lines(), |cluster, _| {
        let leader = cluster.leader()?;
        let node = cluster.others(leader.id)[0];
        let copy = Copy::of(cluster, node, "recovery_target_lsn = 'FF/0'\n")?;
        let Copy(server) = &copy;
        let copied = fs::read_to_string(server.data.join("pg_biha/server.conf"))?;
        ensure!(copied.contains(&leader.address.host), "the copy would not stream anyway: {copied}");
        // Its slot is free now.
        node.stop(StopMode::Fast)?;
        copy.start("recovery_target_lsn")?;
        // What it says when it has looked everywhere.
        server.wait_log(0, "waiting for WAL to become available", TEN_SECONDS)?;
        let receivers = server.value("SELECT count(*) FROM pg_stat_wal_receiver")?;
        ensure!(receivers == "0", "it receives WAL");
        let streaming = leader.value("SELECT string_agg(application_name, ' ') FROM pg_stat_replication")?;
        let third = cluster.others(leader.id)[1].id;
        ensure!(streaming == format!("biha_node_{third}"), "{streaming} stream from the leader");
        let log = fs::read_to_string(&server.log)?;
        ensure!(!log.contains("started streaming"), "it has streamed");
        drop(copy);
        node.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// A former leader would start as a server of its own, without a gate.
#[test]
fn a_member_without_its_configuration_does_not_start() {
    let name = "a_member_without_its_configuration_does_not_start";
    let mut lines = failover_lines();
    lines.push(expect("FATAL:  file \"pg_biha/biha.conf\" is missing", "what the test took away"));
    run(name, Cluster::builder(), &lines, |cluster, _| {
        let old = cluster.leader()?;
        old.stop(StopMode::Fast)?;
        fs::remove_file(old.data.join("standby.signal")).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let (file, away) = (old.data.join("pg_biha/biha.conf"), old.data.join("pg_biha/away"));
        fs::rename(&file, &away)?;
        ensure!(old.start().is_err(), "it was started");
        fs::rename(&away, &file)?;
        old.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}
