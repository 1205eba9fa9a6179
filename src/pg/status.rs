//! What the local server looks like, read from shared memory without any lock that could be held for long.

use biha_core::{Lsn, Position, ServerStatus};
use pgrx::pg_sys;

use crate::pg::{control, recovery};

/// PostgreSQL's system identifier of this data directory.
pub fn system_identifier() -> u64 {
    // SAFETY: reads the control data in shared memory, there from the start.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The server as it is now, but for what others have to find out. `checkpointed` is what the last look said: once
/// true it stays so.
pub fn read(checkpointed: bool) -> ServerStatus {
    if recovery::in_progress() {
        // SAFETY: all of it is in shared memory, and read only.
        let (consistent, streaming, asked) = unsafe {
            let receiver = pg_sys::WalRcv;
            let state = (*receiver).walRcvState;
            // It says so from its first moment on. Displayed is what it has connected to.
            let streaming = state == pg_sys::WalRcvState::WALRCV_STREAMING && (*receiver).ready_to_display;
            (pg_sys::HotStandbyActive(), streaming, (*receiver).receiveStartTLI)
        };
        let end_on_file = match recovery::replayed() {
            Some(replayed) if consistent => replayed.lsn,
            _ => control::read().map_or(Lsn(0), |file| file.min_recovery),
        };
        let hint = standby_hint();
        ServerStatus { consistent, streaming, end_on_file, asked, hint, ..ServerStatus::default() }
    } else {
        let mut timeline = 0;
        // SAFETY: recovery has ended.
        let lsn = unsafe { pg_sys::GetFlushRecPtr(&mut timeline) };
        ServerStatus {
            production: true,
            consistent: true,
            checkpointed: checkpointed
                || control::read().is_some_and(|file| file.checkpoint_timeline == timeline),
            hint: Some(Position { timeline, lsn: Lsn(lsn) }),
            ..ServerStatus::default()
        }
    }
}

/// The later of what was replayed and what was received.
fn standby_hint() -> Option<Position> {
    let replayed = recovery::replayed();
    let mut timeline = 0;
    // SAFETY: reads shared memory under its spinlock.
    let received = unsafe { pg_sys::GetWalRcvFlushRecPtr(std::ptr::null_mut(), &mut timeline) };
    match replayed {
        // The receiver's timeline is what was asked for, not yet what has arrived.
        Some(replayed) if received > replayed.lsn.0 => Some(Position { lsn: Lsn(received), ..replayed }),
        replayed => replayed,
    }
}
