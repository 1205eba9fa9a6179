//! A server that runs as a service manager runs it: in the foreground, with a command line, a directory and an
//! environment of its own, and its exit code is seen.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::node::Node;
use crate::wait::wait_until;

/// How a server is started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Working directory.
    pub directory: &'a Path,
    /// Command line after the program's name.
    pub arguments: &'a [&'a str],
    /// Added to the environment.
    pub environment: &'a [(&'a str, &'a OsStr)],
}

/// A server that was started so. It ends with its cluster.
#[derive(Debug)]
pub struct Service {
    /// The shell that waits for the server: a child of the harness's own would be reaped as an orphan.
    shell: Child,
}

impl Service {
    /// Starts a node's server and waits until it answers.
    pub fn start(node: &Node, how: Start) -> Result<Service> {
        let log = OpenOptions::new().append(true).create(true).open(&node.log);
        let log = log.with_context(|| format!("could not open {}", node.log.display()))?;
        let mut command: Command = node.runner.command("sh");
        command.args(["-c", "\"$@\"; exit $?", "sh"]).arg(node.bindir.join("postgres")).args(how.arguments);
        command.current_dir(how.directory).envs(how.environment.iter().copied());
        command.stdout(log.try_clone()?).stderr(log);
        let shell = command.spawn().context("could not start a server")?;
        node.wait_answers(Duration::from_secs(60))?;
        Ok(Service { shell })
    }

    /// Waits for the server's end: its exit code, 128 and more for a signal.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<Option<i32>> {
        wait_until("the end of a server in the foreground", timeout, || {
            let ended = self.shell.try_wait().context("could not wait for it")?;
            ended.map(|status| status.code()).context("it runs")
        })
    }
}
