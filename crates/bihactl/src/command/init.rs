//! `bihactl init`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use biha_core::{ClusterConfig, ConfigVersion, Member, Mode, NodeId, Settings};
use biha_io::Magic;
use postgres::Client;

use super::shared;
use crate::certs;
use crate::checks::{self, Findings};
use crate::cli::Init;
use crate::datadir::{Content, Control, DataDir, Running, control};
use crate::plan::{self, Finish, Step};
use crate::random;
use crate::settings::{NAMES, ServerSettings, Wanted, first_node};
use crate::sql::{Login, os_user, server_settings};
use crate::tools::Tools;
use crate::ui;
use crate::undo::Undo;
use crate::work::{self, Layout, NodeSpec, Secrets, Work};

/// Makes the first node.
pub fn run(args: &Init) -> Result<()> {
    let mut findings = Findings::default();
    checks::user(&mut findings);
    findings.settle()?;
    let (dir, tools) = shared::probe(&args.node)?;
    checks::host(&mut findings, &args.node.host);
    checks::tools(&mut findings, &tools, &tools.missing_files());
    if let Some(file) = &args.magic_file {
        checks::writable(&mut findings, file);
    }
    shared::check_log(&mut findings, &args.node, &dir, args.no_restart);
    common_settings(&mut findings, args);
    if args.convert { convert(args, &dir, tools, findings) } else { fresh(args, &dir, tools, findings) }
}

fn common_settings(findings: &mut Findings, args: &Init) {
    if args.nquorum.is_some_and(|n| n > 1) || args.minnodes.is_some_and(|n| n > 1) {
        findings.warn(
            "one node alone cannot satisfy --nquorum or --minnodes above 1: the majority of voters is used",
            "That is 2 of 2 and 2 of 3. For other numbers call biha.set_nquorum_and_minnodes() when all are added.",
        );
    }
    if args.sync_standbys_min > i32::try_from(args.sync_standbys).unwrap_or(i32::MAX) {
        findings.error("--sync-standbys-min is larger than --sync-standbys", "");
    }
    if args.sync_standbys > 0 {
        findings.warn("with --sync-standbys no commit returns before followers are there", "Add them.");
    }
}

/// The configuration of a cluster with one member.
fn first_config(args: &Init, node: &NodeSpec) -> ClusterConfig {
    let member = Member {
        host: node.host.clone(),
        port: node.port,
        biha_port: node.biha_port,
        mode: Mode::Regular,
        can_be_leader: true,
        can_vote: true,
        priority: -1,
        joining: false,
    };
    ClusterConfig {
        version: ConfigVersion { seq: 1, ..ConfigVersion::default() },
        members: BTreeMap::from([(NodeId(node.id), member)]),
        settings: Settings {
            nquorum: args.nquorum.filter(|n| *n == 1),
            minnodes: args.minnodes.filter(|n| *n == 1),
            sync_standbys: args.sync_standbys,
            sync_standbys_min: args.sync_standbys_min,
            ..Settings::default()
        },
        ..ClusterConfig::default()
    }
}

fn new_secrets() -> Result<Secrets> {
    let cluster = random::cluster_id()?;
    Ok(Secrets { cluster, authority: certs::authority(cluster)?, password: random::password()? })
}

fn wanted<'a>(args: &'a Init, node: &'a NodeSpec) -> Wanted<'a> {
    Wanted {
        id: node.id,
        host: &node.host,
        port: node.port,
        biha_port: node.biha_port,
        listen_addresses: &args.node.listen_addresses,
        nquorum: args.nquorum,
    }
}

fn spec(args: &Init, port: u16) -> Result<NodeSpec> {
    let biha_port = shared::biha_port(&args.node, port)?;
    Ok(NodeSpec { id: args.biha_node_id, host: args.node.host.clone(), port, biha_port })
}

