//! Streaming replication, and the commits that wait for it.

use std::collections::BTreeSet;

use biha_core::*;

use super::server::{Mode, Waiting};
use super::wal::{Kind, Log};
use super::{Cluster, LATENCY, Mutation, RETRY_PULL, Rule, What};

impl Cluster {
    /// There is new WAL: whoever streams from here gets it.
    pub(super) fn appended(&mut self, id: NodeId) {
        let at = self.now + LATENCY;
        for host in self.hosts.values_mut() {
            let server = &mut host.server;
            if server.receiver == Some(id) && !server.pulling {
                server.pulling = true;
                self.queue.push(at, What::Pull(host.id));
            }
        }
    }

    /// A receiver gets what its source has.
    pub(super) fn pull(&mut self, id: NodeId) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        host.server.pulling = false;
        host.server.receiver = host.server.receiver.or(host.server.former.take());
        let server = &host.server;
        let Some(source) = server.receiver else { return };
        let (mode, full) = (server.mode, host.disk.full);
        let Some(from) = self.hosts.get(&source).filter(|_| mode == Mode::Standby) else { return };
        if !from.power || from.frozen || !self.net.streams(id, source) {
            // Silence: nothing is noticed. The link's end or the host's return goes on from here.
            return;
        }
        let server = &self.host(id).server;
        if full || !from.server.sends() || !server.log.can_stream_from(&from.server.log) {
            self.host_mut(id).server.streaming = false;
            self.host_mut(id).server.pulling = true;
            self.after(RETRY_PULL, What::Pull(id));
            self.poke(id);
            return;
        }
        // Taken out and put back: two hosts cannot be borrowed at once.
        let nothing = Log { records: Vec::new(), history: Vec::new(), files: BTreeSet::new() };
        let mut log = std::mem::replace(&mut self.host_mut(id).server.log, nothing);
        let theirs = &self.host(source).server.log;
        let begins = !self.host(id).server.streaming;
        let received = if begins { log.receive(theirs) } else { log.receive_more(theirs) };
        let server = &mut self.host_mut(id).server;
        server.log = log;
        server.streaming = true;
        match received {
            Err(text) => {
                let log = |id: NodeId| (id, &self.hosts[&id].server.log);
                self.checks.mixed(log(id), log(source), format!("n{id} streams from n{source}: {text}"));
            }
            Ok(false) => {}
            Ok(true) => {
                self.appended(id);
                self.flush(id);
            }
        }
        self.poke(id);
        if let Some((number, Order::AwaitEnd { .. })) = self.host(id).order {
            let life = self.host(id).life;
            self.after(0, What::AwaitEnds(id, life, number));
        }
    }

    /// What was received becomes durable, and the source is told.
    fn flush(&mut self, id: NodeId) {
        let (torn, slow) = (self.chaos.torn_wal, self.chaos.slow_writes > 0);
        if !torn {
            let server = &mut self.host_mut(id).server;
            server.on_disk = server.log.records.len();
            self.tell_flushed(id);
            return;
        }
        let server = &mut self.hosts.get_mut(&id).expect("a known host").server;
        if !server.flushing {
            server.flushing = true;
            let takes = if slow { 1 + self.rng.below(50) } else { 1 };
            let life = self.host(id).life;
            self.after(takes, What::Flushed(id, life));
        }
    }

    pub(super) fn flushed(&mut self, id: NodeId, life: u64) {
        let host = self.host_mut(id);
        if host.life != life || host.server.mode == Mode::Down {
            return;
        }
        host.server.flushing = false;
        host.server.on_disk = host.server.log.records.len();
        self.tell_flushed(id);
    }

    fn tell_flushed(&mut self, id: NodeId) {
        let server = &self.host(id).server;
        if let Some(source) = server.receiver.filter(|_| server.streaming) {
            self.flushed_at_standbys(source);
        }
    }

    /// A client's commit: its number, or why not.
    pub fn commit(&mut self, id: NodeId) -> Result<u64, &'static str> {
        let now = self.now;
        if self.host(id).server.mode != Mode::Production {
            return Err("read-only");
        }
        if !self.host(id).gate_open(now) {
            return Err("the gate is shut");
        }
        if self.host(id).disk.full {
            // PANIC: could not write to the WAL
            self.kill_controller(id);
            return Err("no space is left on the device");
        }
        self.next_commit += 1;
        let number = self.next_commit;
        let server = &mut self.host_mut(id).server;
        server.log.append(Kind::Commit(number));
        let at = server.log.records.len();
        server.on_disk = at;
        server.unacknowledged.push(Waiting { number, at });
        self.appended(id);
        self.flushed_at_standbys(id);
        self.poke(id);
        Ok(number)
    }

    /// The controller's word for k counts at once; synchronous_standby_names is read when the server comes to it.
    pub(super) fn set_synchronous(&mut self, id: NodeId) {
        let one_less = usize::from(self.mutated(Mutation::OneStandbyLess));
        let newcomers = self.mutated(Mutation::NewcomersCounted);
        let at_once = self.chaos.jitter == 0;
        let host = self.host_mut(id);
        let Some(node) = &host.controller else { return };
        let k = node.config().settings.sync_standbys as usize;
        if k == 0 {
            host.synchronous = (0, Vec::new());
            host.names = None;
            return;
        }
        if !node.state().is_leader() {
            return;
        }
        let names = match newcomers {
            true => node.config().wal_voters().collect(),
            false => node.view().synchronous,
        };
        host.synchronous.0 = k.saturating_sub(one_less);
        if host.synchronous.1 == names {
            host.names = None;
        } else if at_once {
            host.synchronous.1 = names;
        } else if host.names.replace(names).is_none() {
            let (life, takes) = (self.host(id).life, self.rng.below(1000));
            self.after(takes, What::Reloaded(id, life));
        }
    }

    pub(super) fn reloaded(&mut self, id: NodeId, life: u64) {
        let host = self.host_mut(id);
        if host.life == life
            && let Some(names) = host.names.take()
        {
            host.synchronous.1 = names;
            self.flushed_at_standbys(id);
            self.poke(id);
        }
    }

    /// Does the server count anybody who does not count any more?
    pub(super) fn counts_others(&self, id: NodeId) -> bool {
        let host = self.host(id);
        let gone = |names: &Vec<NodeId>| host.synchronous.1.iter().any(|name| !names.contains(name));
        host.names.as_ref().is_some_and(gone) && !self.mutated(Mutation::NamesNotAwaited)
    }

    /// How many of this server's records enough standbys have flushed, if there are enough.
    fn flushed_by_enough(&self, id: NodeId) -> Option<usize> {
        let host = self.host(id);
        let (k, names) = &host.synchronous;
        let Some(last) = k.checked_sub(1) else { return Some(host.server.log.records.len()) };
        let mut flushed: Vec<usize> = names
            .iter()
            .filter_map(|name| self.hosts.get(name))
            .filter(|h| h.server.receiver == Some(id) && h.server.streaming)
            .map(|h| h.server.on_disk)
            .collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        flushed.get(last).copied()
    }

    /// Up to where enough standbys have flushed.
    pub(super) fn synced(&self, id: NodeId) -> Lsn {
        let host = self.host(id);
        if host.synchronous.0 == 0 || host.server.mode != Mode::Production {
            return Lsn(0);
        }
        let enough = self.flushed_by_enough(id).and_then(|count| count.checked_sub(1));
        enough.and_then(|last| host.server.log.records.get(last)).map_or(Lsn(0), |record| record.end)
    }

    /// Acknowledges the commits that enough synchronous standbys have.
    fn flushed_at_standbys(&mut self, id: NodeId) {
        let now = self.now;
        let host = self.host(id);
        if host.server.unacknowledged.is_empty() || !host.gate_open(now) {
            return;
        }
        let Some(enough) = self.flushed_by_enough(id) else { return };
        let waiting = &mut self.host_mut(id).server.unacknowledged;
        let done: Vec<Waiting> = waiting.iter().filter(|w| w.at <= enough).copied().collect();
        waiting.retain(|w| w.at > enough);
        self.acknowledge(id, &done);
    }

    fn acknowledge(&mut self, id: NodeId, commits: &[Waiting]) {
        let Some(node) = &self.host(id).controller else { return };
        let term = node.hard().term;
        self.checks.acknowledged(term, commits);
    }

    /// Walsenders end; receivers notice and try again.
    pub(super) fn end_walsenders(&mut self, id: NodeId) {
        for host in self.ids() {
            if self.host(host).server.receiver == Some(id) && self.net.open(id, host) {
                self.host_mut(host).server.streaming = false;
                self.host_mut(host).server.pulling = true;
                self.after(RETRY_PULL, What::Pull(host));
                self.poke(host);
            }
        }
    }

    /// Has everybody who streams from here got everything?
    pub(super) fn drained(&self, id: NodeId) -> bool {
        let all = self.host(id).server.log.records.len();
        self.hosts
            .values()
            .filter(|h| h.server.receiver == Some(id) && h.server.streaming)
            .all(|h| h.server.log.records.len() >= all)
    }
}
