//! biha: high availability built into PostgreSQL.
#![allow(unsafe_code)]

mod agent;
mod board;
mod controller;
mod executor;
mod gate;
mod guard;
mod guc;
mod lifecycle;
mod lost;
mod paths;
mod pg;
mod rejections;
mod sqlapi;

use pgrx::prelude::*;

::pgrx::pg_module_magic!();

/// Called by PostgreSQL when the library is loaded.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // Also loaded by CREATE EXTENSION and by functions that are called: then there is nothing to set up.
    // SAFETY: a plain value of this process.
    if !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        return;
    }
    guc::register();
    if !lifecycle::leads_this_server() {
        return;
    }
    board::register();
    lifecycle::init();
    guard::init();
    gate::init();
    controller::register();
    agent::register();
}

extension_sql_file!(
    "../sql/views.sql",
    name = "views",
    requires = [sqlapi::read::status, sqlapi::read::nodes]
);
extension_sql_file!("../sql/grants.sql", name = "grants", finalize);

#[cfg(any(test, feature = "pg_test"))]
#[path = "../pg_test/mod.rs"]
pub mod pg_test;
