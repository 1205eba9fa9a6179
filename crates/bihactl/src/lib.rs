//! The command of biha, as a library: what was typed → facts and checks → plan → run.
#![forbid(unsafe_code)]

pub mod certs;
pub mod conf;
pub mod random;
pub mod settings;
