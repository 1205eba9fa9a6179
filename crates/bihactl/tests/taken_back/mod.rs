//! A server that is started or restarted as a member, and fails or is interrupted in that: all is as before.

use std::fs;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{World, ports, text};
use crate::{check_node, init, leader_and_standby, ordinary};

/// An ordinary server that is to be converted, and what it was before.
struct Converted {
    world: World,
    ports: (String, String),
    data: String,
    before: [String; 3],
}

impl Converted {
    fn new(settings: &str) -> Converted {
        let (world, ports) = (World::new(), ports());
        let data = world.path("n1").display().to_string();
        ordinary(&world, &data, &ports.0, settings);
        let before = files(&world);
        Converted { world, ports, data, before }
    }

    fn args(&self, more: &[&'static str]) -> Vec<&str> {
        let mut args = vec!["init", "--convert", "-t", "30"];
        args.extend(more);
        args.extend(self.world.node(&self.data, &self.ports));
        args
    }

    fn convert(&self, more: &[&'static str]) -> Output {
        self.world.bihactl(&self.args(more))
    }

    /// Interrupts a conversion as soon as the script of pg_ctl has made the file "begun".
    fn interrupt(&self, more: &[&'static str]) -> Output {
        let mut command = self.world.command(&self.world.path("bihactl"));
        let child = command.args(self.args(more)).stderr(Stdio::piped()).spawn().expect("runs");
        await_file(&self.world.path("begun"));
        self.world.run("kill", &["-TERM", &child.id().to_string()]);
        fs::write(self.world.path("told"), "").expect("written");
        ended(child)
    }

    /// Starts the server as the operator would.
    fn start(&self) {
        self.world.script_pg_ctl("");
        let log = format!("{}.log", self.data);
        self.world.tool("pg_ctl", &["start", "-w", "-D", &self.data, "-l", &log]);
    }

    fn ask(&self, query: &str) -> String {
        let host = self.world.dir.path().display().to_string();
        let text = self.world.tool("psql", &["-qAtXh", &host, "-p", &self.ports.0, "postgres", "-c", query]);
        text.trim().to_owned()
    }

    /// The files are as they were, and the server runs as the primary that it was, without what was made in it.
    fn expect_as_before(&self) {
        assert_eq!(files(&self.world), self.before);
        for made in ["pg_biha", "postgresql.biha.conf", "standby.signal", "pg_replslot/biha_node_9"] {
            assert!(!self.world.path("n1").join(made).exists(), "{made}");
        }
        assert_eq!(self.ask("SELECT pg_is_in_recovery()"), "f");
        assert_eq!(self.ask("SELECT count(*) FROM pg_database WHERE datname = 'biha_db'"), "0");
        assert_eq!(self.ask("SELECT count(*) FROM pg_roles WHERE rolname = 'biha_replication_user'"), "0");
    }

    /// The command can be repeated.
    fn expect_convertible(&self, more: &[&'static str]) {
        self.world.script_pg_ctl("");
        assert!(self.convert(more).status.success());
        check_node(&self.world, "n1", 1);
    }
}

fn files(world: &World) -> [String; 3] {
    ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"]
        .map(|file| fs::read_to_string(world.path("n1").join(file)).expect("read"))
}

fn await_file(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !path.exists() {
        assert!(Instant::now() < deadline, "\"{}\" is not there", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ended(child: Child) -> Output {
    let output = child.wait_with_output().expect("ends");
    eprintln!("{}", text(&output));
    output
}

/// What the extension and its agent do at a first start: the server is a standby, with slots for other members.
const AS_A_MEMBER: &str = "
    touch n1/standby.signal
    \"$real\" \"$@\" || exit 9
    mkdir n1/pg_replslot/biha_node_9
    grep 'entering standby mode' n1.log >standby";

#[test]
fn a_restart_that_fails_leaves_the_server_as_it_was() {
    let server = Converted::new("");
    server.world.script_pg_ctl(&format!("restart*) {AS_A_MEMBER}\n exit 1;;"));
    let output = server.convert(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("the server did not restart"));
    assert_ne!(fs::read(server.world.path("standby")).expect("restarted"), b"", "it was a standby");
    server.expect_as_before();
    server.expect_convertible(&[]);
}

#[test]
fn a_signal_during_the_restart_leaves_the_server_as_it_was() {
    let server = Converted::new("");
    let wait = "touch begun; while [ ! -e told ]; do sleep 0.05; done; exit 0";
    server.world.script_pg_ctl(&format!("restart*) {AS_A_MEMBER}\n {wait};;"));
    let output = server.interrupt(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("interrupted"));
    server.expect_as_before();
}

#[test]
fn a_server_that_is_slow_to_end_is_waited_for_and_started_again() {
    let server = Converted::new("");
    let checkpointer = server.ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    // As if the checkpoint took longer than pg_ctl waits.
    server.world.script_pg_ctl(&format!(
        "restart*)
            kill -STOP {checkpointer}
            \"$real\" stop -m fast -W -D n1
            (sleep 2; kill -CONT {checkpointer}) &
            exit 1;;"
    ));
    let output = server.convert(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("waiting up to 600 s for its end"));
    let now = server.ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    assert_ne!(now, checkpointer, "it has ended");
    server.expect_as_before();
    server.expect_convertible(&[]);
}

#[test]
fn a_start_that_fails_leaves_a_stopped_server_as_it_was() {
    let server = Converted::new("");
    server.world.stop(&server.data);
    server.world.script_pg_ctl(&format!("start*'-l {}.log'*) {AS_A_MEMBER}\n exit 1;;", server.data));
    assert_eq!(server.convert(&["--start"]).status.code(), Some(2));
    assert_ne!(fs::read(server.world.path("standby")).expect("started"), b"", "it was a standby");
    assert!(!server.world.path("n1/postmaster.pid").exists(), "it is stopped again");
    let control = server.world.tool("pg_controldata", &["-D", &server.data]);
    let state = control.lines().find(|line| line.starts_with("Database cluster state")).expect("a line");
    assert!(state.ends_with("  shut down"), "not in recovery: a second run takes it for a primary: {state}");
    server.start();
    server.expect_as_before();
    server.world.stop(&server.data);
    server.expect_convertible(&["--start"]);
}

#[test]
fn a_standbys_restart_that_fails_leaves_the_standby_that_it_was() {
    let world = World::new();
    let (one, two) = (ports(), ports());
    leader_and_standby(&world, &one, &two);
    let standby = world.path("n2").display().to_string();
    world.tool("pg_ctl", &["start", "-w", "-D", &standby, "-l", &format!("{standby}.log")]);
    world.script_pg_ctl("restart*) \"$real\" \"$@\" && mkdir n2/pg_replslot/biha_node_9\n exit 1;;");
    let mut args = vec!["add", "--convert-standby", "-I", "2", "--magic-file", "magic", "-t", "30"];
    args.extend(world.node(&standby, &two));
    assert_eq!(world.bihactl(&args).status.code(), Some(2));
    assert!(world.path("n2/standby.signal").exists(), "it was there before");
    assert!(!world.path("n2/pg_biha").exists() && !world.path("n2/pg_replslot/biha_node_9").exists());
    let query = "SELECT pg_is_in_recovery(), current_setting('primary_slot_name')";
    let args = ["-qAtX", "-h", "127.0.0.1", "-p", &two.0, "-U", "postgres", "-d", "postgres", "-c", query];
    assert_eq!(world.tool("psql", &args).trim(), "t|old");
    let status = text(&world.bihactl(&["status", "--host", "127.0.0.1", "-p", &one.0, "-D", "n1"]));
    assert!(status.contains(&format!(":{}", one.0)) && !status.contains(&format!(":{}", two.0)), "{status}");
}

/// For an instant a postmaster has no PID file yet: a pg_ctl that is ended then leaves a server that nobody finds.
#[test]
fn a_signal_during_a_start_leaves_no_server() {
    let server = Converted::new("");
    server.world.stop(&server.data);
    // In a session of its own, as a postmaster is.
    server.world.script_pg_ctl(&format!(
        "start*'-l {}.log'*)
            setsid sh -c 'touch begun; while [ ! -e told ]; do sleep 0.05; done; sleep 1
                          touch n1/standby.signal; \"$@\"; touch started' - \"$real\" \"$@\" &
            wait; exit 1;;",
        server.data
    ));
    assert_eq!(server.interrupt(&["--start"]).status.code(), Some(2));
    await_file(&server.world.path("started"));
    assert!(!server.world.path("n1/postmaster.pid").exists(), "it is stopped again");
    server.start();
    server.expect_as_before();
}

/// As where the terminal is closed.
#[test]
fn all_is_taken_back_though_nobody_reads_what_is_said() {
    let server = Converted::new("");
    server.world.break_extension();
    let mut command = server.world.command(&server.world.path("bihactl"));
    let mut child = command.args(server.args(&[])).stderr(Stdio::piped()).spawn().expect("runs");
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("ends").code(), Some(2));
    server.expect_as_before();
}

#[test]
fn wal_that_no_standby_can_use_is_refused_before_anything_is_done() {
    let server = Converted::new("wal_level = minimal\nmax_wal_senders = 0\n");
    let refused = |more: &[&'static str]| {
        let output = server.convert(more);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("wal_level minimal"));
        assert!(text(&output).contains("HINT:  Set wal_level = replica"));
        assert_eq!(files(&server.world), server.before);
        assert!(!server.world.path("n1/pg_biha").exists());
    };
    refused(&[]);
    server.world.stop(&server.data);
    refused(&["--start"]);
    server.start();
    server.expect_as_before();
}

/// It would have a node emptied much later, were bihactl killed while its server starts.
#[test]
fn a_node_that_is_started_is_not_marked_as_unfinished() {
    let (world, ports) = (World::new(), ports());
    let data = world.path("n1").display().to_string();
    world.script_pg_ctl(&format!(
        "start*'-l {data}.log'*)
            [ -e n1/pg_biha/biha.conf ] && ls -A n1/pg_biha >seen
            \"$real\" \"$@\"; exit 1;;"
    ));
    assert_eq!(init(&world, &data, &ports, &["--start"]).status.code(), Some(2));
    let seen = fs::read_to_string(world.path("seen")).expect("started");
    assert!(seen.contains("biha.conf") && !seen.contains("unfinished"), "{seen}");
    assert!(!world.path("n1").exists(), "all is removed");
}

#[test]
fn a_failed_start_that_is_not_all_taken_back_is_finished_by_the_next_run() {
    let (world, ports) = (World::new(), ports());
    let data = world.path("n1").display().to_string();
    // What cannot be removed comes when the server that did not start is stopped.
    world.script_pg_ctl(&format!(
        "start*'-l {data}.log'*) touch started; \"$real\" \"$@\"; exit 1;;
        stop*) \"$real\" \"$@\"
            [ -e started ] && mkdir -p n1/stuck/fast && chmod 500 n1/stuck
            exit 0;;"
    ));
    let failed = init(&world, &data, &ports, &["--start"]);
    assert!(text(&failed).contains(&format!("could not empty \"{data}\"")));
    assert!(world.path("n1/stuck").exists());
    world.run("chmod", &["700", &format!("{data}/stuck")]);
    world.script_pg_ctl("");
    let again = init(&world, &data, &ports, &["--start"]);
    assert!(again.status.success() && text(&again).contains("where an earlier run was cut short"));
    check_node(&world, "n1", 1);
}
