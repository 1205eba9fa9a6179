//! Shared memory: the gate's words, the status board, the agent's order slot, the mailbox for users' commands.
//!
//! Shared memory is a view; the state files are the truth. It is made anew at every start and crash-restart.
//!
//! # Concurrency
//! The gate is atomics only. Everything else is a [`Blob`] behind a lock whose critical sections only copy
//! bytes: nothing in them can raise an ERROR. Values are encoded before the lock is taken and decoded after
//! it is released.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use biha_core::wire;
use biha_core::{
    ClusterConfig, Command, CommandError, CommandResult, Incarnation, Millis, NodeError, NodeId, NodeState,
    Order, OrderId, OrderResult, Position, RequestId, Term,
};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, pg_shmem_init, pg_sys};
use serde::{Deserialize, Serialize};

use crate::pg::mutex::RobustMutex;
use crate::pg::{postmaster, process};

/// Bytes of what came of an order.
const RESULT: usize = 16 * 1024;
/// Commands that may wait at the same time.
pub const MAILBOX_SLOTS: usize = 16;

/// Words that backends read at every commit, and a few that processes tell each other without a lock.
#[derive(Default)]
pub struct Gate {
    /// Commits may pass until this CLOCK_BOOTTIME millisecond; 0 is shut.
    pub open_until: AtomicU64,
    /// Incarnation that leads or may come to lead; 0 while no controller runs.
    pub incarnation: AtomicU64,
    /// This node's term, for messages.
    pub term: AtomicU32,
    /// The leader, for messages; 0 if none is known.
    pub leader: AtomicU32,
    /// 1 while this node leads its term and its gate is open or only just shut: a commit that finds the lease
    /// run out waits for its renewal.
    pub leading: AtomicU32,
    /// Election timeout in ms: how long such a commit waits at most.
    pub patience: AtomicU32,
    /// Standbys that must have a commit before it is acknowledged; 0 if biha does not see to that.
    pub sync_standbys: AtomicU32,
    /// 1 if every commit must be synchronous, whatever the session says.
    pub lossless_required: AtomicU32,
    /// Commits of sessions that asked for less than the standbys' flush, since shared memory was made.
    pub lowered_commits: AtomicU64,
    /// Commits that have passed the gate and are not confirmed yet.
    pub committing: AtomicU32,
    /// New ones wait until this CLOCK_BOOTTIME millisecond: the gate is, or was, about to be shut; 0 if never.
    pub held_back_until: AtomicU64,
    /// Held by the controller as long as it lives.
    pub controller_alive: RobustMutex,
    /// Number of the last change of the receiver's settings that the startup process has read.
    pub receiver_epoch_seen: AtomicI32,
    /// Number of the last change of the receiver's settings that was written.
    pub receiver_epoch_written: AtomicI32,
    /// Start of the oldest WAL in pg_wal, while in production; 0 if not known.
    pub oldest_wal: AtomicU64,
    /// When a write last came through to the disks (CLOCK_BOOTTIME ms); 0 if nobody has looked yet.
    pub disk_well_at: AtomicU64,
    /// What is wrong with them (errno); 0 if nothing is.
    pub disk_error: AtomicI32,
    /// Process number of the controller; 0 if none.
    pub controller_pid: AtomicI32,
    /// Latches of controller and agent (addresses in shared memory; 0 if none).
    pub controller_latch: AtomicUsize,
    /// See [`Gate::controller_latch`].
    pub agent_latch: AtomicUsize,
    /// Latch of the session that was last answered, for a restart that would end it; 0 if none.
    pub answered_latch: AtomicUsize,
    /// Its process number: latches outlive their owners.
    pub answered_pid: AtomicI32,
}

// SAFETY: only atomics and a process-shared mutex; no pointers into one process's memory.
unsafe impl PGRXSharedMemory for Gate {}

/// A value of varying size in a place of fixed size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Blob<const N: usize> {
    len: u32,
    bytes: [u8; N],
}

// SAFETY: plain bytes.
unsafe impl<const N: usize> PGRXSharedMemory for Blob<N> {}

