//! `bihactl add`.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use biha_io::Magic;
use postgres::Client;

use super::shared;
use crate::certs::Certificate;
use crate::checks::{self, Findings};
use crate::cli::{Add, Mode, Source};
use crate::conf::{BIHA_CONF_FILE, BihaConf};
use crate::datadir::{Content, DataDir, control};
use crate::files;
use crate::outcome::refused;
use crate::plan::{self, Finish, Step};
use crate::settings::{Wanted, further_node};
use crate::sql::{ClusterView, Login, describe, leader_of, os_user};
use crate::tools::Tools;
use crate::ui;
use crate::undo::Undo;
use crate::work::{self, Layout, Leader, NodeSpec, Secrets, Work};

/// Adds a node.
pub fn run(args: &Add) -> Result<()> {
    if args.mode != Mode::Regular {
        bail!("referees are not supported yet: only --mode regular can be used");
    }
    let mut findings = Findings::default();
    checks::user(&mut findings);
    findings.settle()?;
    let (dir, tools) = shared::probe(&args.node)?;
    checks::host(&mut findings, &args.node.host);
    checks::tools(&mut findings, &tools, &tools.missing_files());
    if args.convert_standby {
        checks::existing_directory(&mut findings, &dir, &tools);
    } else {
        checks::new_directory(&mut findings, &dir);
    }
    shared::check_log(&mut findings, &args.node, &dir, args.no_restart);
    findings.settle()?;
    let magic = magic(&args.source)?;
    let login = Login {
        hosts: vec![(magic.host.clone(), magic.port)],
        user: "biha_replication_user".to_owned(),
        dbname: "biha_db".to_owned(),
        password: Some(magic.password.clone()),
    };
    let (client, view) = leader_of(&login)?.ok_or_else(|| refused("the cluster has no leader now"))?;
    let at = view.leader().context("the cluster has no leader now")?;
    let login = login.at(&at.host, at.port);
    join(args, &dir, tools, magic, Cluster { client, view, login })
}

/// The cluster that is joined.
struct Cluster {
    client: Client,
    view: ClusterView,
    /// To its leader.
    login: Login,
}

fn magic(source: &Source) -> Result<Magic> {
    let text = match source {
        Source { magic_string: Some(text), .. } => text.clone(),
        Source { magic_file: Some(file), .. } => {
            files::read_text(file)?.with_context(|| format!("\"{}\" does not exist", file.display()))?
        }
        Source { use_leader: Some(conninfo), .. } => {
            let defaults = Login {
                hosts: vec![("localhost".to_owned(), 5432)],
                user: os_user(),
                dbname: "biha_db".to_owned(),
                password: None,
            };
            let mut client = Login::parse(conninfo, &defaults)?.connect()?;
            let row = client.query_one("SELECT biha.get_magic_string()", &[]);
            row.map_err(|e| anyhow!(describe(&e)))?.get(0)
        }
        _ => bail!("one of --magic-string, --magic-file and --use-leader is needed"),
    };
    Ok(Magic::decode(&text)?)
}

fn join(args: &Add, dir: &DataDir, tools: Tools, magic: Magic, mut cluster: Cluster) -> Result<()> {
    let mut findings = Findings::default();
    let config_file = work::find_config_file(&dir.path, args.node.config_file.as_deref());
    let layout = Layout { pgdata: dir.path.clone(), config_file };
    let old_port = match (&dir.running, args.convert_standby) {
        (Some(server), _) => Some(server.port),
        (None, true) => work::setting(&tools, &layout, "port")?.parse().ok(),
        (None, false) => None,
    };
    let port = args.node.port.or(old_port).unwrap_or(5432);
    let biha_port = shared::biha_port(&args.node, port)?;
    let node = NodeSpec { id: args.biha_node_id, host: args.node.host.clone(), port, biha_port };
    let running = dir.running.is_some();
    checks::ports(&mut findings, port, biha_port, running && old_port == Some(port));
    member(&mut findings, &cluster.view, &node);
    leader_facts(&mut findings, &mut cluster.client, &tools, &node, dir, args.convert_standby)?;
    findings.settle()?;

    let wanted = Wanted {
        id: node.id,
        host: &node.host,
        port,
        biha_port,
        listen_addresses: &args.node.listen_addresses,
        nquorum: None,
    };
    let libraries = match args.convert_standby {
        true => Some(work::setting(&tools, &layout, "shared_preload_libraries")?),
        false => None,
    };
    let conf = further_node(&leader_conf(&mut cluster.client)?, libraries.as_deref(), &wanted);
    let (steps, by_hand) = steps(args, dir, &cluster.login, node.id)?;
    carry_out(args, Prepared { tools, layout, node, conf, magic, cluster }, &steps, by_hand)
}

