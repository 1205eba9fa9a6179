//! Worker 1, "biha controller": owns the core, the control channel and the state files.
//!
//! One latch loop in one thread. It turns whatever happened into the core's inputs and has the core's outputs
//! carried out.
//!
//! **Architecture invariant:** nothing here blocks but the fsync of a state file, and at the end, for a moment, what
//! waits for the last commits and the last event; and nothing here decides.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use biha_core::{
    ConfigVersion, Goodbye, Input, Lossless, Lsn, Millis, Node, NodeId, NodeState, Options, ServerStatus,
    Term,
};
use biha_io::{
    History, Identity, Limits, NetEvent, Network, NetworkConfig, StateFiles, ThreadResolver, TlsConfig,
};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::{PgSqlErrorCode, ereport, pg_guard, pg_sys, warning};

use crate::agent::receiver::{node_name, synchronous_standby_names};
use crate::board::{self, MemberStatus, Status};
use crate::gate::drain::drain;
use crate::lifecycle::Wanting;
use crate::pg::{
    backends, clock, postmaster, process, random, settings, slots, status, wait, walsender, worker,
};
use crate::rejections::Rejections;
use crate::{guc, lifecycle, paths};

/// Longest time in ms that the board may be out of date.
const PUBLISH_PERIOD: Millis = 500;
/// How often a stopping controller looks for commits that wait: at first, and at last.
const LOOK_FOR_WAITERS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(32)];
/// How long a process that ends waits for its last event to be written: the disk may hang.
const LAST_EVENT: Duration = Duration::from_millis(100);
/// Commands taken from the mailbox in one turn.
const MAX_COMMANDS: usize = board::MAILBOX_SLOTS;

