//! What users are told at the gate.

use std::sync::atomic::Ordering::Relaxed;

use biha_core::NodeId;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::board::{self, Status};

const NO_LEADER: &str = "No leader is known now; try again when one has been elected.";

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
        .set_hint(hint(status.as_ref(), board::gate().leader.load(Relaxed)))
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

/// `leader` is the one this node knows; 0 for none.
fn hint(status: Option<&Status>, leader: u32) -> String {
    let Some(status) = status else { return NO_LEADER.to_owned() };
    let place = |id: NodeId| {
        status.config.members.get(&id).map(|member| format!("node {id} at {}:{}", member.host, member.port))
    };
    if leader != status.node.0 {
        let known = place(NodeId(leader));
        return known.map_or(NO_LEADER.to_owned(), |place| format!("Connect to the leader, {place}."));
    }
    match status.hands_over_to.and_then(place) {
        Some(place) => format!("The leadership goes over to {place}; connect there."),
        None => "The leader does not reach enough nodes; it accepts writes again when it does.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use biha_core::{ClusterConfig, Incarnation, Member, Mode, Term};

    use super::*;

    fn status(hands_over_to: Option<u32>) -> Status {
        let member = |id: u16| {
            let member = Member {
                host: format!("host{id}"),
                port: 5430 + id,
                biha_port: 5440 + id,
                mode: Mode::Regular,
                can_be_leader: true,
                can_vote: true,
                priority: -1,
                joining: false,
            };
            (NodeId(id.into()), member)
        };
        Status {
            node: NodeId(1),
            term: Term(4),
            incarnation: Incarnation::default(),
            leader: None,
            members: Vec::new(),
            config: ClusterConfig { members: [1, 2].map(member).into(), ..ClusterConfig::default() },
            error: None,
            worth_waiting: false,
            hands_over_to: hands_over_to.map(NodeId),
            synchronous: Vec::new(),
            published: 0,
        }
    }

    #[test]
    fn the_hint_says_where_writes_go() {
        let no_quorum = "The leader does not reach enough nodes; it accepts writes again when it does.";
        for (hands_over_to, leader, expected) in [
            (None, 0, NO_LEADER),
            (None, 1, no_quorum),
            (None, 2, "Connect to the leader, node 2 at host2:5432."),
            (None, 3, NO_LEADER),
            (Some(2), 1, "The leadership goes over to node 2 at host2:5432; connect there."),
        ] {
            assert_eq!(hint(Some(&status(hands_over_to)), leader), expected, "{hands_over_to:?} {leader}");
        }
        assert_eq!(hint(None, 2), NO_LEADER);
    }
}
