//! Waking the startup process, so that it asks for WAL again before its retry interval has passed.
//!
//! PostgreSQL asks at once when a stream ends, but not twice within `wal_retrieve_retry_interval`
//! (`WaitForWALToBecomeAvailable` in xlogrecovery.c). A new leader that is not in production yet, a timeline to
//! come through, or a stream that breaks twice would each cost that pause.

use std::time::{Duration, Instant};

/// How often while a new leader is not streaming yet.
const PERIOD: Duration = Duration::from_millis(100);
/// For how long; afterwards PostgreSQL's own pace will do.
pub const SETTLED: Duration = Duration::from_secs(5);

/// The attempts that are left.
pub struct Nudges {
    /// No attempts later than this.
    end: Instant,
    /// The next one.
    next: Instant,
    /// From the next to the one after it.
    pause: Duration,
    /// Each pause is so many times the one before.
    growth: u32,
}

impl Nudges {
    /// For a leader that was chosen: it takes WAL connections within milliseconds.
    pub fn towards_new_leader(now: Instant) -> Self {
        Nudges { end: now + SETTLED, next: now, pause: PERIOD, growth: 1 }
    }

    /// For a stream that broke while its leader is there. What broke it may last, and each attempt that fails writes
    /// to two servers' logs: fewer and fewer.
    pub fn after_break(now: Instant) -> Self {
        Nudges { end: now + SETTLED, next: now + PERIOD, pause: 2 * PERIOD, growth: 2 }
    }

    /// Is an attempt due? `None` when there are no more.
    pub fn due(&mut self, now: Instant) -> Option<bool> {
        if now > self.end {
            return None;
        }
        let due = now >= self.next;
        if due {
            self.next = now + self.pause;
            self.pause *= self.growth;
        }
        Some(due)
    }

    /// How long until the next attempt.
    pub fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Milliseconds at which attempts are made by someone who waits as told.
    fn attempts(mut nudges: Nudges, begin: Instant) -> Vec<u128> {
        let mut now = begin;
        let mut made = Vec::new();
        while let Some(due) = nudges.due(now) {
            if due {
                made.push((now - begin).as_millis());
            }
            now += nudges.wait(now).max(Duration::from_millis(1));
        }
        made
    }

    #[test]
    fn a_new_leader_is_asked_at_once_and_steadily() {
        let now = Instant::now();
        let made = attempts(Nudges::towards_new_leader(now), now);
        assert_eq!(made[..3], [0, 100, 200]);
        assert_eq!(made.last(), Some(&5000));
    }

    #[test]
    fn after_a_break_attempts_grow_rare() {
        let now = Instant::now();
        assert_eq!(attempts(Nudges::after_break(now), now), [100, 300, 700, 1500, 3100]);
    }
}