fn steps(args: &Add, dir: &DataDir, leader: &Login, id: u32) -> Result<(Vec<Step>, Option<String>)> {
    if args.convert_standby {
        let (finish, by_hand) = shared::finish_existing(dir, args.node.start, args.no_restart);
        return Ok((plan::convert_standby(finish), by_hand));
    }
    let backup = backup_args(&dir.path, leader, id, shared::words(args.backup_options.as_deref())?);
    let finish = if args.node.start { Finish::Start } else { Finish::Nothing };
    Ok((plan::add(backup, dir.content == Content::Unfinished, finish), None))
}

/// Arguments of pg_basebackup; the password comes by the environment.
fn backup_args(pgdata: &Path, leader: &Login, id: u32, more: Vec<String>) -> Vec<String> {
    let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    let (host, port) = leader.hosts.first().cloned().unwrap_or_default();
    let conninfo =
        format!("host={} port={port} user={} application_name=bihactl", quoted(&host), leader.user);
    let slot = format!("biha_node_{id}");
    let pgdata = pgdata.display().to_string();
    let args = ["-D", &pgdata, "-d", &conninfo, "-X", "stream", "-S", &slot, "-c", "fast", "-P", "-w"];
    args.iter().map(|arg| (*arg).to_owned()).chain(more).collect()
}

/// Does the node fit the cluster?
fn member(findings: &mut Findings, view: &ClusterView, node: &NodeSpec) {
    for other in &view.nodes {
        let same_place =
            other.host == node.host && (other.port, other.biha_port) == (node.port, node.biha_port);
        if i64::from(other.id) == i64::from(node.id) {
            if !same_place {
                findings.error(
                    format!("node {} is already a member, at {}:{}", other.id, other.host, other.port),
                    "Choose another number, or remove that node first.",
                );
            } else if other.online {
                findings.error(format!("node {} is already a member, and online", other.id), "");
            } else if !other.joining {
                findings.error(
                    format!("node {} is already a member, and has taken part in elections", other.id),
                    format!(
                        "What it has promised is lost. Remove it first: bihactl remove --id {}",
                        other.id
                    ),
                );
            }
        } else if other.host == node.host
            && [other.port, other.biha_port].iter().any(|port| *port == node.port || *port == node.biha_port)
        {
            findings
                .error(format!("node {} uses one of these ports on host \"{}\"", other.id, other.host), "");
        } else if other.joining {
            findings.error(
                format!("node {} is still joining", other.id),
                "Add nodes one at a time: wait until it streams, or remove it.",
            );
        }
    }
}

/// What the leader's server says.
fn leader_facts(
    findings: &mut Findings,
    client: &mut Client,
    tools: &Tools,
    node: &NodeSpec,
    dir: &DataDir,
    convert: bool,
) -> Result<()> {
    let row = client.query_one(
        "SELECT current_setting('server_version_num')::int / 10000, \
         (SELECT system_identifier::text FROM pg_control_system()), \
         (SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE slot_name = $1), \
         (SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database), \
         (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global'))",
        &[&format!("biha_node_{}", node.id)],
    )?;
    let version = u32::try_from(row.get::<_, i32>(0))?;
    if version != tools.version {
        findings.error(
            format!("the leader runs PostgreSQL {version}, but the programs here are of {}", tools.version),
            "Name the right ones with --bindir.",
        );
    }
    if row.get(2) {
        findings.error(
            format!("slot biha_node_{} of the leader is in use", node.id),
            "Another node streams from it.",
        );
    }
    if convert {
        return standby_facts(findings, tools, dir, row.get(1));
    }
    let (size, spaces): (i64, i64) = (row.get(3), row.get(4));
    if spaces > 0 {
        findings.warn(
            format!("the leader has {spaces} tablespaces"),
            "They are copied to the same paths; for others use --backup-options with --tablespace-mapping.",
        );
    }
    let holder = dir.path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if let Ok(space) = rustix::fs::statvfs(holder) {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < u64::try_from(size)? {
            findings.error(
                format!(
                    "the leader's databases take {}, but only {} are free in \"{}\"",
                    crate::render::bytes(size),
                    crate::render::bytes(i64::try_from(free)?),
                    holder.display()
                ),
                "",
            );
        }
    }
    Ok(())
}

