//! One seed: a cluster, faults, and what must hold during them and after them.

use biha_core::*;

use super::fault::Fault;
use super::figures::Figures;
use super::operator::Operator;
use super::sim::{Chaos, Cluster, Fingerprint, Mutation, Rng, Rule, ServerMode};

/// A clock may be wrong by so many parts per million, and the other way at another node: together less than the
/// tenth by which a lease is shorter than its promise.
const CLOCKS: [u64; 4] = [0, 100, 20_000, 45_000];
/// Numbers of nodes; small ones more often.
const NODES: [(u32, u64); 14] = [
    (1, 8),
    (2, 24),
    (3, 150),
    (4, 30),
    (5, 100),
    (6, 12),
    (7, 36),
    (8, 4),
    (9, 20),
    (12, 4),
    (16, 8),
    (24, 1),
    (32, 2),
    (64, 1),
];

/// What a run is to show.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub mutations: Vec<Mutation>,
    /// What is broken by them on purpose, and not looked at.
    pub expected: Vec<Rule>,
    /// Three to five nodes, synchronous.
    pub lossless: bool,
    /// Voters and quorums change, whatever is chosen for the rest; a change that could lose a commit is refused.
    pub changes: bool,
    /// nquorum may be set to less than a majority: two leaders are possible until it is one again.
    pub minorities: bool,
    /// Every second fault is this one.
    pub more: Option<Fault>,
    /// Clocks are wrong by up to so many parts per million.
    pub clocks: Option<u64>,
    /// Clocks stand while their host is frozen.
    pub pausing_clocks: bool,
    pub tracing: bool,
}

/// Quorums and voters change all the time, and no acknowledged commit may be lost.
pub fn changes() -> Plan {
    Plan { lossless: true, changes: true, more: Some(Fault::QuorumsShift), ..Plan::default() }
}

/// As changes, but nothing is guarded, and any number may elect for a while.
pub fn minorities() -> Plan {
    Plan { minorities: true, more: Some(Fault::MajorityAgain), ..Plan::default() }
}

pub struct Run {
    pub seed: u64,
    pub cluster: Cluster,
    pub rng: Rng,
    pub timeout: Millis,
    pub requests: RequestId,
    pub figures: Figures,
    pub operator: Operator,
    pub last_fault: Fault,
    /// How many nodes it began with, and may have at most.
    pub nodes: u32,
    pub most_nodes: u32,
    /// Clients commit once in so many ms.
    pace: Millis,
    /// They do not, for now.
    pub quiet: bool,
    next_commit: Millis,
    /// Voters are added and removed, and what counts as a quorum changes.
    pub voters_change: bool,
    /// Any nquorum is asked for.
    pub minorities: bool,
    /// Somebody may promote a server by hand, and did: a number may have been taken twice, which is an error to
    /// be seen.
    pub hands: bool,
    pub by_hand: bool,
    /// What goes wrong more often than all else.
    pub more: Option<Fault>,
    /// Rules are taken out: nobody waits for the cluster to be whole again.
    pub mutated: bool,
    clock_error: u64,
    extreme_clocks: bool,
    pausing_clocks: bool,
}

impl Run {
    pub fn new(seed: u64, plan: &Plan) -> Run {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut cluster = Cluster::new(seed);
        cluster.tracing = plan.tracing;
        cluster.mutations.clone_from(&plan.mutations);
        cluster.checks.expected.clone_from(&plan.expected);
        let mut config = some_config(&mut rng, plan.lossless);
        if plan.changes {
            config.settings.lossless = Lossless::Require;
        }
        let (nodes, timeout) = (config.members.len() as u32, config.settings.election_timeout());
        let voters_change = plan.changes || plan.minorities || !plan.lossless && rng.one_in(3);
        let guarded = config.lossless().0 && config.guards_commits();
        cluster.checks.lossless =
            guarded && (!voters_change || config.settings.lossless == Lossless::Require);
        let mut run = Run {
            seed,
            cluster,
            timeout,
            requests: 0,
            figures: Figures::default(),
            operator: Operator::default(),
            last_fault: Fault::Repair,
            nodes,
            most_nodes: nodes + 2,
            pace: rng.pick(if plan.lossless { &[10, 10, 10, 50] } else { &[10, 10, 100, 1000] })
                + Millis::from(nodes),
            quiet: false,
            next_commit: 0,
            voters_change,
            minorities: plan.minorities,
            hands: !guarded && rng.one_in(8),
            by_hand: false,
            more: plan.more,
            mutated: !plan.mutations.is_empty() || !plan.expected.is_empty(),
            clock_error: plan.clocks.unwrap_or(rng.pick(&CLOCKS)),
            extreme_clocks: plan.clocks.is_some(),
            pausing_clocks: plan.pausing_clocks,
            rng,
        };
        for id in config.members.keys().copied() {
            let options = Options { autorewind: true, autoreclone: false, trust_refused: false };
            run.cluster.add_host(id, config.clone(), options);
            run.set_clock(id);
        }
        run
    }

