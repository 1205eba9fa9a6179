//! State files: written before anything that depends on them is said; slow, full, lost.

use std::vec::IntoIter;

use biha_core::*;

use super::mutation::WRITES_LATE;
use super::{Cluster, Mutation, What, say};

/// What survives everything but its own loss.
#[derive(Debug)]
pub struct Disk {
    pub hard: HardState,
    pub config: ClusterConfig,
    /// No write succeeds.
    pub full: bool,
    /// `biha.state` is torn or gone.
    pub lost: bool,
    /// Counts the memories that this host has had.
    pub memory: u64,
    /// The highest term and incarnation that this memory was told to others with.
    pub told: (Term, Incarnation),
    /// What was told to be on disk, but is so only from a later moment on. In a mutation only.
    pub late: Vec<(Millis, HardState)>,
}

impl Disk {
    pub fn new(id: NodeId, config: ClusterConfig) -> Self {
        let hard = HardState::new(ClusterId(1), 1, id);
        Disk { hard, config, full: false, lost: false, memory: 0, told: Default::default(), late: Vec::new() }
    }

    /// The memory of a node that is made anew. Its incarnations are above those of any node of its number.
    pub fn renew(&mut self) {
        let id = self.hard.node;
        self.memory += 1;
        self.hard = HardState::new(ClusterId(1), 1, id);
        self.hard.incarnation = Incarnation::first(self.memory);
        self.lost = false;
        self.told = Default::default();
        self.late.clear();
    }
}

/// A write that takes its time, and what waits for it.
#[derive(Debug)]
pub struct Writing {
    write: Output,
    rest: IntoIter<Output>,
}

impl Cluster {
    /// Carries outputs out, in order.
    pub(super) fn perform(&mut self, id: NodeId, outputs: Vec<Output>) {
        self.perform_all(id, outputs.into_iter());
    }

    fn perform_all(&mut self, id: NodeId, mut outputs: IntoIter<Output>) {
        while let Some(output) = outputs.next() {
            if self.chaos.crash > 0 && self.rng.below(10_000) < self.chaos.crash {
                say!(self, id, "crashes between two outputs");
                self.kill_controller(id);
                return;
            }
            if matches!(output, Output::Persist(_) | Output::PersistConfig(_)) {
                if self.host(id).disk.full {
                    say!(self, id, "cannot write: no space is left on the device");
                    self.kill_controller(id);
                    return;
                }
                let chance = self.chaos.slow_writes;
                if self.rng.of_1000(chance) {
                    let takes = 1 + self.rng.below(self.chaos.slow_write);
                    let host = self.host_mut(id);
                    host.writing = Some(Writing { write: output, rest: outputs });
                    let life = host.life;
                    self.after(takes, What::Written(id, life));
                    return;
                }
            }
            self.act(id, output);
        }
    }

    /// A slow write is done.
    pub(super) fn written(&mut self, id: NodeId, life: u64) {
        let host = self.host_mut(id);
        if host.life != life {
            return;
        }
        if host.stalled {
            host.backlog.push(What::Written(id, life));
            return;
        }
        let Some(Writing { write, rest }) = host.writing.take() else { return };
        if host.disk.full {
            say!(self, id, "cannot write: no space is left on the device");
            self.kill_controller(id);
            return;
        }
        self.act(id, write);
        self.perform_all(id, rest);
        self.settle(id);
        if !self.host(id).hangs() {
            self.catch_up(id);
            self.poke(id);
        }
    }

    /// The process ended while it wrote: the file is the old one, or the new one.
    pub(super) fn write_interrupted(&mut self, id: NodeId) {
        let Some(Writing { write, .. }) = self.host_mut(id).writing.take() else { return };
        if self.rng.one_in(2) {
            self.write(id, write);
        }
    }

    pub(super) fn write(&mut self, id: NodeId, output: Output) {
        let late = self.mutated(Mutation::ToldBeforeWritten).then_some(self.now + WRITES_LATE);
        match output {
            Output::Persist(hard) => {
                self.checks.note_timelines(id, &hard);
                let disk = &mut self.host_mut(id).disk;
                match late {
                    Some(at) => {
                        disk.hard.incarnation = hard.incarnation;
                        disk.late.push((at, *hard));
                    }
                    None => disk.hard = *hard,
                }
            }
            Output::PersistConfig(config) => {
                self.check_new_config(id, &config);
                self.host_mut(id).disk.config = *config;
            }
            _ => {}
        }
    }
}
