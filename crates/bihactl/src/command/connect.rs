//! From the connection options to a [`Login`].

use anyhow::{Context, Result, bail};

use crate::cli::Connect;
use crate::conf::BihaConf;
use crate::datadir;
use crate::files;
use crate::sql::{Login, os_user, passfile_lookup};

/// User and password that every member keeps for the others.
const MEMBER_USER: &str = "biha_replication_user";

/// What the options mean. With `-D` the member on this machine is asked over its socket.
pub fn login(args: &Connect) -> Result<Login> {
    let ports = ports(args.port.as_deref())?;
    let mut login = Login {
        hosts: hosts(args.host.as_deref(), &ports)?,
        user: args.username.clone().unwrap_or_else(os_user),
        dbname: "biha_db".to_owned(),
        password: None,
    };
    if args.pgdata.is_some() {
        from_data_directory(args, &mut login)?;
    }
    if args.dbname.contains('=') || args.dbname.contains("://") {
        return Login::parse(&args.dbname, &login);
    }
    login.dbname.clone_from(&args.dbname);
    Ok(login)
}

fn from_data_directory(args: &Connect, login: &mut Login) -> Result<()> {
    let Some(pgdata) = &args.pgdata else { return Ok(()) };
    if args.username.is_none() {
        let passfile = files::read_text(&pgdata.join("pg_biha/pgpass"))?;
        let password = passfile.and_then(|text| passfile_lookup(&text, "*", 1, "biha_db", MEMBER_USER));
        if let Some(password) = password {
            login.user = MEMBER_USER.to_owned();
            login.password = Some(password);
        }
    }
    if args.host.is_some() {
        return Ok(());
    }
    if let Some(server) = datadir::running(pgdata)? {
        let host = if server.socket_dir.is_empty() { "localhost".to_owned() } else { server.socket_dir };
        login.hosts = vec![(host, server.port)];
    } else {
        let text = files::read_text(&pgdata.join(crate::conf::BIHA_CONF_FILE))?;
        let conf =
            BihaConf::parse(&text.with_context(|| format!("no server runs in \"{}\"", pgdata.display()))?);
        let port = conf.get("port").and_then(|port| port.parse().ok()).unwrap_or(5432);
        login.hosts = vec![("localhost".to_owned(), port)];
    }
    Ok(())
}

fn ports(text: Option<&str>) -> Result<Vec<u16>> {
    let Some(text) = text else { return Ok(vec![5432]) };
    text.split(',')
        .map(|port| port.trim().parse().with_context(|| format!("invalid port \"{port}\"")))
        .collect()
}

fn hosts(text: Option<&str>, ports: &[u16]) -> Result<Vec<(String, u16)>> {
    let hosts: Vec<&str> = match text {
        Some(text) => text.split(',').map(str::trim).collect(),
        None => vec![default_host()],
    };
    match ports {
        [port] => Ok(hosts.iter().map(|host| ((*host).to_owned(), *port)).collect()),
        ports if ports.len() == hosts.len() => {
            Ok(hosts.iter().zip(ports).map(|(host, port)| ((*host).to_owned(), *port)).collect())
        }
        ports if hosts.len() == 1 => Ok(ports.iter().map(|port| (hosts[0].to_owned(), *port)).collect()),
        _ => bail!("{} hosts but {} ports", hosts.len(), ports.len()),
    }
}

/// Where Debian, Red Hat and PostgreSQL itself put the socket.
fn default_host() -> &'static str {
    let places = ["/var/run/postgresql", "/tmp"];
    places.into_iter().find(|place| has_socket(place)).unwrap_or("localhost")
}

fn has_socket(directory: &str) -> bool {
    let Ok(mut entries) = std::fs::read_dir(directory) else { return false };
    entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(".s.PGSQL.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(host: &str, port: &str, dbname: &str) -> Connect {
        Connect {
            host: Some(host.to_owned()),
            port: Some(port.to_owned()),
            username: Some("u".to_owned()),
            dbname: dbname.to_owned(),
            pgdata: None,
        }
    }

    #[test]
    fn hosts_and_ports_go_together() {
        let of = |host, port| login(&args(host, port, "biha_db")).map(|login| login.hosts);
        let pair = |h: &str, p| (h.to_owned(), p);
        assert_eq!(of("a,b", "1").expect("login"), [pair("a", 1), pair("b", 1)]);
        assert_eq!(of("a,b", "1,2").expect("login"), [pair("a", 1), pair("b", 2)]);
        assert_eq!(of("a", "1,2").expect("login"), [pair("a", 1), pair("a", 2)]);
        assert!(of("a,b,c", "1,2").is_err());
        assert!(of("a", "x").is_err());
    }

    #[test]
    fn a_connection_string_wins() {
        let login = login(&args("a", "1", "host=b user=v")).expect("login");
        assert_eq!((login.hosts[0].0.as_str(), login.hosts[0].1), ("b", 1));
        assert_eq!((login.user.as_str(), login.dbname.as_str()), ("v", "biha_db"));
    }

    #[test]
    fn the_members_password_is_read_from_the_data_directory() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::create_dir(dir.path().join("pg_biha")).expect("made");
        std::fs::write(dir.path().join("pg_biha/pgpass"), "*:*:*:biha_replication_user:secret\n")
            .expect("written");
        std::fs::write(dir.path().join("postgresql.biha.conf"), "port = '5439'\n").expect("written");
        let args = Connect {
            host: None,
            port: None,
            username: None,
            dbname: "biha_db".to_owned(),
            pgdata: Some(dir.path().to_owned()),
        };
        let login = login(&args).expect("login");
        assert_eq!((login.user.as_str(), login.password.as_deref()), (MEMBER_USER, Some("secret")));
        assert_eq!(login.hosts, [("localhost".to_owned(), 5439)]);
    }
}
