//! `bihactl remove`: a member from its cluster, or biha from a server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use biha_core::{ClusterConfig, NodeId, image};

use super::connect;
use crate::checks::{self, Findings};
use crate::cli::Remove;
use crate::conf::{BIHA_CONF_FILE, BihaConf, HBA_COPY_FILE, keep_settings, remove_hba, remove_include};
use crate::datadir::{Content, DataDir};
use crate::files;
use crate::outcome::refused;
use crate::sql::{ClusterView, Login, describe, leader_of, look, passfile_lookup};
use crate::tools::Tools;
use crate::ui;
use crate::undo::Undo;
use crate::work::{self, Layout};

/// Where the files of a server that left biha are kept.
const KEPT_DIRECTORY: &str = "pg_biha.removed";

/// Removes.
pub fn run(args: &Remove) -> Result<()> {
    match (args.id, &args.connect.pgdata) {
        (Some(id), _) => member(args, id),
        (None, Some(pgdata)) => leave(args, pgdata),
        (None, None) => bail!("say which member with --id, or take biha out of a stopped server with -D"),
    }
}

fn member(args: &Remove, id: u32) -> Result<()> {
    let login = connect::login(&args.connect)?;
    let (mut client, view) = leader_of(&login)?.ok_or_else(|| refused("the cluster has no leader now"))?;
    let id = i32::try_from(id)?;
    let Some(node) = check_member(&view, id)? else {
        ui::say(&format!("node {id} is not a member of the cluster"));
        return Ok(());
    };
    ui::say(&format!("removing node {id} ({}:{}) from the cluster", node.host, node.port));
    if args.dry_run {
        return Ok(());
    }
    client.execute("SELECT biha.remove_node($1)", &[&id]).map_err(|e| refused(describe(&e)))?;
    ui::say(&format!("node {id} is no member any more"));
    ui::say("on its machine: stop the server, then \"bihactl remove -D DIRECTORY\" makes it an ordinary one");
    Ok(())
}

/// The member, if it is one and may be removed.
fn check_member(view: &ClusterView, id: i32) -> Result<Option<&crate::sql::Node>> {
    if view.leader == Some(id) {
        return Err(refused(format!(
            "node {id} is the leader\nHINT:  Hand over first: bihactl switchover. To take biha out of the last \
             node, stop it and use \"bihactl remove -D\"."
        )));
    }
    let node = view.node(id);
    if node.is_some_and(|node| node.online) {
        ui::warn(&format!("node {id} is running"), "It stays a standby that follows nobody: stop it.");
    }
    Ok(node)
}

fn leave(args: &Remove, pgdata: &Path) -> Result<()> {
    let mut findings = Findings::default();
    checks::user(&mut findings);
    findings.settle()?;
    let dir = DataDir::probe(pgdata)?;
    let Content::Cluster(version) = dir.content else {
        bail!("\"{}\" is not a PostgreSQL data directory", dir.path.display());
    };
    let config_file = work::find_config_file(&dir.path, args.config_file.as_deref());
    let Some(config_text) = files::read_text(&config_file)? else {
        bail!(
            "\"{}\" does not exist: say where postgresql.conf is with --config-file",
            config_file.display()
        );
    };
    if !dir.biha && remove_include(&config_text) == config_text {
        ui::say(&format!("biha is not in \"{}\"", dir.path.display()));
        return Ok(());
    }
    if dir.running.is_some() {
        return Err(refused("the server is running\nHINT:  Stop it first."));
    }
    if !dir.own {
        return Err(refused(format!("\"{}\" is not yours", dir.path.display())));
    }
    if !args.force {
        still_member(&dir)?;
    }
    let tools = Tools::find(args.bindir.as_deref(), Some(version))?;
    let layout = Layout { pgdata: dir.path.clone(), config_file };
    let hba_file = PathBuf::from(work::setting(&tools, &layout, "hba_file")?);
    take_out(args, &dir, &layout, &hba_file, &config_text)
}

/// Refuses if the cluster still counts this node. If nobody can be asked, the operator is told.
fn still_member(dir: &DataDir) -> Result<()> {
    let Some((config, id, password)) = memory(dir) else { return Ok(()) };
    let others: Vec<_> = config.members.iter().filter(|(other, _)| **other != id).collect();
    if others.is_empty() {
        return Ok(());
    }
    let login = Login {
        hosts: others.iter().map(|(_, member)| (member.host.clone(), member.port)).collect(),
        user: "biha_replication_user".to_owned(),
        dbname: "biha_db".to_owned(),
        password: Some(password),
    };
    let number = i32::try_from(id.0)?;
    let view = login.connect().and_then(|mut client| look(&mut client, &login));
    match view {
        Ok(view) if view.node(number).is_some() => Err(refused(format!(
            "the cluster still counts this node\nHINT:  Remove it first: bihactl remove --id {id}, or use --force."
        ))),
        Ok(_) => Ok(()),
        Err(_) => {
            ui::warn("no other member can be asked whether this node is one still", "");
            Ok(())
        }
    }
}

