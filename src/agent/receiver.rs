//! Starting and stopping the stream of WAL from a leader.
//!
//! The setting alone stops nothing while replay is busy: the startup process must report that it has read
//! it, and the receiver must be seen stopped. Only then is the position read.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use biha_core::{ClusterConfig, Millis, NodeId, NodeState, OrderId, OrderResult, bare_host};
use pgrx::{debug1, log};

use super::nudge::{Nudges, SETTLED};
use super::{position, timing::Steps};
use crate::pg::serverconf::{self, ServerConf};
use crate::pg::walreceiver::State;
use crate::pg::{compat, postmaster, recovery, settings, wait, walreceiver, xlog};
use crate::{board, guc, paths};

/// `wal_retrieve_retry_interval` in ms. Short ones flood the log while there is no leader; where it matters
/// the startup process is woken instead.
const RETRY_INTERVAL: u32 = 5000;
/// How long the startup process may take to read changed settings.
const SETTINGS_LIMIT: Duration = Duration::from_secs(10);
/// After this long, look for what keeps the startup process from reading them.
const PATIENCE: Duration = Duration::from_millis(10);
/// When a write that failed is tried again by itself.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// How long the WAL receiver may take to end: it flushes first.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Why an order that waited was given up.
pub const SUPERSEDED: &str = "a newer order was given, or the server is being stopped";

/// What this node receives, and from whom.
pub struct Receiver {
    /// What was last written.
    conf: ServerConf,
    /// `conf` was written by this process, and the write did not fail.
    certain: bool,
    /// Set while a new leader's timeline is not streamed yet, or the stream broke.
    nudges: Option<Nudges>,
    /// WAL was being streamed when last looked at.
    streamed: bool,
    /// When WAL was last being streamed, or a leader chosen.
    silent_since: Instant,
    /// When `conf` was last written; `None` once its spare files have been made again.
    written_at: Option<Instant>,
    /// When a write of `conf` failed: what the file holds is not known, and nobody else may come by to write it.
    failed_at: Option<Instant>,
}

impl Receiver {
    /// Takes over what the server's settings say.
    pub fn new() -> Self {
        let text = |name| settings::get(name).unwrap_or_default();
        let conf = ServerConf {
            primary_conninfo: text(c"primary_conninfo"),
            primary_slot_name: text(c"primary_slot_name"),
            synchronous_standby_names: text(c"synchronous_standby_names"),
            blank_restore_command: true,
            retry_interval: Some(RETRY_INTERVAL),
            looks_read_only: false,
            epoch: text(c"biha.receiver_epoch").parse().unwrap_or(0),
        };
        Receiver {
            conf,
            certain: false,
            nudges: None,
            streamed: false,
            silent_since: Instant::now(),
            written_at: Some(Instant::now()),
            failed_at: None,
        }
    }

    /// Stops receiving, durably, and reads the position. See [`biha_core::Order::StopReceiving`].
    pub fn stop(&mut self, id: OrderId) -> Result<OrderResult, String> {
        let mut steps = Steps::new();
        self.silence(id, &mut steps)?;
        let end = position::read()?;
        let max_timeline = position::max_timeline(end.position.timeline)?;
        steps.done("read");
        log!("stopped receiving WAL at {}{} ({steps})", end.position, ending(end.complete));
        Ok(OrderResult::Stopped { position: end.position, complete: end.complete, max_timeline })
    }

    /// See [`biha_core::Order::AwaitEnd`].
    pub fn await_end(&mut self, id: OrderId, timeout: Millis) -> Result<OrderResult, String> {
        let period = Duration::from_millis(2);
        let end = Instant::now() + Duration::from_millis(timeout);
        while Instant::now() < end {
            if given_up(id) {
                return Err(SUPERSEDED.to_owned());
            }
            if walreceiver::state() != State::Streaming && position::read().is_ok_and(|end| end.complete) {
                break;
            }
            wait::latch(period);
        }
        self.stop(id)
    }

