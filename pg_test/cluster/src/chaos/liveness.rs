//! L1: when the faults are over and a majority lives, somebody takes writes soon, and clients are answered. And it does
//! so without hands.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::chaos::inject::LATER;
use crate::chaos::plan::Step;
use crate::chaos::round::LEASE_MAX;
use crate::cluster::Cluster;
use crate::wait::wait_until;

/// Election timeouts: one to notice, one for an election that has to be repeated.
const ELECTION: Duration = LEASE_MAX.saturating_mul(2);
/// A promotion, its end of recovery and the first round of heartbeats included.
const PROMOTION: Duration = Duration::from_millis(500);
/// Two processors for all servers, clients and whatever else is tested at the same time.
const LOADED: Duration = Duration::from_millis(1500);
/// All of it.
const SOON: Duration = ELECTION.saturating_add(PROMOTION).saturating_add(LOADED);
/// A standby that a commit waits for hears of the leader, ends its receiver, and connects.
const STANDBY: Duration = Duration::from_secs(1);
/// A client gives up a write that nobody answers, after 1 s, and dials up to four hosts in vain.
const CLIENT: Duration = Duration::from_secs(2);
/// From a leader's word to an acknowledgement. Rounds show 1.4 s.
const WRITTEN: Duration = STANDBY.saturating_add(CLIENT).saturating_add(LOADED);
/// The end of all patience once a majority lives. Whatever disk or link was slow.
const AT_LAST: Duration = Duration::from_secs(15);
/// States in which a node knows where its WAL ends, and can vote or lead.
const ELECTABLE: [&str; 5] = ["CSTATE_FORMING", "FOLLOWER", "CANDIDATE", "LEADER_RO", "LEADER_RW"];

/// How long there was a majority of nodes that can vote and lead, but nobody took writes; and when somebody said that it
/// does.
pub fn wait_leader(cluster: &Cluster) -> Result<(Duration, Instant)> {
    let mut alive: Option<Instant> = None;
    let waited = wait_until("a leader that takes writes", LATER, || {
        // From before they are asked: the answers may take long.
        let asked = Instant::now();
        let mut said = None;
        let mut states = Vec::new();
        for node in cluster.nodes() {
            let state = node.own_status().map_or_else(|error| format!("{error:#}"), |own| own.state);
            if state == "LEADER_RW" {
                said.get_or_insert_with(Instant::now);
            }
            states.push(state);
        }
        if is_majority(&states) {
            alive.get_or_insert(asked);
        }
        let now = said.unwrap_or_else(Instant::now);
        let since = alive.map_or(Duration::ZERO, |alive| now - alive);
        if said.is_some() {
            return Ok(Ok((since, now)));
        }
        if since > AT_LAST {
            return Ok(Err(anyhow!("nobody takes writes {since:?} after a majority lived: {states:?}")));
        }
        Err(format!("{states:?}"))
    });
    waited.and_then(|led| led).context("L1")
}

fn is_majority(states: &[String]) -> bool {
    let electable = states.iter().filter(|state| ELECTABLE.contains(&state.as_str())).count();
    electable > states.len() / 2
}

/// What is wrong with how long it took.
pub fn late(step: &Step, took: Duration) -> Option<String> {
    let excused = step.faults.iter().any(|fault| fault.kind.slows());
    (took > SOON && !excused).then(|| {
        format!(
            "L1: {step}: nobody took writes for {took:?} after a majority lived; {SOON:?} are allowed: two election \
             timeouts ({ELECTION:?}), a promotion ({PROMOTION:?}), a machine that is busy ({LOADED:?})"
        )
    })
}

/// What is wrong with how long clients went unanswered once somebody said that it takes writes.
pub fn unwritten(step: &Step, took: Duration) -> Option<String> {
    let excused = step.faults.iter().any(|fault| fault.kind.slows());
    (took > WRITTEN && !excused).then(|| {
        format!(
            "L1: {step}: no write was acknowledged for {took:?} after somebody led; {WRITTEN:?} are allowed: a \
             standby that connects ({STANDBY:?}), a client that gives up and dials ({CLIENT:?}), a machine that is busy \
             ({LOADED:?})"
        )
    })
}

