//! The gate before statements: a friendly refusal where a commit would be refused anyway, and the only one for
//! statements whose effects cannot be taken back.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;

use biha_core::Millis;
use pgrx::pg_sys::{CmdType, ExecutorStart_hook_type, NodeTag, TransactionStmtKind};
use pgrx::{PgList, pg_guard, pg_sys};

use super::{Look, await_entrance, await_open, confirm, drain, look, report, says_open, synchronous};
use crate::board;
use crate::pg::{recovery, xact};

/// What stood in the hook before.
static PREVIOUS: OnceLock<ExecutorStart_hook_type> = OnceLock::new();

/// What a statement needs of the gate before it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    /// Nothing: it writes nothing, or PostgreSQL's commit will ask.
    Nothing,
    /// An open gate: its commit would be refused anyway.
    Open,
    /// Enough lease to finish under: it cannot be taken back, and its commit comes too late.
    Lease,
    /// The same, and nobody asks again before the client is told.
    LeaseAndConfirmation,
}

/// Hooks the executor.
pub(super) fn init() {
    // SAFETY: libraries are loaded by one thread; the hook lives as long as the library.
    unsafe {
        if PREVIOUS.set(pg_sys::ExecutorStart_hook).is_ok() {
            pg_sys::ExecutorStart_hook = Some(on_executor_start);
        }
    }
}

unsafe extern "C-unwind" {
    /// PostgreSQL's own, called as C calls it.
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: i32);
}

/// Calls what comes next without pgrx's boundary, which would lose an ERROR's position, context and object
/// names: nothing in this function has a destructor, so PostgreSQL may jump over it.
unsafe extern "C-unwind" fn on_executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: the arguments are passed on as they came; the executor passes a valid query.
    unsafe {
        if modifies(&*(*query).plannedstmt, flags) && !says_open() {
            before_execution(query);
        }
        match PREVIOUS.get() {
            Some(Some(previous)) => previous(query, flags),
            _ => standard_ExecutorStart(query, flags),
        }
    }
}

/// Does the executor write? In a read-only transaction as well: on a fenced leader every one is, and PostgreSQL's
/// own words give no hint.
fn modifies(plan: &pg_sys::PlannedStmt, flags: i32) -> bool {
    (plan.commandType != CmdType::CMD_SELECT || plan.hasModifyingCTE)
        && flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0
}

#[pg_guard]
unsafe extern "C-unwind" fn before_execution(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the executor passes a valid query.
    let plan = unsafe { &*(*query).plannedstmt };
    ask(0, || (!modifies_only_temporary(plan)).then(|| plan_name(plan)));
}

/// Asks for an open gate. `name` is called only when it is not open: the statement's name, or `None` if it
/// may go on all the same. Raises an ERROR to refuse.
fn ask(reserve: Millis, name: impl FnOnce() -> Option<String>) {
    // What cannot be taken back does not begin when its commit would have to wait for what may not come.
    let open = matches!(look(reserve), Look::Open(_)) && (reserve == 0 || !drain::holds_back());
    if !open
        && let Some(name) = unless_standby(name)
        && await_open(reserve).is_none()
    {
        report::refuse_statement(&name);
    }
}

/// A standby refuses by itself, with words that users know.
fn unless_standby(name: impl FnOnce() -> Option<String>) -> Option<String> {
    name().filter(|_| !recovery::in_progress())
}

fn plan_name(plan: &pg_sys::PlannedStmt) -> String {
    match plan.commandType {
        CmdType::CMD_INSERT => "INSERT",
        CmdType::CMD_UPDATE => "UPDATE",
        CmdType::CMD_DELETE => "DELETE",
        CmdType::CMD_SELECT => "SELECT with a data-modifying clause",
        _ => "MERGE",
    }
    .to_owned()
}

