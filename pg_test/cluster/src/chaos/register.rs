//! Is a register's history linearizable? Every value is written once, so each value's write and reads form a cluster,
//! and a history is linearizable if and only if the clusters' zones lie right: Gibbons, Korach: Testing Shared
//! Memories, SIAM J. Comput. 26(4), 1997, theorem 4.2.

use std::collections::BTreeMap;

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged.
    Done,
    /// The server said that nothing was committed.
    Failed,
    /// No answer came.
    Unknown,
}

/// One read or write of one register. Times are of one clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// A write, or else a read.
    pub write: bool,
    /// What was written or read.
    pub value: u64,
    /// When it was sent.
    pub from: i64,
    /// When the answer came. For an outcome that is not known, without meaning.
    pub to: i64,
    /// What came of it; reads are there only if they are done.
    pub outcome: Outcome,
}

/// What the register holds before the first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// This value.
    Is(u64),
    /// Some one value, whatever it was.
    AnyOne,
}

#[derive(Debug, Default)]
struct Cluster {
    write: Option<Call>,
    reads: Vec<Call>,
}

/// From the first answer to the last call of a value: it must have been there all that time, if `from` < `to`.
#[derive(Debug)]
struct Zone {
    value: u64,
    first_answer: i64,
    last_call: i64,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_answer < self.last_call
    }
}

/// Says why the history of one register is not linearizable.
pub fn check(calls: &[Call], initial: Initial) -> Result<(), String> {
    let mut zones = Vec::new();
    for (value, cluster) in clusters(calls, initial)? {
        if let Some(zone) = zone(value, cluster)? {
            zones.push(zone);
        }
    }
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_iter().partition(Zone::is_forward);
    forward.sort_by_key(|zone| zone.first_answer);
    for pair in forward.windows(2) {
        if pair[1].first_answer < pair[0].last_call {
            return Err(format!("{} and {} were there at the same time", pair[0].value, pair[1].value));
        }
    }
    for inner in &backward {
        let around = forward
            .iter()
            .find(|outer| outer.first_answer < inner.last_call && inner.first_answer < outer.last_call);
        if let Some(outer) = around {
            return Err(format!("{} was there while {} was", inner.value, outer.value));
        }
    }
    Ok(())
}

fn clusters(calls: &[Call], initial: Initial) -> Result<BTreeMap<u64, Cluster>, String> {
    let mut clusters: BTreeMap<u64, Cluster> = BTreeMap::new();
    for call in calls {
        let cluster = clusters.entry(call.value).or_default();
        if call.write {
            cluster.write = Some(*call);
        } else {
            cluster.reads.push(*call);
        }
    }
    let mut foreign = Vec::new();
    for (value, cluster) in &mut clusters {
        if cluster.write.is_none() {
            foreign.push(*value);
            let always =
                Call { write: true, value: *value, from: i64::MIN, to: i64::MIN, outcome: Outcome::Done };
            cluster.write = Some(always);
        }
    }
    match (initial, foreign.as_slice()) {
        (_, []) | (Initial::AnyOne, [_]) => Ok(clusters),
        (Initial::Is(value), [one]) if *one == value => Ok(clusters),
        _ => Err(format!("{foreign:?} were read and never written")),
    }
}

/// The zone of a value, if anybody was told anything of it.
fn zone(value: u64, cluster: Cluster) -> Result<Option<Zone>, String> {
    let Some(write) = cluster.write else { return Ok(None) };
    let first_read = cluster.reads.iter().map(|read| read.to).min();
    if write.outcome == Outcome::Failed && first_read.is_some() {
        return Err(format!("{value} was read, and its writer was told that nothing was committed"));
    }
    if write.outcome != Outcome::Done && first_read.is_none() {
        // Whether it happened can't be known, and makes no difference.
        return Ok(None);
    }
    if first_read.is_some_and(|to| to < write.from) {
        return Err(format!("{value} was read before it was written"));
    }
    let done = (write.outcome == Outcome::Done).then_some(write.to);
    let first_answer = done.into_iter().chain(first_read).min().unwrap_or(i64::MAX);
    let last_call = cluster.reads.iter().map(|read| read.from).fold(write.from, i64::max);
    Ok(Some(Zone { value, first_answer, last_call }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::random::Random;

    fn call(write: bool, value: u64, from: i64, to: i64, outcome: Outcome) -> Call {
        Call { write, value, from, to, outcome }
    }

    /// By trying every order: the definition.
    fn by_definition(left: &mut Vec<Call>, holds: Option<u64>) -> bool {
        if left.iter().all(|call| call.outcome == Outcome::Unknown) {
            return true;
        }
        let end = |call: &Call| if call.outcome == Outcome::Unknown { i64::MAX } else { call.to };
        let first_end = left.iter().map(end).min().unwrap_or(i64::MAX);
        for index in 0..left.len() {
            let next = left[index];
            if next.from > first_end || (!next.write && holds.is_some_and(|value| value != next.value)) {
                continue;
            }
            left.remove(index);
            let good = by_definition(left, Some(next.value));
            left.insert(index, next);
            if good {
                return true;
            }
        }
        false
    }

    fn history(random: &mut Random) -> Vec<Call> {
        let writes = random.between(1, 4);
        let mut time = 0;
        // No two at one time: what is strictly before what would be a question of taste.
        let mut times: Vec<i64> = (0..16)
            .map(|_| {
                time += 1;
                time
            })
            .collect();
        random.shuffle(&mut times);
        let mut calls = Vec::new();
        for number in 0..random.between(2, 7) {
            let (a, b) = (times.pop().unwrap(), times.pop().unwrap());
            let write = number < writes;
            let value = if write { number + 1 } else { random.between(0, writes.min(3)) };
            let unknown = write && random.below(4) == 0;
            let outcome = if unknown { Outcome::Unknown } else { Outcome::Done };
            calls.push(call(write, value, a.min(b), a.max(b), outcome));
        }
        let known = |value| value == 0 || calls.iter().any(|call| call.write && call.value == value);
        let keep: Vec<Call> = calls.iter().filter(|call| known(call.value)).copied().collect();
        keep
    }

    #[test]
    fn says_what_the_definition_says() {
        let mut random = Random::new(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let calls = history(&mut random);
            let expected = by_definition(&mut calls.clone(), Some(0));
            let said = check(&calls, Initial::Is(0));
            assert_eq!(said.is_ok(), expected, "{calls:?}: {said:?}");
            if expected { good += 1 } else { bad += 1 }
        }
        assert!(good > 1000 && bad > 1000, "{good} good, {bad} bad");
    }

    #[test]
    fn a_lost_write_is_found() {
        let calls = [
            call(true, 1, 0, 1, Outcome::Done),
            call(true, 2, 2, 3, Outcome::Done),
            call(false, 1, 4, 5, Outcome::Done),
        ];
        assert!(check(&calls, Initial::Is(0)).is_err());
        assert!(check(&calls[1..], Initial::AnyOne).is_err(), "the initial value came back");
        assert!(check(&calls[2..], Initial::AnyOne).is_ok());
    }

    #[test]
    fn a_failed_write_must_not_be_read() {
        let calls = [call(true, 1, 0, 1, Outcome::Failed), call(false, 1, 4, 5, Outcome::Done)];
        assert!(check(&calls, Initial::Is(0)).is_err());
        assert!(check(&calls[..1], Initial::Is(0)).is_ok());
    }
}
