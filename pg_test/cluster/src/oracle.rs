//! The oracle client: a write load that remembers what was acknowledged, when, and by which timeline.
//!
//! Ordinary workers find the writable server through a multi-host string, as an application does. Patient
//! ones stay with one server whatever happens, and so catch a leader that doesn't know it was deposed.
//! A row that failed is never tried again: its outcome is unknown, and both outcomes are right, unless the server said
//! that nothing was committed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tokio_postgres::config::TargetSessionAttrs;

use crate::client::{Address, Connection, connect, connect_writable, is_refusal, runtime, sqlstate};
use crate::cluster::Cluster;
use crate::verdict::{Ack, FIRST_PATIENT, Key, Run};
use crate::wait::wait_for;

/// Pause after a round over all hosts that found no writable one. A round costs each server a process.
const RETRY: Duration = Duration::from_millis(10);
/// Period of a patient client.
const PATIENT_PERIOD: Duration = Duration::from_millis(50);
/// How long a patient client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the oracle does.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections.
    pub workers: u32,
    /// One-row transactions a second, all workers together; `None` is as fast as they go.
    pub rate: Option<u32>,
    /// Limit for connecting to one host; also TCP's limit for unanswered data.
    pub connect_limit: Duration,
    /// Limit for one transaction.
    pub write_limit: Duration,
    /// Nodes that get a patient client each.
    pub patient: Vec<u32>,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            workers: 4,
            rate: Some(200),
            connect_limit: Duration::from_millis(250),
            write_limit: Duration::from_secs(1),
            patient: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    acks: Mutex<Vec<Ack>>,
    refused: Mutex<Vec<Key>>,
    errors: Mutex<BTreeMap<String, usize>>,
    hosts: Mutex<Vec<Address>>,
    patient: Mutex<Vec<(u32, Address)>>,
}

impl Shared {
    fn is_wanted(&self, node: u32) -> bool {
        lock(&self.patient).iter().any(|(id, _)| *id == node)
    }

    fn acknowledge(&self, ack: Ack) {
        if ack.key.client < FIRST_PATIENT {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.acks).push(ack);
    }

    /// What came of a write. Gives whether it was acknowledged.
    fn answer(&self, key: Key, sent: Instant, answer: &Result<(u32, u32)>) -> bool {
        match answer {
            Ok((timeline, xid)) => {
                let acked = Instant::now();
                self.acknowledge(Ack { key, timeline: *timeline, xid: *xid, sent, acked });
            }
            Err(error) if is_refusal(error) => lock(&self.refused).push(key),
            Err(_) => {}
        }
        answer.is_ok()
    }

