//! What users are told at the gate.

use std::sync::atomic::Ordering::Relaxed;

use biha_core::NodeId;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::board::{self, Status};

/// A commit is refused. 40000 (transaction_rollback): it was rolled back for sure, and may be run again, but
/// not that here and at once will do (40001, 40P01), nor that the outcome is unknown (40003).
pub fn refuse_commit(command: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK;
    raise(code, format!("cannot execute {command}: this node does not accept writes now"))
}

/// A statement is refused before it has done anything.
pub fn refuse_statement(command: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION;
    raise(code, format!("cannot execute {command}: this node does not accept writes now"))
}

fn raise(code: PgSqlErrorCode, message: String) -> ! {
    let status = board::status();
    ErrorReport::new(code, message, "biha")
        .set_detail(detail(status.as_ref()))
        .set_hint(hint(status.as_ref()))
        .report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// A commit is durable here, but this node may no longer say so.
pub fn warn_unacknowledged() {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN,
        "terminating connection because this node lost its leadership during a commit",
        "biha",
    )
    .set_detail("The transaction has committed locally, but another node may have become leader without it.")
    .report(PgLogLevel::WARNING);
}

fn detail(status: Option<&Status>) -> String {
    let gate = board::gate();
    let own = status.and_then(|status| status.members.iter().find(|member| member.id == status.node));
    match (gate.incarnation.load(Relaxed), own) {
        (0, _) | (_, None) => "biha's controller is not ready on this node.".to_owned(),
        (_, Some(own)) => {
            format!("Node {} is {} in term {}.", own.id, own.state.name(), gate.term.load(Relaxed))
        }
    }
}

fn hint(status: Option<&Status>) -> String {
    let none = "No leader is known now; try again when one has been elected.";
    let (Some(status), leader) = (status, board::gate().leader.load(Relaxed)) else {
        return none.to_owned();
    };
    if leader == status.node.0 {
        return "The leader does not reach enough nodes; it accepts writes again when it does.".to_owned();
    }
    match status.config.members.get(&NodeId(leader)) {
        Some(member) => format!("Connect to the leader, node {leader} at {}:{}.", member.host, member.port),
        None => none.to_owned(),
    }
}