    /// Makes sure that nothing is received and nothing comes from the archive any more.
    pub fn silence(&mut self, id: OrderId, steps: &mut Steps) -> Result<(), String> {
        self.nudges = None;
        if recovery::in_progress() {
            let silent = ServerConf {
                primary_conninfo: String::new(),
                primary_slot_name: String::new(),
                blank_restore_command: true,
                ..self.conf.clone()
            };
            self.put_in_force(id, silent, steps)?;
        } else {
            return Err("the server is in production".to_owned());
        }
        stop_receiver(id)?;
        steps.done("receiver");
        Ok(())
    }

    /// See [`biha_core::Order::Follow`].
    pub fn follow(&mut self, id: OrderId, leader: NodeId) -> Result<OrderResult, String> {
        if !recovery::in_progress() {
            return Err("the server is in production".to_owned());
        }
        let mut steps = Steps::new();
        let conf = ServerConf {
            primary_conninfo: streaming_conninfo(leader)?,
            primary_slot_name: node_name(own_id()),
            // The archive may hold a dead branch of the timeline that is left now.
            blank_restore_command: true,
            ..self.conf.clone()
        };
        self.put_in_force(id, conf, &mut steps)?;
        self.silent_since = Instant::now();
        self.nudges = Some(Nudges::towards_new_leader(self.silent_since));
        log!("following node {leader} ({steps})");
        Ok(OrderResult::Done)
    }

    /// Writes settings and waits until the startup process has read them.
    fn put_in_force(&mut self, id: OrderId, conf: ServerConf, steps: &mut Steps) -> Result<(), String> {
        if !self.certain || differ(&self.conf, &conf) {
            self.write(conf)?;
            steps.done("write");
        }
        let epoch = self.conf.epoch;
        let seen = || board::gate().receiver_epoch_seen.load(Ordering::SeqCst) == epoch;
        let end = Instant::now() + SETTINGS_LIMIT;
        while !wait::until(PATIENCE, &seen) {
            if Instant::now() >= end {
                return Err("the startup process does not read its settings".to_owned());
            }
            if given_up(id) {
                return Err(SUPERSEDED.to_owned());
            }
            free_replay();
        }
        steps.done("reload");
        Ok(())
    }

    /// Writes settings and has the server read them.
    fn write(&mut self, conf: ServerConf) -> Result<(), String> {
        let gate = board::gate();
        let inherited = settings::get(c"biha.receiver_epoch").and_then(|value| value.parse().ok());
        let newest = gate.receiver_epoch_written.load(Ordering::SeqCst).max(self.conf.epoch);
        let epoch = newest.max(inherited.unwrap_or(0)).checked_add(1).unwrap_or(1);
        self.conf = ServerConf { epoch, ..conf };
        self.certain = false;
        let replaced = self.conf.replace();
        self.failed_at = replaced.is_err().then(Instant::now);
        replaced.map_err(|e| format!("could not write \"{}\": {e}", paths::SERVER_CONF))?;
        self.certain = true;
        self.written_at = Some(Instant::now());
        gate.receiver_epoch_written.store(epoch, Ordering::SeqCst);
        xlog::signal_postmaster(libc::SIGHUP);
        Ok(())
    }

