//! What can be typed. The doc comments here are the help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Makes, grows and looks at a biha cluster.
///
/// Commands that touch a data directory run as its owner, never as root, and check everything first.
/// Whatever a failed command has made, it removes again; the command can then be repeated.
///
/// Exit status: 0 done; 1 a condition was not met (nothing is wrong with the command; look at what it says);
/// 2 wrong usage or failure.
#[derive(Debug, Parser)]
#[command(name = "bihactl", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the first node of a new cluster, from nothing or from an existing server.
    Init(Init),
    /// Add this machine's data directory to a cluster as a follower.
    Add(Add),
    /// Show the members of a cluster.
    Status(Status),
    /// Make another node the leader, without losing anything.
    Switchover(Switchover),
    /// Remove a member from the cluster, or take biha out of a stopped server.
    Remove(Remove),
}

fn host(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(biha_core::bare_host(text).to_owned())
}

/// Where this node is and how it is reached.
#[derive(Debug, Args)]
pub struct Node {
    /// Data directory.
    #[arg(short = 'D', long, env = "PGDATA", value_name = "DIR")]
    pub pgdata: PathBuf,
    /// Host name or address where the other nodes and the clients reach this one.
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub host: String,
    /// Port of the server [default: that of the existing server, or 5432].
    #[arg(short = 'p', long, env = "PGPORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Port of biha's control channel [default: the server's port + 1].
    #[arg(short = 'P', long, value_parser = clap::value_parser!(u16).range(1..))]
    pub biha_port: Option<u16>,
    /// Addresses on which the server and the control channel listen.
    #[arg(long, value_name = "LIST", default_value = "*")]
    pub listen_addresses: String,
    /// Directory of PostgreSQL's programs [default: found by the PATH, pg_config, or the usual places].
    #[arg(long, value_name = "DIR")]
    pub bindir: Option<PathBuf>,
    /// postgresql.conf, where it is not in the data directory.
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Start the server when all is done, and wait until the node has its role.
    #[arg(long)]
    pub start: bool,
    /// Log file of a server started by this command [default: DIR.log beside the data directory].
    #[arg(short = 'l', long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Seconds to wait for the server to start and to take its role.
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Check everything and show what would be done, but do nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Make the first node of a new cluster.
///
/// Without --convert a new PostgreSQL cluster is made by initdb, with data checksums and SCRAM passwords.
/// With --convert an existing server, running or stopped, becomes the first node: its databases, settings and
/// libraries stay; it is restarted once. A primary with standbys can be converted; each standby then follows
/// with "bihactl add --convert-standby".
///
/// Prints the magic string with which other nodes join. It holds the cluster's secrets: keep it as a password.
#[derive(Debug, Args)]
pub struct Init {
    /// Options that every node has.
    #[command(flatten)]
    pub node: Node,
    /// Number of this node, unique in the cluster.
    #[arg(short = 'I', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i32::MAX as i64))]
    pub biha_node_id: u32,
    /// Turn the existing server of the data directory into the first node.
    #[arg(long, conflicts_with = "options")]
    pub convert: bool,
    /// With --convert: connection string of a superuser of the running server [default: the operating
    /// system user over the server's local socket].
    #[arg(long, value_name = "CONNINFO", requires = "convert")]
    pub conninfo: Option<String>,
    /// With --convert of a running server: leave the restart to the operator.
    #[arg(long, requires = "convert", conflicts_with = "start")]
    pub no_restart: bool,
    /// Name of the superuser [default: the operating system user].
    #[arg(short = 'U', long, value_name = "NAME")]
    pub username: Option<String>,
    /// Votes that elect a leader [default: the majority of voters].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub nquorum: Option<u32>,
    /// Running nodes that the leader needs to take writes [default: nquorum].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub minnodes: Option<u32>,
    /// Synchronous replication: each commit waits for this many other nodes.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub sync_standbys: u32,
    /// Relaxed synchronous replication: go on with this many nodes if no more are there; -1 is strict.
    #[arg(
        long,
        value_name = "K",
        default_value_t = -1,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1..=100)
    )]
    pub sync_standbys_min: i32,
    /// Write the magic string to this file (mode 0600) and do not print it.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub magic_file: Option<PathBuf>,
    /// Further options for initdb, as in a shell.
    #[arg(short = 'o', long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub options: Option<String>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// A full node: leader or follower.
    Regular,
    /// Votes only (not supported yet).
    Referee,
    /// Votes, and receives WAL without applying it (not supported yet).
    RefereeWithWal,
}

/// Add a node to a cluster.
///
/// The data directory is made as a base backup of the leader, through the node's own replication slot, so
/// that no WAL is missed. The node gets its own identity: number, certificate, settings. With
/// --convert-standby an existing standby of the cluster's leader is used as it is, without a base backup.
///
/// Nodes are added one at a time. The new node is a voter as soon as the leader has seen it stream.
#[derive(Debug, Args)]
pub struct Add {
    /// Options that every node has.
    #[command(flatten)]
    pub node: Node,
    /// Number of this node, unique in the cluster.
    #[arg(short = 'I', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i32::MAX as i64))]
    pub biha_node_id: u32,
    /// How to reach the cluster.
    #[command(flatten)]
    pub source: Source,
    /// What the node is for.
    #[arg(short = 'r', long, value_enum, default_value_t = Mode::Regular)]
    pub mode: Mode,
    /// Use the existing standby in the data directory.
    #[arg(short = 'c', long)]
    pub convert_standby: bool,
    /// With --convert-standby of a running server: leave the restart to the operator.
    #[arg(long, requires = "convert_standby", conflicts_with = "start")]
    pub no_restart: bool,
    /// Further options for pg_basebackup, as in a shell (for example --tablespace-mapping=A=B).
    #[arg(
        short = 'O',
        long,
        value_name = "OPTIONS",
        allow_hyphen_values = true,
        conflicts_with = "convert_standby"
    )]
    pub backup_options: Option<String>,
}

