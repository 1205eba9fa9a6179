//! Random numbers.

use pgrx::pg_sys;

/// From PostgreSQL's cryptographic source (pg_strong_random.c); `None` where it has failed.
pub fn random() -> Option<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is as long as it says.
    let made = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    made.then(|| u64::from_ne_bytes(bytes))
}
