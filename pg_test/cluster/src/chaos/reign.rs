//! Who took writes when, by the nodes' own `biha.history()`: no two at a time, and no two in one term.
//!
//! A leader that is killed cannot note its end, and one that is frozen notes it when it wakes: these ends are known
//! from the faults.

use std::collections::{BTreeMap, BTreeSet};

/// A row of `biha.history()`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// Microseconds since 1970.
    pub at: i64,
    /// Where it happened.
    pub node: u32,
    /// That node's term.
    pub term: u32,
    /// FAILOVER, FENCED, …
    pub event: String,
}

/// What a fault did to a node that may have led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blow {
    /// Which node.
    pub node: u32,
    /// From when it took no writes at the latest; a killed one.
    pub at: i64,
    /// When it went on, if it was only frozen, or could not note anything; [`NEVER`] where it had ended meanwhile.
    pub woke: Option<i64>,
}

/// It did not go on. Half the range: it can be added to.
pub const NEVER: i64 = i64::MAX / 2;

/// When a node took writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reign {
    /// From when.
    pub from: i64,
    /// Until when.
    pub to: i64,
    /// Who.
    pub node: u32,
    /// In which term.
    pub term: u32,
}

/// How long after waking an event may tell of what ended during the sleep, in microseconds.
const WAKING: i64 = 1_000_000;

/// How long a stop may take to come, in microseconds: what was elected meanwhile dies of it, too.
const COMING: i64 = 50_000;

/// All reigns, by their beginning. `lease` is in microseconds.
pub fn reigns(events: &BTreeSet<Event>, blows: &[Blow], lease: i64) -> Vec<Reign> {
    let mut nodes: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
    for event in events {
        nodes.entry(event.node).or_default().push(event);
    }
    let mut found = Vec::new();
    for list in nodes.values() {
        let mut open: Option<Reign> = None;
        for event in list {
            match event.event.as_str() {
                "FAILOVER" | "SWITCHOVER" | "UNFENCED" => {
                    found.extend(open.take());
                    open = Some(Reign { from: event.at, to: i64::MAX, node: event.node, term: event.term });
                }
                "FENCED" | "DEMOTED" | "STARTED" | "REWIND" | "FOLLOW" => {
                    found.extend(open.take().map(|reign| Reign { to: event.at, ..reign }));
                }
                _ => {}
            }
        }
        found.extend(open);
    }
    let mut cut: Vec<Reign> = found.into_iter().flat_map(|reign| struck(reign, blows, lease)).collect();
    cut.sort();
    cut
}

/// A reign as the faults have shortened it, or cut it in two.
fn struck(reign: Reign, blows: &[Blow], lease: i64) -> Vec<Reign> {
    let mut pieces = Vec::new();
    let mut rest = reign;
    let mine = || blows.iter().filter(|blow| blow.node == reign.node);
    let deaths = || mine().filter(|blow| blow.woke.is_none()).map(|blow| blow.at);
    if deaths().any(|at| at < rest.from && rest.from < at + COMING) {
        return pieces;
    }
    rest.to = deaths().filter(|at| *at >= rest.from).fold(rest.to, i64::min);
    let mut sleeps: Vec<(i64, i64)> = mine().filter_map(|blow| Some((blow.at, blow.woke?))).collect();
    sleeps.sort_unstable();
    for (at, woke) in sleeps {
        // It came as this one was elected: noted just before, felt just after.
        let came = woke < NEVER && (at..woke.min(at + COMING)).contains(&rest.from);
        let at = if came { rest.from } else { at };
        if at < rest.from || at >= rest.to {
            continue;
        }
        pieces.push(Reign { to: rest.to.min(at + lease), ..rest });
        // By what it noted: when it was ended tells nothing of whether it had gone on.
        if woke >= NEVER || rest.to <= woke || reign.to < woke + WAKING {
            return pieces;
        }
        rest.from = woke.max(at + lease);
    }
    pieces.push(rest);
    pieces
}

