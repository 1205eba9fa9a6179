//! Connections: to whom, as whom.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postgres::config::{Host, SslMode};
use postgres::{Client, Config, NoTls};

use super::passfile;
use crate::files;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that stays away this long is one no more (a frozen or unreachable server).
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// As whom, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Hosts or socket directories with ports, tried in order.
    pub hosts: Vec<(String, u16)>,
    /// The user.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// The password; without it the password file is looked at.
    pub password: Option<String>,
}

impl Login {
    /// From a connection string; what it leaves out comes from `defaults`.
    pub fn parse(conninfo: &str, defaults: &Login) -> Result<Login> {
        let config: Config = conninfo.parse().context("invalid connection string")?;
        if config.get_ssl_mode() == SslMode::Require {
            bail!("sslmode=require is not supported by bihactl: use prefer, or the local socket");
        }
        let ports = config.get_ports();
        let port_of = |n: usize| match ports {
            [] => defaults.hosts.first().map_or(5432, |host| host.1),
            [one] => *one,
            more => more.get(n).copied().unwrap_or(5432),
        };
        let name = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.to_string_lossy().into_owned(),
        };
        let hosts: Vec<_> =
            config.get_hosts().iter().enumerate().map(|(n, h)| (name(h), port_of(n))).collect();
        let password = config.get_password().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Ok(Login {
            hosts: if hosts.is_empty() { defaults.hosts.clone() } else { hosts },
            user: config.get_user().unwrap_or(&defaults.user).to_owned(),
            dbname: config.get_dbname().unwrap_or(&defaults.dbname).to_owned(),
            password: password.or_else(|| defaults.password.clone()),
        })
    }

    /// The same user at another server.
    pub fn at(&self, host: &str, port: u16) -> Login {
        Login { hosts: vec![(host.to_owned(), port)], ..self.clone() }
    }

    /// Connects to the first host that answers.
    pub fn connect(&self) -> Result<Client> {
        let mut failures = Vec::new();
        for (host, port) in &self.hosts {
            let mut config = Config::new();
            config.host(host).port(*port).user(&self.user).dbname(&self.dbname).application_name("bihactl");
            config.connect_timeout(CONNECT_TIMEOUT).tcp_user_timeout(TCP_TIMEOUT).ssl_mode(SslMode::Disable);
            if let Some(password) = self.password.clone().or_else(|| self.saved_password(host, *port)) {
                config.password(password);
            }
            match config.connect(NoTls) {
                Ok(client) => return Ok(client),
                Err(e) => failures.push(format!(
                    "could not connect to database \"{}\" as \"{}\" at {host}:{port}: {}",
                    self.dbname,
                    self.user,
                    with_causes(&e)
                )),
            }
        }
        bail!("{}", failures.join("\n"))
    }

    fn saved_password(&self, host: &str, port: u16) -> Option<String> {
        if let Ok(password) = std::env::var("PGPASSWORD") {
            return Some(password);
        }
        let file = std::env::var_os("PGPASSFILE")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass")))?;
        let host = if host.starts_with('/') { "localhost" } else { host };
        passfile::lookup(&files::read_text(&file).ok()??, host, port, &self.dbname, &self.user)
    }
}

/// The library's own text says only "error connecting to server"; the cause is what helps.
fn with_causes(error: &postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) if error.as_db_error().is_none() => cause.to_string(),
        _ => super::describe(error),
    }
}

/// Name of the operating system user, as libpq takes it for the default user.
pub fn os_user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = files::read_text("/etc/passwd".as_ref()).ok().flatten().unwrap_or_default();
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f.get(2) == Some(&uid.as_str()));
    match entry {
        Some(fields) => fields[0].to_owned(),
        None => std::env::var("USER").unwrap_or_else(|_| "postgres".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Login {
        Login {
            hosts: vec![("/run".into(), 5433)],
            user: "me".into(),
            dbname: "biha_db".into(),
            password: None,
        }
    }

    #[test]
    fn what_is_left_out_comes_from_the_defaults() {
        assert_eq!(Login::parse("", &defaults()).expect("parses"), defaults());
        let login = Login::parse("host=a,b user=u password=p", &defaults()).expect("parses");
        assert_eq!(login.hosts, [("a".to_owned(), 5433), ("b".to_owned(), 5433)]);
        assert_eq!((login.user.as_str(), login.password.as_deref()), ("u", Some("p")));
        let login = Login::parse("postgres://u@h:1,i:2/d", &defaults()).expect("parses");
        assert_eq!(login.hosts, [("h".to_owned(), 1), ("i".to_owned(), 2)]);
        assert!(Login::parse("nonsense", &defaults()).is_err());
        assert!(Login::parse("host=a sslmode=require", &defaults()).is_err());
    }
}
