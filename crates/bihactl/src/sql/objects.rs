//! Roles, database and extension that a cluster needs, made on its first node.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use postgres::{Client, SimpleQueryMessage};
use postgres_protocol::password::scram_sha_256;

use super::Login;
use crate::settings::{NAMES, ServerSettings};

const USER: &str = "biha_replication_user";
const DATABASE: &str = "biha_db";

/// Which of the objects a call of [`create_objects`] made, and so may be taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// The database, with the extension in it.
    pub database: bool,
    /// The role.
    pub user: bool,
}

/// Makes the objects; can be called again. `login` is a superuser's, for any database.
pub struct Objects<'a> {
    /// How to connect to any database of the server.
    pub login: &'a Login,
    /// Password of biha_replication_user. The server gets only its SCRAM verifier, so that no log has it.
    pub password: &'a str,
}

/// Makes roles, database and extension. `created` tells what was made, also if it fails half-way.
pub fn create_objects(objects: &Objects<'_>, created: &mut Created) -> Result<()> {
    let mut client = objects.login.connect()?;
    let exists = |client: &mut Client, query: &str, name: &str| -> Result<bool> {
        Ok(client.query_opt(query, &[&name])?.is_some())
    };
    if !exists(&mut client, "SELECT FROM pg_database WHERE datname = $1", DATABASE)? {
        run(&mut client, "CREATE DATABASE biha_db TEMPLATE template0")?;
        created.database = true;
    }
    let mut biha_db = Login { dbname: DATABASE.to_owned(), ..objects.login.clone() }.connect()?;
    run(&mut biha_db, "CREATE EXTENSION IF NOT EXISTS biha")?;
    if !exists(&mut client, "SELECT FROM pg_roles WHERE rolname = $1", USER)? {
        run(&mut client, &format!("CREATE ROLE {USER}"))?;
        created.user = true;
    }
    let verifier = scram_sha_256(objects.password.as_bytes());
    run(&mut client, &format!("ALTER ROLE {USER} LOGIN REPLICATION PASSWORD '{verifier}'"))?;
    let groups = "\"BIHA_CLUSTER_MANAGEMENT_ROLE\", \"BIHA_REPLICATION_ROLE\", biha_monitoring";
    run(&mut client, &format!("GRANT {groups} TO {USER}"))?;
    for database in databases(&mut client)? {
        let mut client = Login { dbname: database, ..objects.login.clone() }.connect()?;
        // A promotion that nobody elected is undone by biha; better that nobody can ask for one.
        run(&mut client, "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) FROM PUBLIC")?;
    }
    Ok(())
}

/// Takes back what was made.
pub fn drop_objects(login: &Login, created: Created) -> Result<()> {
    let mut client = login.connect()?;
    if created.database {
        run(&mut client, "DROP DATABASE IF EXISTS biha_db WITH (FORCE)")?;
    }
    if created.user {
        run(&mut client, &format!("DROP ROLE IF EXISTS {USER}"))?;
    }
    Ok(())
}

fn run(client: &mut Client, statement: &str) -> Result<()> {
    client.batch_execute(statement).map_err(|e| anyhow::Error::msg(super::describe(&e)))
}

fn databases(client: &mut Client) -> Result<Vec<String>> {
    let rows = client.query("SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY oid", &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Databases that have unlogged tables, with their number.
pub fn unlogged_tables(login: &Login) -> Result<Vec<(String, i64)>> {
    let mut found = Vec::new();
    for database in databases(&mut login.connect()?)? {
        let mut client = Login { dbname: database.clone(), ..login.clone() }.connect()?;
        let query = "SELECT count(*) FROM pg_class WHERE relpersistence = 'u' AND relkind IN ('r', 'm')";
        let count = client.query_one(query, &[])?.get(0);
        if count > 0 {
            found.push((database, count));
        }
    }
    Ok(found)
}

/// The settings of a running server.
pub fn server_settings(client: &mut Client) -> Result<ServerSettings> {
    let mut settings = BTreeMap::new();
    for name in NAMES {
        let messages =
            client.simple_query(&format!("SHOW {name}")).with_context(|| format!("SHOW {name}"))?;
        let value = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        settings.insert(name.to_owned(), value.unwrap_or_default().to_owned());
    }
    Ok(ServerSettings(settings))
}
