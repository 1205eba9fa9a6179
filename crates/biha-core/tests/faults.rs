//! Random faults over a simulated cluster: whatever happens, one leader a term, one open gate, no timeline
//! number twice, no word that is not on disk, no acknowledged commit lost; and once the faults end, a leader.
//!
//! `SEED=n` runs one seed and prints its trace; `SEEDS=n` sets how many are run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod sim;

use biha_core::*;
use sim::{Chaos, Cluster, Rng, ServerMode};

/// Seeds in an ordinary run.
const SEEDS: u64 = 2000;
/// Election timeouts, and ms besides, within which there must be a leader once the faults have ended.
const PATIENCE: (u64, u64) = (6, 2000);

#[test]
fn safety_under_faults_and_liveness_after_them() {
    if let Some(seed) = number("SEED") {
        let mut run = Run::new(seed, true);
        // TRACE="Vote PreVote": these messages too.
        let kinds = std::env::var("TRACE").unwrap_or_default();
        run.cluster.trace_messages = kinds.split_whitespace().map(str::to_owned).collect();
        let result = run.all();
        for line in &run.cluster.trace {
            println!("{line}");
        }
        for host in run.cluster.hosts.values() {
            println!("{:?}\n", host.controller);
        }
        result.unwrap();
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (mut elections, mut commits, mut longest) = (0, 0, 0.0);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|t| scope.spawn(move || share(t, threads, seeds))).collect();
        for run in runs {
            let (e, c, l) = run.join().unwrap().unwrap_or_else(|text| panic!("\n{text}"));
            (elections, commits, longest) = (elections + e, commits + c, f64::max(longest, l));
        }
    });
    println!("{seeds} seeds: {elections} elections, {commits} acknowledged commits");
    println!("a leader at most {longest:.1} election timeouts after the last fault");
    assert!(elections > 2 * seeds && commits > 10 * seeds, "the runs show too little");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let trace = || {
            let mut run = Run::new(seed, true);
            run.all().unwrap();
            run.cluster.trace
        };
        assert_eq!(trace(), trace());
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Every `threads`-th seed: elections, acknowledged commits and the longest wait for a leader after the faults,
/// or the first failure.
fn share(first: u64, threads: u64, seeds: u64) -> Result<(u64, u64, f64), String> {
    let (mut elections, mut commits, mut longest) = (0, 0, 0.0);
    for seed in (first..seeds).step_by(threads as usize) {
        let outcome = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed, false);
            run.all().map(|()| (run.cluster.checks, run.waited))
        });
        let (checks, waited) = outcome.unwrap_or_else(|_| Err("panic".to_owned())).map_err(|text| {
            format!("{text}\nreplay: SEED={seed} cargo test -p biha-core --test faults -- --nocapture")
        })?;
        elections += checks.elections();
        commits += checks.acknowledged.len() as u64;
        longest = f64::max(longest, waited);
    }
    Ok((elections, commits, longest))
}

struct Run {
    cluster: Cluster,
    rng: Rng,
    timeout: Millis,
    requests: RequestId,
    /// From the last fault to a leader that takes writes, in election timeouts.
    waited: f64,
    /// Voters are added and removed. What is acknowledged meanwhile may be lost: the order in which the write
    /// and the read side are weakened is not simulated.
    voters_change: bool,
    /// Somebody promoted a server by hand: a number may have been taken twice, which is an error to be seen.
    by_hand: bool,
}

impl Run {
    fn new(seed: u64, tracing: bool) -> Run {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut cluster = Cluster::new(seed);
        cluster.tracing = tracing;
        let config = some_config(&mut rng);
        let (voters, k) = (config.voters().count(), config.settings.sync_standbys as usize);
        cluster.sync = k;
        let voters_change = rng.below(3) == 0;
        cluster.checks.lossless = !voters_change && k > 0 && k + 1 + config.nquorum() > voters;
        let timeout = config.settings.election_timeout();
        for id in config.members.keys().copied().collect::<Vec<_>>() {
            cluster.add_host(id, config.clone(), Options { autorewind: true, trust_refused: false });
            let clock = &mut cluster.host_mut(id).clock;
            clock.offset = rng.below(100_000_000);
            clock.ppm = rng.below(40_000) as i64 - 20_000;
        }
        Run { cluster, rng, timeout, requests: 0, waited: 0.0, voters_change, by_hand: false }
    }

    fn all(&mut self) -> Result<(), String> {
        for id in self.cluster.ids() {
            self.cluster.boot(id);
        }
        self.work(self.timeout)?;
        self.disturb()?;
        self.recover()
    }

