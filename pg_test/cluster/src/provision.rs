//! Making nodes: with bihactl, as an operator would; or without biha, to compare with.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::run::run;
use crate::wait::wait_until;

/// File with the cluster's magic string, for `bihactl add`.
fn magic_file(cluster: &Cluster) -> PathBuf {
    cluster.directory.join("magic")
}

/// The cluster's first node: `bihactl init`, then started with the test's settings.
pub fn init(cluster: &Cluster, node: &Node) -> Result<()> {
    let mut command = bihactl(cluster, "init", node);
    command.args(["--username", "postgres"]);
    if cluster.builder.sync_standbys > 0 {
        command.arg(format!("--sync-standbys={}", cluster.builder.sync_standbys));
    }
    run(&mut command)?;
    configure(cluster, node)?;
    node.start()?;
    node.wait_state(&["LEADER_RW"], Duration::from_secs(30)).map(drop)
}

/// A further node: `bihactl add --start`, until it counts as a voter: nodes are added one at a time.
pub fn add(cluster: &Cluster, node: &Node) -> Result<()> {
    run(&mut add_command(cluster, node))?;
    let joining = format!("SELECT joining FROM biha.config() WHERE id = {}", node.id);
    wait_until(&format!("node {} to be a voter", node.id), Duration::from_secs(30), || {
        ensure!(cluster.leader()?.biha_value(&joining)? == "f", "it is still joining");
        Ok(())
    })
}

/// For the next `bihactl add`: the magic string names the node that was asked for it, and that one may be gone.
pub fn write_magic(cluster: &Cluster) -> Result<()> {
    let leader = cluster.wait_leader(Duration::from_secs(30))?;
    let magic = leader.biha_value("SELECT biha.get_magic_string()")?;
    fs::write(magic_file(cluster), magic).context("could not write the magic string")
}

/// The `bihactl add` of a further node.
pub fn add_command(cluster: &Cluster, node: &Node) -> Command {
    let mut command = bihactl(cluster, "add", node);
    command.arg("--start").arg("--log").arg(&node.log);
    command
}

fn bihactl(cluster: &Cluster, action: &str, node: &Node) -> Command {
    let mut command = node.runner.command(&cluster.bihactl);
    command.arg(action).args(identity(node)).arg("--magic-file").arg(magic_file(cluster));
    command.arg("--bindir").arg(&node.bindir);
    command
}

fn identity(node: &Node) -> [String; 5] {
    [
        format!("--biha-node-id={}", node.id),
        format!("--host={}", node.address.host),
        format!("--port={}", node.address.port),
        format!("--biha-port={}", node.control_port),
        format!("--pgdata={}", node.data.display()),
    ]
}

/// The settings of the test, and a way in for its clients. Further nodes get both with their base backup.
fn configure(cluster: &Cluster, node: &Node) -> Result<()> {
    let mut lines = format!(
        "\n# of the cluster tests\n\
         log_line_prefix = '%m [%p] %b %e '\n\
         log_min_error_statement = panic\n\
         unix_socket_directories = '{}'\n\
         shared_buffers = '64MB'\n",
        cluster.directory.join("sockets").display()
    );
    for (name, value) in &cluster.builder.settings {
        lines.push_str(&format!("{name} = '{value}'\n"));
    }
    node.append("postgresql.conf", &lines)?;
    let hosts = "host all postgres 127.0.0.1/32 trust\n\
                 host all postgres samenet trust\n\
                 host replication postgres samenet trust\n";
    // Before initdb's own lines, which want a password.
    node.prepend("pg_hba.conf", hosts)
}

/// The first server of a cluster without biha.
pub fn plain_primary(cluster: &Cluster, node: &Node) -> Result<()> {
    run(node
        .program("initdb")
        .args(["--auth=trust", "--username=postgres", "--data-checksums", "-D"])
        .arg(&node.data))?;
    configure(cluster, node)?;
    // What bihactl sets as well.
    let own = format!(
        "listen_addresses = '*'\nport = {}\n\
         wal_retrieve_retry_interval = 200ms\n\
         wal_keep_size = 1GB\nmax_slot_wal_keep_size = 5GB\nmax_replication_slots = 11\n\
         recovery_init_sync_method = syncfs\n",
        node.address.port
    );
    node.append("postgresql.conf", &own)?;
    node.start()
}

/// A streaming standby with its slot.
pub fn plain_standby(primary: &Node, node: &Node) -> Result<()> {
    let slot = format!("standby_{}", node.id);
    let mut command = node.program("pg_basebackup");
    command.args(["-h", &primary.address.host, "-p", &primary.address.port.to_string()]);
    command.args(["-U", "postgres", "-R", "-C", "-S", &slot, "-c", "fast", "-D"]).arg(&node.data);
    run(&mut command)?;
    node.append("postgresql.conf", &format!("port = {}\n", node.address.port))?;
    node.start()
}
