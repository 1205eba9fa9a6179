//! The command of biha, as a library: what was typed → facts and checks → plan → run.
#![forbid(unsafe_code)]

pub mod certs;
pub mod cli;
pub mod conf;
pub mod datadir;
pub mod files;
pub mod interrupt;
pub mod outcome;
pub mod random;
pub mod settings;
pub mod sql;
pub mod tools;
pub mod ui;
pub mod undo;
