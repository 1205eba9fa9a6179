//! What `init` and `add` have in common.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::checks::{self, Findings};
use crate::cli;
use crate::datadir::{Content, DataDir};
use crate::files;
use crate::plan::Finish;
use crate::tools::Tools;
use crate::ui;
use crate::work::{self, Layout, service_of};

/// Looks at the data directory and the programs that fit it. A server that a killed bihactl left is stopped.
pub fn probe(node: &cli::Node) -> Result<(DataDir, Tools)> {
    let mut dir = DataDir::probe(&node.pgdata)?;
    let version = match dir.content {
        Content::Cluster(version) => Some(version),
        _ => None,
    };
    let tools = Tools::find(node.bindir.as_deref(), version)?;
    if dir.running.as_ref().is_some_and(work::is_private) && !node.dry_run {
        ui::say("stopping the server that an earlier run left");
        work::stop(&tools, &dir.path, "fast")?;
        dir = DataDir::probe(&node.pgdata)?;
    }
    Ok((dir, tools))
}

/// Port of the control channel: as given, or the next one.
pub fn biha_port(node: &cli::Node, port: u16) -> Result<u16> {
    match node.biha_port.or(port.checked_add(1)) {
        Some(biha_port) => Ok(biha_port),
        None => bail!("there is no port after {port}: give --biha-port"),
    }
}

/// Log file of a server that is started.
pub fn log_file(node: &cli::Node, pgdata: &Path) -> PathBuf {
    node.log.clone().unwrap_or_else(|| {
        // A slash at the end is not part of the name.
        let mut name = pgdata.components().as_path().as_os_str().to_owned();
        name.push(".log");
        PathBuf::from(name)
    })
}

/// A server whose log cannot be written does not start: that is to be known before another is stopped.
pub fn check_log(findings: &mut Findings, node: &cli::Node, dir: &DataDir, no_restart: bool) {
    if finish_existing(dir, node.start, no_restart).0 != Finish::Nothing {
        checks::log(findings, &log_file(node, &dir.path));
    }
}

/// How long to wait for a server.
pub fn timeout(node: &cli::Node) -> Duration {
    Duration::from_secs(node.timeout.max(1))
}

/// Words of an option that holds options, as a shell would split them.
pub fn words(text: Option<&str>) -> Result<Vec<String>> {
    match text.map(shlex::split) {
        None => Ok(Vec::new()),
        Some(Some(words)) => Ok(words),
        Some(None) => bail!("unbalanced quotes in the options"),
    }
}

/// What becomes of an existing server after its files were edited; says so if that is left to the operator.
pub fn finish_existing(dir: &DataDir, start: bool, no_restart: bool) -> (Finish, Option<String>) {
    let Some(server) = &dir.running else {
        return (if start { Finish::Start } else { Finish::Nothing }, None);
    };
    match service_of(server.pid) {
        _ if no_restart => (Finish::Nothing, Some("restart the server".to_owned())),
        Some(unit) => (Finish::Nothing, Some(format!("systemctl restart {unit}"))),
        None => (Finish::Restart, None),
    }
}

/// The command that starts the node's server.
pub fn start_command(tools: &Tools, layout: &Layout, log: &Path) -> String {
    let mut words = vec![
        tools.bindir.join("pg_ctl").display().to_string(),
        "-D".to_owned(),
        layout.pgdata.display().to_string(),
        "-l".to_owned(),
        log.display().to_string(),
    ];
    if layout.external_config() {
        words.extend(["-o".to_owned(), format!("-c config_file={}", layout.config_file.display())]);
    }
    words.push("start".to_owned());
    words
        .iter()
        .map(|w| shlex::try_quote(w).map_or_else(|_| w.clone(), |q| q.into_owned()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Writes the magic string to its file, or prints it.
pub fn give_magic(magic: &str, file: Option<&Path>) -> Result<()> {
    let Some(file) = file else {
        ui::say("the magic string, with which other nodes join (keep it as a password):");
        ui::result(magic);
        return Ok(());
    };
    let written = files::replace_secret(file, format!("{magic}\n").as_bytes());
    if written.is_err() {
        ui::result(magic);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_a_shell_does() {
        assert_eq!(words(Some("-E UTF8 --locale='de DE'")).expect("split"), ["-E", "UTF8", "--locale=de DE"]);
        assert!(words(Some("'")).is_err());
        assert!(words(None).expect("none").is_empty());
    }

    #[test]
    fn the_start_command_can_be_pasted() {
        let tools = Tools { bindir: "/b".into(), version: 15 };
        let layout = Layout { pgdata: "/d e".into(), config_file: "/d e/postgresql.conf".into() };
        assert_eq!(start_command(&tools, &layout, "/l".as_ref()), "/b/pg_ctl -D '/d e' -l /l start");
        let layout = Layout { pgdata: "/d".into(), config_file: "/etc/p.conf".into() };
        let command = start_command(&tools, &layout, "/l".as_ref());
        assert_eq!(command, "/b/pg_ctl -D /d -l /l -o '-c config_file=/etc/p.conf' start");
    }
}
