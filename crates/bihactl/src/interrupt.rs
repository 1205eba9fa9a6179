//! SIGINT, SIGTERM and SIGHUP: noted, and looked at between steps and while waiting, so that what was begun
//! is taken back in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static IGNORED: AtomicBool = AtomicBool::new(false);

fn flag() -> &'static Arc<AtomicBool> {
    REQUESTED.get_or_init(Arc::default)
}

/// From now on the signals are noted instead of ending the process.
pub fn install() -> Result<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag()))?;
    }
    Ok(())
}

/// Acts as if a signal had come.
pub fn request() {
    flag().store(true, Ordering::Relaxed);
}

/// From now on nobody is told of signals, nor of one that has come: what is taken back is taken back to its end.
pub fn ignore() {
    IGNORED.store(true, Ordering::Relaxed);
}

/// Has one come?
pub fn requested() -> bool {
    flag().load(Ordering::Relaxed) && !IGNORED.load(Ordering::Relaxed)
}

/// An error if one has come.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits between two looks at a server that has no way to tell; ends early if a signal comes.
pub fn pause(time: Duration) -> Result<()> {
    let timeout = rustix::event::Timespec::try_from(time)?;
    match rustix::event::poll(&mut [], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => check(),
        Err(e) => Err(e.into()),
    }
}
