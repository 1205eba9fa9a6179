//! Connections to servers: one-off queries with a deadline, and libpq's way of finding the writable host of a
//! multi-host string.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Rows as text, `None` for null.
pub type Rows = Vec<Vec<Option<String>>>;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// IP address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A connection whose background task ends with it.
pub struct Connection {
    /// To send queries with.
    pub client: Client,
    task: JoinHandle<()>,
}

impl Connection {
    /// Runs one simple query string and gives the rows of all its statements.
    pub async fn query(&self, sql: &str) -> Result<Rows, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(String::from)).collect())
                }
                _ => None,
            })
            .collect())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects to one host; `limit` holds for all of it, authentication and role check included, as in libpq.
pub async fn connect(
    address: &Address,
    database: &str,
    attributes: TargetSessionAttrs,
    limit: Duration,
) -> Result<Connection> {
    let mut config = Config::new();
    config
        .host(&address.host)
        .port(address.port)
        .user("postgres")
        .dbname(database)
        .application_name("biha cluster test")
        .target_session_attrs(attributes)
        .connect_timeout(limit)
        .tcp_user_timeout(limit);
    let (client, connection) =
        timeout(limit, config.connect(NoTls)).await.context("connecting took too long")??;
    // The connection's error also fails the client's next query, where it is looked at.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { client, task })
}

/// Dials the hosts one after the other from the `first`, as libpq does with a multi-host string and
/// target_session_attrs=read-write; gives the first writable one and its index.
pub async fn connect_writable(
    hosts: &[Address],
    database: &str,
    first: usize,
    limit: Duration,
) -> Result<(Connection, usize)> {
    let mut failed = anyhow!("no hosts");
    for index in (0..hosts.len()).map(|step| (first + step) % hosts.len()) {
        match connect(&hosts[index], database, TargetSessionAttrs::ReadWrite, limit).await {
            Ok(connection) => return Ok((connection, index)),
            Err(error) => failed = error.context(format!("{:?}", hosts[index])),
        }
    }
    Err(failed)
}

/// A runtime on the calling thread.
pub fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("could not start a runtime")
}

/// Runs a future to its end, for `limit` at most.
pub fn block_on<T>(limit: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(async { timeout(limit, future).await.context("the server did not answer in time")? })
}

/// Connects, asks, closes. The whole of it within `limit`.
pub fn query(address: &Address, database: &str, sql: &str, limit: Duration) -> Result<Rows> {
    block_on(limit, async {
        let connection = connect(address, database, TargetSessionAttrs::Any, limit).await?;
        Ok(connection.query(sql).await?)
    })
    .with_context(|| format!("{}:{} {sql}", address.host, address.port))
}

/// One connection that is kept, for code that is not asynchronous.
pub struct Session {
    connection: Connection,
    runtime: Runtime,
    limit: Duration,
}

impl Session {
    /// Connects; `limit` holds for that, and for each query.
    pub fn open(address: &Address, database: &str, limit: Duration) -> Result<Session> {
        let runtime = runtime()?;
        let connection = runtime.block_on(connect(address, database, TargetSessionAttrs::Any, limit))?;
        Ok(Session { connection, runtime, limit })
    }

    /// Runs one simple query string.
    pub fn query(&self, sql: &str) -> Result<Rows> {
        let answer = async { timeout(self.limit, self.connection.query(sql)).await };
        let rows = self.runtime.block_on(answer).context("the server did not answer in time")?;
        rows.with_context(|| sql.to_string())
    }
}

/// The single value of a query's single row; null is an error.
pub fn single(rows: Rows) -> Result<String> {
    ensure!(rows.len() == 1 && rows[0].len() == 1, "expected one value, got {rows:?}");
    rows[0][0].clone().context("expected a value, got null")
}

/// The SQLSTATE of a failed query, where the server sent one.
pub fn sqlstate(error: &anyhow::Error) -> Option<String> {
    let error = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>())?;
    Some(error.code()?.code().to_string())
}

/// Is this one of biha's answers that promise that nothing was committed?
pub fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(sqlstate(error).as_deref(), Some("25006" | "40000"))
}

/// The server's message, detail and hint of a failed query.
pub fn server_message(error: &anyhow::Error) -> Option<(String, String, String)> {
    let error = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>())?;
    let told = error.as_db_error()?;
    let text = |part: Option<&str>| part.unwrap_or_default().to_string();
    Some((told.message().to_string(), text(told.detail()), text(told.hint())))
}