    /// Work between orders: makes a new leader's stream come up fast, lets the archive in where it does not come
    /// up at all, keeps `synchronous_standby_names` as the configuration says, and has a fenced leader look as what
    /// it is.
    pub fn keep(&mut self, status: &board::Status) {
        let streaming = walreceiver::state() == State::Streaming;
        if streaming {
            self.silent_since = Instant::now();
        }
        if recovery::in_progress() {
            self.nudge(status, streaming);
        } else {
            self.nudges = None;
        }
        let mut conf = self.conf.clone();
        conf.synchronous_standby_names =
            synchronous_standby_names(status.config.settings.sync_standbys, &status.synchronous);
        conf.blank_restore_command = !self.needs_archive(status);
        conf.looks_read_only = is_fenced(status);
        let again = self.failed_at.is_some_and(|at| at.elapsed() > WRITE_AGAIN);
        // What a former agent wrote last is not known.
        let unwritten = !self.certain && self.failed_at.is_none();
        if (again || unwritten || differ(&self.conf, &conf))
            && let Err(text) = self.write(conf)
        {
            pgrx::warning!("{text}");
        }
        if self.written_at.is_some_and(|at| at.elapsed() > SETTLED) {
            match serverconf::keep_spares() {
                Ok(()) => self.written_at = None,
                Err(error) => debug1!("could not make a spare for \"{}\": {error}", paths::SERVER_CONF),
            }
        }
    }

    /// The archive is let in only while its leader has not given this node anything for a while: a slow
    /// `restore_command` would hold up an election. And only on the leader's timeline: PostgreSQL then looks for no
    /// older one's segments, which may belong to a dead branch.
    fn needs_archive(&self, status: &board::Status) -> bool {
        let arrived = recovery::replayed().is_some_and(|position| position.timeline == status.term.0);
        !self.conf.primary_conninfo.is_empty() && arrived && self.silent_since.elapsed() > SETTLED
    }

    /// Wakes the startup process until the stream has come up on the new leader's timeline: it may have to come through
    /// others, and at the end of each PostgreSQL would pause. The same after a break, while the leader is heard.
    fn nudge(&mut self, status: &board::Status, streaming: bool) {
        let now = Instant::now();
        let broke = std::mem::replace(&mut self.streamed, streaming) && !streaming;
        if broke && self.nudges.is_none() && !self.conf.primary_conninfo.is_empty() && leader_is_heard(status)
        {
            self.nudges = Some(Nudges::after_break(now));
        }
        if walreceiver::timeline() == Some(status.term.0) {
            self.nudges = None;
        }
        match self.nudges.as_mut().map(|nudges| nudges.due(now)) {
            Some(None) => self.nudges = None,
            Some(Some(true)) if walreceiver::awaits_startup() => recovery::wake(),
            _ => {}
        }
    }

    /// How soon [`Receiver::keep`] has something to do, if soon.
    pub fn impatience(&self) -> Option<Duration> {
        self.nudges.as_ref().map(|nudges| nudges.wait(Instant::now()))
    }
}

fn leader_is_heard(status: &board::Status) -> bool {
    status.members.iter().any(|member| Some(member.id) == status.leader && member.online)
}

/// Cancels queries that keep the startup process from its waiting loop. A pause does so too, but for a second at
/// most, and is the operator's: it is not touched.
pub fn free_replay() {
    if let Some(startup) = recovery::held_by_conflict() {
        debug1!("canceling queries that hold up replay");
        recovery::cancel_conflicting(startup);
    }
}

/// Does this node lead without being able to write, and for longer than a hiccup?
fn is_fenced(status: &board::Status) -> bool {
    let own = status.members.iter().find(|member| member.id == status.node);
    let read_only = own.is_some_and(|own| own.state == NodeState::LeaderRo);
    read_only && !status.worth_waiting && !recovery::in_progress()
}

/// Is an order not worth waiting for any more?
pub fn given_up(id: OrderId) -> bool {
    board::superseded(id) || wait::stop_requested()
}

/// Ends the receiver and sees it stopped. The settings in force keep it from coming back.
fn stop_receiver(id: OrderId) -> Result<(), String> {
    let stopped = wait::until(STOP_LIMIT, || {
        let stopped = walreceiver::state() == State::Stopped;
        if !stopped {
            walreceiver::terminate();
        }
        stopped || given_up(id)
    });
    match walreceiver::state() {
        State::Stopped => Ok(()),
        _ if stopped => Err(SUPERSEDED.to_owned()),
        _ => Err("the WAL receiver does not end".to_owned()),
    }
}