fn fresh(args: &Init, dir: &DataDir, tools: Tools, mut findings: Findings) -> Result<()> {
    if args.node.config_file.is_some() {
        bail!("--config-file is for an existing server");
    }
    let node = spec(args, args.node.port.unwrap_or(5432))?;
    checks::new_directory(&mut findings, dir);
    checks::ports(&mut findings, node.port, node.biha_port, false);
    findings.settle()?;
    let options = shared::words(args.options.as_deref())?;
    let user = superuser_name(&options).or(args.username.clone()).unwrap_or_else(os_user);
    let checksums = !options.iter().any(|word| word == "--no-data-checksums");
    let mut initdb: Vec<String> = [
        "-D",
        &dir.path.display().to_string(),
        "-U",
        &user,
        "--auth-local=peer",
        "--auth-host=scram-sha-256",
    ]
    .map(str::to_owned)
    .into();
    if checksums {
        initdb.push("--data-checksums".to_owned());
    }
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(|name| std::env::var(name).unwrap_or_default());
    if needs_encoding(&options, &locale) {
        initdb.push("--encoding=UTF8".to_owned());
    }
    initdb.extend(options);
    let finish = if args.node.start { Finish::Start } else { Finish::Nothing };
    let steps = plan::init(initdb, dir.content == Content::Unfinished, finish);
    let superuser = Login { hosts: vec![], user, dbname: "postgres".to_owned(), password: None };
    let layout = Layout { pgdata: dir.path.clone(), config_file: dir.file("postgresql.conf") };
    let conf = first_node(&ServerSettings::default(), checksums, &wanted(args, &node));
    let hba_file = Some(dir.file("pg_hba.conf"));
    carry_out(
        args,
        Target { tools, layout, hba_file, node, conf, superuser, keep_copies: false },
        &steps,
        None,
    )
}

/// Would initdb make SQL_ASCII databases, unasked? It does where the environment names no locale, as that of a service
/// or of a script often does. `locale`: LC_ALL, LC_CTYPE and LANG, of which the first that is set counts.
fn needs_encoding(options: &[String], locale: &[String]) -> bool {
    let asked = options.iter().any(|word| {
        word.starts_with("-E")
            || ["--encoding", "--locale", "--lc-", "--no-locale"].iter().any(|o| word.starts_with(o))
    });
    let locale = locale.iter().find(|value| !value.is_empty());
    !asked && locale.is_none_or(|name| name == "C" || name == "POSIX")
}

/// The superuser's name in options of initdb.
fn superuser_name(options: &[String]) -> Option<String> {
    let mut words = options.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-U" | "--username" => return words.next().cloned(),
            word => {
                let joined = word.strip_prefix("--username=");
                let short = word.strip_prefix("-U").filter(|rest| !rest.is_empty());
                if let Some(name) = joined.or(short) {
                    return Some(name.to_owned());
                }
            }
        }
    }
    None
}

fn convert(args: &Init, dir: &DataDir, tools: Tools, mut findings: Findings) -> Result<()> {
    checks::existing_directory(&mut findings, dir, &tools);
    findings.settle()?;
    let facts = match &dir.running {
        Some(server) => running_facts(args, dir, server, &tools)?,
        None => stopped_facts(args, dir, &tools)?,
    };
    let mut findings = Findings::default();
    checks::convert(&mut findings, &facts.settings, &facts.control, facts.standby);
    if !facts.superuser {
        findings.error(
            format!("\"{}\" is not a superuser", facts.login.user),
            "Name one with --username or --conninfo.",
        );
    }
    let node = spec(args, args.node.port.unwrap_or(facts.port))?;
    checks::ports(&mut findings, node.port, node.biha_port, dir.running.is_some() && node.port == facts.port);
    findings.settle()?;
    let (finish, by_hand) = shared::finish_existing(dir, args.node.start, args.no_restart);
    let steps = plan::convert(dir.running.is_some(), finish);
    let conf = first_node(&facts.settings, facts.control.checksums, &wanted(args, &node));
    let (layout, hba_file, superuser) = (facts.layout, Some(facts.hba_file), facts.login);
    carry_out(
        args,
        Target { tools, layout, hba_file, node, conf, superuser, keep_copies: true },
        &steps,
        by_hand,
    )
}

/// What is known of a server to be converted.
struct Facts {
    settings: ServerSettings,
    control: Control,
    layout: Layout,
    hba_file: PathBuf,
    login: Login,
    port: u16,
    standby: bool,
    superuser: bool,
}

