//! What was seen, over all seeds.

use std::collections::BTreeMap;
use std::fmt::Write;

use biha_core::Millis;

use super::fault::Fault;
use super::sim::Cluster;

/// Numbers of nodes that have a line of their own.
const LINES: [u32; 7] = [3, 5, 7, 9, 16, 32, 64];

/// Samples in ms, and in election timeouts where that is what counts.
type Samples = BTreeMap<u32, Vec<Millis>>;

#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub seeds: u64,
    by_nodes: BTreeMap<u32, u64>,
    simulated: Millis,
    events: u64,
    pub elections: u64,
    pub commits: u64,
    /// Runs whose faults left no quorum that could elect.
    pub excused: u64,
    /// How often a user was told that two leaders are possible no more, and all was judged from there on.
    pub judged_again: u64,
    /// Terms in which somebody asked for votes and nobody won; those where several asked.
    lost: u64,
    split: u64,
    faults: BTreeMap<Fault, u64>,
    elected_after: BTreeMap<Fault, u64>,
    /// From the last fault to a leader, in hundredths of the longest election timeout.
    after_faults: Samples,
    silent: Samples,
    told: Samples,
    switched: Samples,
}

impl Figures {
    pub fn count(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Leaders were elected; this was the last fault before.
    pub fn elected(&mut self, after: Fault, count: u64) {
        *self.elected_after.entry(after).or_default() += count;
    }

    pub fn after_faults(&mut self, nodes: u32, ms: Millis, timeout: Millis) {
        self.after_faults.entry(nodes).or_default().push(100 * ms / timeout);
    }

    pub fn failed_over(&mut self, nodes: u32, silently: bool, ms: Millis) {
        let samples = if silently { &mut self.silent } else { &mut self.told };
        samples.entry(nodes).or_default().push(ms);
    }

    /// How many leaders died alone, and how many switchovers there were.
    pub fn planned(&self) -> [u64; 2] {
        let count = |samples: &Samples| samples.values().map(|of| of.len() as u64).sum::<u64>();
        [count(&self.silent) + count(&self.told), count(&self.switched)]
    }

    pub fn switched_over(&mut self, nodes: u32, ms: Millis) {
        self.switched.entry(nodes).or_default().push(ms);
    }

    /// A run has ended.
    pub fn of(&mut self, nodes: u32, cluster: &Cluster) {
        self.seeds += 1;
        *self.by_nodes.entry(nodes).or_default() += 1;
        self.simulated += cluster.now;
        self.events += cluster.events();
        self.elections += cluster.checks.elections();
        self.commits += cluster.checks.commits();
        self.judged_again += cluster.checks.judged_again;
        let (lost, split) = cluster.checks.lost_elections();
        self.lost += lost;
        self.split += split;
    }

    pub fn add(&mut self, other: &Figures) {
        self.seeds += other.seeds;
        self.simulated += other.simulated;
        self.events += other.events;
        self.elections += other.elections;
        self.commits += other.commits;
        self.judged_again += other.judged_again;
        self.excused += other.excused;
        self.lost += other.lost;
        self.split += other.split;
        sum(&mut self.by_nodes, &other.by_nodes);
        sum(&mut self.faults, &other.faults);
        sum(&mut self.elected_after, &other.elected_after);
        for (mine, theirs) in [
            (&mut self.after_faults, &other.after_faults),
            (&mut self.silent, &other.silent),
            (&mut self.told, &other.told),
            (&mut self.switched, &other.switched),
        ] {
            for (nodes, samples) in theirs {
                mine.entry(*nodes).or_default().extend(samples);
            }
        }
    }

    /// All of it, to be read.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let faults: u64 = self.faults.values().sum();
        let _ = writeln!(
            text,
            "{} seeds, {:.1} h of simulated time, {} events, {faults} faults, {} acknowledged commits",
            self.seeds,
            self.simulated as f64 / 3_600_000.0,
            self.events,
            self.commits
        );
        let _ = writeln!(
            text,
            "{} runs were left without a quorum that could elect\n{} leaders elected; {} terms without a winner, {} of them split votes ({:.2} % of elections)",
            self.excused,
            self.elections,
            self.lost,
            self.split,
            100.0 * self.split as f64 / (self.elections + self.lost).max(1) as f64
        );
        self.times(&mut text);
        let _ = writeln!(text, "\n{:<26} {:>8} {:>10} {:>12}", "fault", "count", "elections", "per fault");
        for (fault, count) in &self.faults {
            let elected = self.elected_after.get(fault).copied().unwrap_or(0);
            let name = format!("{fault:?}");
            let per = elected as f64 / *count as f64;
            let _ = writeln!(text, "{name:<26} {count:>8} {elected:>10} {per:>12.2}");
        }
        let none = self.elected_after.get(&Fault::Repair).copied().unwrap_or(0);
        let _ = writeln!(text, "{:<26} {:>8} {none:>10}", "(repair, start)", "");
        text
    }

    /// Median, p99 and greatest for each number of nodes.
    fn times(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\n{:<7} {:>7}  {:>20}  {:>20}  {:>20}  {:>20}",
            "time to", "", "after chaos", "silent death", "told death", "switchover"
        );
        let _ = writeln!(
            text,
            "{:<7} {:>7}  {:>20}  {:>20}  {:>20}  {:>20}",
            "a leader", "seeds", "election timeouts", "ms", "ms", "ms"
        );
        let all: Vec<u32> = self.by_nodes.keys().copied().collect();
        let others: Vec<u32> = all.iter().copied().filter(|n| !LINES.contains(n)).collect();
        for nodes in LINES {
            self.line(text, &nodes.to_string(), &[nodes]);
        }
        self.line(text, "others", &others);
        self.line(text, "all", &all);
    }

    fn line(&self, text: &mut String, name: &str, nodes: &[u32]) {
        let seeds: u64 = nodes.iter().filter_map(|n| self.by_nodes.get(n)).sum();
        let of = |samples: &Samples, unit: f64, digits: usize| {
            let mut all: Vec<Millis> =
                nodes.iter().filter_map(|n| samples.get(n)).flatten().copied().collect();
            all.sort_unstable();
            let at =
                |part: f64| all.get(((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1)));
            match (at(0.5), at(0.99), all.last()) {
                (Some(median), Some(p99), Some(max)) => {
                    let show = |n: &Millis| format!("{:>6.digits$}", *n as f64 / unit);
                    format!("{}{}{}", show(median), show(p99), show(max))
                }
                _ => "-".to_owned(),
            }
        };
        let _ = writeln!(
            text,
            "{name:<7} {seeds:>7}  {:>20}  {:>20}  {:>20}  {:>20}",
            of(&self.after_faults, 100.0, 2),
            of(&self.silent, 1.0, 0),
            of(&self.told, 1.0, 0),
            of(&self.switched, 1.0, 0)
        );
    }
}

fn sum<K: Ord + Copy>(mine: &mut BTreeMap<K, u64>, theirs: &BTreeMap<K, u64>) {
    for (key, count) in theirs {
        *mine.entry(*key).or_default() += count;
    }
}
