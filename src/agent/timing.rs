//! How long the steps of an order took.

use std::fmt;
use std::time::Instant;

/// Steps done so far, each with its duration.
pub struct Steps {
    since: Instant,
    done: Vec<(&'static str, f64)>,
}

impl Steps {
    /// Begins the first step.
    pub fn new() -> Self {
        Steps { since: Instant::now(), done: Vec::new() }
    }

    /// A step is done, and the next one begins.
    pub fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.done.push((name, (now - self.since).as_secs_f64() * 1000.0));
        self.since = now;
    }
}

/// As `write 1.2 ms, reload 0.8 ms`.
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, ms)) in self.done.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {ms:.1} ms")?;
        }
        Ok(())
    }
}