    /// Clients commit for so long.
    fn work(&mut self, ms: Millis) -> Result<(), String> {
        let end = self.cluster.now + ms;
        while self.cluster.now < end {
            self.cluster.run(10);
            for id in self.cluster.ids() {
                if self.cluster.host(id).server.mode == ServerMode::Production {
                    let _ = self.cluster.commit(id);
                }
            }
            self.verdict()?;
        }
        Ok(())
    }

    fn verdict(&self) -> Result<(), String> {
        match self.cluster.checks.violations.first() {
            Some(_) => Err(self.cluster.checks.violations.join("\n")),
            None => Ok(()),
        }
    }

    fn disturb(&mut self) -> Result<(), String> {
        let rng = &mut self.rng;
        self.cluster.chaos = Chaos {
            loss: [0, 0, 20, 200][rng.below(4) as usize],
            duplicates: [0, 50][rng.below(2) as usize],
            jitter: [0, 5, 50, self.timeout][rng.below(4) as usize],
            failing_orders: [0, 20, 100][rng.below(3) as usize],
            crash: [0, 0, 1, 10][rng.below(4) as usize],
            lying_hints: rng.below(2) == 0,
        };
        let faults = 5 + self.rng.below(30);
        for _ in 0..faults {
            self.fault();
            if self.rng.below(20) == 0 && self.cluster.hosts.len() > 2 {
                self.plot()?;
            }
            let most = [200, self.timeout, 3 * self.timeout][self.rng.below(3) as usize];
            let wait = self.rng.below(most);
            self.work(wait)?;
        }
        Ok(())
    }

    fn some_node(&mut self) -> NodeId {
        let ids = self.cluster.ids();
        ids[self.rng.below(ids.len() as u64) as usize]
    }

    /// Any node, the leader more often than others.
    fn some_victim(&mut self) -> NodeId {
        let node = self.some_node();
        self.leader().filter(|_| self.rng.below(3) > 0).unwrap_or(node)
    }

