//! A node's own wall clock, which can be set: a library that is loaded before the C library adds an offset to it. The
//! machine's clock and all clocks that only go forward are left alone.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::run::{make_directory, run};

/// The library's source.
const SOURCE: &str = include_str!("wallclock.c");
/// How far two readings of one moment may be apart, in microseconds.
const BLUR: i64 = 100_000;

/// One node's wall clock.
#[derive(Debug)]
pub struct WallClock {
    file: PathBuf,
    /// From when (microseconds since 1970 by the machine's clock) it was ahead by how much (microseconds).
    settings: Mutex<Vec<(i64, i64)>>,
}

/// Compiles the library, in `directory`.
pub fn library(directory: &Path) -> Result<PathBuf> {
    make_directory(directory)?;
    let (source, library) = (directory.join("wallclock.c"), directory.join("wallclock.so"));
    fs::write(&source, SOURCE)?;
    run(Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source))
        .context("could not compile the clock of the tests")?;
    Ok(library)
}

impl WallClock {
    /// A clock that goes right. It is kept in `file`.
    pub fn create(file: PathBuf) -> Result<WallClock> {
        fs::write(&file, 0_i64.to_ne_bytes()).with_context(|| file.display().to_string())?;
        Ok(WallClock { file, settings: Mutex::new(vec![(i64::MIN, 0)]) })
    }

    /// What the environment of a node's programs must hold.
    pub fn environment(&self, library: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".into(), text(library)), ("BIHA_TEST_CLOCK".into(), text(&self.file))]
    }

    /// Sets it, so many seconds ahead of the machine's. `now` is in microseconds since 1970.
    pub fn set(&self, now: i64, ahead: i64) -> Result<()> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        // In place: programs have it mapped.
        OpenOptions::new().write(true).open(&self.file)?.write_all_at(&ahead.to_ne_bytes(), 0)?;
        settings.push((now, ahead * 1_000_000));
        Ok(())
    }

    /// When it was what this clock called `at`, by the machine's clock, if it was between these two. All in
    /// microseconds since 1970.
    pub fn truth(&self, at: i64, from: i64, to: i64) -> Option<i64> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = settings.iter().skip(1).map(|(since, _)| *since).chain([i64::MAX]);
        let mut fits = settings.iter().zip(ends).filter_map(|((since, ahead), until)| {
            let truth = at - ahead;
            let while_so = truth >= since.saturating_sub(BLUR) && truth <= until.saturating_add(BLUR);
            (while_so && truth >= from - BLUR && truth <= to + BLUR).then_some(truth)
        });
        fits.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wall_clock_is_set() {
        let directory = std::env::temp_dir().join(format!("biha-clock-test-{}", std::process::id()));
        let library = library(&directory).unwrap();
        let clock = WallClock::create(directory.join("clock")).unwrap();
        let perl = "use Time::HiRes ':DEFAULT'; \
            print join ' ', map { int } time, Time::HiRes::time, clock_gettime(0), clock_gettime(1), clock_gettime(7)";
        let ask = || -> Vec<i64> {
            let mut command = Command::new("perl");
            command.args(["-MTime::HiRes=clock_gettime", "-e", perl]).envs(clock.environment(&library));
            run(&mut command).unwrap().split(' ').map(|word| word.parse().unwrap()).collect()
        };
        let before = ask();
        clock.set(0, 7200).unwrap();
        let after = ask();
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            let ahead = if index < 3 { 7200 } else { 0 };
            assert!((after - before - ahead).abs() <= 1, "clock {index}: {before} and {after}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_a_clock_said_is_told_by_what_it_was_set_to() {
        let file = std::env::temp_dir().join(format!("biha-clock-{}", std::process::id()));
        let clock = WallClock::create(file.clone()).unwrap();
        let second = 1_000_000;
        clock.set(100 * second, 3600).unwrap();
        clock.set(110 * second, 0).unwrap();
        assert_eq!(clock.truth(50 * second, 0, 200 * second), Some(50 * second));
        assert_eq!(clock.truth(3705 * second, 0, 200 * second), Some(105 * second));
        assert_eq!(clock.truth(3705 * second, 150 * second, 200 * second), None);
        assert_eq!(clock.truth(105 * second, 0, 200 * second), None, "it said no such thing");
        fs::remove_file(file).unwrap();
    }
}
