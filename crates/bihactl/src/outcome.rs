//! How a command ends.

use std::fmt;
use std::process::ExitCode;

use crate::ui;

/// A condition was not met: nothing is wrong with the command itself.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// An error that ends the command with exit status 1.
pub fn refused(text: impl Into<String>) -> anyhow::Error {
    Refused(text.into()).into()
}

/// Exit status 1: a condition was not met. 2: failure.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Refused>()) { 1 } else { 2 }
}

/// Reports what came of the command, and makes it the exit status.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::say(&format!("{error:#}"));
            ExitCode::from(exit_status(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_failure_through_its_context() {
        assert_eq!(exit_status(&anyhow!("disk full")), 2);
        assert_eq!(exit_status(&refused("no leader")), 1);
        let wrapped = Err::<(), _>(refused("no leader")).context("add").expect_err("an error");
        assert_eq!(exit_status(&wrapped), 1);
    }
}