impl<const N: usize> Default for Blob<N> {
    fn default() -> Self {
        Blob { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> Blob<N> {
    /// Encodes a value; `None` if it does not fit.
    fn pack<T: Serialize>(value: &T) -> Option<Self> {
        let encoded = wire::pack(value).ok()?;
        let mut blob = Blob { len: u32::try_from(encoded.len()).ok()?, bytes: [0; N] };
        blob.bytes.get_mut(..encoded.len())?.copy_from_slice(&encoded);
        Some(blob)
    }

    /// Decodes the value; `None` if there is none.
    fn unpack<T: for<'a> Deserialize<'a>>(&self) -> Option<T> {
        match self.len {
            0 => None,
            len => wire::unpack(self.bytes.get(..len as usize)?).ok(),
        }
    }
}

/// One member as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The member.
    pub id: NodeId,
    /// What it is now.
    pub state: NodeState,
    /// What it was when last heard.
    pub last_known: NodeState,
    /// Heard from within the election timeout.
    pub online: bool,
    /// How long ago it was heard, in ms; `None` for this node itself, and where it was never heard.
    pub since_heard: Option<Millis>,
    /// End of its WAL as it last said.
    pub position: Option<Position>,
    /// State of this node's connection to it, as `biha.nodes_v` names it; `None` for this node itself.
    pub connection: Option<String>,
}

/// What the controller publishes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// All members, this node included.
    pub members: Vec<MemberStatus>,
    /// The configuration in use.
    pub config: ClusterConfig,
    /// Set while the node is in NODE_ERROR.
    pub error: Option<NodeError>,
    /// It leads, and a commit that finds the gate shut may wait for it to open.
    pub worth_waiting: bool,
    /// It leads, and is handing over to this member.
    pub hands_over_to: Option<NodeId>,
    /// The members whose flush a synchronous commit may count.
    pub synchronous: Vec<NodeId>,
    /// When this was published (CLOCK_BOOTTIME ms).
    pub published: Millis,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct OrderSlot {
    id: OrderId,
    order: Blob<256>,
    /// Newest order that has a result.
    finished: OrderId,
    result_for: OrderId,
    /// Its history, of [`biha_core::MAX_HISTORY`] timelines at most, is the longest there is.
    result: Blob<RESULT>,
}

// SAFETY: plain bytes.
unsafe impl PGRXSharedMemory for OrderSlot {}

/// Where a mailbox slot is on its way.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Mail {
    #[default]
    Free,
    Asked,
    Taken,
    Answered,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Letter {
    request: RequestId,
    state: Mail,
    asker_latch: usize,
    asker_pid: i32,
    command: Blob<768>,
    result: Blob<1024>,
}

impl Letter {
    /// Is there none, or nobody any more who would take it out? A session that is terminated leaves it behind.
    fn is_free(&self) -> bool {
        self.state == Mail::Free || process::owner(self.asker_latch) != self.asker_pid
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Mailbox {
    last_request: RequestId,
    letters: [Letter; MAILBOX_SLOTS],
}

// SAFETY: plain bytes; the latch address is one of shared memory, the same in every process.
unsafe impl PGRXSharedMemory for Mailbox {}

// SAFETY: the names are unique to biha.
static GATE: PgAtomic<Gate> = unsafe { PgAtomic::new(c"biha gate") };
// SAFETY: as above.
static STATUS: PgLwLock<Blob<32768>> = unsafe { PgLwLock::new(c"biha status") };
// SAFETY: as above.
static ORDER: PgLwLock<OrderSlot> = unsafe { PgLwLock::new(c"biha order") };
// SAFETY: as above.
static MAILBOX: PgLwLock<Mailbox> = unsafe { PgLwLock::new(c"biha mailbox") };

/// Set in the postmaster, inherited by every other process.
static EXISTS: AtomicBool = AtomicBool::new(false);

/// Asks for the shared memory. In `_PG_init`, and only on a configured node.
pub fn register() {
    EXISTS.store(true, Ordering::Relaxed);
    pg_shmem_init!(GATE);
    pg_shmem_init!(STATUS);
    pg_shmem_init!(ORDER);
    pg_shmem_init!(MAILBOX);
}

/// Was the shared memory made? Not if biha is not configured, or not in shared_preload_libraries.
pub fn exists() -> bool {
    EXISTS.load(Ordering::Relaxed)
}

/// The gate's words.
pub fn gate() -> &'static Gate {
    GATE.get()
}

/// Assign hook of `biha.receiver_epoch`: in the startup process it is the evidence that the receiver's
/// settings in force are those of this number, and no older ones will be used any more.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn receiver_epoch_assigned(value: i32, _extra: *mut c_void) {
    if exists() && process::is_startup() {
        gate().receiver_epoch_seen.store(value, Ordering::SeqCst);
    }
}

/// Publishes the status. The controller's.
pub fn publish(status: &Status) {
    if let Some(blob) = Blob::pack(status) {
        *STATUS.exclusive() = blob;
    }
}

/// The status last published; `None` until the controller has run.
pub fn status() -> Option<Status> {
    let blob = *STATUS.share();
    blob.unpack()
}

/// Gives the agent an order, in place of an older one. The controller's.
pub fn give_order(id: OrderId, order: &Order) {
    let Some(blob) = Blob::pack(order) else { return };
    {
        let mut slot = ORDER.exclusive();
        slot.id = id;
        slot.order = blob;
    }
    process::set_latch(gate().agent_latch.load(Ordering::SeqCst));
}

/// The order now in the slot, if its id is above `done`. The agent's.
pub fn order_after(done: OrderId) -> Option<(OrderId, Order)> {
    let (id, blob) = {
        let slot = ORDER.share();
        (slot.id, slot.order)
    };
    if id <= done {
        return None;
    }
    blob.unpack().map(|order| (id, order))
}

/// The newest order given so far. An agent that has just started must not carry it out again: if its
/// predecessor did not finish it, it has failed.
pub fn orders_of_former_agent() -> OrderId {
    let (id, finished) = {
        let slot = ORDER.share();
        (slot.id, slot.finished)
    };
    if finished < id {
        order_done(id, &OrderResult::Failed("the agent was restarted meanwhile".to_owned()));
    }
    id
}

/// Has a newer order than `id` been given? Then one that only waits is to be given up.
pub fn superseded(id: OrderId) -> bool {
    ORDER.share().id > id
}

/// Tells the controller what came of an order, and if need be only that it cannot be told: the controller waits for it.
/// The agent's.
pub fn order_done(id: OrderId, result: &OrderResult) {
    let blob = Blob::pack(result).unwrap_or_default();
    {
        let mut slot = ORDER.exclusive();
        slot.finished = id;
        slot.result_for = id;
        slot.result = blob;
    }
    process::set_latch(gate().controller_latch.load(Ordering::SeqCst));
}

/// The result of an order, once. The controller's.
pub fn take_order_result() -> Option<(OrderId, OrderResult)> {
    let (id, blob) = {
        let mut slot = ORDER.exclusive();
        if slot.result_for == 0 {
            return None;
        }
        let taken = (slot.result_for, slot.result);
        slot.result_for = 0;
        taken
    };
    let untold = || OrderResult::Failed("what came of it could not be told".to_owned());
    Some((id, blob.unpack().unwrap_or_else(untold)))
}

/// Puts a command into the mailbox and wakes the controller; `None` if the mailbox is full. A backend's.
pub fn ask(command: &Command) -> Option<RequestId> {
    let blob = Blob::pack(command)?;
    let latch = process::my_latch();
    let request = {
        let mut mailbox = MAILBOX.exclusive();
        let request = mailbox.last_request + 1;
        let letter = mailbox.letters.iter_mut().find(|l| l.is_free())?;
        *letter = Letter {
            request,
            state: Mail::Asked,
            asker_latch: latch,
            asker_pid: postmaster::my_pid(),
            command: blob,
            ..Letter::default()
        };
        mailbox.last_request = request;
        request
    };
    process::set_latch(gate().controller_latch.load(Ordering::SeqCst));
    Some(request)
}

/// The next command that waits. The controller's.
pub fn take_command() -> Option<(RequestId, Command)> {
    let (request, blob) = {
        let mut mailbox = MAILBOX.exclusive();
        let letter = mailbox.letters.iter_mut().find(|l| l.state == Mail::Asked)?;
        letter.state = Mail::Taken;
        (letter.request, letter.command)
    };
    blob.unpack().map(|command| (request, command))
}

/// Answers a command and wakes who asked. The controller's.
pub fn answer(request: RequestId, result: &CommandResult) {
    let blob = Blob::pack(result).unwrap_or_default();
    let latch = {
        let mut mailbox = MAILBOX.exclusive();
        let Some(letter) =
            mailbox.letters.iter_mut().find(|l| l.request == request && l.state == Mail::Taken)
        else {
            return;
        };
        letter.state = Mail::Answered;
        letter.result = blob;
        letter.asker_latch
    };
    gate().answered_pid.store(process::owner(latch), Ordering::SeqCst);
    gate().answered_latch.store(latch, Ordering::SeqCst);
    process::set_latch(latch);
}

/// The answer to a command, once it is there, and if need be only that it cannot be told; frees the slot. The asking
/// backend's.
pub fn take_answer(request: RequestId) -> Option<CommandResult> {
    let blob = {
        let mut mailbox = MAILBOX.exclusive();
        let letter =
            mailbox.letters.iter_mut().find(|l| l.request == request && l.state == Mail::Answered)?;
        letter.state = Mail::Free;
        letter.result
    };
    let untold =
        || Err(CommandError::Failed("the answer could not be told; look at the server's log".to_owned()));
    Some(blob.unpack().unwrap_or_else(untold))
}

/// Gives up waiting for an answer; frees the slot. The asking backend's.
pub fn withdraw(request: RequestId) {
    let mut mailbox = MAILBOX.exclusive();
    if let Some(letter) = mailbox.letters.iter_mut().find(|l| l.request == request && l.state != Mail::Free) {
        letter.state = Mail::Free;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use biha_core::{HistoryEntry, Lsn, MAX_HISTORY, newest};

    use super::*;

    #[test]
    fn the_longest_history_fits() {
        let entry = |timeline: u32| HistoryEntry { timeline, fork: Lsn(u64::MAX) };
        let history = newest((1..=10 * MAX_HISTORY as u32).map(entry).collect());
        let result = OrderResult::Promoted { history };
        assert_eq!(Blob::<RESULT>::pack(&result).unwrap().unpack(), Some(result));
    }
}
