//! Steps that start and stop the server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{Layout, Work};
use crate::conf::without_biha;
use crate::datadir;
use crate::interrupt;
use crate::outcome::refused;
use crate::sql::{Created, Login, Objects, create_objects, drop_objects, look, os_user};
use crate::tools::{Show, Tools, run};
use crate::ui;

/// Name of the directory that holds the private server's socket; tells it from any other server.
const PRIVATE: &str = "bihactl-";
const POLL: Duration = Duration::from_millis(100);

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
        std::fs::write(&hba, "local all all trust\n")?;
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
    run(tools.command("pg_ctl").args(["stop", "-w", "-m", mode, "-D"]).arg(pgdata), Show::Failure)?;
    Ok(())
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
    let result = run(&mut command, Show::Failure);
    result.map(drop).with_context(|| format!("the server did not start; its log says:\n{}", tail(log)))
}

fn tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// The systemd unit that runs a server, if one does: its restart is systemd's business.
pub fn service_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    unit(&text)
}

fn unit(cgroup: &str) -> Option<String> {
    let parts = cgroup.lines().flat_map(|line| line.split('/'));
    parts.rev().find(|part| part.starts_with("postgres") && part.ends_with(".service")).map(str::to_owned)
}

impl Work {
    pub(super) fn start_private(&mut self) -> Result<()> {
        let server = PrivateServer::start(&self.tools, &self.layout, self.timeout)?;
        *self.private.borrow_mut() = Some(server);
        let private = self.private.clone();
        self.undo.push("stop the server", move || match private.borrow_mut().take() {
            Some(server) => server.stop(),
            None => Ok(()),
        });
        Ok(())
    }

    pub(super) fn stop_private(&mut self) -> Result<()> {
        let server = self.private.borrow_mut().take();
        server.map_or(Ok(()), PrivateServer::stop)
    }

    pub(super) fn create_objects(&mut self) -> Result<()> {
        let login = match &*self.private.borrow() {
            Some(server) => server.login(&self.superuser.user)?,
            None => self.superuser.clone(),
        };
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
            let (private, was_private) = (self.private.clone(), self.private.borrow().is_some());
            self.undo.push(
                "remove the new role and database; they do no harm, and a second run uses them",
                move || {
                    if was_private && private.borrow().is_none() {
                        bail!("the server has stopped");
                    }
                    drop_objects(&login, created)
                },
            );
        }
        result.context("could not make roles, database and extension")
    }

    /// If the restart fails, the server shall run again as it did, once its files are back.
    pub(super) fn remember_to_start_again(&mut self) {
        let (tools, layout, log, timeout) =
            (self.tools.clone(), self.layout.clone(), self.log.clone(), self.timeout);
        self.undo.push("start the server again", move || {
            if datadir::running(&layout.pgdata)?.is_none() {
                pg_ctl_start(&tools, &layout.pgdata, &log, timeout, &layout.server_args().split_off(2))?;
            }
            Ok(())
        });
    }

    pub(super) fn start(&mut self) -> Result<()> {
        let (tools, pgdata) = (self.tools.clone(), self.layout.pgdata.clone());
        self.undo.push("stop the server", move || match datadir::running(&pgdata)? {
            Some(_) => stop(&tools, &pgdata, "fast"),
            None => Ok(()),
        });
        let options = self.layout.server_args().split_off(2);
        pg_ctl_start(&self.tools, &self.layout.pgdata, &self.log, self.timeout, &options)
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        let timeout = self.timeout.as_secs().to_string();
        let mut command = self.tools.command("pg_ctl");
        command.args(["restart", "-w", "-m", "fast", "-t", &timeout, "-D"]).arg(&self.layout.pgdata);
        command.arg("-l").arg(&self.log);
        let result = run(&mut command, Show::Failure);
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
    use super::*;

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
