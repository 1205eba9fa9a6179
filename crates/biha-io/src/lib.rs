//! Sockets, TLS, frames and files of biha.
//!
//! **Architecture invariant:** no PostgreSQL, no decision about roles or terms, no thread except those that
//! the caller lets [`ThreadResolver`] start, and nothing that blocks except the file functions.
#![forbid(unsafe_code)]

mod durable;
mod history;
mod magic;
mod net;
mod statefiles;

pub use durable::durable_write;
pub use history::{History, HistoryFile};
pub use magic::{Magic, MagicError};
pub use net::*;
pub use statefiles::{Identity, LoadError, StateFiles};
