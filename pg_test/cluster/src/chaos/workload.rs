//! Clients beside the oracle's: transfers between accounts, whose sum never changes, and reads and writes of
//! registers, whose history is kept. And somebody who cancels and terminates whatever waits for standbys.
//!
//! A register is read with FOR UPDATE: such a read is a commit, and passes biha's gate like one. A plain SELECT
//! promises nothing: a leader that was deposed answers it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::time::{sleep, timeout};
use tokio_postgres::config::TargetSessionAttrs;

use crate::chaos::random::Random;
use crate::chaos::register::{Call, Outcome};
use crate::client::{Address, Connection, Rows, connect, connect_writable, is_refusal, runtime};
use crate::cluster::Cluster;

/// Number of accounts, each with [`BALANCE`] at first.
const ACCOUNTS: u64 = 8;
const BALANCE: u64 = 100;
/// Of all accounts together, always.
pub const TOTAL: u64 = ACCOUNTS * BALANCE;
/// Number of registers.
pub const REGISTERS: u64 = 6;
/// What the registers hold at first. No write has this value.
pub const INITIAL: u64 = 0;
/// Clients of each sort.
const TRANSFERRERS: u64 = 2;
const REGISTRARS: u64 = 3;
/// Pause between two calls of a client.
const PAUSE: Duration = Duration::from_millis(30);
/// Limit for connecting to one host.
const CONNECT: Duration = Duration::from_millis(250);
/// Limit for one call.
const ANSWER: Duration = Duration::from_secs(1);

/// A call to a register, and who answered it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which register.
    pub key: u64,
    /// The call.
    pub call: Call,
    /// Timeline and node that answered, where one did.
    pub by: Option<(u32, u32)>,
    /// When it was sent.
    pub sent: Instant,
    /// When the answer came.
    pub acked: Instant,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// All calls to registers.
    pub entries: Vec<Entry>,
    /// Sums that were read and were wrong.
    pub wrong_sums: Vec<String>,
    /// Number of sums that were read.
    pub sums: usize,
    /// Number of acknowledged transfers.
    pub transfers: usize,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    transfers: AtomicUsize,
    seen: Mutex<Seen>,
    hosts: Mutex<Vec<Address>>,
    started: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn note_sum(&self, rows: &Rows, right: &str) {
        let mut seen = lock(&self.seen);
        seen.sums += 1;
        if rows.first().and_then(|row| row[0].as_deref()) != Some(right) {
            seen.wrong_sums.push(format!("{rows:?} after {:?}", self.started.elapsed()));
        }
    }
}

/// The running clients.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Workload {
    /// Makes the tables and starts the clients.
    pub fn start(cluster: &Cluster, seed: u64) -> Result<Workload> {
        cluster.leader()?.query(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, balance int);
             INSERT INTO account SELECT id, {BALANCE} FROM generate_series(1, {ACCOUNTS}) id;
             CREATE TABLE register (key int PRIMARY KEY, value bigint);
             INSERT INTO register SELECT key, {INITIAL} FROM generate_series(1, {REGISTERS}) key"
        ))?;
        cluster.wait_caught_up(Duration::from_secs(20))?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            transfers: AtomicUsize::new(0),
            seen: Mutex::default(),
            hosts: Mutex::new(cluster.addresses()),
            started: Instant::now(),
        });
        let theirs = shared.clone();
        let work = move || runtime()?.block_on(work(theirs, seed));
        let thread = Builder::new().name("workload".into()).spawn(work)?;
        Ok(Workload { shared, thread: Some(thread) })
    }

    /// The cluster has other members now.
    pub fn set_hosts(&self, hosts: Vec<Address>) {
        *lock(&self.shared.hosts) = hosts;
    }

    /// Ends the clients and gives what they saw.
    pub fn stop(mut self) -> Result<Seen> {
        self.end()?;
        let mut seen = std::mem::take(&mut *lock(&self.shared.seen));
        seen.transfers = self.shared.transfers.load(Ordering::Relaxed);
        Ok(seen)
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the workload panicked"))?
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // What failed has its own error to tell.
        self.end().ok();
    }
}

async fn work(shared: Arc<Shared>, seed: u64) -> Result<()> {
    let client =
        |number| Client { shared: shared.clone(), random: Random::new(seed ^ (number << 32)), number };
    let mut tasks = Vec::new();
    for number in 1..=TRANSFERRERS {
        tasks.push(tokio::spawn(client(number).transfer()));
    }
    for number in 1..=REGISTRARS {
        tasks.push(tokio::spawn(client(100 + number).register()));
    }
    tasks.push(tokio::spawn(client(200).audit(TargetSessionAttrs::ReadWrite)));
    tasks.push(tokio::spawn(client(201).audit(TargetSessionAttrs::Any)));
    tasks.push(tokio::spawn(client(300).cancel()));
    for task in tasks {
        task.await?;
    }
    Ok(())
}

