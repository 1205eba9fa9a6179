//! What an oracle's record says: how long nothing was acknowledged, what was lost, whether an old leader acknowledged
//! anything after the new one did, and whether what was refused is there all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Clients from this number on are patient ones: this plus the node's number.
pub const FIRST_PATIENT: u32 = 1000;

/// A row of the oracle's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Number of the connection.
    pub client: u32,
    /// Counts its attempts.
    pub seq: u64,
}

/// One acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The row.
    pub key: Key,
    /// The timeline on which it was written: that is, the leader's term.
    pub timeline: u32,
    /// The transaction's number there.
    pub xid: u32,
    /// When it was sent.
    pub sent: Instant,
    /// When the acknowledgement came.
    pub acked: Instant,
}

/// The record of a load.
#[derive(Clone, Debug)]
pub struct Run {
    /// In the order of their acknowledgement.
    pub acks: Vec<Ack>,
    /// Rows of which a server said that nothing of them was committed.
    pub refused: Vec<Key>,
    /// Failed attempts by SQLSTATE, or by message where the server told none.
    pub errors: BTreeMap<String, usize>,
    /// When the load started.
    pub started: Instant,
    /// When it ended.
    pub ended: Instant,
}

/// A record compared with the rows that there are in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Number of acknowledged rows.
    pub acknowledged: usize,
    /// Acknowledged, but not there.
    pub lost: Vec<Ack>,
    /// There, but never acknowledged: allowed, the answer was lost.
    pub unacknowledged: usize,
    /// There, though a server had said that nothing of it was committed.
    pub refused: Vec<Key>,
    /// Acknowledged on a timeline after a newer one had acknowledged: two leaders.
    pub stale: Vec<Ack>,
}

impl Run {
    /// The write outage after `from`: see [`Run::outage_between`].
    pub fn outage(&self, from: Instant) -> Duration {
        self.outage_between(from, self.ended)
    }

    /// The write outage: the longest time between two acknowledgements of ordinary workers that ends after
    /// `from`, and not after `to`. Where none came any more it lasts until the end of the load.
    pub fn outage_between(&self, from: Instant, to: Instant) -> Duration {
        let ordinary = self.acks.iter().filter(|ack| ack.key.client < FIRST_PATIENT);
        let mut last = self.started;
        let mut longest = Duration::ZERO;
        for time in ordinary.map(|ack| ack.acked).chain([self.ended]) {
            if time > from && time <= to {
                longest = longest.max(time - last);
            }
            last = time;
        }
        longest
    }

    /// From `from` until an ordinary worker's write was acknowledged; where none was any more, until the load's end.
    pub fn unwritten(&self, from: Instant) -> Duration {
        let mut ordinary = self.acks.iter().filter(|ack| ack.key.client < FIRST_PATIENT);
        ordinary.find(|ack| ack.acked >= from).map_or(self.ended, |ack| ack.acked) - from
    }

    /// Compares with the rows that are there.
    pub fn judge(&self, present: &[Key]) -> Verdict {
        let present: BTreeSet<Key> = present.iter().copied().collect();
        let acknowledged: BTreeSet<Key> = self.acks.iter().map(|ack| ack.key).collect();
        Verdict {
            acknowledged: acknowledged.len(),
            lost: self.acks.iter().filter(|ack| !present.contains(&ack.key)).copied().collect(),
            unacknowledged: present.difference(&acknowledged).count(),
            refused: self.refused.iter().filter(|key| present.contains(key)).copied().collect(),
            stale: stale(&self.acks),
        }
    }
}

/// Of acknowledgements in their order: those of a timeline that came after the first of a newer one.
pub fn stale(acks: &[Ack]) -> Vec<Ack> {
    let mut newest = 0;
    let mut stale = Vec::new();
    for ack in acks {
        if ack.timeline < newest {
            stale.push(*ack);
        }
        newest = newest.max(ack.timeline);
    }
    stale
}

impl Verdict {
    /// No two leaders acknowledged, and whoever was refused was told the truth.
    pub fn expect_one_leader(&self) -> Result<()> {
        ensure!(
            self.stale.is_empty(),
            "{} rows were acknowledged by an old leader after the new one's first: {:?}",
            self.stale.len(),
            &self.stale[..self.stale.len().min(5)]
        );
        ensure!(
            self.refused.is_empty(),
            "{} rows are there of which a server had said that nothing was committed: {:?}",
            self.refused.len(),
            &self.refused[..self.refused.len().min(5)]
        );
        Ok(())
    }

