//! Figures: what `make bench` measures, each beside its target.

pub mod faults;
pub mod steady;

use std::fmt::Write as _;
use std::time::Duration;

/// Median, smallest and greatest of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

/// What a figure shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

/// A figure with its series.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// Unit of the series and the target.
    pub unit: &'static str,
    /// What it shall be.
    pub target: Target,
    /// What it was, each time.
    pub series: Vec<f64>,
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtMost(limit) => value <= limit,
            Target::AtLeast(limit) => value >= limit,
        }
    }
}

/// The spread of some figures; `None` without any.
pub fn spread(figures: &[f64]) -> Option<Spread> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    Some(Spread { median, min, max, count: sorted.len() })
}

/// The table that is printed in the end.
pub fn table(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<44} {:>10} {:>19} {:>10} {:>4}  {}\n",
        "figure", "median", "(min–max)", "target", "n", "unit"
    );
    for figure in figures {
        let Some(Spread { median, min, max, count }) = spread(&figure.series) else { continue };
        let (sign, limit) = match figure.target {
            Target::AtMost(limit) => ('≤', limit),
            Target::AtLeast(limit) => ('≥', limit),
        };
        let range = format!("({}–{})", short(min), short(max));
        let missed = if figure.target.met(median) { "" } else { "  MISSED" };
        let target = format!("{sign} {}", short(limit));
        // Writing to a string can't fail.
        writeln!(
            text,
            "{:<44} {:>10} {range:>19} {target:>10} {count:>4}  {}{missed}",
            figure.name,
            short(median),
            figure.unit
        )
        .ok();
    }
    text
}

/// Three digits that count.
fn short(value: f64) -> String {
    let decimals = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0, count: 3 }));
        assert_eq!(spread(&[4.0, 1.0]).map(|s| s.median), Some(2.5));
    }

    #[test]
    fn a_missed_target_is_told() {
        let figure = |target| Figure { name: "f", unit: "ms", target, series: vec![150.4, 160.0, 140.0] };
        let text = table(&[figure(Target::AtMost(150.0)), figure(Target::AtLeast(150.0))]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("150 ") && lines[1].ends_with("MISSED"), "{text}");
        assert!(lines[2].contains("(140–160)") && lines[2].ends_with("ms"), "{text}");
    }
}
