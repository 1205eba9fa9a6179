//! The postmaster that executes itself again is the same service to everyone outside: to systemd, to its logger,
//! to its command line; and where it cannot, the server is down and says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use biha_cluster_tests::cluster::Cluster;
use biha_cluster_tests::logs::{Expected, expect, unexpected};
use biha_cluster_tests::node::{Node, StopMode};
use biha_cluster_tests::oracle::{Load, Oracle};
use biha_cluster_tests::process::{self, Process};
use biha_cluster_tests::run::{copy_program, run as run_program};
use biha_cluster_tests::scenario::{judge, run};
use biha_cluster_tests::service::{Service, Start};
use biha_cluster_tests::wait::{wait_for, wait_until};
use rustix::process::Signal;

use crate::common::{A_MINUTE, TEN_SECONDS, expect_little_lost, expect_stays_down, failover_lines};

const IN_PLACE: &str = "LOG:  restarting in place";

/// Hands over to `target` and waits until all is well.
fn switch(cluster: &Cluster, target: u32) -> Result<()> {
    let leader = cluster.wait_healthy(A_MINUTE)?;
    cluster.set_leader(leader, target)?;
    let new = cluster.wait_healthy(A_MINUTE)?.id;
    ensure!(new == target, "node {new} leads instead of {target}");
    Ok(())
}

/// A follower, and whom it shall hand over to.
fn follower_and_leader(cluster: &Cluster) -> Result<(&Node, &Node)> {
    let leader = cluster.leader()?;
    Ok((cluster.others(leader.id)[0], leader))
}

/// What came to a notify socket since the last look.
fn messages(socket: &UnixDatagram) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer) {
        all.push_str(&String::from_utf8_lossy(&buffer[..length]));
        all.push('\n');
    }
    all
}

fn wait_message(socket: &UnixDatagram, text: &str) -> Result<String> {
    let mut all = String::new();
    wait_for(&format!("{text} at the notify socket"), TEN_SECONDS, || {
        all.push_str(&messages(socket));
        all.contains(text)
    })?;
    Ok(all)
}

fn with_systemd(node: &Node) -> Result<bool> {
    Ok(run_program(node.program("pg_config").arg("--configure"))?.contains("--with-systemd"))
}

/// From STOPPING=1 there is no way back in systemd.
#[test]
fn systemd_hears_of_no_stop_in_a_demotion() {
    let name = "systemd_hears_of_no_stop_in_a_demotion";
    run(name, Cluster::builder(), &failover_lines(), |cluster, _| {
        let (node, other) = follower_and_leader(cluster)?;
        if !with_systemd(node)? {
            eprintln!("{name}: NOT RUN, this PostgreSQL is built without systemd");
            return Ok(());
        }
        let path = cluster.directory.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        node.stop(StopMode::Fast)?;
        let data = node.data.to_string_lossy();
        let start = Start {
            directory: Path::new("/"),
            arguments: &["-D", &data],
            environment: &[("NOTIFY_SOCKET", path.as_os_str())],
        };
        let mut service = Service::start(node, start)?;
        wait_message(&socket, "READY=1").context("after the start")?;
        let pid = node.postmaster().context("it does not run")?;
        switch(cluster, node.id)?;
        messages(&socket);
        let mark = node.log_mark();
        switch(cluster, other.id)?;
        node.wait_log(mark, IN_PLACE, TEN_SECONDS)?;
        node.expect_postmaster(pid)?;
        let said = wait_message(&socket, "READY=1").context("after the demotion")?;
        ensure!(!said.contains("STOPPING"), "systemd was told that the service stops: {said}");
        node.stop(StopMode::Fast)?;
        wait_message(&socket, "STOPPING=1").context("at a true stop")?;
        let code = service.wait_exit(TEN_SECONDS)?;
        ensure!(code == Some(0), "a clean stop ended with {code:?}");
        Ok(())
    });
}

