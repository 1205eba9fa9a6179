//! biha: high availability built into PostgreSQL.
#![allow(unsafe_code)]

mod board;
mod guc;
mod paths;
mod pg;

::pgrx::pg_module_magic!();
