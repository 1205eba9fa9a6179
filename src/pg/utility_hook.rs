//! The one ProcessUtility hook of biha.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use pgrx::prelude::*;
use pgrx::{PgBox, pg_sys};

use crate::{gate, guard};

/// A utility statement that is about to be executed.
pub struct UtilityStatement {
    planned: *mut pg_sys::PlannedStmt,
}

/// ALTER SYSTEM, as far as biha looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlterSystem {
    /// The setting; `None` for RESET ALL.
    pub name: Option<String>,
    /// The new value as it would be written; `None` for RESET and SET … TO DEFAULT.
    pub value: Option<String>,
}

impl UtilityStatement {
    fn node(&self) -> *mut pg_sys::Node {
        // SAFETY: PostgreSQL calls the hook with a valid statement.
        unsafe { (*self.planned).utilityStmt }
    }

    /// What kind of statement it is.
    pub fn tag(&self) -> pg_sys::NodeTag {
        let node = self.node();
        // SAFETY: every node begins with its tag.
        if node.is_null() { pg_sys::NodeTag::T_Invalid } else { unsafe { (*node).type_ } }
    }

    /// The statement, if it is of this kind.
    ///
    /// # Safety
    /// `T` must be the struct of nodes with this tag.
    pub unsafe fn downcast<T>(&self, tag: pg_sys::NodeTag) -> Option<PgBox<T>> {
        // SAFETY: the caller says that T is what the tag stands for.
        (self.tag() == tag).then(|| unsafe { PgBox::from_pg(self.node().cast::<T>()) })
    }

    /// The statement, if it is ALTER SYSTEM.
    pub fn alter_system(&self) -> Option<AlterSystem> {
        // SAFETY: the struct belongs to the tag.
        let statement =
            unsafe { self.downcast::<pg_sys::AlterSystemStmt>(pg_sys::NodeTag::T_AlterSystemStmt) }?;
        // SAFETY: always set by the parser.
        let set = unsafe { *statement.setstmt };
        let value = match set.kind {
            pg_sys::VariableSetKind::VAR_SET_VALUE => {
                // SAFETY: a list of constants, which the parser makes; returns a palloc'd string.
                text(unsafe { pg_sys::ExtractSetVariableArgs(statement.setstmt) })
            }
            _ => None,
        };
        Some(AlterSystem { name: text(set.name), value })
    }
}

fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: null or a NUL-terminated string of the parse tree, copied at once.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

static PREVIOUS: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();

/// Puts the hook in. In `_PG_init` of a configured node, once.
pub fn install() {
    // SAFETY: libraries are loaded by one thread; the hook lives as long as the library.
    unsafe {
        if PREVIOUS.set(pg_sys::ProcessUtility_hook).is_ok() {
            pg_sys::ProcessUtility_hook = Some(process_utility);
        }
    }
}

unsafe extern "C-unwind" {
    /// PostgreSQL's own, called as C calls it.
    fn standard_ProcessUtility(
        planned: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Calls what comes next without pgrx's boundary, which would lose an ERROR's position, context and object
/// names: nothing in this function has a destructor, so PostgreSQL may jump over it.
#[allow(clippy::too_many_arguments)] // PostgreSQL's signature.
unsafe extern "C-unwind" fn process_utility(
    planned: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        let bracket = gate::is_bracket((*planned).utilityStmt);
        let entered = !bracket && before(planned);
        let next = match PREVIOUS.get() {
            Some(Some(previous)) => *previous,
            _ => standard_ProcessUtility,
        };
        next(planned, query, read_only_tree, context, params, environment, destination, completion);
        if entered {
            after();
        }
    }
}

/// What refuses a statement. True if it must pass [`after`] as well.
#[pg_guard]
unsafe extern "C-unwind" fn before(planned: *mut pg_sys::PlannedStmt) -> bool {
    guard::check(&UtilityStatement { planned });
    // SAFETY: the statement that PostgreSQL passes to the hook.
    unsafe { gate::utility_enter(planned) }
}

/// What a statement that has succeeded must still pass.
#[pg_guard]
unsafe extern "C-unwind" fn after() {
    gate::utility_leave();
}
