//! Memory that a postmaster shares with its children and that is not PostgreSQL's: it is still there when
//! PostgreSQL's shared memory is not, in the postmaster's last moments and between two crash-restarts.

use std::{io, ptr};

/// Types that may be shared so.
///
/// # Safety
/// All bytes zero is a valid value, and it is shared between processes as [`Sync`] is between threads: only
/// atomics, no pointers.
pub unsafe trait Shareable: Sync + 'static {}

/// Maps a value made of zeros, shared with the children forked from now on. It is never unmapped; it ends
/// with the last of the processes, and in each with `execv`.
pub fn map<T: Shareable>() -> io::Result<&'static T> {
    // SAFETY: a new anonymous mapping; it disturbs no other.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: page-aligned, large enough, all zeros, which `Shareable` says is a value; never unmapped.
    Ok(unsafe { &*address.cast::<T>() })
}
