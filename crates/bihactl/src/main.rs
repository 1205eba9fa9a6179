//! The command of biha. All of it is in the library; see `bihactl --help`.

use std::process::ExitCode;

use bihactl::{cli::Cli, command, interrupt, outcome};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    outcome::report(interrupt::install().and_then(|()| command::run(&cli)))
}