fn running_facts(args: &Init, dir: &DataDir, server: &Running, tools: &Tools) -> Result<Facts> {
    let local = work::local_login(server, args.username.as_deref());
    let login =
        args.conninfo.as_ref().map_or(Ok(local.clone()), |conninfo| Login::parse(conninfo, &local))?;
    let mut client = login.connect()?;
    let directory: String =
        one(&mut client, "SELECT setting FROM pg_settings WHERE name = 'data_directory'")?;
    if std::fs::canonicalize(&directory).ok() != std::fs::canonicalize(&dir.path).ok() {
        bail!(
            "the server that was connected to has data directory \"{directory}\", not \"{}\"",
            dir.path.display()
        );
    }
    let settings = server_settings(&mut client)?;
    let layout = Layout { pgdata: dir.path.clone(), config_file: settings.get("config_file").into() };
    Ok(Facts {
        control: control(tools, &dir.path)?,
        hba_file: settings.get("hba_file").into(),
        standby: one(&mut client, "SELECT pg_is_in_recovery()")?,
        superuser: one(&mut client, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")?,
        port: server.port,
        settings,
        layout,
        login,
    })
}

fn stopped_facts(args: &Init, dir: &DataDir, tools: &Tools) -> Result<Facts> {
    let config_file = work::find_config_file(&dir.path, args.node.config_file.as_deref());
    if !config_file.exists() {
        bail!(
            "\"{}\" does not exist: say where postgresql.conf is with --config-file",
            config_file.display()
        );
    }
    let layout = Layout { pgdata: dir.path.clone(), config_file };
    let mut settings = BTreeMap::new();
    for name in NAMES {
        settings.insert(name.to_owned(), work::setting(tools, &layout, name)?);
    }
    let settings = ServerSettings(settings);
    let user = args.username.clone().unwrap_or_else(os_user);
    Ok(Facts {
        control: control(tools, &dir.path)?,
        hba_file: settings.get("hba_file").into(),
        login: Login { hosts: vec![], user, dbname: "postgres".to_owned(), password: None },
        port: settings.get("port").parse().context("the server's port is not known")?,
        standby: dir.standby,
        // The private server tells.
        superuser: true,
        settings,
        layout,
    })
}

fn one<T: for<'a> postgres::types::FromSql<'a>>(client: &mut Client, query: &str) -> Result<T> {
    Ok(client.query_one(query, &[])?.get(0))
}

struct Target {
    tools: Tools,
    layout: Layout,
    hba_file: Option<PathBuf>,
    node: NodeSpec,
    conf: crate::conf::BihaConf,
    superuser: Login,
    keep_copies: bool,
}

fn carry_out(args: &Init, target: Target, steps: &[Step], by_hand: Option<String>) -> Result<()> {
    let secrets = new_secrets()?;
    let Target { tools, layout, hba_file, node, conf, superuser, keep_copies } = target;
    let log = shared::log_file(&args.node, &layout.pgdata);
    let start_command = shared::start_command(&tools, &layout, &log);
    let magic = Magic {
        cluster: secrets.cluster,
        host: node.host.clone(),
        port: node.port,
        ca_certificate: secrets.authority.certificate.clone(),
        ca_key: secrets.authority.key.clone(),
        password: secrets.password.clone(),
    };
    let cluster = secrets.cluster;
    let work = Work {
        config: Some(first_config(args, &node)),
        leader: None,
        timeout: shared::timeout(&args.node),
        undo: Undo::default(),
        private: Rc::new(RefCell::new(None)),
        tools,
        layout,
        hba_file,
        node,
        conf,
        secrets,
        superuser,
        keep_copies,
        log,
    };
    if args.node.dry_run {
        work.show(steps);
        return Ok(());
    }
    let late = work.run(steps)?;
    ui::say(&format!("node {} of the new cluster {cluster} is made", args.biha_node_id));
    if !steps.iter().any(|step| matches!(step, Step::Start | Step::Restart)) {
        ui::say(&format!("to start it:    {}", by_hand.unwrap_or(start_command)));
    }
    ui::say("to add a node:  bihactl add -D DIRECTORY -I NUMBER --host HOST --magic-string STRING");
    shared::give_magic(&magic.encode()?, args.magic_file.as_deref())?;
    late.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_have_an_encoding_unless_asked_otherwise() {
        let needed = |options: &str, locale: [&str; 3]| {
            needs_encoding(&shared::words(Some(options)).expect("split"), &locale.map(str::to_owned))
        };
        for locale in [["", "", ""], ["", "", "C"], ["", "POSIX", "de_DE.UTF-8"], ["C", "", "de_DE.UTF-8"]] {
            assert!(needed("-A trust", locale), "{locale:?}");
        }
        assert!(!needed("", ["", "", "de_DE.UTF-8"]));
        assert!(!needed("", ["C.UTF-8", "", "C"]));
        for options in
            ["-E LATIN1", "-ELATIN1", "--encoding=LATIN1", "--locale=C", "--no-locale", "--lc-ctype C"]
        {
            assert!(!needed(options, ["", "", ""]), "{options}");
        }
    }

    #[test]
    fn the_superusers_name_is_found_in_the_options() {
        let of = |text: &str| superuser_name(&shared::words(Some(text)).expect("split"));
        assert_eq!(of("-E UTF8 -U dba").as_deref(), Some("dba"));
        assert_eq!(of("--username=dba").as_deref(), Some("dba"));
        assert_eq!(of("-Udba").as_deref(), Some("dba"));
        assert_eq!(of("-E UTF8"), None);
    }
}
