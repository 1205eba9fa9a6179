//! Steps that start and stop the server.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{Layout, Work};
use crate::conf::without_biha;
use crate::datadir;
use crate::files;
use crate::interrupt;
use crate::outcome::refused;
use crate::sql::{Created, Login, Objects, create_objects, drop_objects, look, os_user};
use crate::tools::{Tools, run_through};
use crate::ui;

/// Name of the directory that holds the private server's socket; tells it from any other server.
const PRIVATE: &str = "bihactl-";
const POLL: Duration = Duration::from_millis(100);
/// How long a server may take to end before what it runs with is taken back: its last checkpoint may have much to write.
const STOP_PATIENCE: Duration = Duration::from_secs(600);

/// A server that only this process reaches: its socket is in a directory of mode 0700, and it listens on no
/// address. biha is not loaded.
pub struct PrivateServer {
    directory: TempDir,
    tools: Tools,
    pgdata: PathBuf,
}

impl PrivateServer {
    /// Starts it.
    pub fn start(tools: &Tools, layout: &Layout, timeout: Duration) -> Result<PrivateServer> {
        let directory = tempfile::Builder::new().prefix(PRIVATE).tempdir()?;
        let hba = directory.path().join("hba");
        fs::write(&hba, "local all all trust\n")?;
        let libraries = without_biha(&super::setting(tools, layout, "shared_preload_libraries")?);
        let overrides = [
            "listen_addresses=".to_owned(),
            format!("unix_socket_directories={}", directory.path().display()),
            "unix_socket_permissions=0700".to_owned(),
            format!("hba_file={}", hba.display()),
            format!("shared_preload_libraries={libraries}"),
            "synchronous_standby_names=".to_owned(),
            "external_pid_file=".to_owned(),
            "logging_collector=off".to_owned(),
            "log_destination=stderr".to_owned(),
        ];
        let mut options = layout.server_args().split_off(2);
        options.extend(overrides.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        let server = PrivateServer { directory, tools: tools.clone(), pgdata: layout.pgdata.clone() };
        pg_ctl_start(tools, &layout.pgdata, &server.directory.path().join("log"), timeout, &options)?;
        Ok(server)
    }

    /// How to connect to it as `user`.
    pub fn login(&self, user: &str) -> Result<Login> {
        let server = datadir::running(&self.pgdata)?.context("the server has stopped")?;
        Ok(Login {
            hosts: vec![(self.directory.path().display().to_string(), server.port)],
            user: user.to_owned(),
            dbname: "postgres".to_owned(),
            password: None,
        })
    }

    /// Stops it.
    pub fn stop(self) -> Result<()> {
        stop(&self.tools, &self.pgdata, "fast")
    }
}

/// Does the server in this directory belong to a bihactl that was killed?
pub fn is_private(server: &datadir::Running) -> bool {
    Path::new(&server.socket_dir).file_name().is_some_and(|name| name.to_string_lossy().starts_with(PRIVATE))
}

/// Stops a server and waits for its end.
pub fn stop(tools: &Tools, pgdata: &Path, mode: &str) -> Result<()> {
    run_through(tools.command("pg_ctl").args(["stop", "-w", "-m", mode, "-D"]).arg(pgdata))?;
    Ok(())
}

/// Stops what runs in the directory, or is ending there already, and waits for its end.
fn end(tools: &Tools, pgdata: &Path, patience: Duration) -> Result<()> {
    if datadir::running(pgdata)?.is_none() {
        return Ok(());
    }
    let limit = patience.as_secs().to_string();
    ui::say(&format!("stopping the server; waiting up to {limit} s for its end"));
    let mut command = tools.command("pg_ctl");
    match run_through(command.args(["stop", "-w", "-m", "fast", "-t", &limit, "-D"]).arg(pgdata)) {
        Err(error) if datadir::running(pgdata)?.is_some() => {
            bail!("{error:#}")
        }
        // One that ended by itself meanwhile is an error of pg_ctl's only.
        _ => Ok(()),
    }
}

/// What a server makes in its data directory once it starts as a member: without biha it would be a standby of nobody,
/// or keep WAL for members that it does not know.
fn members_marks(pgdata: &Path) -> BTreeSet<PathBuf> {
    let slots = fs::read_dir(pgdata.join("pg_replslot")).into_iter().flatten().flatten();
    let slots = slots.filter(|entry| entry.file_name().to_string_lossy().starts_with("biha_node_"));
    let signal = Some(pgdata.join("standby.signal")).filter(|path| path.exists());
    slots.map(|entry| entry.path()).chain(signal).collect()
}

fn pg_ctl_start(
    tools: &Tools,
    pgdata: &Path,
    log: &Path,
    timeout: Duration,
    options: &[String],
) -> Result<()> {
    let words = options.iter().map(|word| shlex::try_quote(word)).collect::<Result<Vec<_>, _>>()?;
    let mut command = tools.command("pg_ctl");
    command.args(["start", "-w", "-t", &timeout.as_secs().to_string(), "-D"]).arg(pgdata).arg("-l").arg(log);
    command.args(["-o", &words.join(" ")]);
    let result = run_through(&mut command);
    result.map(drop).with_context(|| format!("the server did not start; its log says:\n{}", tail(log)))
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// The systemd unit that runs a server, if one does: its restart is systemd's business.
pub fn service_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    unit(&text)
}

fn unit(cgroup: &str) -> Option<String> {
    let parts = cgroup.lines().flat_map(|line| line.split('/'));
    parts.rev().find(|part| part.starts_with("postgres") && part.ends_with(".service")).map(str::to_owned)
}

impl Work {
    pub(super) fn start_private(&mut self) -> Result<()> {
        // Before the start: one that takes too long may have left a server all the same.
        let (tools, pgdata, private) = (self.tools.clone(), self.layout.pgdata.clone(), self.private.clone());
        self.undo.push_needed("stop the server", move || {
            let ended = end(&tools, &pgdata, STOP_PATIENCE);
            private.borrow_mut().take();
            ended
        });
        let server = PrivateServer::start(&self.tools, &self.layout, self.timeout)?;
        *self.private.borrow_mut() = Some(server);
        Ok(())
    }

