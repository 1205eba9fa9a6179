//! One server: how an operator starts, stops and loses it, and what can be seen of it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::client::{self, Address, Rows};
use crate::process::{self, Process};
use crate::run::{Runner, run};
use crate::wait::{wait_for, wait_until};

/// In the command line of the rewind proper; before it there is a dry run.
pub const REWIND: &str = "--no-sync --progress";
/// pg_rewind says this right before its first change.
pub const CHANGES: &str = "need to copy";
/// Mode of a data directory whose rewind is not whole: it must not be started.
pub const CLOSED: u32 = 0o701;

/// How long any answer of a healthy server may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long pg_ctl waits for the server to come up or go down, in seconds.
const PG_CTL_SECONDS: &str = "60";

/// pg_ctl's ways of stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// Like a crash.
    Immediate,
}

impl StopMode {
    fn name(self) -> &'static str {
        match self {
            StopMode::Smart => "smart",
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        }
    }
}

/// A row of `biha.status_v`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whom the row is about.
    pub id: u32,
    /// Its leader as it knows.
    pub leader: Option<u32>,
    /// Its term.
    pub term: u32,
    /// Is it heard?
    pub online: bool,
    /// LEADER_RW, FOLLOWER, …
    pub state: String,
}

/// One server.
#[derive(Clone, Debug)]
pub struct Node {
    /// `biha.id`, from 1.
    pub id: u32,
    /// Where the server listens.
    pub address: Address,
    /// Port of the control channel.
    pub control_port: u16,
    /// The data directory.
    pub data: PathBuf,
    /// The server's log, outside the data directory: pg_rewind removes what the source lacks.
    pub log: PathBuf,
    /// How its programs are run.
    pub runner: Runner,
    /// Where PostgreSQL's programs are.
    pub bindir: PathBuf,
}

impl Node {
    /// One of PostgreSQL's programs, to be run on this node.
    pub fn program(&self, name: &str) -> Command {
        self.runner.command(self.bindir.join(name))
    }

    fn pg_ctl(&self, action: &str) -> Command {
        let mut command = self.program("pg_ctl");
        command.arg(action).arg("-D").arg(&self.data).args(["-t", PG_CTL_SECONDS]);
        command
    }

    /// `pg_ctl start`, until the server answers.
    pub fn start(&self) -> Result<()> {
        self.start_with(&["-w"])
    }

    /// `pg_ctl start` with a setting (`name=value`) on the server's command line, where no file overrules it.
    pub fn start_with_setting(&self, setting: &str) -> Result<()> {
        self.start_with(&["-w", "-o", &format!("-c {setting}")])
    }

    /// `pg_ctl start` that waits for nothing: what follows may be over soon.
    pub fn start_unawaited(&self) -> Result<()> {
        self.start_with(&["-W"])
    }

    fn start_with(&self, options: &[&str]) -> Result<()> {
        if let Some(pid) = self.lock_file().filter(|pid| !process::alive(*pid)) {
            process::wait_reaped(pid, ANSWER)?;
        }
        run(self.pg_ctl("start").arg("-l").arg(&self.log).args(options)).map(drop)
    }