    /// No acknowledged row is lost, and [`Verdict::expect_one_leader`].
    pub fn expect_nothing_lost(&self) -> Result<()> {
        ensure!(
            self.lost.is_empty(),
            "{} acknowledged rows are lost, such as {:?}",
            self.lost.len(),
            &self.lost[..self.lost.len().min(5)]
        );
        self.expect_one_leader()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record from (client, timeline, milliseconds) in order.
    fn record(acks: &[(u32, u32, u64)], end: u64) -> Run {
        let started = Instant::now();
        let at = |ms| started + Duration::from_millis(ms);
        let acks = acks
            .iter()
            .zip(1..)
            .map(|(&(client, timeline, ms), seq)| Ack {
                key: Key { client, seq },
                timeline,
                xid: 0,
                sent: at(ms),
                acked: at(ms),
            })
            .collect();
        Run { acks, refused: Vec::new(), errors: BTreeMap::new(), started, ended: at(end) }
    }

    #[test]
    fn the_outage_is_the_longest_gap_after_the_fault() {
        let run = record(&[(0, 2, 300), (1, 2, 310), (0, 2, 320), (1, 3, 420), (0, 3, 430)], 440);
        let fault = run.started + Duration::from_millis(315);
        assert_eq!(run.outage(fault), Duration::from_millis(100));
        assert_eq!(run.outage(run.started), Duration::from_millis(300));
        assert_eq!(run.outage_between(run.started, fault), Duration::from_millis(300));
        assert_eq!(run.outage_between(run.acks[0].acked, run.acks[1].acked), Duration::from_millis(10));
    }

    #[test]
    fn what_is_unwritten_ends_with_an_ordinary_workers_acknowledgement() {
        let run = record(&[(0, 2, 300), (FIRST_PATIENT + 1, 2, 310), (0, 2, 320)], 440);
        let since = |ms| run.unwritten(run.started + Duration::from_millis(ms));
        assert_eq!([300, 301, 330].map(since), [0, 19, 110].map(Duration::from_millis));
    }

    #[test]
    fn a_patient_client_does_not_shorten_the_outage_nor_does_an_end_without_writes() {
        let run = record(&[(0, 2, 10), (FIRST_PATIENT + 1, 2, 500)], 1000);
        assert_eq!(run.outage(run.started), Duration::from_millis(990));
    }

    #[test]
    fn an_old_leaders_late_acknowledgement_is_found() {
        let run = record(&[(0, 2, 10), (1, 3, 20), (FIRST_PATIENT + 1, 2, 30), (1, 3, 40)], 50);
        let found = stale(&run.acks);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].key.client, FIRST_PATIENT + 1);
        assert!(stale(&record(&[(0, 2, 10), (1, 3, 20)], 30).acks).is_empty());
    }

    #[test]
    fn lost_and_unacknowledged_rows_are_told_apart() {
        let run = record(&[(0, 2, 10), (0, 2, 20)], 30);
        let verdict = run.judge(&[Key { client: 0, seq: 2 }, Key { client: 0, seq: 3 }]);
        assert_eq!(verdict.acknowledged, 2);
        assert_eq!(verdict.unacknowledged, 1);
        assert_eq!(verdict.lost.iter().map(|ack| ack.key.seq).collect::<Vec<_>>(), [1]);
        assert!(verdict.expect_nothing_lost().is_err());
        assert!(verdict.expect_one_leader().is_ok());
    }

    #[test]
    fn a_refused_row_that_is_there_is_found() {
        let [kept, gone] = [3, 4].map(|seq| Key { client: 0, seq });
        let run = Run { refused: vec![kept, gone], ..record(&[(0, 2, 10)], 30) };
        let first = Key { client: 0, seq: 1 };
        assert!(run.judge(&[first]).expect_nothing_lost().is_ok());
        let verdict = run.judge(&[first, kept]);
        assert_eq!(verdict.refused, [kept]);
        assert!(verdict.expect_one_leader().is_err() && verdict.expect_nothing_lost().is_err());
    }
}
