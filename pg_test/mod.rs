//! In-server tests, one file per area. They run in one server that has biha loaded but not configured, which must
//! then behave as if biha were absent.
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod guard;
pub mod lifecycle;
pub mod sqlapi;
pub mod walreader;

/// Called once by pgrx before the tests.
pub fn setup(_options: Vec<&str>) {}

/// What postgresql.conf must have for the tests.
pub fn postgresql_conf_options() -> Vec<&'static str> {
    vec!["shared_preload_libraries = 'biha'"]
}
