//! The SQL functions of schema biha.
//!
//! Reading functions look at shared memory and never wait. Commands go through the mailbox to the controller,
//! which forwards to the leader what only the leader may do.
//!
//! **Architecture invariant:** no socket, no state file but the history, no decision.

mod command;
mod lost;
mod member;
mod read;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::board::{self, Status};

/// What the controller published; an error if biha does not run on this server.
fn status_or_error() -> Status {
    let published = if board::exists() { board::status() } else { None };
    match published {
        Some(status) => status,
        None => {
            let hint = if board::exists() {
                "The server log says why the biha controller does not run."
            } else {
                "biha must be in shared_preload_libraries, and biha.id must be set; \"bihactl init\" and \
                 \"bihactl add\" do that."
            };
            error_with_hint(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "biha does not run on this server",
                hint,
            )
        }
    }
}

fn error_with_hint(code: PgSqlErrorCode, text: impl Into<String>, hint: &str) -> ! {
    let mut report = ErrorReport::new(code, text.into(), "biha");
    if !hint.is_empty() {
        report = report.set_hint(hint.to_owned());
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

fn invalid(text: impl Into<String>, hint: &str) -> ! {
    error_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, text, hint)
}

/// An argument that must not be NULL: a command that silently did nothing would look as if it had done something.
fn given<T>(name: &str, value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => error_with_hint(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be null"),
            "",
        ),
    }
}

/// The argument of a number that cannot be negative.
fn natural(name: &str, value: Option<i32>) -> u32 {
    match u32::try_from(given(name, value)) {
        Ok(value) => value,
        Err(_) => invalid(format!("{name} must not be negative"), ""),
    }
}

/// The argument of a node's number.
fn node_id(value: Option<i32>) -> biha_core::NodeId {
    let id = natural("node number", value);
    if id == 0 {
        invalid("a node's number is at least 1", "");
    }
    biha_core::NodeId(id)
}