struct Client {
    shared: Arc<Shared>,
    random: Random,
    number: u64,
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
    }

    fn since_start(&self, at: Instant) -> i64 {
        i64::try_from((at - self.shared.started).as_nanos()).unwrap_or(i64::MAX)
    }

    /// A connection to the leader, from the host on that is its turn; none where there is no leader.
    async fn connect(&mut self) -> Option<Connection> {
        let hosts = lock(&self.shared.hosts).clone();
        let first = self.random.index(hosts.len());
        match connect_writable(&hosts, "postgres", first, CONNECT).await {
            Ok((connection, _)) => Some(connection),
            Err(_) => {
                sleep(PAUSE).await;
                None
            }
        }
    }

    /// The session of before, or a new one.
    async fn session(&mut self, before: Option<Connection>) -> Option<Connection> {
        match before {
            Some(open) => Some(open),
            None => self.connect().await,
        }
    }

    async fn transfer(mut self) {
        let mut connection = None;
        while self.goes_on() {
            let Some(open) = self.session(connection.take()).await else { continue };
            let (a, b) = (self.random.between(1, ACCOUNTS), self.random.between(1, ACCOUNTS));
            // In one order: no deadlocks. All of one message is one transaction.
            let (low, high, amount) = (a.min(b), a.max(b), self.random.between(1, 20));
            let sql = format!(
                "UPDATE account SET balance = balance - {amount} WHERE id = {low};
                 UPDATE account SET balance = balance + {amount} WHERE id = {high}"
            );
            if ask(&open, &sql).await.is_ok() {
                self.shared.transfers.fetch_add(1, Ordering::Relaxed);
                connection = Some(open);
            }
            sleep(PAUSE).await;
        }
    }

    /// Reads the sum of all accounts: on the leader, or on any node in turn.
    async fn audit(mut self, attributes: TargetSessionAttrs) {
        let right = TOTAL.to_string();
        while self.goes_on() {
            let hosts = lock(&self.shared.hosts).clone();
            let host = &hosts[self.random.index(hosts.len())];
            let sql = "SELECT sum(balance), current_setting('biha.id') FROM account";
            if let Ok(open) = connect(host, "postgres", attributes, CONNECT).await {
                for _ in 0..self.random.between(1, 10) {
                    let Ok(rows) = ask(&open, sql).await else { break };
                    self.shared.note_sum(&rows, &right);
                    sleep(PAUSE).await;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Cancels or terminates sessions that wait for synchronous standbys: nobody may be told of such a commit.
    async fn cancel(mut self) {
        let mut connection = None;
        while self.goes_on() {
            let Some(open) = self.session(connection.take()).await else { continue };
            let how = if self.random.below(4) == 0 { "terminate" } else { "cancel" };
            let sql =
                format!("SELECT pg_{how}_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
            if ask(&open, &sql).await.is_ok() {
                connection = Some(open);
            }
            sleep(PAUSE).await;
        }
    }

    async fn register(mut self) {
        let mut connection = None;
        let mut written = 0;
        while self.goes_on() {
            let Some(open) = self.session(connection.take()).await else { continue };
            let key = self.random.between(1, REGISTERS);
            let write = self.random.below(2) == 0;
            written += u64::from(write);
            let value = self.number << 32 | written;
            let sent = Instant::now();
            let answer = call(&open, key, write.then_some(value)).await;
            let acked = Instant::now();
            let (from, to) = (self.since_start(sent), self.since_start(acked));
            let (value, outcome, by) = match &answer {
                Ok((value, timeline, node)) => (*value, Outcome::Done, Some((*timeline, *node))),
                Err(error) => (value, outcome_of(error), None),
            };
            if write || outcome == Outcome::Done {
                let call = Call { write, value, from, to, outcome };
                lock(&self.shared.seen).entries.push(Entry { key, call, by, sent, acked });
            }
            if answer.is_ok() {
                connection = Some(open);
            }
            sleep(PAUSE).await;
        }
    }
}

/// A refusal: nothing was committed. Anything else says nothing.
fn outcome_of(error: &anyhow::Error) -> Outcome {
    if is_refusal(error) { Outcome::Failed } else { Outcome::Unknown }
}

async fn ask(connection: &Connection, sql: &str) -> Result<Rows> {
    Ok(timeout(ANSWER, connection.query(sql)).await.context("no answer")??)
}

/// Reads or writes a register: its value then, and the timeline and the node that answered.
async fn call(connection: &Connection, key: u64, write: Option<u64>) -> Result<(u64, u32, u32)> {
    let what = "value, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), current_setting('biha.id')";
    let sql = match write {
        Some(value) => format!("UPDATE register SET value = {value} WHERE key = {key} RETURNING {what}"),
        None => format!("SELECT {what} FROM register WHERE key = {key} FOR UPDATE"),
    };
    let rows = ask(connection, &sql).await?;
    let field = |n: usize| rows.first().and_then(|row| row[n].as_deref()).context("no row");
    Ok((field(0)?.parse()?, u32::from_str_radix(field(1)?, 16)?, field(2)?.parse()?))
}
