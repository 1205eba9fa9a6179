//! Refuses ALTER SYSTEM on settings that biha manages: postgresql.auto.conf is read after biha's own files,
//! so what stands there would take the place of what biha says, unseen until the next reload or restart.
//!
//! Everything can still be set in postgresql.conf, before the line that includes biha's file. ALTER SYSTEM
//! RESET ALL is let through: it can only remove what should not be there.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::pg::utility_hook::{self, AlterSystem, UtilityStatement};

/// Why a setting may not be changed by ALTER SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Managed {
    /// biha sets it as the node's role changes.
    ByRole,
    /// biha replaces the operator's value at times.
    AtTimes,
    /// It says who this node is in its cluster.
    Identity,
    /// Members need the value they have.
    Fixed,
    /// biha must stay among the libraries.
    Libraries,
}

const MANAGED: &[(&str, Managed)] = &[
    ("primary_conninfo", Managed::ByRole),
    ("primary_slot_name", Managed::ByRole),
    ("synchronous_standby_names", Managed::ByRole),
    ("wal_retrieve_retry_interval", Managed::AtTimes),
    ("restore_command", Managed::AtTimes),
    ("biha.receiver_epoch", Managed::ByRole),
    ("biha.id", Managed::Identity),
    ("biha.host", Managed::Identity),
    ("biha.port", Managed::Identity),
    ("hot_standby", Managed::Fixed),
    ("recovery_target_timeline", Managed::Fixed),
    ("shared_preload_libraries", Managed::Libraries),
];

/// Puts the guard in place. In `_PG_init` of a configured node, once.
pub fn init() {
    utility_hook::install();
}

/// Raises an ERROR if the statement is not for users to give.
pub fn check(statement: &UtilityStatement) {
    if let Some((name, managed)) = statement.alter_system().as_ref().and_then(refused) {
        refuse(name, managed);
    }
}

/// The managed setting that a statement would change.
fn refused(statement: &AlterSystem) -> Option<(&'static str, Managed)> {
    let asked = statement.name.as_deref()?;
    let (name, managed) = MANAGED.iter().copied().find(|(name, _)| name.eq_ignore_ascii_case(asked))?;
    let allowed = match (managed, &statement.value) {
        // Without a value the configuration files say it, and there biha stands.
        (Managed::Libraries, value) => value.as_deref().is_none_or(lists_biha),
        _ => false,
    };
    (!allowed).then_some((name, managed))
}

/// Is biha among these libraries?
fn lists_biha(libraries: &str) -> bool {
    libraries
        .split(',')
        .map(|library| library.trim().trim_matches(['"', '\'']))
        .any(|library| library.rsplit('/').next().is_some_and(|file| file == "biha" || file == "biha.so"))
}

fn refuse(name: &str, managed: Managed) {
    let (detail, hint) = match managed {
        Managed::ByRole => (
            "biha sets it as this node's role in the cluster changes.",
            "Use the functions in schema biha to change the cluster.",
        ),
        Managed::AtTimes => (
            "biha sets it to another value while it changes the leader.",
            "Set it in postgresql.conf, before the line that includes postgresql.biha.conf.",
        ),
        Managed::Identity => (
            "It says which member of the cluster this node is.",
            "Remove the node from the cluster and add it anew.",
        ),
        Managed::Fixed => (
            "A member of a cluster needs the value that biha has set.",
            "Remove the node from the cluster if it shall be a server of its own.",
        ),
        Managed::Libraries => (
            "Without biha this node would start as a server of its own.",
            "Put biha first in the list, or remove the node from the cluster.",
        ),
    };
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_CANT_CHANGE_RUNTIME_PARAM,
        format!("parameter \"{name}\" is managed by biha"),
        "biha",
    )
    .set_detail(detail)
    .set_hint(hint)
    .report(PgLogLevel::ERROR);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn statement(name: &str, value: Option<&str>) -> AlterSystem {
        AlterSystem { name: Some(name.into()), value: value.map(str::to_string) }
    }

    #[test]
    fn managed_settings_are_refused_whatever_their_case_and_value() {
        for (name, managed) in MANAGED {
            if *managed != Managed::Libraries {
                assert!(refused(&statement(name, Some("x"))).is_some(), "{name}");
                assert!(refused(&statement(&name.to_uppercase(), None)).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn other_settings_and_reset_all_pass() {
        assert_eq!(refused(&statement("work_mem", Some("5MB"))), None);
        assert_eq!(refused(&statement("biha.autorewind", Some("off"))), None);
        assert_eq!(refused(&AlterSystem { name: None, value: None }), None);
    }

    #[test]
    fn libraries_must_list_biha() {
        for (value, allowed) in [
            (Some("biha"), true),
            (Some("biha, pg_stat_statements"), true),
            (Some("pg_stat_statements, \"/usr/lib/biha.so\""), true),
            (Some("pg_stat_statements"), false),
            (Some("notbiha"), false),
            (Some(""), false),
            (None, true),
        ] {
            assert_eq!(
                refused(&statement("shared_preload_libraries", value)).is_none(),
                allowed,
                "{value:?}"
            );
        }
    }
}
