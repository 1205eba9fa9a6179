//! The fence: safe wrappers over PostgreSQL, and the only place with `unsafe` besides the hooks.

pub mod backends;
pub mod clock;
pub mod compat;
pub mod control;
pub mod exec;
pub mod mutex;
pub mod postmaster;
pub mod process;
pub mod random;
pub mod recovery;
pub mod serverconf;
pub mod settings;
pub mod sharedpage;
pub mod signal;
pub mod slots;
pub mod status;
pub mod utility_hook;
pub mod wait;
pub mod walreader;
pub mod walreceiver;
pub mod walsender;
pub mod worker;
pub mod xact;
pub mod xlog;