/// The node's last configuration, its number and the members' password.
fn memory(dir: &DataDir) -> Option<(ClusterConfig, NodeId, String)> {
    let config = image::decode_config(&fs::read(dir.file("pg_biha/biha.conf")).ok()?).ok()?;
    let conf = BihaConf::parse(&files::read_text(&dir.file(BIHA_CONF_FILE)).ok()??);
    let passfile = files::read_text(&dir.file("pg_biha/pgpass")).ok()??;
    let password = passfile_lookup(&passfile, "*", 1, "biha_db", "biha_replication_user")?;
    Some((config, NodeId(conf.get("biha.id")?.parse().ok()?), password))
}

fn take_out(args: &Remove, dir: &DataDir, layout: &Layout, hba_file: &Path, config_text: &str) -> Result<()> {
    let conf = BihaConf::parse(&files::read_text(&dir.file(BIHA_CONF_FILE))?.unwrap_or_default());
    let new_config = keep_settings(&remove_include(config_text), &conf.without_biha());
    let aside = files::free_name(&dir.file(KEPT_DIRECTORY));
    ui::say(&format!("taking biha out of \"{}\"", layout.config_file.display()));
    ui::say(&format!("taking biha out of \"{}\"", hba_file.display()));
    ui::say(&format!("keeping its files in \"{}\"", aside.display()));
    if args.dry_run {
        return Ok(());
    }
    let mut undo = Undo::default();
    files::edit(&layout.config_file, new_config.as_bytes(), 0o600, &mut undo)?;
    if let Some(text) = files::read_text(hba_file)? {
        files::edit(hba_file, remove_hba(&text).as_bytes(), 0o600, &mut undo)?;
    }
    put_aside(dir, &aside, &mut undo)?;
    files::sync_directory(&dir.path)?;
    undo.keep();
    tell(dir);
    Ok(())
}

/// Moves biha's files, and the slots it kept for the other members: they would hold WAL for ever.
fn put_aside(dir: &DataDir, aside: &Path, undo: &mut Undo) -> Result<()> {
    let slots = fs::read_dir(dir.file("pg_replslot")).into_iter().flatten().flatten();
    let slots = slots.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut moves: Vec<(PathBuf, PathBuf)> = slots
        .filter(|name| name.starts_with("biha_node_"))
        .map(|name| (dir.file("pg_replslot").join(&name), aside.join("pg_replslot").join(name)))
        .collect();
    for name in ["pg_biha", BIHA_CONF_FILE, HBA_COPY_FILE] {
        moves.push((dir.file(name), aside.join(name)));
    }
    for directory in [aside.to_owned(), aside.join("pg_replslot")] {
        fs::create_dir(&directory).with_context(|| format!("could not make \"{}\"", directory.display()))?;
        undo.push(format!("remove \"{}\"", directory.display()), move || Ok(fs::remove_dir(&directory)?));
    }
    for (from, to) in moves {
        if from.symlink_metadata().is_ok() {
            fs::rename(&from, &to).with_context(|| format!("could not move \"{}\"", from.display()))?;
            undo.push(format!("move \"{}\" back", to.display()), move || Ok(fs::rename(&to, &from)?));
        }
    }
    Ok(files::sync_directory(&dir.file("pg_replslot"))?)
}

fn tell(dir: &DataDir) {
    if dir.standby {
        ui::say(&format!(
            "the server starts as a standby that follows nobody: set primary_conninfo, or remove \"{}\" to make \
             it a server of its own",
            dir.file("standby.signal").display()
        ));
    } else {
        ui::say("the server starts as an ordinary one, writable at once");
    }
    ui::say("database biha_db and the roles of biha remain; drop them when no member needs them any more");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::node;

    #[test]
    fn the_leader_is_not_removed() {
        let nodes = vec![node(1, "LEADER_RW"), node(2, "FOLLOWER")];
        let view = ClusterView { leader: Some(1), nodes, ..ClusterView::default() };
        assert!(check_member(&view, 1).is_err());
        assert_eq!(check_member(&view, 2).expect("checked").map(|node| node.id), Some(2));
        assert!(check_member(&view, 3).expect("checked").is_none());
    }
}