    /// `pg_ctl stop`, until the server is gone.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        run(self.pg_ctl("stop").args(["-w", "-m", mode.name()])).map(drop)
    }

    /// `pg_ctl restart`.
    pub fn restart(&self, mode: StopMode) -> Result<()> {
        run(self.pg_ctl("restart").arg("-l").arg(&self.log).args(["-w", "-m", mode.name()])).map(drop)
    }

    /// `pg_ctl promote`, as an operator does who does not know about biha.
    pub fn promote(&self) -> Result<()> {
        run(self.pg_ctl("promote").arg("-w")).map(drop)
    }

    /// The postmaster's process, if the server runs.
    pub fn postmaster(&self) -> Option<i32> {
        self.lock_file().filter(|pid| process::alive(*pid))
    }

    /// The process in postmaster.pid, living or not.
    fn lock_file(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    fn running_postmaster(&self) -> Result<i32> {
        self.postmaster().with_context(|| format!("node {} does not run", self.id))
    }

    /// All processes of the server and what it started.
    pub fn processes(&self) -> Vec<Process> {
        process::in_directory(&self.data)
    }

    /// Processes whose title contains `title`, such as `walsender` or `biha controller`.
    pub fn processes_titled(&self, title: &str) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.title.contains(title)).collect()
    }

    /// Signals the postmaster, as a service manager or `docker stop` does.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.running_postmaster()?, signal)
    }

    /// kill -9 of the postmaster alone; its children find out by themselves.
    pub fn kill_postmaster(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// kill -9 of the one process with this title.
    pub fn kill_titled(&self, title: &str) -> Result<()> {
        let found = self.processes_titled(title);
        let process = found.first().with_context(|| format!("node {}: no process '{title}'", self.id))?;
        process::signal(process.pid, Signal::KILL)
    }

    /// Lets the server end at once and take its shared memory with it, if it can: what a killed one leaves in
    /// /dev/shm stays until the machine is started again.
    pub fn quit(&self) {
        let Some(postmaster) = self.postmaster() else { return };
        process::thaw_all(&self.data).ok();
        process::signal(postmaster, Signal::QUIT).ok();
        // Who does not end is killed next.
        process::wait_reaped(postmaster, Duration::from_secs(2)).ok();
    }

    /// kill -9 of everything, as if the power had gone (but for the page cache).
    pub fn kill_all(&self) -> Result<()> {
        process::kill_all(&self.data)
    }

    /// Stops every process (SIGSTOP), as a paused virtual machine.
    pub fn freeze(&self) -> Result<()> {
        process::freeze_all(&self.data)
    }

    /// Ends a freeze.
    pub fn thaw(&self) -> Result<()> {
        process::thaw_all(&self.data)
    }

    /// Waits until no process is left. After kill -9 of the postmaster the rest must go by itself.
    pub fn wait_gone(&self, timeout: Duration) -> Result<()> {
        wait_until(&format!("end of all processes of node {}", self.id), timeout, || {
            match self.processes().as_slice() {
                [] => Ok(()),
                left => Err(format!("{left:?}")),
            }
        })
    }

    /// Waits until the server accepts connections and answers.
    pub fn wait_answers(&self, timeout: Duration) -> Result<()> {
        wait_until(&format!("an answer of node {}", self.id), timeout, || self.query("SELECT 1").map(drop))
    }

    /// Rows of a query in database postgres, as superuser.
    pub fn query(&self, sql: &str) -> Result<Rows> {
        client::query(&self.address, "postgres", sql, ANSWER)
    }

    /// Rows of a query in biha_db, as superuser.
    pub fn biha(&self, sql: &str) -> Result<Rows> {
        client::query(&self.address, "biha_db", sql, ANSWER)
    }

    /// A query's single value.
    pub fn value(&self, sql: &str) -> Result<String> {
        client::single(self.query(sql)?)
    }

    /// A single value from biha_db.
    pub fn biha_value(&self, sql: &str) -> Result<String> {
        client::single(self.biha(sql)?)
    }

    /// `biha.status_v` as this node sees it.
    pub fn status(&self) -> Result<Vec<Status>> {
        let rows = self.biha("SELECT id, leader_id, term, online, state FROM biha.status_v ORDER BY id")?;
        rows.into_iter()
            .map(|row| {
                let field = |n: usize| row[n].as_deref();
                Ok(Status {
                    id: field(0).context("id is null")?.parse()?,
                    leader: field(1).map(str::parse).transpose()?,
                    term: field(2).unwrap_or("0").parse()?,
                    online: field(3) == Some("t"),
                    state: field(4).unwrap_or_default().to_string(),
                })
            })
            .collect()
    }

    /// This node's own row of its status.
    pub fn own_status(&self) -> Result<Status> {
        let own = self.status()?.into_iter().find(|status| status.id == self.id);
        own.with_context(|| format!("node {} is not in its own status", self.id))
    }

    /// Waits until the node says of itself that it is in one of these states.
    pub fn wait_state(&self, states: &[&str], timeout: Duration) -> Result<Status> {
        wait_until(&format!("node {} in {states:?}", self.id), timeout, || {
            let own = self.own_status()?;
            ensure!(states.contains(&own.state.as_str()), "it is {own:?}");
            Ok(own)
        })
    }

    /// Is the server in recovery, that is, no leader?
    pub fn in_recovery(&self) -> Result<bool> {
        Ok(self.value("SELECT pg_is_in_recovery()")? == "t")
    }

    /// The timeline that the server writes, or receives.
    pub fn timeline(&self) -> Result<u32> {
        let sql = "SELECT CASE WHEN pg_is_in_recovery()
                THEN (SELECT received_tli FROM pg_stat_wal_receiver)
                ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
            END";
        Ok(self.value(sql)?.parse()?)
    }

    /// `biha.history()`: rows as (kind, everything) text.
    pub fn history(&self) -> Result<Rows> {
        self.biha("SELECT h::text FROM biha.history() h")
    }

    /// Stops the WAL senders (SIGSTOP): what the leader writes from now on reaches nobody, and all else goes
    /// on. Gives their process numbers.
    pub fn freeze_walsenders(&self) -> Result<Vec<i32>> {
        let senders = self.processes_titled("walsender");
        ensure!(!senders.is_empty(), "node {} has no walsender", self.id);
        for sender in &senders {
            process::signal(sender.pid, Signal::STOP)?;
        }
        Ok(senders.iter().map(|sender| sender.pid).collect())
    }

    /// CPU time used so far by biha's workers.
    pub fn worker_cpu(&self) -> Duration {
        // With cluster_name the title is "postgres: biha_node_1: biha controller".
        process::cpu_time(self.processes_titled(": biha ").iter().map(|process| process.ticks).sum())
    }

    /// CPU time used so far by all processes of the server, also by those that have ended.
    pub fn server_cpu(&self) -> Duration {
        let processes = process::in_directory(&self.data);
        process::cpu_time(processes.iter().map(|process| process.ticks + process.ended_ticks).sum())
    }

    /// The log's size now; what follows is what happened since.
    pub fn log_mark(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// Where its own files are while it is rewound: beside the data directory.
    pub fn aside(&self) -> PathBuf {
        let mut name = self.data.clone().into_os_string();
        name.push(".biha-rewind");
        name.into()
    }

    /// What was written to the log after `mark`.
    pub fn log_since(&self, mark: u64) -> Result<String> {
        let log = fs::read(&self.log)?;
        let new = log.get(usize::try_from(mark)?..).context("the log is shorter than it was")?;
        Ok(String::from_utf8_lossy(new).into_owned())
    }

    /// Waits for a line with `text` in the log, written after `mark`.
    pub fn wait_log(&self, mark: u64, text: &str, timeout: Duration) -> Result<()> {
        wait_for(&format!("'{text}' in the log of node {}", self.id), timeout, || {
            self.log_since(mark).is_ok_and(|log| log.contains(text))
        })
    }

    /// What a reader of a failed test needs: status, processes, end of the log.
    pub fn dump(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // The oracle's own refusals fill the log; they are counted elsewhere.
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("] client backend ")).collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n    ");
        let limit = Duration::from_secs(2);
        let status = client::query(&self.address, "biha_db", "SELECT s::text FROM biha.status_v s", limit);
        let status = match status {
            Ok(rows) => rows.into_iter().flatten().flatten().collect::<Vec<_>>().join(" "),
            Err(error) => format!("{error:#}"),
        };
        let titles: Vec<String> =
            self.processes().iter().map(|p| format!("{} {} {}", p.pid, p.state, p.title)).collect();
        format!(
            "== node {} ({}:{}, {})\n  status: {status}\n  processes: {}\n  log:\n    {tail}\n",
            self.id,
            self.address.host,
            self.address.port,
            self.data.display(),
            titles.join("; "),
        )
    }

    /// Writes lines to the end of a configuration file of the data directory.
    pub fn append(&self, file: &str, lines: &str) -> Result<()> {
        self.edit(file, |text| format!("{text}{lines}"))
    }

    /// Writes lines to the beginning of a configuration file of the data directory.
    pub fn prepend(&self, file: &str, lines: &str) -> Result<()> {
        self.edit(file, |text| format!("{lines}{text}"))
    }

    fn edit(&self, file: &str, edit: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.data.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        fs::write(&path, edit(&text)).with_context(|| format!("could not write {}", path.display()))
    }

    /// Refuses to go on if the postmaster is another process than `pid`.
    pub fn expect_postmaster(&self, pid: i32) -> Result<()> {
        match self.postmaster() {
            Some(now) if now == pid => Ok(()),
            now => bail!("node {}: the postmaster was {pid}, now {now:?}", self.id),
        }
    }
}
