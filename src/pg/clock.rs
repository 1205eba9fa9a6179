//! Clocks.

use std::mem::MaybeUninit;

use biha_core::Millis;

/// CLOCK_BOOTTIME in ms. A read of memory that the kernel shares: no system call.
#[inline]
pub fn boottime() -> Millis {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: clock_gettime(2) fills it in; it cannot fail for a clock that every supported kernel has.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, now.as_mut_ptr());
        now.assume_init()
    };
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// The wall clock: microseconds since 1970-01-01 UTC. For people only.
pub fn wall() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}