fn standby_facts(findings: &mut Findings, tools: &Tools, dir: &DataDir, leader: &str) -> Result<()> {
    let control = control(tools, &dir.path)?;
    if control.system_identifier.to_string() != leader {
        findings.error("this server is no copy of the leader: its system identifier differs", "");
    }
    if !dir.standby {
        findings.error("this server is not a standby: it has no standby.signal", "");
    }
    Ok(())
}

fn leader_conf(client: &mut Client) -> Result<BihaConf> {
    let row = client.query_one("SELECT pg_read_binary_file($1)", &[&BIHA_CONF_FILE]);
    let bytes: Vec<u8> = row.map_err(|e| anyhow!(describe(&e)))?.get(0);
    Ok(BihaConf::parse(&String::from_utf8_lossy(&bytes)))
}

struct Prepared {
    tools: Tools,
    layout: Layout,
    node: NodeSpec,
    conf: BihaConf,
    magic: Magic,
    cluster: Cluster,
}

fn carry_out(args: &Add, prepared: Prepared, steps: &[Step], by_hand: Option<String>) -> Result<()> {
    let Prepared { tools, layout, node, conf, magic, cluster } = prepared;
    let old_slot = match args.convert_standby {
        true => work::setting(&tools, &layout, "primary_slot_name")?,
        false => String::new(),
    };
    let log = shared::log_file(&args.node, &layout.pgdata);
    let start_command = shared::start_command(&tools, &layout, &log);
    let id = node.id;
    let new_slot = format!("biha_node_{id}");
    let work = Work {
        hba_file: None::<PathBuf>,
        secrets: Secrets {
            cluster: magic.cluster,
            authority: Certificate { certificate: magic.ca_certificate, key: magic.ca_key },
            password: magic.password,
        },
        config: None,
        superuser: cluster.login.clone(),
        leader: Some(Leader { login: cluster.login, client: Rc::new(RefCell::new(cluster.client)) }),
        keep_copies: args.convert_standby,
        timeout: shared::timeout(&args.node),
        undo: Undo::default(),
        private: Rc::new(RefCell::new(None)),
        tools,
        layout,
        node,
        conf,
        log,
    };
    if args.node.dry_run {
        work.show(steps);
        return Ok(());
    }
    let late = work.run(steps)?;
    ui::say(&format!("node {id} is a member of cluster {}", magic.cluster));
    if !steps.iter().any(|step| matches!(step, Step::Start | Step::Restart)) {
        ui::say(&format!("to start it: {}", by_hand.unwrap_or(start_command)));
    }
    if !old_slot.is_empty() && old_slot != new_slot {
        ui::say(&format!(
            "slot \"{old_slot}\", which this standby used, stays on the leader: drop it when the node streams"
        ));
    }
    late.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::node as member_of;

    fn view() -> ClusterView {
        let nodes = vec![member_of(1, "LEADER_RW"), member_of(2, "FOLLOWER")];
        ClusterView { leader: Some(1), nodes, ..ClusterView::default() }
    }

    fn spec(id: u32, host: &str) -> NodeSpec {
        NodeSpec { id, host: host.to_owned(), port: 5432, biha_port: 5433 }
    }

    fn errors(view: &ClusterView, node: &NodeSpec) -> usize {
        let mut findings = Findings::default();
        member(&mut findings, view, node);
        findings.errors.len()
    }

    #[test]
    fn a_new_node_must_fit() {
        let mut view = view();
        assert_eq!(errors(&view, &spec(3, "db3")), 0);
        assert_eq!(errors(&view, &spec(2, "db3")), 1, "the number is taken");
        assert_eq!(errors(&view, &spec(3, "db2")), 1, "the ports are taken");
        view.nodes[1].joining = true;
        assert_eq!(errors(&view, &spec(3, "db3")), 1, "one at a time");
    }

    #[test]
    fn a_node_that_never_came_up_can_be_added_again() {
        let mut view = view();
        assert_eq!(errors(&view, &spec(2, "db2")), 1, "online");
        view.nodes[1].online = false;
        assert_eq!(errors(&view, &spec(2, "db2")), 1, "it has a vote in its memory");
        view.nodes[1].joining = true;
        assert_eq!(errors(&view, &spec(2, "db2")), 0);
    }

    #[test]
    fn the_backup_uses_the_nodes_slot() {
        let leader =
            Login { hosts: vec![("a'b".into(), 1)], user: "u".into(), dbname: "d".into(), password: None };
        let args = backup_args(Path::new("/d"), &leader, 4, vec!["-r".into(), "1M".into()]);
        let text = args.join(" ");
        assert!(text.contains("-S biha_node_4") && text.contains("-X stream"), "{text}");
        assert!(text.contains("host='a\\'b' port=1") && text.ends_with("-r 1M"), "{text}");
    }
}
