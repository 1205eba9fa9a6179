//! Lines in the log about connections that were refused: each once a minute at most.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use biha_core::{Millis, NodeId};
use biha_io::LinkError;
use pgrx::log;

/// How long the same line is not repeated, in ms.
const QUIET: Millis = 60_000;
/// Different lines remembered; more are not told apart from the oldest.
const MAX_LINES: usize = 64;

/// What was logged when.
#[derive(Default)]
pub struct Rejections {
    logged: BTreeMap<String, Millis>,
}

impl Rejections {
    /// A connection was refused or given up.
    pub fn connection(&mut self, now: Millis, addr: SocketAddr, node: Option<NodeId>, why: &LinkError) {
        let who = node.map_or_else(|| addr.ip().to_string(), |id| format!("node {id}"));
        self.line(now, format!("control connection with {who} was refused: {why}"));
    }

    /// A host name could not be resolved.
    pub fn name(&mut self, now: Millis, node: NodeId, error: &std::io::Error) {
        self.line(now, format!("could not resolve the host name of node {node}: {error}"));
    }

    fn line(&mut self, now: Millis, line: String) {
        self.logged.retain(|_, at| now < *at + QUIET);
        if self.logged.contains_key(&line) || self.logged.len() >= MAX_LINES {
            return;
        }
        log!("biha: {line}");
        self.logged.insert(line, now);
    }
}
