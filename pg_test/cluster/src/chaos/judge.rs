//! The judgement of a round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::chaos::content;
use crate::chaos::deposed;
use crate::chaos::enough;
use crate::chaos::liveness;
use crate::chaos::losses::{BEHIND, wrong_loss};
use crate::chaos::register::{Call, Initial, Outcome, check};
use crate::chaos::reign;
use crate::chaos::report::{Done, Report};
use crate::chaos::round::{LEASE_MIN, Past, Protocol, Round};
use crate::chaos::workload::{Entry, INITIAL, Seen};
use crate::cluster::Cluster;
use crate::scenario;
use crate::verdict::Run;

/// Everything that can be said of a round.
pub fn all(
    cluster: &Cluster,
    round: &Round,
    record: &Run,
    seen: &Seen,
    protocol: Protocol,
) -> Result<Report> {
    let verdict = scenario::judge(cluster, record)?;
    let mut violations = protocol.violations.clone();
    for ack in deposed::answers(record, seen, &protocol) {
        violations
            .push(format!("acknowledged by an old leader: {} {ack:?}", place(&protocol.past, ack.acked)));
    }
    let refused = verdict.refused.iter();
    violations.extend(refused.map(|key| format!("there, though nothing was said to be committed: {key:?}")));
    let mut done: Vec<Done> = protocol.past.iter().map(|past| past.done(record)).collect();
    let late = |(past, done): (&Past, &Done)| liveness::unwritten(&past.step, done.written);
    violations.extend(protocol.past.iter().zip(&done).filter_map(late));
    for ack in &verdict.lost {
        let index = protocol.past.iter().rposition(|past| past.began <= ack.acked + BEHIND);
        if let Some(index) = index {
            done[index].lost += 1;
        }
        let past = index.map(|index| &protocol.past[index]).filter(|_| !round.lossless);
        if let Some(wrong) = wrong_loss(past, ack, &protocol.listed) {
            violations.push(format!("{wrong}: {} {ack:?}", place(&protocol.past, ack.acked)));
        }
    }
    violations.extend(seen.wrong_sums.iter().map(|sum| format!("the sum of all accounts is wrong: {sum}")));
    violations.extend(content::wrong(cluster)?);
    violations.extend(registers(&seen.entries, round.lossless));
    violations.extend(one_node_a_timeline(&seen.entries));
    let lease = i64::try_from(LEASE_MIN.as_micros())?;
    violations.extend(reign::violations(&reign::reigns(&protocol.witness.events, &protocol.blows, lease)));
    violations.extend(enough::too_little(record, seen));
    violations.extend(enough::no_rewind_killed(&protocol.past));
    ensure!(!protocol.witness.events.is_empty(), "no node told of anything");
    Ok(Report {
        done,
        acknowledged: verdict.acknowledged,
        sums: seen.sums,
        transfers: seen.transfers,
        calls: seen.entries.len(),
        violations,
    })
}

/// During which step something was.
fn place(past: &[Past], at: Instant) -> String {
    match past.iter().rposition(|past| past.began <= at + BEHIND) {
        Some(index) => {
            let past = &past[index];
            let since = at.saturating_duration_since(past.began).as_millis();
            format!("step {} ({}), {since} ms after its beginning:", index + 1, past.step)
        }
        None => "before the first fault:".to_owned(),
    }
}

impl Past {
    fn done(&self, record: &Run) -> Done {
        Done {
            name: self.step.name(),
            faults: self.step.faults.len() - self.missed,
            missed: self.missed,
            // Until writes flow again, and a little more: the gap ends with the first of them.
            outage: record.outage_between(self.began, self.healed + Duration::from_secs(1)),
            led: self.led,
            written: record.unwritten(self.said),
            healed: self.healed - self.over,
            lost: 0,
            hands: self.hands,
        }
    }
}

/// Lossless: each register's whole history. Asynchronous: that of each timeline, as a failover may take back the last
/// writes of the one before.
fn registers(entries: &[Entry], lossless: bool) -> Vec<String> {
    let mut histories: BTreeMap<(u64, u32), Vec<Call>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.by.is_some()) {
        let timeline = entry.by.filter(|_| !lossless).map_or(0, |(timeline, _)| timeline);
        histories.entry((entry.key, timeline)).or_default().push(entry.call);
    }
    // What was not answered may have happened on any timeline.
    for entry in entries.iter().filter(|entry| entry.by.is_none() && entry.call.outcome != Outcome::Done) {
        for (_, calls) in histories.iter_mut().filter(|((key, _), _)| *key == entry.key) {
            calls.push(entry.call);
        }
    }
    let initial = if lossless { Initial::Is(INITIAL) } else { Initial::AnyOne };
    let judged = histories.iter().map(|((key, timeline), calls)| {
        let wrong = check(calls, initial).err()?;
        let where_ = if lossless { String::new() } else { format!(" on timeline {timeline}") };
        Some(format!("register {key}{where_} is not linearizable: {wrong}"))
    });
    judged.flatten().collect()
}

/// No two nodes answered on one timeline.
fn one_node_a_timeline(entries: &[Entry]) -> Vec<String> {
    let mut owners: BTreeMap<u32, u32> = BTreeMap::new();
    let mut found = Vec::new();
    for (timeline, node) in entries.iter().filter_map(|entry| entry.by) {
        let owner = *owners.entry(timeline).or_insert(node);
        if owner != node {
            found.push(format!("nodes {owner} and {node} both answered on timeline {timeline}"));
        }
    }
    found.dedup();
    found
}