    /// A follower is cut off until it stands; another, whose promise holds the leader's lease, forgets it if it can.
    fn plot(&mut self) -> Result<(), String> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let mut others: Vec<NodeId> = self.cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let last = others.remove(self.rng.below(others.len() as u64) as usize);
        for id in others {
            self.cut_both(leader, id);
        }
        let wait = self.timeout + self.rng.below(self.timeout);
        self.work(wait)?;
        self.cut_both(leader, last);
        self.cluster.kill_controller(last);
        self.work(self.timeout)
    }

    fn cut_both(&mut self, a: NodeId, b: NodeId) {
        self.cluster.net.cut(a, b);
        self.cluster.net.cut(b, a);
    }

    fn fault(&mut self) {
        let (a, b) = (self.some_victim(), self.some_node());
        let kind = self.rng.below(24);
        let name = format!("fault {kind} (n{b})");
        self.cluster.say(a, name);
        let c = &mut self.cluster;
        match kind {
            0 => c.kill_controller(a),
            1 => c.kill_postmaster(a),
            2 => c.kill_host(a),
            3 => c.stop(a),
            4 | 5 if a != b => c.net.cut(a, b),
            6 if a != b => self.cut_both(a, b),
            7 | 8 => {
                for other in c.ids() {
                    c.net.cut(a, other);
                    c.net.cut(other, a);
                }
            }
            9 => c.freeze(a),
            10 => c.stall(a),
            11 if a != b => c.reset_connection(a, b),
            12 | 13 | 20 | 21 => self.heal(),
            14 | 15 | 22 | 23 => self.boot_all(),
            16 => self.thaw_all(),
            // A receiver that still points there would stream from it before its controller says a word.
            17 if c.chaos.crash == 0 && c.host(a).watched() && !c.is_source(a) => {
                self.by_hand = true;
                c.promote_by_hand(a);
            }
            _ => self.command(a, b),
        }
    }

    fn command(&mut self, at: NodeId, target: NodeId) {
        self.requests += 1;
        let period = [50, 100, 200][self.rng.below(3) as usize];
        let votes = self.rng.below(2) == 0;
        let command = match self.rng.below(6) {
            0 => Command::Set(vec![Setting::HeartbeatSendPeriod(period)]),
            1 => Command::SetMember(target, MemberSetting::Priority(self.rng.below(300) as i32 - 1)),
            2 if self.voters_change => Command::SetMember(target, MemberSetting::CanVote(votes)),
            3 if self.voters_change => Command::SetMember(target, MemberSetting::CanBeLeader(votes)),
            _ => Command::SetLeader(target),
        };
        self.cluster.step(at, Input::Command(self.requests, command));
    }

    fn heal(&mut self) {
        self.cluster.net.heal_all();
        let ids = self.cluster.ids();
        for a in &ids {
            for b in ids.iter().filter(|b| *b > a) {
                self.cluster.healed(*a, *b);
            }
        }
    }

    fn boot_all(&mut self) {
        for id in self.cluster.ids() {
            let host = self.cluster.host(id);
            if host.stopped && host.server.mode == ServerMode::Down {
                self.cluster.boot(id);
            }
        }
    }

    fn thaw_all(&mut self) {
        for id in self.cluster.ids() {
            if self.cluster.host(id).frozen || self.cluster.host(id).stalled {
                self.cluster.thaw(id);
            }
        }
    }

    /// No more faults: one leader that takes writes, and all others stream from it.
    fn recover(&mut self) -> Result<(), String> {
        self.cluster.say(NodeId(0), "no more faults");
        self.cluster.chaos = Chaos::default();
        self.thaw_all();
        self.work(1)?;
        self.boot_all();
        self.heal();
        let timeout = self.longest_timeout();
        let begin = self.cluster.now;
        let end = begin + PATIENCE.0 * timeout + PATIENCE.1;
        while self.cluster.now < end && self.leader().is_none() {
            self.mend();
            self.work(20)?;
        }
        let Some(leader) = self.leader() else {
            // WAL that nobody elected neither votes nor stands; without it there may be no quorum.
            return if self.by_hand { self.verdict() } else { Err("no leader in time".to_owned()) };
        };
        self.waited = (self.cluster.now - begin) as f64 / timeout as f64;
        self.cluster.say(leader, format!("leads {} ms after the last fault", self.cluster.now - begin));
        for _ in 0..200 {
            self.mend();
            self.work(50)?;
            if self.all_follow() {
                return self.verdict();
            }
        }
        if self.by_hand { self.verdict() } else { Err("not all nodes follow in time".to_owned()) }
    }

    fn longest_timeout(&self) -> Millis {
        let timeouts = self.cluster.hosts.values().map(|h| h.disk.config.settings.election_timeout());
        timeouts.max().unwrap()
    }

    fn leader(&self) -> Option<NodeId> {
        let now = self.cluster.now;
        self.cluster.hosts.values().find(|h| h.gate_open(now)).map(|h| h.id)
    }

    /// The operator boots what a lost race left down, and resets the errors that faults may cause.
    fn mend(&mut self) {
        self.boot_all();
        for id in self.cluster.ids() {
            let host = self.cluster.host(id);
            let error = host.disk.hard.error.clone();
            match error {
                Some(e) if e.kind == NodeErrorKind::RewindFailed => {
                    self.requests += 1;
                    self.cluster.step(id, Input::Command(self.requests, Command::ResetNodeError));
                }
                Some(e) if e.kind == NodeErrorKind::TimelineConflict && self.by_hand => {}
                Some(e) => self.cluster.checks.violation(format!("n{id}: {}", e.text)),
                None => {}
            }
        }
    }

    fn all_follow(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let mut others = self.cluster.hosts.values().filter(|h| h.id != leader);
        others.all(|h| {
            let mode = h.disk.config.members[&h.id].mode;
            mode == Mode::Referee || h.server.streaming && h.server.receiver == Some(leader)
        })
    }
}

fn some_config(rng: &mut Rng) -> ClusterConfig {
    let nodes = [1, 2, 3, 3, 3, 4, 5, 5][rng.below(8) as usize];
    let referee = nodes > 2 && rng.below(4) == 0;
    let mut config = ClusterConfig::default();
    for id in 1..=nodes {
        let mode = match rng.below(2) {
            0 if referee && id == nodes => Mode::Referee,
            1 if referee && id == nodes => Mode::RefereeWithWal,
            _ => Mode::Regular,
        };
        let priority = if rng.below(4) == 0 { rng.below(200) as i32 } else { -1 };
        config.members.insert(NodeId(id), sim::member(mode, priority));
    }
    config.settings.heartbeat_send_period = [50, 100, 200][rng.below(3) as usize];
    config.settings.heartbeat_max_lost = 4 + rng.below(7) as u32;
    if nodes > 2 && rng.below(2) == 0 {
        let voters = config.voters().count();
        config.settings.sync_standbys = (voters - config.nquorum()) as u32;
    }
    config
}
