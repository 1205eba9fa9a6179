//! What the nodes tell of themselves, in the time of one clock.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use crate::chaos::inject::wall;
use crate::chaos::reign::Event;
use crate::cluster::Cluster;

/// All nodes' events, as far as they were read.
#[derive(Debug)]
pub struct Witness {
    /// By the machine's clock.
    pub events: BTreeSet<Event>,
    /// By the clocks of those who tell of them.
    told: BTreeSet<Event>,
    began: i64,
    last: i64,
}

impl Default for Witness {
    fn default() -> Witness {
        let now = wall();
        Witness { events: BTreeSet::new(), told: BTreeSet::new(), began: now, last: i64::MIN / 2 }
    }
}

impl Witness {
    /// Reads everybody's `biha.history()`. Wall clocks are set meanwhile: what is new was since the last reading, or,
    /// where its node could not tell of it then, since the beginning.
    pub fn read(&mut self, cluster: &Cluster) -> Result<()> {
        let now = wall();
        let sql =
            "SELECT (extract(epoch FROM at) * 1000000)::bigint, node_id, term, event FROM biha.history()";
        for node in cluster.nodes() {
            for row in node.biha(sql)? {
                let field = |n: usize| row[n].as_deref().context("null in biha.history()");
                let told = Event {
                    at: field(0)?.parse()?,
                    node: field(1)?.parse()?,
                    term: field(2)?.parse()?,
                    event: field(3)?.to_owned(),
                };
                if self.told.insert(told.clone()) {
                    let at = self.truth(cluster, &told, now);
                    self.events.insert(Event { at, ..told });
                }
            }
        }
        self.last = now;
        Ok(())
    }

    fn truth(&self, cluster: &Cluster, told: &Event, now: i64) -> i64 {
        let Some(clock) = cluster.clock(told.node) else { return told.at };
        let since = |from| clock.truth(told.at, from, now);
        since(self.last).or(since(self.began)).unwrap_or(told.at)
    }
}
