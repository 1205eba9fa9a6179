//! The prerequisites, judged from facts that were gathered before. All are looked at, so that the operator
//! learns everything at once.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::datadir::{Content, Control, DataDir, UNFINISHED};
use crate::outcome::refused;
use crate::settings::ServerSettings;
use crate::tools::{Tools, VERSIONS};
use crate::ui;
use crate::work::is_private;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What makes the command impossible, each with a hint.
    pub errors: Vec<(String, String)>,
    /// What the operator should know, each with a hint.
    pub warnings: Vec<(String, String)>,
}

impl Findings {
    /// Adds something that makes the command impossible.
    pub fn error(&mut self, text: impl Into<String>, hint: impl Into<String>) {
        self.errors.push((text.into(), hint.into()));
    }

    /// Adds something to be told.
    pub fn warn(&mut self, text: impl Into<String>, hint: impl Into<String>) {
        self.warnings.push((text.into(), hint.into()));
    }

    /// Tells the warnings; an error if anything makes the command impossible.
    pub fn settle(&self) -> Result<()> {
        for (text, hint) in &self.warnings {
            ui::warn(text, hint);
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self
            .errors
            .iter()
            .map(|(text, hint)| if hint.is_empty() { text.clone() } else { format!("{text}\nHINT:  {hint}") })
            .collect();
        Err(refused(lines.join("\nbihactl: ")))
    }
}

/// Who runs this.
pub fn user(findings: &mut Findings) {
    if rustix::process::geteuid().is_root() {
        findings.error(
            "cannot be run as root",
            "Run it as the owner of the data directory, for example with runuser.",
        );
    }
}

/// The installation.
pub fn tools(findings: &mut Findings, tools: &Tools, missing: &[PathBuf]) {
    if !VERSIONS.contains(&tools.version) {
        findings.error(
            format!("PostgreSQL {} in \"{}\" is not supported", tools.version, tools.bindir.display()),
            format!("biha needs PostgreSQL {} to {}.", VERSIONS.start(), VERSIONS.end()),
        );
    }
    for file in missing {
        findings.error(
            format!(
                "biha is not installed for PostgreSQL {}: \"{}\" does not exist",
                tools.version,
                file.display()
            ),
            "Install biha for this version, or name the right installation with --bindir.",
        );
    }
}

/// A data directory that will be made or filled.
pub fn new_directory(findings: &mut Findings, dir: &DataDir) {
    let path = dir.path.display();
    match dir.content {
        Content::Unfinished if dir.running.as_ref().is_some_and(|server| !is_private(server)) => {
            findings.error(
                format!("a server runs in \"{path}\", though an earlier bihactl has marked it as unfinished"),
                format!("If it is a node, remove \"{path}/{UNFINISHED}\"; if nobody needs it, stop it."),
            );
        }
        Content::Missing | Content::Empty | Content::Unfinished => {}
        Content::Cluster(_) if dir.biha => {
            findings.error(
                format!("\"{path}\" is a biha node already"),
                "If an earlier bihactl was killed while it made this node, remove the directory.",
            );
        }
        Content::Cluster(version) => findings.error(
            format!("\"{path}\" holds a PostgreSQL {version} server"),
            "To use it, say --convert (init) or --convert-standby (add).",
        ),
        Content::Other => {
            findings.error(format!("directory \"{path}\" is not empty"), "Empty it, or name another.")
        }
    }
    owner(findings, dir);
}

/// A data directory whose server will become a node.
pub fn existing_directory(findings: &mut Findings, dir: &DataDir, tools: &Tools) {
    let path = dir.path.display();
    match dir.content {
        Content::Cluster(version) if version == tools.version => {}
        Content::Cluster(version) => findings.error(
            format!(
                "\"{path}\" is of PostgreSQL {version}, but the programs in \"{}\" are of {}",
                tools.bindir.display(),
                tools.version
            ),
            "Name the right ones with --bindir.",
        ),
        _ => findings.error(format!("\"{path}\" is not a PostgreSQL data directory"), ""),
    }
    if dir.biha {
        findings.error(
            format!("\"{path}\" is a biha node already"),
            "To take biha out of it, stop it and use \"bihactl remove -D\".",
        );
    }
    if dir.recovery {
        findings.error(format!("\"{path}\" has recovery.signal"), "Finish the recovery first.");
    }
    if !matches!(dir.mode, 0 | 0o700 | 0o750) {
        findings.error(format!("\"{path}\" has mode {:04o}", dir.mode), "It must be 0700 or 0750.");
    }
    if dir.tablespaces {
        findings.warn(
            format!("\"{path}\" has tablespaces"),
            "Every other node needs directories of the same names, empty and its own.",
        );
    }
    owner(findings, dir);
}

fn owner(findings: &mut Findings, dir: &DataDir) {
    if !dir.own {
        findings.error(
            format!("\"{}\" is not yours, or cannot be made by you", dir.path.display()),
            "Run this as the operating system user that runs the server.",
        );
    }
}

/// The two ports of a node.
pub fn ports(findings: &mut Findings, port: u16, biha_port: u16, running: bool) {
    if port == biha_port {
        findings.error(
            format!("server and control channel cannot share port {port}"),
            "Choose another --biha-port.",
        );
    }
    let mut wanted = vec![(biha_port, "--biha-port")];
    if !running {
        wanted.push((port, "--port"));
    }
    for (port, option) in wanted {
        if !is_free(port) {
            findings.error(format!("port {port} is in use"), format!("Choose another with {option}."));
        }
    }
}

fn is_free(port: u16) -> bool {
    // A machine without IPv6 cannot tell about it.
    TcpListener::bind(("0.0.0.0", port)).is_ok()
        && match TcpListener::bind(("::", port)) {
            Ok(_) => true,
            Err(e) => e.kind() != std::io::ErrorKind::AddrInUse,
        }
}

/// A file that a result goes to.
pub fn writable(findings: &mut Findings, file: &Path) {
    let directory = std::path::absolute(file).ok().and_then(|file| file.parent().map(Path::to_owned));
    let may = directory.is_some_and(|dir| rustix::fs::access(&dir, rustix::fs::Access::WRITE_OK).is_ok());
    if !may || file.is_dir() {
        findings.error(format!("\"{}\" cannot be written", file.display()), "");
    }
}

/// The log of a server that is to be started.
pub fn log(findings: &mut Findings, file: &Path) {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.into());
    // Directories above a new data directory are made with it.
    let holder = absolute.ancestors().find(|path| path.exists()).unwrap_or(&absolute);
    let fits = if holder == absolute { !holder.is_dir() } else { holder.is_dir() };
    if !fits || rustix::fs::access(holder, rustix::fs::Access::WRITE_OK).is_err() {
        findings.error(
            format!("the server's log \"{}\" cannot be written", file.display()),
            "Name another file with --log.",
        );
    }
}