/// Are all tables that the plan modifies temporary?
fn modifies_only_temporary(plan: &pg_sys::PlannedStmt) -> bool {
    // SAFETY: the planner's own lists: integers that index the range table from 1.
    let targets = unsafe { PgList::<i32>::from_pg(plan.resultRelations) };
    let temporary = |number: i32| {
        // SAFETY: as above; the entries are range table entries.
        let relation =
            unsafe { (*pg_sys::list_nth(plan.rtable, number - 1).cast::<pg_sys::RangeTblEntry>()).relid };
        is_temporary(relation)
    };
    targets.iter_int().all(temporary)
}

fn is_temporary(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog lookup; a table that is gone is not temporary.
    let persistence = unsafe { pg_sys::get_rel_persistence(relation) };
    persistence as u8 == pg_sys::RELPERSISTENCE_TEMP
}

/// The gate before a utility statement; from biha's ProcessUtility hook, before the statement is executed.
/// Raises an ERROR to refuse it. True if [`utility_leave`] is to be called when it is done.
///
/// # Safety
/// `statement` is the planned statement that the hook was called with.
pub unsafe fn utility_enter(statement: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: as the caller promises.
    let node = unsafe { (*statement).utilityStmt };
    // SAFETY: as the caller promises.
    let need = unsafe { need(node) };
    // Half of the lease, which is 9/10 of the election timeout.
    let reserve = || Millis::from(board::gate().patience.load(SeqCst)) * 9 / 20;
    // SAFETY: as the caller promises.
    let name = || unsafe { name_unless_temporary(node) };
    match need {
        Need::Nothing => {}
        Need::Open => ask(0, name),
        Need::Lease => ask(reserve(), name),
        Need::LeaseAndConfirmation => return enter(reserve(), name),
    }
    false
}

/// Passes the gate as a commit does; false on a standby, and where PostgreSQL refuses the statement: in a transaction,
/// whose savepoint would outlive the refusal, and with it what is begun here.
fn enter(reserve: Millis, name: impl FnOnce() -> Option<String>) -> bool {
    if xact::in_block() {
        return false;
    }
    let Some(name) = unless_standby(name) else { return false };
    if !await_entrance(reserve) {
        report::refuse_statement(&name);
    }
    synchronous::begin();
    true
}

/// The second look; after the statement has been executed without an ERROR.
pub fn utility_leave() {
    confirm(xact::flushed);
}

/// Is it BEGIN, COMMIT or one of their kind, of which every transaction has two? They need nothing of the gate. COMMIT
/// PREPARED and ROLLBACK PREPARED, which are transactions of their own, are not.
///
/// # Safety
/// `node` is a utility statement.
#[inline]
pub unsafe fn is_bracket(node: *const pg_sys::Node) -> bool {
    use TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
    // SAFETY: as the caller promises; the tag says what the node is.
    unsafe {
        (*node).type_ == NodeTag::T_TransactionStmt
            && !matches!(
                (*node.cast::<pg_sys::TransactionStmt>()).kind,
                TRANS_STMT_COMMIT_PREPARED | TRANS_STMT_ROLLBACK_PREPARED
            )
    }
}

/// # Safety
/// `node` is a utility statement.
unsafe fn need(node: *mut pg_sys::Node) -> Need {
    use NodeTag::*;
    // SAFETY: as the caller promises; the tag says what each node is.
    unsafe {
        match (*node).type_ {
            _ if is_bracket(node) => Need::Nothing,
            T_TransactionStmt => Need::LeaseAndConfirmation,
            T_CreatedbStmt
            | T_DropdbStmt
            | T_AlterDatabaseStmt
            | T_CreateTableSpaceStmt
            | T_DropTableSpaceStmt
            | T_CreateSubscriptionStmt
            | T_AlterSubscriptionStmt
            | T_DropSubscriptionStmt
            | T_ReindexStmt => Need::Lease,
            T_IndexStmt if (*node.cast::<pg_sys::IndexStmt>()).concurrent => Need::Lease,
            T_DropStmt if (*node.cast::<pg_sys::DropStmt>()).concurrent => Need::Lease,
            T_ClusterStmt if (*node.cast::<pg_sys::ClusterStmt>()).relation.is_null() => Need::Lease,
            // Writes a file of this server only.
            T_AlterSystemStmt => Need::Nothing,
            T_CopyStmt if (*node.cast::<pg_sys::CopyStmt>()).is_from => Need::Open,
            T_VacuumStmt | T_TruncateStmt => Need::Open,
            _ if pg_sys::GetCommandLogLevel(node) == pg_sys::LogStmtLevel::LOGSTMT_DDL => Need::Open,
            _ => Need::Nothing,
        }
    }
}

