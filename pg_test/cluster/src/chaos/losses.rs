//! Asynchronous rounds: which acknowledged rows a fault may cost, and that whoever had them lists them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::chaos::round::{LEASE_MAX, Past};
use crate::cluster::Cluster;
use crate::verdict::Ack;

/// How far replication may be behind, and a client with noting an answer.
pub const BEHIND: Duration = Duration::from_millis(500);

/// Transactions, by timeline and number.
pub type Listed = BTreeSet<(u32, u32)>;

/// Reads what all nodes say that rewinds have discarded of theirs.
pub fn read_listed(cluster: &Cluster, listed: &mut Listed) -> Result<()> {
    let sql = "SELECT DISTINCT timeline, xid FROM biha.lost_transactions() WHERE kind LIKE 'commit%'";
    for node in cluster.nodes() {
        for row in node.biha(sql).with_context(|| format!("node {}'s lost transactions", node.id))? {
            let field = |n: usize| row[n].as_deref().context("null in biha.lost_transactions()");
            listed.insert((field(0)?.parse()?, field(1)?.parse()?));
        }
    }
    Ok(())
}

/// What is wrong with the loss of a row, during a step in which anything may be lost.
pub fn wrong_loss(past: Option<&Past>, ack: &Ack, listed: &Listed) -> Option<&'static str> {
    match past.filter(|past| past.may_lose(ack)) {
        None => Some("lost"),
        Some(past) if past.must_list() && !listed.contains(&(ack.timeline, ack.xid)) => {
            Some("lost, and listed by nobody")
        }
        Some(_) => None,
    }
}

impl Past {
    /// Asynchronous: may this acknowledged row be lost? Only what others had not yet received when its leader was lost:
    /// nothing where the leader stayed, or gave up its office in order, nothing of who leads in the end, and nothing
    /// that was acknowledged when the longest lease was over.
    fn may_lose(&self, ack: &Ack) -> bool {
        let in_order = self.step.faults.iter().all(|fault| fault.kind.loses_nothing());
        let terms = self.after.1.saturating_sub(self.before.1);
        let fenced = self.blow + LEASE_MAX;
        let in_time = ack.sent <= fenced && (!self.cut_off.is_empty() || ack.acked <= fenced + BEHIND);
        terms > u32::from(in_order) && ack.timeline < self.after.1 && in_time
    }

    /// Must this lost row be listed by somebody? Not where a node's directory is gone, or was full.
    fn must_list(&self) -> bool {
        !self.gone && !self.step.faults.iter().any(|fault| fault.kind.keeps_nothing())
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Instant;

    use super::*;
    use crate::chaos::plan::{Fault, Kind, Step, Target};
    use crate::verdict::Key;

    const MS: Duration = Duration::from_millis(1);

    /// A step of a minute; the leader of term 2 was hit 1 s after its beginning, and term 3 followed.
    pub fn past(kind: Kind) -> Past {
        let fault = Fault { kind, target: Target::Leader, duration: 0, chance: 0 };
        let began = Instant::now();
        Past {
            step: Step { faults: vec![fault], gap: 0 },
            began,
            blow: began + 1000 * MS,
            over: began + 60_000 * MS,
            healed: began + 61_000 * MS,
            before: (1, 2),
            after: (2, 3),
            cut_off: Vec::new(),
            gone: false,
            led: Duration::ZERO,
            said: began + 60_000 * MS,
            hands: 0,
            missed: 0,
        }
    }

    fn ack(past: &Past, timeline: u32, sent: u32, acked: u32) -> Ack {
        let key = Key { client: 1, seq: 1 };
        Ack { key, timeline, xid: 9, sent: past.began + MS * sent, acked: past.began + MS * acked }
    }

    #[test]
    fn only_the_old_leaders_rows_may_be_lost_and_only_under_its_lease() {
        let killed = past(Kind::RewindKilled);
        assert!(killed.may_lose(&ack(&killed, 2, 1400, 1410)));
        assert!(!killed.may_lose(&ack(&killed, 3, 1400, 1410)), "the new leader acknowledged it");
        assert!(!killed.may_lose(&ack(&killed, 2, 1600, 1610)), "its lease was over");
        assert!(!killed.may_lose(&ack(&killed, 2, 1400, 2100)), "it was answered when its lease was over");
        let silent = Past { cut_off: vec![1], ..past(Kind::Silence) };
        assert!(silent.may_lose(&ack(&silent, 2, 1400, 9000)), "the answer was on its way");
    }

    #[test]
    fn a_leader_that_stays_or_goes_in_order_loses_nothing() {
        let stays = Past { after: (1, 2), ..past(Kind::KillNode) };
        assert!(!stays.may_lose(&ack(&stays, 1, 900, 910)));
        let in_order = past(Kind::Switchover);
        assert!(!in_order.may_lose(&ack(&in_order, 2, 900, 910)));
        let twice = Past { after: (3, 4), ..past(Kind::Switchover) };
        assert!(twice.may_lose(&ack(&twice, 2, 900, 910)));
    }

    #[test]
    fn a_lost_row_that_nobody_lists_is_found_but_where_a_directory_is_gone_or_was_full() {
        let killed = past(Kind::KillNode);
        let lost = ack(&killed, 2, 900, 910);
        let listed = Listed::from([(lost.timeline, lost.xid)]);
        assert_eq!(wrong_loss(Some(&killed), &lost, &listed), None);
        let unlisted = Some("lost, and listed by nobody");
        assert_eq!(wrong_loss(Some(&killed), &lost, &Listed::new()), unlisted);
        assert_eq!(wrong_loss(Some(&killed), &lost, &Listed::from([(3, lost.xid)])), unlisted);
        assert_eq!(wrong_loss(Some(&past(Kind::DiskFull)), &lost, &Listed::new()), None);
        let gone = Past { gone: true, ..past(Kind::KillNode) };
        assert_eq!(wrong_loss(Some(&gone), &lost, &Listed::new()), None);
        // Listed or not, where nothing may be lost.
        assert_eq!(wrong_loss(None, &lost, &listed), Some("lost"));
    }
}