/// How a new node finds the cluster.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// Magic string printed by "bihactl init" or biha.get_magic_string().
    #[arg(short = 's', long, value_name = "STRING")]
    pub magic_string: Option<String>,
    /// File with the magic string.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub magic_file: Option<PathBuf>,
    /// Connection string of any member, for a user that may call biha.get_magic_string().
    #[arg(long, value_name = "CONNINFO")]
    pub use_leader: Option<String>,
}

/// How to reach a running cluster.
#[derive(Debug, Args)]
pub struct Connect {
    /// Host, address or socket directory of any member; several separated by commas.
    #[arg(long, env = "PGHOST", value_name = "HOST")]
    pub host: Option<String>,
    /// Port of the server; one, or as many as hosts.
    #[arg(short = 'p', long, env = "PGPORT", value_name = "PORT")]
    pub port: Option<String>,
    /// User [default: biha_replication_user with -D, else the operating system user].
    #[arg(short = 'U', long, env = "PGUSER", value_name = "NAME")]
    pub username: Option<String>,
    /// Database, or a whole connection string.
    #[arg(short = 'd', long, value_name = "DBNAME", default_value = "biha_db")]
    pub dbname: String,
    /// Data directory of a member on this machine: its port, socket and password are read from there.
    #[arg(short = 'D', long, value_name = "DIR")]
    pub pgdata: Option<PathBuf>,
}

/// Show the members of a cluster, as the node that is asked sees them.
///
/// Exit status 1 if the cluster has no leader that takes writes.
#[derive(Debug, Args)]
pub struct Status {
    /// How to reach the cluster.
    #[command(flatten)]
    pub connect: Connect,
    /// Print JSON: one object, or one a line with --watch.
    #[arg(long)]
    pub json: bool,
    /// Show it again and again, every so many seconds [default: 2].
    #[arg(short = 'w', long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    pub watch: Option<f64>,
}

/// Make another node the leader.
///
/// The leader stops taking writes, every follower of its choice receives the last of its WAL, the target is
/// promoted, and the old leader follows it. Nothing that was acknowledged is lost. Waits until the new leader
/// takes writes.
#[derive(Debug, Args)]
pub struct Switchover {
    /// How to reach the cluster.
    #[command(flatten)]
    pub connect: Connect,
    /// Number of the node that shall lead [default: the follower with the least lag].
    #[arg(long, value_name = "N")]
    pub to: Option<u32>,
    /// Seconds to wait for the new leader.
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// Show which node would lead, but do nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// Remove a member, or take biha out of a server.
///
/// With --id the member leaves the cluster: the others no longer count it, and its slots go. Its server is
/// not touched; stop it. With -D and without --id, biha is taken out of that stopped server's
/// configuration; its files are kept aside, and it starts as an ordinary PostgreSQL server.
#[derive(Debug, Args)]
pub struct Remove {
    /// How to reach the cluster, or the data directory to take biha out of.
    #[command(flatten)]
    pub connect: Connect,
    /// Number of the member to remove.
    #[arg(short = 'I', long = "id", alias = "biha-node-id", value_name = "N")]
    pub id: Option<u32>,
    /// Take biha out of the server although it is still a member.
    #[arg(long, conflicts_with = "id")]
    pub force: bool,
    /// postgresql.conf, where it is not in the data directory.
    #[arg(long, value_name = "FILE", conflicts_with = "id")]
    pub config_file: Option<PathBuf>,
    /// Directory of PostgreSQL's programs.
    #[arg(long, value_name = "DIR", conflicts_with = "id")]
    pub bindir: Option<PathBuf>,
    /// Show what would be done, but do nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn biha_options_are_understood() {
        let cli = Cli::try_parse_from([
            "bihactl",
            "init",
            "-I",
            "2",
            "-D",
            "/d",
            "--host",
            "h",
            "--port",
            "5",
            "--biha-port=6",
            "--nquorum=2",
            "--minnodes=2",
            "--sync-standbys=1",
            "--sync-standbys-min=-1",
            "-o",
            "-E UTF8",
        ])
        .expect("parses");
        let Command::Init(init) = cli.command else { panic!("not init") };
        assert_eq!((init.biha_node_id, init.node.biha_port, init.sync_standbys_min), (2, Some(6), -1));
        assert_eq!(init.options.as_deref(), Some("-E UTF8"));
    }

    #[test]
    fn add_wants_exactly_one_source() {
        let add = |more: &[&str]| {
            let mut args = vec!["bihactl", "add", "-I", "2", "-D", "/d", "--host", "h"];
            args.extend(more);
            Cli::try_parse_from(args).is_ok()
        };
        assert!(!add(&[]));
        assert!(add(&["--magic-string", "x"]));
        assert!(add(&["--use-leader=host=a", "--mode", "referee_with_wal"]));
        assert!(!add(&["-s", "x", "-f", "y"]));
    }
}