/// The statement's name; `None` if it is a COPY into a temporary table.
///
/// # Safety
/// `node` is a utility statement.
unsafe fn name_unless_temporary(node: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: as the caller promises; the lookup takes no lock, and gives 0 for a table that is not there.
    unsafe {
        if (*node).type_ == NodeTag::T_CopyStmt {
            let table = (*node.cast::<pg_sys::CopyStmt>()).relation;
            let found = pg_sys::RangeVarGetRelidExtended(
                table,
                pg_sys::NoLock as i32,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                std::ptr::null_mut(),
            );
            if found != pg_sys::InvalidOid && is_temporary(found) {
                return None;
            }
        }
        let name = pg_sys::GetCommandTagName(pg_sys::CreateCommandTag(node));
        Some(CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[pgrx::pg_schema]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::ffi::CString;

    use pgrx::prelude::*;

    use super::*;

    fn need_of(statement: &str) -> Need {
        let text = CString::new(statement).unwrap();
        // SAFETY: the parser's own list of statements.
        unsafe {
            let list = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
            need((*pg_sys::list_nth(list, 0).cast::<pg_sys::RawStmt>()).stmt)
        }
    }

    #[pg_test]
    fn what_cannot_be_taken_back_needs_lease() {
        for statement in [
            "CREATE DATABASE d",
            "DROP DATABASE d",
            "ALTER DATABASE d SET TABLESPACE t",
            "CREATE TABLESPACE t LOCATION '/x'",
            "DROP TABLESPACE t",
            "CREATE INDEX CONCURRENTLY ON t (a)",
            "DROP INDEX CONCURRENTLY i",
            "REINDEX TABLE t",
            "REINDEX DATABASE CONCURRENTLY d",
            "CLUSTER",
            "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p",
            "DROP SUBSCRIPTION s",
        ] {
            assert_eq!(need_of(statement), Need::Lease, "{statement}");
        }
        for statement in ["COMMIT PREPARED 'x'", "ROLLBACK PREPARED 'x'"] {
            assert_eq!(need_of(statement), Need::LeaseAndConfirmation, "{statement}");
        }
    }

    #[pg_test]
    fn what_writes_needs_an_open_gate() {
        for statement in [
            "CREATE TABLE t (a int)",
            "CREATE INDEX ON t (a)",
            "DROP TABLE t",
            "TRUNCATE t",
            "COPY t FROM '/x'",
            "VACUUM t",
            "ANALYZE",
            "CLUSTER t",
            "GRANT SELECT ON t TO PUBLIC",
            "REFRESH MATERIALIZED VIEW m",
        ] {
            assert_eq!(need_of(statement), Need::Open, "{statement}");
        }
    }

    #[pg_test]
    fn what_writes_nothing_needs_nothing() {
        for statement in [
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
            "PREPARE TRANSACTION 'x'",
            "COPY t TO '/x'",
            "SET work_mem = '1MB'",
            "SHOW work_mem",
            "ALTER SYSTEM SET work_mem = '1MB'",
            "CHECKPOINT",
            "LISTEN a",
            "EXPLAIN SELECT 1",
            "DISCARD ALL",
        ] {
            assert_eq!(need_of(statement), Need::Nothing, "{statement}");
        }
    }
}
