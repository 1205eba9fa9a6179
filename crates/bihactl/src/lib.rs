//! The command of biha, as a library: what was typed → facts and checks → plan → run.
#![forbid(unsafe_code)]

pub mod certs;
pub mod checks;
pub mod cli;
pub mod command;
pub mod conf;
pub mod datadir;
pub mod files;
pub mod interrupt;
pub mod outcome;
pub mod plan;
pub mod random;
pub mod render;
pub mod settings;
pub mod sql;
pub mod tools;
pub mod ui;
pub mod undo;
pub mod work;
