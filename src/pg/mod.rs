//! The fence: safe wrappers over PostgreSQL, and the only place with `unsafe` besides the hooks.

pub mod compat;
pub mod mutex;
pub mod process;
pub mod serverconf;
