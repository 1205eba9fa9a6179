//! Opening a timeline of a chosen number.
//!
//! PostgreSQL takes the first number without a history file, so the numbers below the wanted one get empty
//! files. Those stay for good and are archived: followers fetch every history between two timelines, and a
//! restore to the latest one stops at the first gap.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use biha_core::{OrderId, OrderResult, Timeline, newest};
use pgrx::log;

use super::receiver::{Receiver, free_replay};
use super::{history, timing::Steps};
use crate::pg::{recovery, wait, xlog};

/// How long a promotion may take after replay has made its last progress.
const LIMIT: Duration = Duration::from_secs(60);
/// After this long without the promotion, look for what holds up replay.
const PATIENCE: Duration = Duration::from_millis(50);

/// See [`biha_core::Order::Promote`]. After an error the server may still be promoted later, or be in
/// production on another timeline: the gate must stay shut.
pub fn promote(
    receiver: &mut Receiver,
    id: OrderId,
    timeline: Timeline,
    first_placeholder: Timeline,
) -> Result<OrderResult, String> {
    let mut steps = Steps::new();
    receiver.silence(id, &mut steps)?;
    check_numbers(timeline, first_placeholder)?;
    write_placeholders(timeline, first_placeholder)
        .map_err(|e| format!("could not make placeholders: {e}"))?;
    steps.done("placeholders");
    trigger().map_err(|e| format!("could not create file \"{}\": {e}", xlog::PROMOTE_FILE))?;
    await_production()?;
    steps.done("promotion");
    let opened = xlog::timeline_in_production();
    if opened != Some(timeline) {
        return Err(format!("the server opened timeline {opened:?} instead of {timeline}"));
    }
    archive_placeholders(timeline, first_placeholder);
    // pg_rewind on PostgreSQL 15 takes this server's timeline from its last checkpoint.
    wait::caught(|| {
        xlog::begin_checkpoint();
        Ok(())
    })?;
    remove_if_there("standby.signal")
        .map_err(|e| format!("could not remove file \"standby.signal\": {e}"))?;
    let history = newest(history::read(timeline).map_err(|e| e.to_string())?);
    steps.done("finish");
    log!("opened timeline {timeline} ({steps})");
    Ok(OrderResult::Promoted { history })
}

fn write_placeholders(timeline: Timeline, first: Timeline) -> io::Result<()> {
    let mut written = false;
    for number in first..timeline {
        match OpenOptions::new().write(true).create_new(true).open(history::path(number)) {
            Ok(file) => {
                file.sync_all()?;
                written = true;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    if written { File::open(history::DIR)?.sync_all() } else { Ok(()) }
}

/// Will PostgreSQL choose the wanted number? It takes the first free one after the timeline it replays.
fn check_numbers(timeline: Timeline, first_placeholder: Timeline) -> Result<(), String> {
    let own = recovery::replayed().ok_or("replay has not begun")?.timeline;
    let taken = |number: Timeline| {
        (first_placeholder..timeline).contains(&number) || Path::new(&history::path(number)).exists()
    };
    match (own + 1..=timeline).find(|number| !taken(*number)) {
        Some(free) if free == timeline => Ok(()),
        Some(free) => Err(format!("timeline {free} would be opened instead of {timeline}")),
        None => Err(format!("timeline {timeline} exists already")),
    }
}

fn trigger() -> io::Result<()> {
    File::create(xlog::PROMOTE_FILE)?;
    xlog::signal_postmaster(libc::SIGUSR1);
    // A promotion ends a pause, but by itself only at its next look, up to a second later.
    recovery::resume();
    Ok(())
}

/// Waits for the end of recovery; gives up when replay has made no progress for [`LIMIT`]. It goes on when
/// a newer order is given: what was triggered cannot be taken back.
fn await_production() -> Result<(), String> {
    let mut replayed = recovery::replayed();
    let mut progress = Instant::now();
    while !wait::until(PATIENCE, || !recovery::in_progress() || wait::stop_requested()) {
        free_replay();
        let now = recovery::replayed();
        if now != replayed {
            (replayed, progress) = (now, Instant::now());
        }
        if progress.elapsed() > LIMIT {
            return Err("recovery does not end".to_owned());
        }
    }
    if recovery::in_progress() { Err("the server is being stopped".to_owned()) } else { Ok(()) }
}

/// The server marks only the new timeline's own history file.
fn archive_placeholders(timeline: Timeline, first: Timeline) {
    if !xlog::archiving() {
        return;
    }
    for number in first..timeline {
        let empty = fs::metadata(history::path(number)).is_ok_and(|file| file.len() == 0);
        if empty {
            xlog::archive(&history::file_name(number));
        }
    }
}

fn remove_if_there(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