/// What must not be: two nodes that reign at once, or in one term.
pub fn violations(reigns: &[Reign]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, one) in reigns.iter().enumerate() {
        for other in &reigns[index + 1..] {
            let same_time = other.from < one.to && one.from < other.to;
            if one.node != other.node && (same_time || one.term == other.term) {
                found.push(format!("two leaders by their own history: {one:?} and {other:?}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(list: &[(i64, u32, u32, &str)]) -> BTreeSet<Event> {
        let event =
            |&(at, node, term, event): &(i64, u32, u32, &str)| Event { at, node, term, event: event.into() };
        list.iter().map(event).collect()
    }

    #[test]
    fn an_overlap_is_found() {
        let told = events(&[(10, 1, 2, "FAILOVER"), (50, 2, 3, "FAILOVER"), (60, 1, 3, "DEMOTED")]);
        assert_eq!(violations(&reigns(&told, &[], 5)).len(), 1);
        let killed = Blow { node: 1, at: 40, woke: None };
        assert_eq!(violations(&reigns(&told, &[killed], 5)), Vec::<String>::new());
        let late = Blow { node: 1, at: 55, woke: None };
        assert_eq!(violations(&reigns(&told, &[late], 5)).len(), 1);
    }

    #[test]
    fn what_comes_as_a_leader_is_elected_strikes_it() {
        let told =
            events(&[(100_010, 1, 2, "FAILOVER"), (500_000, 2, 3, "FAILOVER"), (900_000, 1, 2, "FENCED")]);
        let struck = |at| reigns(&told, &[Blow { node: 1, at, woke: Some(800_000) }], 5);
        assert!(violations(&struck(100_000)).is_empty());
        assert_eq!(violations(&struck(10_000)).len(), 1, "it was elected after that");
    }

    #[test]
    fn a_frozen_leader_reigns_for_its_lease_and_again_if_it_stays() {
        let told = events(&[(10, 1, 2, "FAILOVER"), (50, 2, 3, "FAILOVER"), (70, 1, 3, "FENCED")]);
        let frozen = Blow { node: 1, at: 40, woke: Some(65) };
        assert!(violations(&reigns(&told, &[frozen], 5)).is_empty());
        assert_eq!(violations(&reigns(&told, &[frozen], 20)).len(), 1, "the lease was not over");
        let stays =
            events(&[(10, 1, 2, "FAILOVER"), (5_000_000, 2, 3, "FAILOVER"), (6_000_000, 1, 3, "FENCED")]);
        assert_eq!(violations(&reigns(&stays, &[frozen], 5)).len(), 1, "it went on, and never ended");
        let ended = Blow { node: 1, at: 900_000, woke: None };
        let second = events(&[(10, 1, 2, "FAILOVER"), (500_000, 2, 3, "FAILOVER")]);
        assert_eq!(
            violations(&reigns(&second, &[frozen, ended], 5)).len(),
            1,
            "it went on until it was ended"
        );
    }

    #[test]
    fn who_ended_unseen_reigned_for_its_lease_at_most_however_late_it_starts_again() {
        let told = events(&[(10, 1, 2, "FAILOVER"), (50, 2, 3, "FAILOVER"), (9_000_000, 1, 2, "STARTED")]);
        let refused = |woke| Blow { node: 1, at: 40, woke: Some(woke) };
        assert_eq!(violations(&reigns(&told, &[refused(65)], 5)).len(), 1, "as if it had gone on at 65");
        assert!(violations(&reigns(&told, &[refused(NEVER)], 5)).is_empty());
        assert_eq!(violations(&reigns(&told, &[refused(NEVER)], 20)).len(), 1, "the lease was not over");
    }

    #[test]
    fn who_was_elected_while_its_stop_was_coming_reigns_no_more() {
        let begin = 1_000_000;
        let told = events(&[
            (begin, 1, 2, "FAILOVER"),
            (begin + 50, 2, 3, "FAILOVER"),
            (begin + 90, 1, 2, "STARTED"),
        ]);
        let stop = |at| Blow { node: 1, at, woke: None };
        assert_eq!(violations(&reigns(&told, &[stop(begin - COMING)], 5)).len(), 1, "that was another one");
        assert!(violations(&reigns(&told, &[stop(begin - 10)], 5)).is_empty());
    }

    #[test]
    fn who_could_note_nothing_reigned_until_it_was_seen_to_end() {
        let told = events(&[(10, 1, 2, "FAILOVER"), (50, 2, 3, "FAILOVER"), (9_000_000, 1, 2, "STARTED")]);
        let full = Blow { node: 1, at: 40, woke: Some(NEVER) };
        assert_eq!(violations(&reigns(&told, &[full], 20)).len(), 1, "for its lease, as far as known");
        let ended = |at| Blow { node: 1, at, woke: None };
        assert!(violations(&reigns(&told, &[full, ended(45)], 20)).is_empty());
        assert_eq!(violations(&reigns(&told, &[full, ended(55)], 20)).len(), 1);
        let before = Blow { at: 5, ..full };
        assert_eq!(violations(&reigns(&told, &[before], 20)).len(), 1, "it was elected all the same");
        assert!(violations(&reigns(&told, &[before, ended(45)], 20)).is_empty());
    }

    #[test]
    fn two_in_one_term_are_found() {
        let told = events(&[(10, 1, 2, "FAILOVER"), (20, 1, 2, "FENCED"), (30, 2, 2, "FAILOVER")]);
        assert_eq!(violations(&reigns(&told, &[], 5)).len(), 1);
    }
}