    pub(super) fn stop_private(&mut self) -> Result<()> {
        let server = self.private.borrow_mut().take();
        server.map_or(Ok(()), PrivateServer::stop)
    }

    pub(super) fn create_objects(&mut self) -> Result<()> {
        let login = superuser_login(&self.private, &self.superuser)?;
        for (database, count) in crate::sql::unlogged_tables(&login)? {
            ui::warn(
                &format!("database \"{database}\" has {count} unlogged tables"),
                "biha starts every server as a standby: unlogged tables are empty after each restart.",
            );
        }
        let mut created = Created::default();
        let result =
            create_objects(&Objects { login: &login, password: &self.secrets.password }, &mut created);
        if created != Created::default() {
            let (private, superuser) = (self.private.clone(), self.superuser.clone());
            self.undo.push(
                "remove the new role and database; they do no harm, and a second run uses them",
                // A private server that was started again is reached otherwise.
                move || drop_objects(&superuser_login(&private, &superuser)?, created),
            );
        }
        result.context("could not make roles, database and extension")
    }

    /// If a later step fails, the server shall run again as it did, once its files are back. A private one, too: what was
    /// made in it is removed there, and after a start as a standby only its end says again that it is none.
    pub(super) fn note_server(&mut self) {
        let (tools, layout, log, timeout) =
            (self.tools.clone(), self.layout.clone(), self.log.clone(), self.timeout);
        let (private, was_private) = (self.private.clone(), self.private.borrow().is_some());
        self.undo.push("start the server again", move || {
            if !was_private && datadir::running(&layout.pgdata)?.is_none() {
                pg_ctl_start(&tools, &layout.pgdata, &log, timeout, &layout.server_args().split_off(2))?;
            }
            if was_private && private.borrow().is_none() {
                end(&tools, &layout.pgdata, STOP_PATIENCE)?;
                *private.borrow_mut() = Some(PrivateServer::start(&tools, &layout, timeout)?);
            }
            Ok(())
        });
    }

    /// What is going to run as a member ends before its files are put back, and leaves nothing of a member's.
    fn remember_to_end(&mut self) {
        let (tools, pgdata) = (self.tools.clone(), self.layout.pgdata.clone());
        let before = members_marks(&pgdata);
        self.undo.push("remove what the server made as a member", {
            let pgdata = pgdata.clone();
            move || {
                for path in members_marks(&pgdata).difference(&before) {
                    if path.is_dir() { files::empty(path, true)? } else { fs::remove_file(path)? }
                }
                Ok(files::sync_directory(&pgdata)?)
            }
        });
        self.undo.push_needed("stop the server", move || end(&tools, &pgdata, STOP_PATIENCE));
    }

    pub(super) fn start(&mut self) -> Result<()> {
        self.unmark()?;
        self.remember_to_end();
        let options = self.layout.server_args().split_off(2);
        pg_ctl_start(&self.tools, &self.layout.pgdata, &self.log, self.timeout, &options)
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        self.remember_to_end();
        let timeout = self.timeout.as_secs().to_string();
        let mut command = self.tools.command("pg_ctl");
        command.args(["restart", "-w", "-m", "fast", "-t", &timeout, "-D"]).arg(&self.layout.pgdata);
        command.arg("-l").arg(&self.log);
        let result = run_through(&mut command);
        result
            .map(drop)
            .with_context(|| format!("the server did not restart; its log says:\n{}", tail(&self.log)))
    }

