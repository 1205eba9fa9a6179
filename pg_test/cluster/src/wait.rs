//! Waiting by condition: never a sleep where something can be asked.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Asks until the answer is there: `Ok(value)`. An `Err` is the reason why not yet; the last one is told
/// when `timeout` has passed.
pub fn wait_until<T, E: Display>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(why) if start.elapsed() >= timeout => {
                bail!("waited {:.1} s in vain for: {what}. At last: {why:#}", timeout.as_secs_f64());
            }
            Err(_) => sleep(pause),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// [`wait_until`] for a plain condition.
pub fn wait_for(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait_until(what, timeout, || if holds() { Ok(()) } else { Err("it does not hold") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_is_told() {
        let mut looks = 0;
        let failed = wait_until("never", Duration::from_millis(20), || {
            looks += 1;
            Err::<(), _>(format!("look {looks}"))
        });
        let text = failed.unwrap_err().to_string();
        assert!(looks > 1);
        assert!(text.contains(&format!("look {looks}")), "{text}");
    }
}
