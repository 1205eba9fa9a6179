//! bihactl with PostgreSQL's real programs. The extension is a stand-in: see support.

mod support;
mod taken_back;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use biha_core::{ClusterConfig, NodeId, image};
use biha_io::{Identity, StateFiles};
use support::{World, ports, text};

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).expect("there").mode() & 0o777
}

fn init(world: &World, pgdata: &str, ports: &(String, String), more: &[&str]) -> std::process::Output {
    let mut args = vec!["init"];
    args.extend(world.node(pgdata, ports));
    args.extend(["--options=--no-sync --auth-local=trust --auth-host=trust", "-t", "30"]);
    args.extend(more);
    world.bihactl(&args)
}

/// What a controller would do when a node is added: the leader's configuration names it.
fn enter(world: &World, pgdata: &str, id: u32) {
    let path = world.path(pgdata).join("pg_biha/biha.conf");
    let mut config: ClusterConfig = image::decode_config(&fs::read(&path).expect("read")).expect("decodes");
    let member = config.members[&NodeId(1)].clone();
    config.members.insert(NodeId(id), member);
    fs::write(&path, image::encode_config(&config).expect("encodes")).expect("written");
}

#[test]
fn a_cluster_is_made_and_grows() {
    let world = World::new();
    let (one, two) = (ports(), ports());
    let data = world.path("n1").display().to_string();

    let output = init(&world, &data, &one, &["--dry-run"]);
    assert!(output.status.success() && text(&output).contains("initdb"));
    assert!(!world.path("n1").exists(), "a dry run makes nothing");

    let output = init(&world, &data, &one, &["--start"]);
    assert!(output.status.success());
    let magic = String::from_utf8(output.stdout).expect("text").trim().to_owned();
    assert!(magic.starts_with("biha1:"), "only the magic string is on standard output");
    check_node(&world, "n1", 1);

    // The second run says that there is nothing to do here.
    let again = init(&world, &data, &one, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("is a biha node already"));

    let status = world.bihactl(&["status", "-D", &data]);
    assert!(status.status.success() && text(&status).contains("LEADER_RW"));
    let json = world.bihactl(&["status", "--json", "--host", "127.0.0.1", "-p", &one.0, "-D", &data]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["nodes"][0]["state"], "LEADER_RW");

    add_second(&world, &data, &magic, &two);

    let refused = world.bihactl(&["switchover", "-D", &data, "--to", "9"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("not a member"));

    let query = "SELECT pg_create_physical_replication_slot('biha_node_1', true)";
    world.tool("psql", &["-qAtX", "-h", "127.0.0.1", "-p", &two.0, "-U", "postgres", "biha_db", "-c", query]);
    world.stop(&world.path("n2").display().to_string());
    let remove = world.bihactl(&["remove", "-D", &data, "--id", "2"]);
    assert!(remove.status.success());
    let again = world.bihactl(&["remove", "-D", &data, "--id", "2"]);
    assert!(again.status.success() && text(&again).contains("is not a member"));
    leave(&world, &two);
}

fn check_node(world: &World, name: &str, id: u32) {
    let dir = world.path(name).join("pg_biha");
    assert_eq!(mode(&dir), 0o700);
    for file in ["biha.conf", "biha.state", "node.crt", "node.key", "ca.crt", "ca.key", "pgpass"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    assert!(!dir.join("bihactl.unfinished").exists());
    let control = world.tool("pg_controldata", &["-D", &world.path(name).display().to_string()]);
    let line = control.lines().find(|l| l.starts_with("Database system identifier")).expect("a line");
    let system_identifier = line.split_whitespace().last().expect("a word").parse().expect("a number");
    let identity = Identity { cluster: None, system_identifier, node: NodeId(id) };
    StateFiles::new(&dir).load_state(&identity).expect("the node's own memory");
    let hba = fs::read_to_string(world.path(name).join("pg_hba.conf")).expect("read");
    assert_eq!(hba.matches("# BEGIN biha").count(), 1);
    assert!(hba.starts_with("# BEGIN biha"));
    let conf = fs::read_to_string(world.path(name).join("postgresql.conf")).expect("read");
    assert!(conf.lines().last().expect("a line").starts_with("include 'postgresql.biha.conf'"));
}

fn add_second(world: &World, leader: &str, magic: &str, two: &(String, String)) {
    let data = world.path("n2").display().to_string();
    let mut args = vec!["add", "-I", "2", "--magic-string", magic, "--start", "-t", "30"];
    args.extend(world.node(&data, two));

    // The leader's configuration does not name the node: everything is taken back.
    let failed = world.bihactl(&args);
    assert_eq!(failed.status.code(), Some(2), "{}", text(&failed));
    assert!(!world.path("n2").exists());
    let status = text(&world.bihactl(&["status", "-D", leader]));
    assert!(!status.contains(&format!(":{}", two.0)), "the member was removed again");

    enter(world, "n1", 2);
    world.run("mkdir", &[world.path("n1/log").to_str().expect("a path")]);
    world.run("touch", &[world.path("n1/log/old").to_str().expect("a path")]);
    let added = world.bihactl(&args);
    assert!(added.status.success());
    check_node(world, "n2", 2);
    let conf = fs::read_to_string(world.path("n2/postgresql.biha.conf")).expect("read");
    for line in
        ["biha.id = '2'".to_owned(), format!("port = '{}'", two.0), "cluster_name = 'biha_node_2'".into()]
    {
        assert!(conf.contains(&line), "{line}");
    }
    assert!(world.path("n2/standby.signal").exists());
    assert!(!world.path("n2/log/old").exists(), "logs are the leader's own");
    let keys = ["n1", "n2"].map(|node| fs::read(world.path(node).join("pg_biha/node.key")).expect("read"));
    assert_ne!(keys[0], keys[1], "the identity is the node's own");
}

fn leave(world: &World, ports: &(String, String)) {
    let data = world.path("n2").display().to_string();
    let bindir = world.node(&data, ports)[9].to_owned();
    let left = world.bihactl(&["remove", "-D", &data, "--bindir", &bindir]);
    assert!(left.status.success(), "{}", text(&left));
    assert!(world.path("n2/pg_biha.removed/pg_biha/biha.state").exists());
    assert!(world.path("n2/pg_biha.removed/pg_replslot/biha_node_1/state").exists());
    assert_eq!(fs::read_dir(world.path("n2/pg_replslot")).expect("there").count(), 0);
    let conf = fs::read_to_string(world.path("n2/postgresql.conf")).expect("read");
    assert!(!conf.contains("postgresql.biha.conf"));
    assert!(conf.contains(&format!("port = '{}'", ports.0)), "it keeps its port");
    let hba = fs::read_to_string(world.path("n2/pg_hba.conf")).expect("read");
    assert!(!hba.contains("biha"));
    let again = world.bihactl(&["remove", "-D", &data, "--bindir", &bindir]);
    assert!(again.status.success() && text(&again).contains("biha is not in"));
}

/// Not SQL_ASCII, as initdb would have it in the locale of a service, and in which bihactl runs other programs.
#[test]
fn databases_have_the_operators_locale_and_an_encoding() {
    let world = World::new();
    for (name, locale) in [("n1", "C"), ("n2", "C.UTF-8")] {
        let (data, ports) = (world.path(name).display().to_string(), ports());
        let mut args = vec!["init", "--start", "--options=--auth-local=trust --auth-host=trust"];
        args.extend(world.node(&data, &ports));
        let output = world.bihactl_in_locale(locale, &args);
        assert!(output.status.success());
        let query =
            "SELECT datcollate, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'biha_db'";
        let args = ["-qAtX", "-h", "127.0.0.1", "-p", &ports.0, "-U", "postgres", "biha_db", "-c", query];
        assert_eq!(world.tool("psql", &args).trim(), format!("{locale}|UTF8"));
    }
}

#[test]
fn a_failed_init_leaves_nothing() {
    let world = World::new();
    world.break_extension();
    let ports = ports();
    let data = world.path("n1").display().to_string();
    let output = init(&world, &data, &ports, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("broken"), "it says why");
    assert!(!world.path("n1").exists());
    // A directory that was there stays, empty.
    world.run("mkdir", &[&data]);
    assert_eq!(init(&world, &data, &ports, &[]).status.code(), Some(2));
    assert_eq!(fs::read_dir(&data).expect("there").count(), 0);
}

/// An ordinary server, running, with more settings.
fn ordinary(world: &World, data: &str, port: &str, more: &str) {
    world.tool("initdb", &["-D", data, "--no-sync", "--auth-local=trust"]);
    let conf = world.path("n1/postgresql.conf");
    let mut settings = fs::read_to_string(&conf).expect("read");
    settings.push_str(&format!(
        "unix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nport = {port}\n\
         shared_preload_libraries = 'auto_explain'\n{more}",
        world.dir.path().display()
    ));
    fs::write(&conf, settings).expect("written");
    fs::write(world.path("n1/postgresql.auto.conf"), "primary_slot_name = 'x'\nwork_mem = '5MB'\n")
        .expect("written");
    world.tool("pg_ctl", &["start", "-w", "-D", data, "-l", &format!("{data}.log")]);
}

#[test]
fn a_running_server_is_converted() {
    let world = World::new();
    let ports = ports();
    let data = world.path("n1").display().to_string();
    ordinary(&world, &data, &ports.0, "");
    let host = world.dir.path().display().to_string();
    world.tool("psql", &["-qXh", &host, "-p", &ports.0, "postgres", "-c", "CREATE UNLOGGED TABLE u ()"]);
    let mut args = vec!["init", "--convert", "-t", "30"];
    args.extend(world.node(&data, &ports));
    let output = world.bihactl(&args);
    assert!(output.status.success());
    assert!(text(&output).contains("unlogged"));
    check_node(&world, "n1", 1);
    let auto = fs::read_to_string(world.path("n1/postgresql.auto.conf")).expect("read");
    assert_eq!(auto, "work_mem = '5MB'\n");
    assert!(world.path("n1/postgresql.auto.conf.before-biha").exists());
    let query = "SHOW shared_preload_libraries";
    let libraries = world.tool("psql", &["-qAtXh", &host, "-p", &ports.0, "postgres", "-c", query]);
    assert_eq!(libraries.trim(), "biha, auto_explain");
}

#[test]
fn a_conversion_that_fails_leaves_the_server_as_it_was() {
    let world = World::new();
    let ports = ports();
    let data = world.path("n1").display().to_string();
    ordinary(&world, &data, &ports.0, "");
    let files = ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"];
    let read = || files.map(|file| fs::read_to_string(world.path("n1").join(file)).expect("read"));
    let before = read();
    world.break_extension();
    let mut args = vec!["init", "--convert"];
    args.extend(world.node(&data, &ports));
    assert_eq!(world.bihactl(&args).status.code(), Some(2));
    assert_eq!(read(), before);
    assert!(!world.path("n1/pg_biha").exists());
    let host = world.dir.path().display().to_string();
    let query = "SELECT count(*) FROM pg_database WHERE datname = 'biha_db'";
    let count = world.tool("psql", &["-qAtXh", &host, "-p", &ports.0, "postgres", "-c", query]);
    assert_eq!(count.trim(), "0", "the database was dropped again");
}

#[test]
fn a_stopped_server_is_converted() {
    let world = World::new();
    let ports = ports();
    let data = world.path("n1").display().to_string();
    ordinary(&world, &data, &ports.0, "");
    world.stop(&data);
    let mut args = vec!["init", "--convert", "--start", "-t", "30"];
    args.extend(world.node(&data, &ports));
    let output = world.bihactl(&args);
    assert!(output.status.success());
    check_node(&world, "n1", 1);
}

/// A cluster of one, and an ordinary standby of it, stopped.
fn leader_and_standby(world: &World, one: &(String, String), two: &(String, String)) {
    let data = world.path("n1").display().to_string();
    let output = init(world, &data, one, &["--start", "--magic-file", "magic"]);
    assert!(output.status.success() && output.stdout.is_empty());
    assert_eq!(mode(&world.path("magic")), 0o600);
    let standby = world.path("n2").display().to_string();
    let conninfo = format!("host=127.0.0.1 port={} user=postgres", one.0);
    world.tool("pg_basebackup", &["-D", &standby, "-R", "-d", &conninfo, "-C", "-S", "old", "-c", "fast"]);
    // The copied identity would be in the way: a standby made before the conversion has none.
    world.run("rm", &["-r", &format!("{standby}/pg_biha"), &format!("{standby}/postgresql.biha.conf")]);
    let conf = world.path("n2/postgresql.conf");
    let text_before = fs::read_to_string(&conf).expect("read").replace("include '", "#include '");
    fs::write(&conf, format!("{text_before}port = {}\n", two.0)).expect("written");
    enter(world, "n1", 2);
}

#[test]
fn a_standby_of_the_leader_becomes_a_follower() {
    let world = World::new();
    let (one, two) = (ports(), ports());
    leader_and_standby(&world, &one, &two);
    let standby = world.path("n2").display().to_string();

    let mut args =
        vec!["add", "--convert-standby", "-I", "2", "--magic-file", "magic", "--start", "-t", "30"];
    args.extend(world.node(&standby, &two));
    let added = world.bihactl(&args);
    assert!(added.status.success());
    assert!(text(&added).contains("slot \"old\""), "the old slot is spoken of");
    check_node(&world, "n2", 2);
    let auto = fs::read_to_string(world.path("n2/postgresql.auto.conf")).expect("read");
    assert!(!auto.contains("primary_conninfo"));
}

#[test]
fn a_signal_takes_everything_back() {
    let world = World::new();
    let (one, two) = (ports(), ports());
    let data = world.path("n1").display().to_string();
    let output = init(&world, &data, &one, &["--start"]);
    let magic = String::from_utf8(output.stdout).expect("text").trim().to_owned();
    let standby = world.path("n2").display().to_string();
    let mut args = vec!["add", "-I", "2", "--magic-string", &magic, "--backup-options=--max-rate=32k"];
    args.extend(world.node(&standby, &two));
    let child =
        world.command(&world.path("bihactl")).args(&args).stderr(Stdio::piped()).spawn().expect("runs");
    let begun = || world.path("n2/PG_VERSION").exists() || world.path("n2/base").exists();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !begun() {
        assert!(Instant::now() < deadline, "the copy did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.run("kill", &["-TERM", &child.id().to_string()]);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("interrupted"));
    assert!(!world.path("n2").exists());
    let status = text(&world.bihactl(&["status", "-D", &data]));
    assert!(!status.contains(&format!(":{}", two.0)), "the member was removed again");
    let query = "SELECT count(*) FROM pg_replication_slots";
    let slots =
        world.tool("psql", &["-qAtX", "-h", "127.0.0.1", "-p", &one.0, "-U", "postgres", "-c", query]);
    assert_eq!(slots.trim(), "0", "its slot is gone");
}
