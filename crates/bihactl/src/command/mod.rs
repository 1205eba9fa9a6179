//! The commands: each checks first, then plans, then runs.

pub mod add;
pub mod connect;
pub mod init;
pub mod remove;
mod shared;
pub mod status;
pub mod switchover;

use anyhow::Result;

use crate::cli::{Cli, Command};

/// Runs what was typed.
pub fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Init(args) => init::run(args),
        Command::Add(args) => add::run(args),
        Command::Status(args) => status::run(args),
        Command::Switchover(args) => switchover::run(args),
        Command::Remove(args) => remove::run(args),
    }
}