    pub fn set_clock(&mut self, id: NodeId) {
        let clock = &mut self.cluster.host_mut(id).clock;
        clock.offset = self.rng.below(100_000_000);
        let error = self.clock_error as i64;
        let some = self.rng.below(2 * self.clock_error + 1) as i64 - error;
        clock.ppm = self.rng.pick(&[if self.extreme_clocks { error } else { some }, error, -error]);
        clock.pauses = self.pausing_clocks;
    }

    /// Faults, then their end.
    pub fn all(&mut self) -> Result<(), String> {
        self.faults()?;
        self.recover()?;
        self.fail_over()?;
        self.switch_over()?;
        self.lead_without_one()?;
        self.figures.of(self.nodes, &self.cluster);
        Ok(())
    }

    /// Faults, as far as safety goes.
    pub fn faults(&mut self) -> Result<(), String> {
        for id in self.cluster.ids() {
            self.cluster.boot(id);
        }
        self.work(self.timeout)?;
        self.disturb()
    }

    /// Clients commit for so long.
    pub fn work(&mut self, ms: Millis) -> Result<(), String> {
        let end = self.cluster.now + ms;
        while self.cluster.now < end {
            let elections = self.cluster.checks.elections();
            let due = self.next_commit.max(self.cluster.now + 1);
            self.cluster.run(due.min(end).min(self.cluster.now + 20) - self.cluster.now);
            if self.cluster.now >= self.next_commit && !self.quiet {
                self.next_commit = self.cluster.now + self.pace;
                self.commit();
            }
            let elected = self.cluster.checks.elections() - elections;
            if elected > 0 {
                self.figures.elected(self.last_fault, elected);
            }
            self.operate();
            self.verdict()?;
        }
        Ok(())
    }

    /// A client at each server that is not in recovery.
    pub(super) fn commit(&mut self) {
        for id in self.cluster.ids() {
            if self.cluster.host(id).server.mode == ServerMode::Production {
                let _ = self.cluster.commit(id);
            }
        }
    }

    pub fn verdict(&self) -> Result<(), String> {
        match self.cluster.checks.violations.first() {
            Some(_) => Err(self.cluster.checks.violations.join("\n")),
            None => Ok(()),
        }
    }

    fn disturb(&mut self) -> Result<(), String> {
        let rng = &mut self.rng;
        self.cluster.chaos = Chaos {
            loss: rng.pick(&[0, 0, 20, 200]),
            duplicates: rng.pick(&[0, 50]),
            jitter: rng.pick(&[0, 5, 50, self.timeout]),
            failing_orders: rng.pick(&[0, 20, 100]),
            crash: rng.pick(&[0, 0, 1, 10]),
            lying_hints: rng.one_in(2),
            torn_wal: rng.one_in(2),
            slow_start: rng.pick(&[0, 0, 200, 2 * self.timeout]),
            slow_writes: rng.pick(&[0, 0, 50, 500]),
            slow_write: rng.pick(&[20, 200, self.timeout]),
        };
        let faults = if self.nodes > 16 { 3 + self.rng.below(8) } else { 5 + self.rng.below(30) };
        for _ in 0..faults {
            self.fault()?;
            let most = self.rng.pick(&[200, self.timeout, 3 * self.timeout]);
            let wait = self.rng.below(most);
            self.work(wait)?;
        }
        Ok(())
    }

    pub fn leader(&self) -> Option<NodeId> {
        let now = self.cluster.now;
        self.cluster.hosts.values().find(|h| h.gate > 0 && h.gate_open(now)).map(|h| h.id)
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.cluster.fingerprint
    }
}

fn some_config(rng: &mut Rng, lossless: bool) -> ClusterConfig {
    let nodes = if lossless { rng.pick(&[3, 3, 4, 5, 5]) } else { some_number_of_nodes(rng) };
    let referee = nodes > 2 && rng.one_in(4);
    let mut config = ClusterConfig::default();
    for id in 1..=nodes {
        let mode = match rng.below(2) {
            0 if referee && id == nodes => Mode::Referee,
            1 if referee && id == nodes => Mode::RefereeWithWal,
            _ => Mode::Regular,
        };
        let priority = if rng.one_in(4) { rng.below(200) as i32 } else { -1 };
        config.members.insert(NodeId(id), super::sim::member(mode, priority));
    }
    config.settings.heartbeat_send_period = rng.pick(&[50, 100, 200]);
    config.settings.heartbeat_max_lost = 4 + rng.below(7) as u32;
    if nodes > 2 && (rng.one_in(2) || lossless) {
        let k = (config.voters().count() - config.nquorum()) as u32;
        let standbys = config.wal_voters().count().saturating_sub(1) as u32;
        config.settings.sync_standbys = (k + rng.below(2) as u32).min(standbys);
        config.settings.lossless = rng.pick(&[Lossless::Warn, Lossless::Require]);
    }
    config
}

fn some_number_of_nodes(rng: &mut Rng) -> u32 {
    let all: u64 = NODES.iter().map(|(_, weight)| weight).sum();
    let mut chosen = rng.below(all);
    for (nodes, weight) in NODES {
        match chosen.checked_sub(weight) {
            Some(rest) => chosen = rest,
            None => return nodes,
        }
    }
    3
}
