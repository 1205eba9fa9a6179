//! Before the gate is shut in good order the commits that have passed it come through: whoever waits for an answer
//! gets one. Nothing depends on it: what does not come through in time is left unacknowledged, as in any loss of
//! leadership.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use biha_core::Millis;

use crate::board;
use crate::pg::{clock, wait};

/// How long to wait for them at most, in ms: one that needs longer waits for a disk or a standby that may never answer.
const LIMIT: Millis = 100;

/// Counts the commit of this session, until [`leave`]. False if commits are held back now.
#[inline]
pub fn enter() -> bool {
    let gate = board::gate();
    gate.committing.fetch_add(1, SeqCst);
    let free = !holds_back();
    if !free {
        leave();
    }
    free
}

/// The commit is confirmed, or will not be.
#[inline]
pub fn leave() {
    board::gate().committing.fetch_sub(1, SeqCst);
}

/// Must new commits wait?
#[inline]
pub fn holds_back() -> bool {
    let until = board::gate().held_back_until.load(SeqCst);
    until != 0 && clock::boottime() < until
}

/// Holds back new commits and waits for those under way, or until `given_up`. Who shuts the gate has to follow soon:
/// the hold ends by itself. Both are short against the election timeout, in which nobody must miss a heartbeat.
pub fn drain(given_up: impl Fn() -> bool) {
    let gate = board::gate();
    let limit = LIMIT.min(Millis::from(gate.patience.load(SeqCst)) / 8);
    gate.held_back_until.store(clock::boottime() + limit + limit / 2, SeqCst);
    wait::until(Duration::from_millis(limit), || gate.committing.load(SeqCst) == 0 || given_up());
}
