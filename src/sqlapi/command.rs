//! Commands: switch over, change settings, mend.

use std::time::{Duration, Instant};

use biha_core::{Command, CommandError, Lossless, Setting};
use pgrx::prelude::*;

use super::{error_with_hint, given, natural, node_id, status_or_error};
use crate::board;
use crate::pg::wait;

/// Longer than the controller lets any request wait, so that its answer is what is told.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives the controller a command and waits for the answer; every failure is an ERROR.
pub(super) fn carry_out(command: &Command) -> bool {
    status_or_error();
    let Some(request) = board::ask(command) else {
        error_with_hint(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "too many commands wait for biha's controller",
            "Try again in a moment.",
        );
    };
    let end = Instant::now() + PATIENCE;
    let result = PgTryBuilder::new(|| {
        loop {
            if let Some(result) = board::take_answer(request) {
                return result;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                board::withdraw(request);
                return Err(CommandError::Unknown);
            }
            wait::latch(left.min(Duration::from_millis(500)));
            pgrx::check_for_interrupts!();
        }
    })
    .catch_others(|cause| {
        board::withdraw(request);
        cause.rethrow()
    })
    .execute();
    match result {
        Ok(()) => true,
        Err(error) => report(&error),
    }
}

fn report(error: &CommandError) -> ! {
    let text = error.to_string();
    let (code, hint) = match error {
        CommandError::NoLeader => (
            PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW,
            "Nothing was changed. The view biha.status_v shows the nodes; try again once there is a leader.",
        ),
        CommandError::Busy => (
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            "Nothing was changed. Only one change or switchover can be made at a time; try again in a moment.",
        ),
        CommandError::Invalid { hint, .. } => {
            (PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, hint.as_str())
        }
        CommandError::Failed(_) => (
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "Nothing was changed. The function biha.history() shows what happened.",
        ),
        CommandError::Unknown => (
            PgSqlErrorCode::ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN,
            "It may still take effect: look at biha.config() and biha.status_v before you try again.",
        ),
    };
    error_with_hint(code, &text, hint)
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_leader(id: Option<i32>) -> bool {
    carry_out(&Command::SetLeader(node_id(id)))
}

#[pg_extern(volatile, parallel_unsafe)]
fn reset_node_error() -> bool {
    carry_out(&Command::ResetNodeError)
}

#[pg_extern(volatile, parallel_unsafe)]
fn reclone() -> bool {
    carry_out(&Command::Reclone)
}

fn set(settings: Vec<Setting>) -> bool {
    let done = carry_out(&Command::Set(settings));
    let config = status_or_error().config;
    if config.disjoint_quorums() {
        warning!("nquorum is not above half of the voters: two leaders are possible at the same time");
    } else if config.stale_quorums {
        warning!("two leaders are possible until every member has the new nquorum");
    } else if let (false, why) = config.lossless()
        && config.guards_commits()
    {
        warning!("acknowledged commits can be lost: {why}");
    }
    done
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_heartbeat_max_lost(count: Option<i32>) -> bool {
    set(vec![Setting::HeartbeatMaxLost(natural("heartbeat_max_lost", count))])
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_heartbeat_send_period(ms: Option<i32>) -> bool {
    set(vec![Setting::HeartbeatSendPeriod(natural("heartbeat_send_period", ms))])
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_no_wal_on_follower(ms: Option<i32>) -> bool {
    set(vec![Setting::NoWalOnFollower(natural("no_wal_on_follower", ms))])
}

/// 0 returns to the default.
fn count(name: &str, value: Option<i32>) -> Option<u32> {
    Some(natural(name, value)).filter(|n| *n > 0)
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_nquorum(nquorum: Option<i32>) -> bool {
    set(vec![Setting::Nquorum(count("nquorum", nquorum))])
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_minnodes(minnodes: Option<i32>) -> bool {
    set(vec![Setting::Minnodes(count("minnodes", minnodes))])
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_nquorum_and_minnodes(nquorum: Option<i32>, minnodes: Option<i32>) -> bool {
    set(vec![Setting::Nquorum(count("nquorum", nquorum)), Setting::Minnodes(count("minnodes", minnodes))])
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_lossless(mode: Option<&str>) -> bool {
    let mode: Lossless = given("mode", mode).parse().unwrap_or_else(|text: String| {
        error_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, &text, "")
    });
    set(vec![Setting::Lossless(mode)])
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_sync_standbys(count: Option<i32>) -> bool {
    set(vec![Setting::SyncStandbys(natural("sync_standbys", count))])
}