    pub(super) fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let start = Instant::now();
        let mut last = "not reachable".to_owned();
        while start.elapsed() < self.timeout {
            match self.own_state() {
                Ok(state) if state == wanted => return Ok(()),
                Ok(state) => last = state,
                Err(e) => last = format!("not reachable: {e:#}"),
            }
            if datadir::running(&self.layout.pgdata)?.is_none() {
                bail!("the server has stopped; its log says:\n{}", tail(&self.log));
            }
            interrupt::pause(POLL)?;
        }
        Err(refused(format!(
            "node {} is not {wanted} after {} s but {last}\nHINT:  The server runs; look at its log and at \
             \"bihactl status\".",
            self.node.id,
            self.timeout.as_secs()
        )))
    }

    fn own_state(&self) -> Result<String> {
        let server = datadir::running(&self.layout.pgdata)?.context("the server does not run")?;
        let host = if server.socket_dir.is_empty() { "localhost".to_owned() } else { server.socket_dir };
        let login = Login {
            hosts: vec![(host, server.port)],
            user: "biha_replication_user".to_owned(),
            dbname: "biha_db".to_owned(),
            password: Some(self.secrets.password.clone()),
        };
        let view = look(&mut login.connect()?, &login)?;
        let Some(node) = view.node(i32::try_from(self.node.id)?) else { return Ok("no member".to_owned()) };
        let state = node.state.as_deref().unwrap_or("without a state");
        // The next node can be added only when this one is a voter.
        Ok(if node.joining { format!("{state}, still joining") } else { state.to_owned() })
    }
}

/// How the superuser reaches the private server, or where there is none the operator's.
fn superuser_login(private: &RefCell<Option<PrivateServer>>, superuser: &Login) -> Result<Login> {
    match &*private.borrow() {
        Some(server) => server.login(&superuser.user),
        None if superuser.hosts.is_empty() => bail!("the server has stopped"),
        None => Ok(superuser.clone()),
    }
}

/// A superuser's login over the local socket of a running server.
pub fn local_login(server: &datadir::Running, user: Option<&str>) -> Login {
    let host = if server.socket_dir.is_empty() { "localhost".to_owned() } else { server.socket_dir.clone() };
    Login {
        hosts: vec![(host, server.port)],
        user: user.map_or_else(os_user, str::to_owned),
        dbname: "postgres".to_owned(),
        password: None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Tools with this script in the place of pg_ctl.
    fn pg_ctl(dir: &Path, script: &str) -> Tools {
        let program = dir.join("pg_ctl");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
        Tools { bindir: dir.to_owned(), version: 15 }
    }

    #[test]
    fn a_server_that_does_not_end_is_told_of_with_what_to_do() {
        let dir = tempfile::tempdir().expect("directory");
        let pid_file = dir.path().join("postmaster.pid");
        let wait = Duration::from_secs(7);
        let unused = pg_ctl(dir.path(), "exit 1");
        end(&unused, dir.path(), wait).expect("none runs");
        fs::write(&pid_file, format!("{}\n", std::process::id())).expect("written");
        let tools = pg_ctl(dir.path(), "echo \"$*\"; echo not yet >&2; exit 1");
        let error = format!("{:#}", end(&tools, dir.path(), wait).expect_err("it runs on"));
        assert!(error.contains("stop -w -m fast -t 7 -D"), "{error}");
        assert!(error.contains("not yet"), "{error}");
        let tools = pg_ctl(dir.path(), "rm \"$8\"/postmaster.pid; exit 1");
        end(&tools, dir.path(), wait).expect("it ended by itself");
    }

    #[test]
    fn what_a_member_makes_is_told_from_what_was_there() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(members_marks(dir.path()).is_empty());
        for slot in ["biha_node_2", "mine"] {
            fs::create_dir_all(dir.path().join("pg_replslot").join(slot)).expect("made");
        }
        fs::write(dir.path().join("standby.signal"), "").expect("written");
        let marks = ["pg_replslot/biha_node_2", "standby.signal"].map(|name| dir.path().join(name));
        assert_eq!(members_marks(dir.path()), marks.into());
    }

    #[test]
    fn a_unit_is_recognised_by_its_name() {
        let cgroup = "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n";
        assert_eq!(unit(cgroup).as_deref(), Some("postgresql@15-main.service"));
        assert_eq!(unit("0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert_eq!(unit("0::/system.slice/cron.service\n"), None);
    }

    #[test]
    fn a_private_server_is_known_by_its_socket() {
        let server = |dir: &str| datadir::Running { pid: 1, port: 1, socket_dir: dir.to_owned() };
        assert!(is_private(&server("/tmp/bihactl-a1b2")));
        assert!(!is_private(&server("/var/run/postgresql")));
    }
}