/// Where the other nodes reach this one.
pub fn host(findings: &mut Findings, host: &str) {
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == ',' || c == '/') {
        findings.error(
            format!("\"{host}\" is not a host name or address"),
            "Give one name or address with --host.",
        );
    } else if host == "localhost" || host.starts_with("127.") || host == "::1" {
        findings.warn(format!("nodes on other machines cannot reach \"{host}\""), "");
    }
}

/// The server that becomes the first node.
pub fn convert(findings: &mut Findings, now: &ServerSettings, control: &Control, standby: bool) {
    if standby || control.state.contains("in recovery") || control.state == "in archive recovery" {
        findings.error(
            "this server is a standby",
            "Convert its primary with \"bihactl init --convert\", and this one with \"bihactl add --convert-standby\".",
        );
    }
    // A stopped server runs once more with its own settings before it becomes a node.
    if control.wal_level == "minimal" || now.get("wal_level") == "minimal" {
        findings.error(
            "the server's WAL is of wal_level minimal: no standby can start from it",
            "Set wal_level = replica and restart the server (a stopped one: start it once), then repeat this.",
        );
    }
    if now.get("full_page_writes") == "off" {
        findings.error("full_page_writes is off", "pg_rewind needs it: turn it on.");
    }
    if now.get("fsync") == "off" {
        findings.warn("fsync is off", "A crash of the machine may destroy this node.");
    }
    if !control.checksums && now.get("wal_log_hints") != "on" {
        findings.warn(
            "the server has neither data checksums nor wal_log_hints",
            "wal_log_hints is switched on; what was written before cannot be rewound until it is written again.",
        );
    }
    if !now.get("synchronous_standby_names").is_empty() {
        findings.warn(
            format!("synchronous_standby_names is \"{}\"", now.get("synchronous_standby_names")),
            "biha takes it over: use --sync-standbys. Until the standbys are members, commits do not wait for them.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::Running;

    fn dir(content: Content) -> DataDir {
        DataDir {
            path: "/d".into(),
            content,
            own: true,
            mode: 0o700,
            running: None,
            standby: false,
            recovery: false,
            biha: false,
            tablespaces: false,
        }
    }

    fn installation() -> Tools {
        Tools { bindir: "/b".into(), version: 15 }
    }

    fn texts(check: impl FnOnce(&mut Findings)) -> Vec<String> {
        let mut findings = Findings::default();
        check(&mut findings);
        findings.errors.into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn a_new_directory_must_be_empty_and_own() {
        for content in [Content::Missing, Content::Empty, Content::Unfinished] {
            assert_eq!(texts(|f| new_directory(f, &dir(content))), Vec::<String>::new());
        }
        assert_eq!(texts(|f| new_directory(f, &dir(Content::Other))), ["directory \"/d\" is not empty"]);
        assert_eq!(texts(|f| new_directory(f, &dir(Content::Cluster(15)))).len(), 1);
        let foreign = DataDir { own: false, ..dir(Content::Other) };
        assert_eq!(texts(|f| new_directory(f, &foreign)).len(), 2, "both are told");
    }

    #[test]
    fn what_runs_is_not_unfinished_unless_bihactl_runs_it() {
        let with = |socket_dir: &str| {
            let running = Running { pid: 1, port: 1, socket_dir: socket_dir.to_owned() };
            texts(|f| new_directory(f, &DataDir { running: Some(running), ..dir(Content::Unfinished) }))
        };
        assert_eq!(with("/tmp/bihactl-a1b2"), Vec::<String>::new());
        for socket_dir in ["/var/run/postgresql", ""] {
            assert!(with(socket_dir)[0].contains("a server runs in \"/d\""));
        }
    }

    #[test]
    fn an_existing_directory_must_fit_the_programs() {
        let check = |dir: &DataDir| texts(|f| existing_directory(f, dir, &installation())).len();
        assert_eq!(check(&dir(Content::Cluster(15))), 0);
        assert_eq!(check(&dir(Content::Cluster(14))), 1);
        assert_eq!(check(&DataDir { biha: true, ..dir(Content::Cluster(15)) }), 1);
        assert_eq!(check(&DataDir { recovery: true, ..dir(Content::Cluster(15)) }), 1);
        assert_eq!(check(&DataDir { mode: 0o701, ..dir(Content::Cluster(15)) }), 1);
        assert_eq!(check(&dir(Content::Empty)), 1);
    }

    #[test]
    fn the_installation_must_be_known_and_have_biha() {
        assert_eq!(texts(|f| tools(f, &Tools { version: 14, ..installation() }, &[])).len(), 1);
        assert_eq!(texts(|f| tools(f, &installation(), &["/x/biha.so".into()])).len(), 1);
        assert_eq!(texts(|f| tools(f, &installation(), &[])).len(), 0);
    }

    #[test]
    fn ports_must_be_free_and_two() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let port = taken.local_addr().expect("address").port();
        assert_eq!(
            texts(|f| ports(f, port, 1, true)).iter().filter(|t| t.contains(&port.to_string())).count(),
            0
        );
        assert!(texts(|f| ports(f, port, 1, false)).contains(&format!("port {port} is in use")));
        assert!(texts(|f| ports(f, port, port, true)).iter().any(|t| t.contains("share")));
    }

    #[test]
    fn a_standby_is_not_converted_to_a_first_node() {
        let settings = ServerSettings::default();
        let control = Control { checksums: true, state: "shut down".into(), ..Control::default() };
        assert_eq!(texts(|f| convert(f, &settings, &control, false)).len(), 0);
        assert_eq!(texts(|f| convert(f, &settings, &control, true)).len(), 1);
        let control = Control { state: "shut down in recovery".into(), ..control };
        assert_eq!(texts(|f| convert(f, &settings, &control, false)).len(), 1);
    }

    #[test]
    fn wal_that_no_standby_can_use_is_refused() {
        let with = |now: &str, wrote: &str| {
            let settings = ServerSettings([("wal_level".to_owned(), now.to_owned())].into());
            let control = Control { checksums: true, wal_level: wrote.to_owned(), ..Control::default() };
            texts(|f| convert(f, &settings, &control, false)).len()
        };
        assert_eq!(with("replica", "replica"), 0);
        assert_eq!(with("replica", "minimal"), 1, "changed, but not yet started with it");
        assert_eq!(with("minimal", "replica"), 1, "the next start writes such WAL");
        assert_eq!(with("minimal", "minimal"), 1, "told once");
    }

    #[test]
    fn a_result_file_needs_a_writable_directory() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(texts(|f| writable(f, &dir.path().join("magic"))).len(), 0);
        assert_eq!(texts(|f| writable(f, &dir.path().join("missing/magic"))).len(), 1);
        assert_eq!(texts(|f| writable(f, dir.path())).len(), 1);
    }

    #[test]
    fn a_log_can_be_there_or_be_made() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(texts(|f| log(f, &dir.path().join("new"))).len(), 0);
        assert_eq!(texts(|f| log(f, "/dev/null".as_ref())).len(), 0);
        assert_eq!(texts(|f| log(f, &dir.path().join("not/yet/new.log"))).len(), 0);
        assert_eq!(texts(|f| log(f, "new.log".as_ref())).len(), 0);
        assert_eq!(texts(|f| log(f, "/proc/version/new".as_ref())).len(), 1);
        assert_eq!(texts(|f| log(f, dir.path())).len(), 1);
    }

    #[test]
    fn hosts_are_plain() {
        assert_eq!(texts(|f| host(f, "db1")).len(), 0);
        assert_eq!(texts(|f| host(f, "a b")).len(), 1);
        assert_eq!(texts(|f| host(f, "/tmp")).len(), 1);
    }
}