    fn note(&self, error: &anyhow::Error) {
        let name = sqlstate(error).unwrap_or_else(|| error.root_cause().to_string());
        *lock(&self.errors).entry(name).or_default() += 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running load.
#[derive(Debug)]
pub struct Oracle {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<Result<()>>>,
    started: Instant,
}

impl Oracle {
    /// Makes the table where it isn't there yet, and starts the load.
    pub fn start(cluster: &Cluster, load: Load) -> Result<Oracle> {
        let table = "CREATE TABLE IF NOT EXISTS oracle (client int, seq bigint, PRIMARY KEY (client, seq));
            TRUNCATE oracle";
        cluster.leader()?.query(table)?;
        cluster.wait_caught_up(Duration::from_secs(20))?;
        let patient = load.patient.iter().map(|id| (*id, cluster.node(*id).address.clone())).collect();
        let shared = Arc::new(Shared {
            hosts: Mutex::new(cluster.addresses()),
            patient: Mutex::new(patient),
            ..Shared::default()
        });
        let theirs = shared.clone();
        let work = move || -> Result<()> {
            runtime()?.block_on(async {
                let mut tasks = Vec::new();
                for number in 0..load.workers {
                    tasks.push(tokio::spawn(worker(number, load.clone(), theirs.clone())));
                }
                patient_clients(&theirs).await;
                for task in tasks {
                    task.await?;
                }
                Ok(())
            })
        };
        let thread = Builder::new().name("oracle".into()).spawn(work)?;
        let oracle = Oracle { shared, thread: Some(thread), started: Instant::now() };
        oracle.wait_acks(20, Duration::from_secs(10))?;
        Ok(oracle)
    }

    /// Waits for `more` acknowledgements from now on.
    pub fn wait_acks(&self, more: usize, timeout: Duration) -> Result<()> {
        let goal = self.acknowledged() + more;
        wait_for(&format!("{more} acknowledged writes"), timeout, || self.acknowledged() >= goal)
    }

    /// Acknowledged writes of the ordinary workers so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// The cluster has other members now: the ordinary workers dial these.
    pub fn set_hosts(&self, hosts: Vec<Address>) {
        *lock(&self.shared.hosts) = hosts;
    }

    /// Nodes have come or gone: these have a patient client each.
    pub fn set_patient(&self, nodes: Vec<(u32, Address)>) {
        *lock(&self.shared.patient) = nodes;
    }

    /// Ends the load and gives its record.
    pub fn stop(mut self) -> Result<Run> {
        self.end()?;
        let mut acks = std::mem::take(&mut *lock(&self.shared.acks));
        acks.sort_by_key(|ack| ack.acked);
        let errors = std::mem::take(&mut *lock(&self.shared.errors));
        let refused = std::mem::take(&mut *lock(&self.shared.refused));
        Ok(Run { acks, refused, errors, started: self.started, ended: Instant::now() })
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the oracle panicked"))?
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // A scenario that failed has its own error to tell.
        self.end().ok();
    }
}

/// The rows that a server has.
pub fn rows_of(node: &crate::node::Node) -> Result<Vec<Key>> {
    let rows = node.query("SELECT client, seq FROM oracle")?;
    rows.into_iter()
        .map(|row| {
            let field = |n: usize| row[n].clone().context("null in the oracle's table");
            Ok(Key { client: field(0)?.parse()?, seq: field(1)?.parse()? })
        })
        .collect()
}

/// Writes one row; gives the timeline that acknowledged it, and the transaction's number.
async fn write(connection: &Connection, key: Key, limit: Duration) -> Result<(u32, u32)> {
    let sql = format!(
        "INSERT INTO oracle VALUES ({}, {}) \
         RETURNING substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), pg_current_xact_id()::xid",
        key.client, key.seq
    );
    let rows = timeout(limit, connection.query(&sql)).await.context("no answer to a write")??;
    ensure!(rows.len() == 1, "an insert answered {rows:?}");
    let field = |n: usize| rows[0][n].as_deref().context("no timeline, or no transaction");
    Ok((u32::from_str_radix(field(0)?, 16)?, field(1)?.parse()?))
}

async fn worker(client: u32, load: Load, shared: Arc<Shared>) {
    let period = load.rate.map(|rate| Duration::from_secs(1) * load.workers / rate);
    let start = tokio::time::Instant::now() + period.unwrap_or_default() * client / load.workers;
    let mut ticks = interval_at(start, period.unwrap_or(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut connection = None;
    let mut first = client as usize;
    let mut seq = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let open = match connection.take() {
            Some(open) => open,
            None => {
                let hosts = lock(&shared.hosts).clone();
                match connect_writable(&hosts, "postgres", first, load.connect_limit).await {
                    Ok((open, index)) => {
                        first = index;
                        open
                    }
                    Err(error) => {
                        shared.note(&error);
                        first += 1;
                        sleep(RETRY).await;
                        continue;
                    }
                }
            }
        };
        if period.is_some() {
            ticks.tick().await;
        }
        seq += 1;
        let key = Key { client, seq };
        let sent = Instant::now();
        let answer = write(&open, key, load.write_limit).await;
        if shared.answer(key, sent, &answer) {
            connection = Some(open);
        }
        if let Err(error) = answer {
            shared.note(&error);
            first += 1;
        }
    }
}

/// Has a patient client for each node that is to have one, until the end of the load.
async fn patient_clients(shared: &Arc<Shared>) {
    let mut clients: BTreeMap<u32, JoinHandle<()>> = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        for (node, address) in lock(&shared.patient).clone() {
            clients
                .entry(node)
                .or_insert_with(|| tokio::spawn(patient_client(node, address, shared.clone())));
        }
        clients.retain(|node, client| {
            let wanted = shared.is_wanted(*node);
            if !wanted {
                client.abort();
            }
            wanted
        });
        sleep(PATIENT_PERIOD).await;
    }
    clients.values().for_each(JoinHandle::abort);
}

/// Writes to one server for ever; leaves a connection only when it is closed.
async fn patient_client(node: u32, address: Address, shared: Arc<Shared>) {
    let client = FIRST_PATIENT + node;
    let mut ticks = tokio::time::interval(PATIENT_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut connection: Option<Connection> = None;
    let mut seq = 0;
    loop {
        ticks.tick().await;
        let open = match connection.take() {
            Some(open) => open,
            None => match connect(&address, "postgres", TargetSessionAttrs::Any, PATIENCE).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        seq += 1;
        let key = Key { client, seq };
        let sent = Instant::now();
        let answer = write(&open, key, PATIENCE).await;
        shared.answer(key, sent, &answer);
        if !open.client.is_closed() {
            connection = Some(open);
        }
    }
}
