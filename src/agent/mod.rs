//! Worker 2, "biha agent": whatever may block. It carries out the controller's orders one at a time, and
//! keeps the replication slots.
//!
//! **Architecture invariant:** it decides nothing about roles, and talks to no other node. It has no database
//! connection.

mod handover;
pub mod history;
mod nudge;
mod oldest;
mod position;
mod probe;
mod promotion;
pub mod receiver;
mod slots;
mod timing;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use biha_core::{Millis, Order, OrderId, OrderResult};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::{log, pg_guard, pg_sys};

use crate::board::{self, Status};
use crate::pg::{process, recovery, wait, worker, xlog};

/// How often the slots and settings are looked at when nothing else happens.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Registers the worker. In `_PG_init`, and only on a configured node.
pub fn register() {
    BackgroundWorkerBuilder::new("biha agent")
        .set_type("biha agent")
        .set_library("biha")
        .set_function("biha_agent_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::PostmasterStart)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// The worker's main function. It ends with exit code 1 only: 0 would mean "never start it again".
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn biha_agent_main(_argument: pg_sys::Datum) {
    worker::handle_signals();
    board::gate().agent_latch.store(process::my_latch(), Ordering::SeqCst);
    Agent::new().run();
    worker::end();
}

struct Agent {
    receiver: receiver::Receiver,
    slots: slots::Keeper,
    /// The last order carried out.
    done: OrderId,
    /// When the status last looked at was published.
    seen: Millis,
    housekept: Instant,
    oldest: oldest::Watch,
    disks: probe::Watch,
}

impl Agent {
    fn new() -> Self {
        Agent {
            receiver: receiver::Receiver::new(),
            slots: slots::Keeper::default(),
            done: board::orders_of_former_agent(),
            seen: 0,
            housekept: Instant::now(),
            oldest: oldest::Watch::default(),
            disks: probe::Watch::start(),
        }
    }

    /// Carries out orders until the server is being stopped.
    fn run(&mut self) {
        while !wait::stop_requested() {
            worker::reload_if_told();
            if let Some((id, order)) = board::order_after(self.done) {
                self.carry_out(id, &order);
                continue;
            }
            if let Some(status) = board::status() {
                self.keep_house(&status);
            }
            wait::latch(self.receiver.impatience().unwrap_or(HOUSEKEEPING).min(HOUSEKEEPING));
        }
    }

    fn carry_out(&mut self, id: OrderId, order: &Order) {
        self.done = id;
        let result = wait::caught(AssertUnwindSafe(|| match *order {
            Order::StopReceiving => self.receiver.stop(id),
            Order::Follow { leader } => self.receiver.follow(id, leader),
            Order::AwaitEnd { timeout } => self.receiver.await_end(id, timeout),
            Order::PrepareHandover => handover::prepare(id),
            Order::Promote { timeline, first_placeholder } => {
                promotion::promote(&mut self.receiver, id, timeline, first_placeholder)
            }
            Order::Restart { rewind, drain } => handover::restart(rewind, drain),
            Order::Reclone { leader, end } => handover::reclone(leader, end),
            Order::EndWalsenders => Ok(handover::end_walsenders()),
        }));
        let result = result.unwrap_or_else(|text| {
            if text != receiver::SUPERSEDED {
                log!("order {order:?} was not carried out: {text}");
            }
            OrderResult::Failed(text)
        });
        board::order_done(id, &result);
        if matches!(result, OrderResult::Promoted { .. }) {
            // Followers can stream only once they have their slots.
            self.seen = 0;
        }
    }

    /// Runs once a second, and when the controller has waked this worker with something new.
    fn keep_house(&mut self, status: &Status) {
        let due = self.housekept.elapsed() >= HOUSEKEEPING || self.receiver.impatience().is_some();
        if !due && status.published == self.seen {
            return;
        }
        self.seen = status.published;
        self.housekept = Instant::now();
        // Before that the startup process is still reading the slots from disk.
        if recovery::past_startup() {
            self.slots.keep(status);
        }
        // A follower that was rewound is consistent only at the end of WAL that this server had then, on disk or not.
        if !recovery::in_progress() {
            xlog::flush_soon();
        }
        self.receiver.keep(status);
        self.oldest.keep();
        self.disks.tell();
    }
}