/// What an operator had to do for a node, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hand {
    /// Made anew: its memory was damaged while it was down. No node may mend that by itself.
    Memory(u32),
    /// Made anew: it lies half rewound.
    HalfRewound(u32),
    /// An error reset, and what that said.
    Reset(u32, String),
}

impl Hand {
    /// For which node.
    pub fn node(&self) -> u32 {
        match self {
            Hand::Memory(id) | Hand::HalfRewound(id) | Hand::Reset(id, _) => *id,
        }
    }
}

impl fmt::Display for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hand::Memory(id) => write!(f, "node {id} made anew, as its memory was damaged"),
            Hand::HalfRewound(id) => write!(f, "node {id} made anew, as it lay half rewound"),
            Hand::Reset(id, error) => write!(f, "node {id} told to go on after {error}"),
        }
    }
}

/// Hands that must not be needed with `biha.autoreclone`.
pub fn needless(autoreclone: bool, step: &Step, hands: &[Hand]) -> Vec<String> {
    let needless = |hand: &&Hand| autoreclone && !matches!(hand, Hand::Memory(_));
    hands
        .iter()
        .filter(needless)
        .map(|hand| format!("a hand, with biha.autoreclone: {step}: {hand}"))
        .collect()
}

/// That nothing is left out in silence.
pub fn complete(left_out: &[String], ci: bool) -> Result<()> {
    if left_out.is_empty() {
        return Ok(());
    }
    let text = format!("NOT DONE, for want of loop devices or NFQUEUE: {}", left_out.join(", "));
    ensure!(!ci, "{text}; CI is set, so nothing may be left out");
    eprintln!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::plan::{Fault, Kind, Target};

    fn step(kinds: &[Kind]) -> Step {
        let fault = |&kind: &Kind| Fault { kind, target: Target::Leader, duration: 0, chance: 0 };
        Step { faults: kinds.iter().map(fault).collect(), gap: 0 }
    }

    #[test]
    fn a_late_leader_is_found_unless_a_disk_or_link_was_slow() {
        let (soon, late_) = (SOON, SOON + Duration::from_millis(1));
        assert_eq!(late(&step(&[Kind::KillNode]), soon), None);
        assert!(late(&step(&[Kind::KillNode]), late_).is_some_and(|text| text.contains("3s are allowed")));
        assert!(late(&step(&[Kind::KillNode, Kind::FreezeLong]), late_).is_some());
        assert_eq!(late(&step(&[Kind::KillNode, Kind::Loss]), late_), None);
        assert_eq!(late(&step(&[Kind::DiskHangs]), late_), None);
    }

    #[test]
    fn a_leader_under_whom_nothing_is_acknowledged_is_found_unless_a_disk_or_link_was_slow() {
        let late_ = WRITTEN + Duration::from_millis(1);
        assert_eq!(unwritten(&step(&[Kind::KillAll]), WRITTEN), None);
        assert!(
            unwritten(&step(&[Kind::KillAll]), late_).is_some_and(|text| text.contains("4.5s are allowed"))
        );
        assert_eq!(unwritten(&step(&[Kind::KillAll, Kind::DiskSlow]), late_), None);
    }

    #[test]
    fn a_majority_can_vote_and_lead() {
        let states = |list: &[&str]| list.iter().map(|state| (*state).to_owned()).collect::<Vec<_>>();
        assert!(is_majority(&states(&["FOLLOWER", "CSTATE_FORMING", "NODE_ERROR"])));
        assert!(!is_majority(&states(&["FOLLOWER", "STARTUP", "NODE_ERROR"])));
        assert!(!is_majority(&states(&["FOLLOWER", "CANDIDATE", "refused", "refused"])));
    }

    #[test]
    fn with_autoreclone_a_hand_is_wrong_unless_the_memory_was_damaged() {
        let hands = [Hand::Memory(1), Hand::HalfRewound(2), Hand::Reset(3, "REWIND_FAILED".into())];
        assert_eq!(needless(true, &step(&[Kind::DiskFull]), &hands).len(), 2);
        assert!(needless(false, &step(&[Kind::DiskFull]), &hands).is_empty());
    }

    #[test]
    fn what_is_left_out_fails_where_ci_is_set() {
        assert!(complete(&[], true).is_ok());
        assert!(complete(&["DiskFull".into()], false).is_ok());
        assert!(complete(&["DiskFull".into()], true).is_err());
    }
}