/// Do two differ in more than their number?
fn differ(a: &ServerConf, b: &ServerConf) -> bool {
    ServerConf { epoch: b.epoch, ..a.clone() } != *b
}

fn ending(complete: bool) -> &'static str {
    if complete { ", at a shutdown checkpoint" } else { "" }
}

fn own_id() -> NodeId {
    NodeId(guc::ID.get().unsigned_abs())
}

/// Name of a node's slot, and of its connections.
pub fn node_name(node: NodeId) -> String {
    format!("biha_node_{node}")
}

/// Connection string for the WAL receiver. `tcp_user_timeout` and keepalives bound how long a silent leader is
/// waited for.
fn streaming_conninfo(leader: NodeId) -> Result<String, String> {
    let name = node_name(own_id());
    Ok(format!("{} application_name={name}", conninfo(leader)?))
}

/// Connection string for pg_rewind and for a base backup.
pub fn rewind_conninfo(source: NodeId) -> Result<String, String> {
    Ok(format!("{} dbname=biha_db", conninfo(source)?))
}

/// Connection string for a base backup of whichever other member leads, where nothing is known but the configuration.
/// `session` is what libpq calls target_session_attrs.
pub fn leader_conninfo(config: &ClusterConfig, session: &str) -> String {
    let others = || config.members.iter().filter(|(id, _)| **id != own_id()).map(|(_, member)| member);
    let hosts: Vec<&str> = others().map(|member| bare_host(&member.host)).collect();
    let ports: Vec<String> = others().map(|member| member.port.to_string()).collect();
    let at = conninfo_of(&hosts.join(","), &ports.join(","));
    format!("{at} dbname=biha_db target_session_attrs={session}")
}

fn conninfo(node: NodeId) -> Result<String, String> {
    let status = board::status().ok_or("no configuration has been published")?;
    let member = status.config.members.get(&node).ok_or_else(|| format!("node {node} is not a member"))?;
    Ok(conninfo_of(bare_host(&member.host), &member.port.to_string()))
}

fn conninfo_of(host: &str, port: &str) -> String {
    let passfile = postmaster::data_directory().join(paths::PASSFILE);
    format!(
        "host={} port={} user=biha_replication_user passfile={} sslmode=prefer gssencmode=disable{} \
         connect_timeout=5 keepalives_idle=2 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=5000",
        quoted(host),
        quoted(port),
        quoted(&passfile.to_string_lossy()),
        compat::PASSWORD_IS_SECRET,
    )
}

/// Quotes a value of a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `ANY k (...)`; the same text on every node, this one's own name included, which never connects to itself.
pub fn synchronous_standby_names(k: u32, members: &[NodeId]) -> String {
    let names: Vec<_> = members.iter().map(|id| node_name(*id)).collect();
    if k == 0 || names.is_empty() { String::new() } else { format!("ANY {k} ({})", names.join(", ")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_members_counts_as_synchronous() {
        let members = [NodeId(1), NodeId(3)];
        assert_eq!(synchronous_standby_names(0, &members), "");
        assert_eq!(synchronous_standby_names(1, &members), "ANY 1 (biha_node_1, biha_node_3)");
        assert_eq!(synchronous_standby_names(1, &[]), "");
    }

    #[test]
    fn values_of_a_connection_string_are_quoted() {
        assert_eq!(quoted(r"a 'b' \c"), r"'a \'b\' \\c'");
    }

    #[test]
    fn the_number_alone_makes_no_difference() {
        let one = ServerConf { epoch: 1, ..ServerConf::default() };
        let two = ServerConf { epoch: 2, ..ServerConf::default() };
        assert!(!differ(&one, &two));
        assert!(differ(&one, &ServerConf { primary_conninfo: "host=x".to_owned(), ..two }));
    }
}