/// Registers the worker. In `_PG_init`, and only on a configured node.
pub fn register() {
    BackgroundWorkerBuilder::new("biha controller")
        .set_type("biha controller")
        .set_library("biha")
        .set_function("biha_controller_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::PostmasterStart)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// The worker's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn biha_controller_main(_argument: pg_sys::Datum) {
    shut_gate();
    worker::before_leaving(left);
    worker::handle_signals();
    match Controller::start() {
        Ok(mut controller) => controller.run(),
        Err(why) => {
            ereport!(
                FATAL,
                PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR,
                format!("biha cannot take part in the cluster: {why}"),
                "This node neither votes nor leads until that is mended; the server stays read-only."
            );
        }
    }
    worker::end();
}

/// Whichever way the controller ends, its gate is shut before its sockets close. After that nobody can end a wait for
/// standbys, so that in a stop the postmaster's signal is repeated: sessions keep it as long as there is a controller.
#[pg_guard]
unsafe extern "C-unwind" fn left(_code: i32, _argument: pg_sys::Datum) {
    shut_gate();
    if lifecycle::is_stopping_fast() || sessions_are_told() {
        let sessions = backends::sessions();
        sessions.others.into_iter().chain(sessions.waiting).for_each(backends::terminate);
    }
}

/// Nothing is confirmed any more, and nobody waits for that.
fn fence() {
    let gate = board::gate();
    gate.open_until.store(0, Ordering::SeqCst);
    gate.leading.store(0, Ordering::SeqCst);
    gate.incarnation.store(0, Ordering::SeqCst);
}

fn shut_gate() {
    fence();
    let gate = board::gate();
    gate.controller_pid.store(0, Ordering::SeqCst);
    gate.controller_latch.store(0, Ordering::SeqCst);
}

/// What the executor needs, too.
pub struct Controller {
    pub(crate) node: Node,
    pub(crate) network: Network,
    pub(crate) files: StateFiles,
    pub(crate) history: History,
    /// Counts this life's events.
    pub(crate) events: u32,
    server: ServerStatus,
    rejections: Rejections,
    published: Millis,
    brief: Brief,
    /// For a copy of the leader.
    wanting: Option<Wanting>,
}

impl Controller {
    /// First the gate is shut, then the memory is read and made durable, then peers can be heard.
    fn start() -> Result<Controller, String> {
        let id = u32::try_from(guc::ID.get()).map_err(|e| e.to_string())?;
        let system_identifier = status::system_identifier();
        let files = StateFiles::new(Path::new(paths::DIR));
        let identity = Identity { cluster: None, system_identifier, node: NodeId(id) };
        let hard = files.load_state(&identity).map_err(|e| e.to_string())?;
        let config = files.load_config().map_err(|e| e.to_string())?;
        let (history, file) = History::open(Path::new(paths::HISTORY)).map_err(|e| e.to_string())?;
        worker::spawn_without_signals("biha history", Box::new(|| file.write_for_ever()))
            .map_err(|e| e.to_string())?;
        let (cluster, now) = (hard.cluster, clock::boottime());
        let seed = random::random().ok_or("no random number could be made")?;
        let rewound = lifecycle::rewind_result();
        let timeout = config.settings.election_timeout();
        let wanting = Wanting::noted();
        let (node, first) = Node::new(now, seed, hard, config, options(wanting.as_ref()), rewound);
        let network = Network::bind(NetworkConfig {
            cluster,
            node: NodeId(id),
            incarnation: node.hard().incarnation,
            tag: node.memory().tag,
            port: guc::control_port(),
            tls: tls()?,
            resolver: Box::new(ThreadResolver::new(|job| {
                worker::spawn_without_signals("biha resolver", job)
            })),
            limits: Limits { stall_timeout: timeout.max(1000), ..Limits::default() },
        })
        .map_err(|e| format!("could not listen on port {}: {e}", guc::control_port()))?;
        let mut controller = Controller {
            node,
            network,
            files,
            history,
            events: 0,
            server: ServerStatus::default(),
            rejections: Rejections::default(),
            published: 0,
            brief: Brief::default(),
            wanting,
        };
        let gate = board::gate();
        if !gate.controller_alive.hold() {
            return Err("another controller is running".to_owned());
        }
        gate.incarnation.store(controller.node.hard().incarnation.0, Ordering::SeqCst);
        gate.controller_pid.store(postmaster::my_pid(), Ordering::SeqCst);
        gate.controller_latch.store(process::my_latch(), Ordering::SeqCst);
        controller.execute(first);
        lifecycle::forget_rewind_result()?;
        controller.know_peers();
        Ok(controller)
    }

    fn run(&mut self) {
        let mut events = Vec::new();
        loop {
            self.wait_and_stop_if_told();
            let enough = self.wanting.take_if(|wanting| wanting.is_over()).is_some();
            if worker::reload_if_told() || enough {
                self.node.set_options(options(self.wanting.as_ref()));
            }
            self.look_at_server();
            if let Err(error) = self.network.poll(clock::boottime(), &mut events) {
                warning!("biha's control channel failed: {error}");
                self.leave(Goodbye::Fault);
            }
            for event in events.drain(..) {
                self.on_network(event);
            }
            for (request, command) in std::iter::from_fn(board::take_command).take(MAX_COMMANDS) {
                self.feed(Input::Command(request, command));
            }
            while let Some((id, result)) = board::take_order_result() {
                self.feed(Input::Done(id, result));
            }
            if clock::boottime() >= self.node.next_deadline() {
                self.feed(Input::Tick);
            }
            self.publish();
        }
    }

    fn wait_and_stop_if_told(&mut self) {
        let now = clock::boottime();
        // WAL that arrives is noticed at a turn of the loop; while heartbeats come, they are the turns.
        let period = Millis::from(self.node.config().settings.heartbeat_send_period);
        let due = self.node.next_deadline().min(self.network.next_deadline().unwrap_or(Millis::MAX));
        let woken = worker::wait(self.network.as_raw_fd(), due.saturating_sub(now).min(period + period / 4));
        if woken.postmaster_died {
            self.leave(Goodbye::PostmasterDied);
        }
        if worker::told_to_stop() {
            if board::gate().open_until.load(Ordering::SeqCst) != 0 {
                drain(|| false);
            }
            self.leave(Goodbye::CleanStop);
        }
    }

    /// Shuts the gate, says goodbye, and ends the process.
    fn leave(&mut self, goodbye: Goodbye) -> ! {
        let outputs = self.node.step(clock::boottime(), Input::Stop(goodbye));
        self.execute(outputs);
        self.network.close_all();
        self.end();
    }

    fn end(&self) -> ! {
        fence();
        self.history.written(LAST_EVENT);
        end_last_waiters();
        worker::end();
    }

    /// What a step decides is in force before the next one, and each one sees the server as it is.
    fn feed(&mut self, input: Input) {
        self.look_at_server();
        self.step(input);
    }

    fn step(&mut self, input: Input) {
        let outputs = self.node.step(clock::boottime(), input);
        self.execute(outputs);
        let (gate, config) = (board::gate(), self.node.config());
        let guarded = if config.guards_commits() { config.settings.sync_standbys } else { 0 };
        let required = config.settings.lossless == Lossless::Require;
        gate.sync_standbys.store(guarded, Ordering::SeqCst);
        gate.lossless_required.store(required.into(), Ordering::SeqCst);
        if self.node.has_resigned() {
            self.network.close_all();
            self.end();
        }
    }

    fn look_at_server(&mut self) {
        let oldest_wal = Lsn(board::gate().oldest_wal.load(Ordering::Relaxed));
        let synced = walsender::flushed_by(self.node.config().settings.sync_standbys);
        let sick = self.is_sick();
        let counts_others = self.node.is_changing() && self.counts_others();
        let read = status::read(self.server.checkpointed);
        let server = ServerStatus { sick, oldest_wal, synced, counts_others, ..read };
        if server != self.server {
            self.server = server;
            self.step(Input::Server(server));
        }
    }

    /// May PostgreSQL still count a standby as synchronous that does not count any more? The postmaster reads the
    /// settings before it has this process read them, but for a start, after which nobody leads at once; each WAL sender
    /// reads them for itself.
    fn counts_others(&self) -> bool {
        let config = self.node.config();
        if !config.guards_commits() {
            return false;
        }
        let members = self.node.view().synchronous;
        let names = synchronous_standby_names(config.settings.sync_standbys, &members);
        if settings::get(c"synchronous_standby_names").is_none_or(|read| read != names) {
            return true;
        }
        let names: Vec<String> = members.into_iter().map(node_name).collect();
        let own = slots::list().into_iter().filter(|slot| names.contains(&slot.name));
        let own: Vec<i32> = own.filter_map(|slot| slot.user).collect();
        walsender::counted().iter().any(|sender| !own.contains(sender))
    }

    /// Has no write come through to the disks for too long?
    fn is_sick(&self) -> bool {
        let limit = Millis::from(guc::WATCHDOG_TIMEOUT.get().unsigned_abs()) * 1000;
        let well_at = board::gate().disk_well_at.load(Ordering::SeqCst);
        let sick = match well_at {
            // A server that starts on a disk that refuses writes need not wait to know.
            0 => board::gate().disk_error.load(Ordering::SeqCst) != 0,
            at => clock::boottime().saturating_sub(at) > limit,
        };
        limit > 0 && sick
    }

    fn on_network(&mut self, event: NetEvent) {
        match event {
            NetEvent::Connected(peer) => {
                let hello = self.node.hello(peer);
                self.tell(&hello);
                self.tell_events(peer);
            }
            NetEvent::Message(envelope) => self.feed(Input::Message(envelope)),
            NetEvent::Disconnected(peer, how) => self.feed(Input::Disconnected(peer, how)),
            NetEvent::Rejected { addr, node, why } => {
                self.rejections.connection(clock::boottime(), addr, node, &why);
            }
            NetEvent::Unresolved(peer, error) => {
                self.rejections.name(clock::boottime(), peer, &error);
            }
        }
    }

    /// Tells the network who the members are and where.
    pub(crate) fn know_peers(&mut self) {
        let own = self.node.hard().node;
        let peers: Vec<(NodeId, String, u16)> = self
            .node
            .config()
            .members
            .iter()
            .filter(|(id, _)| **id != own)
            .map(|(id, member)| (*id, member.host.clone(), member.biha_port))
            .collect();
        self.network.set_peers(&peers);
    }

    /// Puts the view on the board: at once when a state, the leader or the configuration changed, else now
    /// and then.
    fn publish(&mut self) {
        let now = clock::boottime();
        let status = self.status(now);
        let brief = Brief::of(&status);
        if brief == self.brief && now < self.published + PUBLISH_PERIOD {
            return;
        }
        let gate = board::gate();
        let patience = status.config.settings.election_timeout();
        gate.leading.store(u32::from(status.worth_waiting), Ordering::SeqCst);
        gate.leader.store(status.leader.map_or(0, |id| id.0), Ordering::SeqCst);
        gate.term.store(status.term.0, Ordering::SeqCst);
        gate.patience.store(u32::try_from(patience).unwrap_or(u32::MAX), Ordering::SeqCst);
        board::publish(&status);
        self.published = now;
        self.tell_of_history();
        if brief != self.brief {
            self.brief = brief;
            process::set_latch(gate.agent_latch.load(Ordering::SeqCst));
        }
    }

    fn status(&self, now: Millis) -> Status {
        let view = self.node.view();
        let hard = self.node.hard();
        let members = view.members.into_iter().map(|m| MemberStatus {
            id: m.id,
            state: m.state,
            last_known: m.last_known,
            online: m.online,
            since_heard: m.since_heard,
            position: m.position,
            connection: (m.id != hard.node).then(|| self.network.connection_state(m.id).name().to_owned()),
        });
        Status {
            node: hard.node,
            term: view.term,
            incarnation: hard.incarnation,
            leader: view.leader,
            members: members.collect(),
            config: self.node.config().clone(),
            error: hard.error.clone(),
            worth_waiting: view.worth_waiting,
            hands_over_to: view.hands_over_to,
            synchronous: view.synchronous,
            published: now,
        }
    }
}

/// The part of the status whose changes are worth telling at once.
#[derive(Default, PartialEq, Eq)]
struct Brief {
    term: Term,
    leader: Option<NodeId>,
    config: ConfigVersion,
    worth_waiting: bool,
    synchronous: Vec<NodeId>,
    members: Vec<(NodeId, NodeState, bool, Option<String>)>,
}

impl Brief {
    fn of(status: &Status) -> Brief {
        let members =
            status.members.iter().map(|m| (m.id, m.state, m.online, m.connection.clone())).collect();
        Brief {
            term: status.term,
            leader: status.leader,
            config: status.config.version,
            worth_waiting: status.worth_waiting,
            synchronous: status.synchronous.clone(),
            members,
        }
    }
}

/// Commits that wait for standbys take no signal but this process's. In a stop they are ended as soon as nobody is left but
/// who commits, and sees no row of another's any more: nothing is acknowledged, and the next leader may lack them. (Not
/// only when all wait: a NOTIFY has the next one's commit wait for the first.)
fn end_last_waiters() {
    let gate = board::gate();
    let [mut pause, longest] = LOOK_FOR_WAITERS;
    while gate.sync_standbys.load(Ordering::SeqCst) > 0 && lifecycle::is_stopping() {
        let sessions = backends::sessions();
        let count = sessions.others.len() + sessions.waiting.len();
        // Asked last: with the gate shut they only become fewer.
        let committing = gate.committing.load(Ordering::SeqCst) as usize;
        if count == 0 {
            return;
        }
        if sessions_are_told() && count <= committing {
            sessions.waiting.into_iter().for_each(backends::terminate);
        }
        wait::latch(pause);
        pause = longest.min(2 * pause);
    }
}

/// Has the postmaster told all sessions to end? Then it has told this process.
fn sessions_are_told() -> bool {
    lifecycle::is_stopping() && wait::stop_requested()
}

fn options(wanting: Option<&Wanting>) -> Options {
    Options {
        autorewind: guc::AUTOREWIND.get(),
        autoreclone: guc::AUTORECLONE.get() && wanting.is_none(),
        trust_refused: guc::TRUST_REFUSED.get(),
    }
}

fn tls() -> Result<Option<TlsConfig>, String> {
    if !guc::USE_SSL.get() {
        return Ok(None);
    }
    let path = |setting: &'static pgrx::GucSetting<Option<std::ffi::CString>>| {
        setting.get().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
    };
    TlsConfig::load(
        Path::new(&path(&guc::SSL_CA)),
        Path::new(&path(&guc::SSL_CERTIFICATE)),
        Path::new(&path(&guc::SSL_PRIVATE_KEY)),
    )
    .map(Some)
    .map_err(|e| e.to_string())
}