/// A new image that began with the old logger's pipe would keep the old logger alive.
#[test]
fn one_logger_after_many_restarts_in_place() {
    let log_line = "the logger still writes this";
    let builder = Cluster::builder().setting("logging_collector", "on").setting("log_filename", "server.log");
    run("one_logger_after_many_restarts_in_place", builder, &failover_lines(), |cluster, _| {
        let (node, other) = follower_and_leader(cluster)?;
        let pid = node.postmaster().context("it does not run")?;
        let log = |node: &Node| fs::read_to_string(node.data.join("log/server.log"));
        for _ in 0..3 {
            switch(cluster, node.id)?;
            switch(cluster, other.id)?;
        }
        node.expect_postmaster(pid)?;
        let times = log(node)?.matches(IN_PLACE).count();
        ensure!(times == 3, "{times} restarts in place are in the log of node {}", node.id);
        for node in cluster.nodes() {
            let loggers = node.processes_titled("logger");
            ensure!(loggers.len() == 1, "loggers of node {}: {loggers:?}", node.id);
            node.query(&format!("DO $$ BEGIN RAISE LOG '{log_line}'; END $$"))?;
            wait_for("a new line in the log", TEN_SECONDS, || {
                log(node).is_ok_and(|text| text.contains(log_line))
            })?;
            let text = log(node)?;
            let lines = unexpected(&text, &failover_lines());
            ensure!(lines.is_empty(), "node {}: {lines:?}", node.id);
        }
        Ok(())
    });
}

/// By the time of the restart the working directory is another one.
#[test]
fn a_relative_command_line_survives() {
    let mut expected = failover_lines();
    expected.push(expect("set_leader", "the switchover's own session may end with the leader"));
    run("a_relative_command_line_survives", Cluster::builder(), &expected, |cluster, _| {
        let (node, other) = follower_and_leader(cluster)?;
        let name = node.data.file_name().context("no name")?;
        let text = name.to_str().context("not text")?;
        for by_variable in [false, true] {
            node.stop(StopMode::Fast)?;
            let arguments = ["-c", "work_mem=5MB", "-D", text];
            let environment = [("PGDATA", name)];
            let start = Start {
                directory: &cluster.directory,
                arguments: if by_variable { &arguments[..2] } else { &arguments },
                environment: if by_variable { &environment } else { &[] },
            };
            let mut service = Service::start(node, start)?;
            let pid = node.postmaster().context("it does not run")?;
            for _ in 0..2 {
                switch(cluster, node.id)?;
                let mark = node.log_mark();
                switch(cluster, other.id)?;
                node.wait_log(mark, IN_PLACE, TEN_SECONDS)?;
                node.expect_postmaster(pid)?;
                let setting = node.value("SHOW work_mem")?;
                ensure!(setting == "5MB", "work_mem is {setting} after the restart in place");
            }
            node.stop(StopMode::Fast)?;
            service.wait_exit(TEN_SECONDS)?;
            node.start()?;
            cluster.wait_healthy(A_MINUTE)?;
        }
        Ok(())
    });
}

/// A session of the leader that is stopped (SIGSTOP) and so holds up the shutdown of a demotion, while `meanwhile`
/// is done. Then the session is ended with `signal`.
fn during_a_demotion(
    cluster: &Cluster,
    leader: &Node,
    signal: Signal,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let target = cluster.others(leader.id)[0].id;
    let mark = leader.log_mark();
    thread::scope(|scope| -> Result<()> {
        // It stays until its session is ended.
        let sleeper = scope.spawn(|| leader.query("SELECT pg_sleep(600)"));
        let asleep = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
        let pid: i32 = wait_until("a sleeping session", TEN_SECONDS, || leader.value(asleep))?.parse()?;
        process::signal(pid, Signal::STOP)?;
        let switchover = scope.spawn(|| cluster.set_leader(leader, target));
        let done = leader.wait_log(mark, "received fast shutdown request", TEN_SECONDS).and_then(|()| {
            let left = |process: &Process| process.pid == pid;
            ensure!(leader.processes().iter().any(left), "the session ended before its time");
            meanwhile()
        });
        let ended = process::signal(pid, signal).and_then(|()| process::signal(pid, Signal::CONT));
        // Both sessions ended with their server, or said so.
        drop((sleeper.join(), switchover.join()));
        done.and(ended)
    })
}

