//! What came of a round of faults, and of many.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::bench::ms;

/// One step of a round.
#[derive(Clone, Debug)]
pub struct Done {
    /// Under which kind it is counted.
    pub name: String,
    /// How many faults it was.
    pub faults: usize,
    /// Faults that came too late to happen.
    pub missed: usize,
    /// The longest time without an acknowledged write until the next step.
    pub outage: Duration,
    /// Afterwards, the time for which a majority lived and nobody took writes.
    pub led: Duration,
    /// From when somebody said that it takes writes until one was acknowledged.
    pub written: Duration,
    /// From the last remedy until one leads and all others stream.
    pub healed: Duration,
    /// Acknowledged rows that are lost.
    pub lost: usize,
    /// What an operator had to do for nodes.
    pub hands: usize,
}

/// What came of it all.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All steps.
    pub done: Vec<Done>,
    /// Acknowledged rows of the oracle.
    pub acknowledged: usize,
    /// Sums that were read.
    pub sums: usize,
    /// Acknowledged transfers.
    pub transfers: usize,
    /// Reads and writes of registers.
    pub calls: usize,
    /// What must not be.
    pub violations: Vec<String>,
}

impl Report {
    /// Number of faults.
    pub fn faults(&self) -> usize {
        self.done.iter().map(|done| done.faults).sum()
    }

    /// Faults that came too late to happen.
    pub fn missed(&self) -> usize {
        self.done.iter().map(|done| done.missed).sum()
    }

    /// Acknowledged rows that are lost.
    pub fn lost(&self) -> usize {
        self.done.iter().map(|done| done.lost).sum()
    }

    /// What an operator had to do for nodes.
    pub fn hands(&self) -> usize {
        self.done.iter().map(|done| done.hands).sum()
    }

    /// The longest time for which a majority lived after a fault and nobody took writes.
    pub fn led(&self) -> Duration {
        self.done.iter().map(|done| done.led).max().unwrap_or_default()
    }

    /// Adds another round.
    pub fn add(&mut self, other: Report) {
        self.done.extend(other.done);
        self.acknowledged += other.acknowledged;
        self.sums += other.sums;
        self.transfers += other.transfers;
        self.calls += other.calls;
        self.violations.extend(other.violations);
    }

    /// Outages and times of healing by kind, and the totals.
    pub fn table(&self) -> String {
        let mut kinds: BTreeMap<&str, Vec<&Done>> = BTreeMap::new();
        for done in &self.done {
            kinds.entry(&done.name).or_default().push(done);
        }
        let mut text = format!(
            "{:16} {:>4} {:>8} {:>8} {:>8} {:>6} {:>7} {:>8} {:>8} {:>6} {:>5}\n",
            "fault", "n", "outage", "p99", "max", "L1 max", "written", "healed", "max", "lost", "hands"
        );
        for (name, list) in kinds {
            let [outage, p99, worst] = spread(list.iter().map(|done| done.outage));
            let [healed, _, slowest] = spread(list.iter().map(|done| done.healed));
            let [_, _, led] = spread(list.iter().map(|done| done.led));
            let [_, _, written] = spread(list.iter().map(|done| done.written));
            let lost: usize = list.iter().map(|done| done.lost).sum();
            let hands: usize = list.iter().map(|done| done.hands).sum();
            // Writing to a string can't fail.
            writeln!(
                text,
                "{name:16} {:>4} {outage:>8.0} {p99:>8.0} {worst:>8.0} {led:>6.0} {written:>7.0} {healed:>8.0} \
                 {slowest:>8.0} {lost:>6} {hands:>5}",
                list.len()
            )
            .ok();
        }
        writeln!(
            text,
            "(ms; medians but for p99 and max; L1: a majority lived and nobody took writes; \
             written: from a leader's word to the first acknowledgement, max) {} faults, {} missed; {} hands; \
             {} rows acknowledged, {} lost; {} transfers, {} sums read; {} calls to registers; {} violations",
            self.faults(),
            self.missed(),
            self.hands(),
            self.acknowledged,
            self.lost(),
            self.transfers,
            self.sums,
            self.calls,
            self.violations.len()
        )
        .ok();
        for violation in &self.violations {
            writeln!(text, "VIOLATION: {violation}").ok();
        }
        text
    }
}

/// Median, 99th percentile and maximum, in ms.
fn spread(times: impl Iterator<Item = Duration>) -> [f64; 3] {
    let mut sorted: Vec<Duration> = times.collect();
    sorted.sort();
    let Some(last) = sorted.len().checked_sub(1) else { return [0.0; 3] };
    [last / 2, (sorted.len() * 99).div_ceil(100) - 1, last].map(|index| ms(sorted[index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_are_in_the_table() {
        let done = |name: &str, hands, led| Done {
            name: name.into(),
            faults: 1,
            missed: 0,
            outage: Duration::ZERO,
            led: Duration::from_millis(led),
            written: Duration::ZERO,
            healed: Duration::ZERO,
            lost: 0,
            hands,
        };
        let mut report = Report { done: vec![done("DiskFull", 1, 5)], ..Report::default() };
        report.add(Report { done: vec![done("DiskFull", 2, 71)], ..Report::default() });
        assert_eq!((report.hands(), report.led()), (3, Duration::from_millis(71)));
        let table = report.table();
        assert!(table.contains("2 faults, 0 missed; 3 hands;"), "{table}");
        let row = table.lines().find(|line| line.starts_with("DiskFull")).unwrap();
        assert_eq!(row.split_whitespace().nth(5), Some("71"), "{table}");
        assert!(row.ends_with(" 3"), "{table}");
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = |list: &[u64]| {
            spread(list.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>().into_iter())
        };
        assert_eq!(times(&[]), [0.0; 3]);
        assert_eq!(times(&[5]), [5.0; 3]);
        assert_eq!(times(&[3, 1, 2]), [2.0, 3.0, 3.0]);
        let hundred: Vec<u64> = (1..=200).collect();
        assert_eq!(times(&hundred), [100.0, 198.0, 200.0]);
    }
}
