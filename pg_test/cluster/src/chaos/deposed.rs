//! S2: an old leader answers nobody any more once the new one has, be it the oracle or a register's client.

use std::collections::BTreeMap;

use crate::chaos::losses::BEHIND;
use crate::chaos::round::{LEASE_MAX, Past, Protocol};
use crate::chaos::workload::{Entry, Seen};
use crate::verdict::{Ack, Key, Run, stale};

/// Calls to registers are answers of clients from this number on: this plus the register's.
const FIRST_REGISTER: u32 = 2000;

/// Answers of an old leader after the new one's first, but for those that were on their way while it was cut off.
pub fn answers(record: &Run, seen: &Seen, protocol: &Protocol) -> Vec<Ack> {
    let calls = seen.entries.iter().filter_map(answer);
    let mut answers: Vec<Ack> = record.acks.iter().copied().chain(calls).collect();
    answers.sort_by_key(|ack| ack.acked);
    let owners = owners(protocol);
    let late = |ack: &Ack| {
        let owner = owners.get(&ack.timeline).copied();
        protocol.past.iter().any(|past| past.may_delay(ack, owner))
    };
    stale(&answers).into_iter().filter(|ack| !late(ack)).collect()
}

fn answer(entry: &Entry) -> Option<Ack> {
    let (timeline, _) = entry.by?;
    let client = FIRST_REGISTER + u32::try_from(entry.key).ok()?;
    let key = Key { client, seq: entry.call.value };
    Some(Ack { key, timeline, xid: 0, sent: entry.sent, acked: entry.acked })
}

/// Who led in which term, that is, on which timeline.
fn owners(protocol: &Protocol) -> BTreeMap<u32, u32> {
    let offices = protocol.past.iter().flat_map(|past| [past.before, past.after]);
    let elected = |event: &str| matches!(event, "FAILOVER" | "SWITCHOVER");
    let events = protocol.witness.events.iter().filter(|event| elected(&event.event));
    let told = events.map(|event| (event.term, event.node));
    offices.map(|(node, term)| (term, node)).chain(told).collect()
}

impl Past {
    /// Was the answer given in time, and on its way while clients were cut off from whoever gave it?
    fn may_delay(&self, ack: &Ack, owner: Option<u32>) -> bool {
        let cut_off = owner.is_some_and(|node| self.cut_off.contains(&node));
        cut_off && ack.sent <= self.began + LEASE_MAX + BEHIND && ack.acked >= self.began
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::losses::tests::past;
    use crate::chaos::plan::Kind;
    use crate::chaos::register::{Call, Outcome};
    use crate::chaos::reign::Event;

    const MS: Duration = Duration::from_millis(1);

    /// A row that term 3 acknowledged 2 s after a step's beginning, and a read of a register that `timeline` answered, both
    /// sent `sent` ms after it; the answer came 1 s later.
    fn seen(past: &Past, timeline: u32, sent: u32) -> (Run, Seen) {
        let at = |ms| past.began + MS * ms;
        let ack =
            Ack { key: Key { client: 1, seq: 1 }, timeline: 3, xid: 1, sent: at(1990), acked: at(2000) };
        let call = Call { write: false, value: 7, from: 0, to: 1, outcome: Outcome::Done };
        let (sent, acked) = (at(sent), at(3000));
        let entry = Entry { key: 2, call, by: Some((timeline, 1)), sent, acked };
        let (acks, refused, errors) = (vec![ack], Vec::new(), BTreeMap::new());
        let record = Run { acks, refused, errors, started: past.began, ended: at(60_000) };
        (record, Seen { entries: vec![entry], ..Seen::default() })
    }

    fn found(past: Past, timeline: u32, sent: u32) -> usize {
        let (record, seen) = seen(&past, timeline, sent);
        let mut protocol = Protocol { past: vec![past], ..Protocol::default() };
        let elected = Event { at: 0, node: 2, term: 1, event: "FAILOVER".into() };
        protocol.witness.events.insert(elected);
        answers(&record, &seen, &protocol).len()
    }

    #[test]
    fn a_register_that_an_old_leader_answers_late_is_found() {
        assert_eq!(found(past(Kind::KillNode), 2, 900), 1);
        assert_eq!(found(past(Kind::KillNode), 3, 900), 0);
    }

    #[test]
    fn an_answer_may_be_late_only_of_the_leader_that_clients_were_cut_off_from() {
        let cut_off = |nodes: &[u32]| Past { cut_off: nodes.to_vec(), ..past(Kind::Silence) };
        // Term 2 was node 1's, and term 1 node 2's.
        assert_eq!(found(cut_off(&[1]), 2, 900), 0);
        assert_eq!(found(cut_off(&[2]), 2, 900), 1);
        assert_eq!(found(cut_off(&[1]), 1, 900), 1);
        assert_eq!(found(cut_off(&[2]), 1, 900), 0);
        assert_eq!(found(cut_off(&[1]), 2, 1100), 1, "its lease was over");
    }
}
