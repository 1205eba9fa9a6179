//! That a round's judges had something to judge.

use std::time::Duration;

use crate::chaos::plan::Kind;
use crate::chaos::register::Outcome;
use crate::chaos::round::Past;
use crate::chaos::workload::{REGISTERS, Seen};
use crate::verdict::Run;

// A second, at least: a tenth of what rounds show.

/// Reads of a register, and writes of it.
const CALLS: f64 = 0.4;
/// Transfers.
const TRANSFERS: f64 = 3.0;
/// Sums of all accounts.
const SUMS: f64 = 3.0;
/// Rows of the oracle.
const ROWS: f64 = 8.0;

/// What was done too seldom for what clients saw to mean much.
pub fn too_little(record: &Run, seen: &Seen) -> Vec<String> {
    let time = record.ended - record.started;
    let mut found = Vec::new();
    for key in 1..=REGISTERS {
        for (write, name) in [(false, "reads"), (true, "writes")] {
            let calls = seen.entries.iter().filter(|entry| entry.key == key && entry.call.write == write);
            let done = calls.filter(|entry| entry.call.outcome == Outcome::Done).count();
            found.extend(below(CALLS, time, done, &format!("{name} of register {key}")));
        }
    }
    found.extend(below(TRANSFERS, time, seen.transfers, "transfers"));
    found.extend(below(SUMS, time, seen.sums, "sums"));
    found.extend(below(ROWS, time, record.acks.len(), "rows of the oracle"));
    found
}

fn below(rate: f64, time: Duration, count: usize, name: &str) -> Option<String> {
    let seconds = time.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let seldom = (count as f64) < rate * seconds;
    seldom.then(|| format!("too little was seen: {count} {name} in {seconds:.0} s, and not {rate} a second"))
}

/// That every rewind which was to be killed went on.
pub fn no_rewind_killed(past: &[Past]) -> Option<String> {
    let rewinds = || past.iter().filter(|past| past.step.faults.iter().any(|f| f.kind == Kind::RewindKilled));
    let none = rewinds().next().is_some() && rewinds().all(|past| past.missed > 0);
    none.then(|| format!("no pg_rewind was killed in {} attempts", rewinds().count()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use super::*;
    use crate::chaos::losses::tests::past;
    use crate::chaos::register::Call;
    use crate::chaos::workload::Entry;
    use crate::verdict::{Ack, Key};

    /// A minute with `calls` reads and as many writes of each register, and `others` of everything else.
    fn minute(calls: usize, others: usize) -> (Run, Seen) {
        let started = Instant::now();
        let key = Key { client: 1, seq: 1 };
        let ack = Ack { key, timeline: 1, xid: 1, sent: started, acked: started };
        let run = Run {
            acks: vec![ack; others],
            refused: Vec::new(),
            errors: BTreeMap::new(),
            started,
            ended: started + Duration::from_secs(60),
        };
        let mut seen = Seen { sums: others, transfers: others, ..Seen::default() };
        for key in 1..=REGISTERS {
            for write in [false, true] {
                let call = Call { write, value: 1, from: 0, to: 1, outcome: Outcome::Done };
                let entry = Entry { key, call, by: Some((1, 1)), sent: started, acked: started };
                seen.entries.extend(vec![entry; calls]);
            }
        }
        (run, seen)
    }

    #[test]
    fn whatever_was_done_too_seldom_is_found() {
        let found = |(run, seen): (Run, Seen)| too_little(&run, &seen).len();
        assert_eq!(found(minute(24, 480)), 0);
        assert_eq!(found(minute(23, 480)), 2 * 6);
        assert_eq!(found(minute(24, 179)), 3);
        let (run, mut seen) = minute(24, 480);
        let write = seen.entries.iter_mut().find(|entry| entry.key == 2 && entry.call.write).unwrap();
        write.call.outcome = Outcome::Unknown;
        assert!(too_little(&run, &seen)[0].contains("23 writes of register 2 in 60 s"));
    }

    #[test]
    fn a_round_that_killed_no_rewind_is_found() {
        let missed = Past { missed: 1, ..past(Kind::RewindKilled) };
        assert_eq!(no_rewind_killed(&[past(Kind::KillNode)]), None);
        assert!(no_rewind_killed(&[past(Kind::KillNode), missed.clone()]).is_some());
        assert_eq!(no_rewind_killed(&[missed, past(Kind::RewindKilled)]), None);
    }
}