/// PostgreSQL calls that an abnormal shutdown, ends with exit code 1 and would stay down. Whoever has most WAL leads
/// then: maybe the same node again, as it comes back at once.
#[test]
fn crash_of_a_backend_during_a_demotion() {
    let name = "crash_of_a_backend_during_a_demotion";
    run(name, Cluster::builder(), &failover_lines(), |cluster, figures| {
        let leader = cluster.leader()?;
        let pid = leader.postmaster().context("it does not run")?;
        let patient = cluster.nodes().iter().map(|node| node.id).collect();
        let oracle = Oracle::start(cluster, Load { patient, ..Load::default() })?;
        let mark = leader.log_mark();
        during_a_demotion(cluster, leader, Signal::KILL, || Ok(()))?;
        for text in ["abnormal database system shutdown", IN_PLACE, "entering standby mode"] {
            leader.wait_log(mark, text, TEN_SECONDS)?;
        }
        let new = cluster.wait_healthy(A_MINUTE)?;
        leader.expect_postmaster(pid)?;
        figures.note("leader before and after", format!("{} {}", leader.id, new.id));
        oracle.wait_acks(100, TEN_SECONDS)?;
        expect_little_lost(&judge(cluster, &oracle.stop()?)?)
    });
}

/// restart_after_crash=off means that the server is down after a crash: biha does not know better.
#[test]
fn without_restart_after_crash_a_crashed_leader_stays_down() {
    let name = "without_restart_after_crash_a_crashed_leader_stays_down";
    let builder = Cluster::builder().setting("restart_after_crash", "off");
    run(name, builder, &failover_lines(), |cluster, _| {
        let leader = cluster.leader()?;
        let mark = leader.log_mark();
        leader.kill_titled("walwriter")?;
        leader.wait_log(mark, "shutting down because restart_after_crash is off", TEN_SECONDS)?;
        cluster.wait_leader_other_than(leader.id, A_MINUTE)?;
        expect_stays_down(leader, std::time::Duration::from_secs(3))?;
        leader.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// The executable is away for a moment, as in the middle of an upgrade.
#[test]
fn a_restart_in_place_that_fails_is_a_failed_service() {
    let expected: Vec<Expected> = failover_lines();
    run("a_restart_in_place_that_fails_is_a_failed_service", Cluster::builder(), &expected, |cluster, _| {
        let (follower, _) = follower_and_leader(cluster)?;
        let node = with_own_programs(cluster, follower)?;
        follower.stop(StopMode::Fast)?;
        let data = node.data.to_string_lossy();
        let start = Start { directory: Path::new("/"), arguments: &["-D", &data], environment: &[] };
        let mut service = Service::start(&node, start)?;
        switch(cluster, node.id)?;
        let mark = node.log_mark();
        let (program, away) = (node.bindir.join("postgres"), node.bindir.join("away"));
        during_a_demotion(cluster, &node, Signal::TERM, || Ok(fs::rename(&program, &away)?))?;
        node.wait_log(mark, "could not restart in place: No such file or directory", TEN_SECONDS)?;
        let code = service.wait_exit(TEN_SECONDS)?;
        ensure!(code == Some(1), "it ended with {code:?}");
        node.wait_gone(TEN_SECONDS)?;
        ensure!(!node.data.join("postmaster.pid").exists(), "postmaster.pid is left");
        let sockets: Vec<_> = fs::read_dir(cluster.directory.join("sockets"))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains(&node.address.port.to_string()))
            .collect();
        ensure!(sockets.is_empty(), "left in the directory of sockets: {sockets:?}");
        cluster.wait_leader_other_than(node.id, A_MINUTE)?;
        fs::rename(&away, &program)?;
        node.start()?;
        cluster.wait_healthy(A_MINUTE).map(drop)
    });
}

/// The node with a copy of PostgreSQL's programs that can be taken away, its libraries and other files as before:
/// PostgreSQL finds these relative to where it was installed.
fn with_own_programs(cluster: &Cluster, node: &Node) -> Result<Node> {
    let told = |what: &str| -> Result<String> {
        Ok(run_program(Command::new(node.bindir.join("pg_config")).arg(what))?.trim().to_string())
    };
    let root = cluster.directory.join("programs");
    for what in ["--pkglibdir", "--sharedir"] {
        let there = told(what)?;
        let here = root.join(there.trim_start_matches('/'));
        fs::create_dir_all(here.parent().context("no parent")?)?;
        std::os::unix::fs::symlink(there, here)?;
    }
    let bindir = root.join(told("--bindir")?.trim_start_matches('/'));
    for name in ["postgres", "pg_ctl"] {
        copy_program(&node.bindir.join(name), &bindir)?;
    }
    Ok(Node { bindir, ..node.clone() })
}
