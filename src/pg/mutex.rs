//! A robust, process-shared mutex that tells whether its holder lives. The kernel marks it when the holder
//! dies, before it closes the holder's sockets (pthread_mutexattr_setrobust(3), Linux `exit_robust_list`).

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Which word of the mutex the kernel knows of (get_robust_list(2)): glibc's `__lock`, musl's `_m_lock`. Its holder's
/// thread number and `FUTEX_OWNER_DIED` are in it.
const LOCK_WORD: usize = if cfg!(target_env = "musl") { 1 } else { 0 };

/// Held by the controller for life; everybody else only looks. It has a line of memory to itself, so that nothing
/// else that is written takes it away.
#[repr(align(64))]
pub struct RobustMutex(UnsafeCell<MaybeUninit<libc::pthread_mutex_t>>);

// SAFETY: used only through pthread calls on an initialised process-shared mutex.
unsafe impl Sync for RobustMutex {}

impl Default for RobustMutex {
    /// An uninitialised mutex; [`RobustMutex::init`] makes it one, in its final place in shared memory.
    fn default() -> Self {
        RobustMutex(UnsafeCell::new(MaybeUninit::zeroed()))
    }
}

impl RobustMutex {
    fn raw(&self) -> *mut libc::pthread_mutex_t {
        self.0.get().cast()
    }

    /// Makes it a mutex that nobody holds. In `shmem_startup_hook`, before any other process exists.
    pub fn init(&self) {
        let mut attr = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: attr is initialised by the first call; the mutex is in shared memory and not in use yet.
        unsafe {
            libc::pthread_mutexattr_init(attr.as_mut_ptr());
            libc::pthread_mutexattr_setpshared(attr.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(attr.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init(self.raw(), attr.as_ptr());
            libc::pthread_mutexattr_destroy(attr.as_mut_ptr());
        }
    }

    /// Takes it for the rest of this process's life. False if another holds it.
    pub fn hold(&self) -> bool {
        // SAFETY: initialised in shmem_startup_hook.
        match unsafe { libc::pthread_mutex_trylock(self.raw()) } {
            0 => true,
            libc::EOWNERDEAD => {
                // A controller that was restarted by the postmaster without a crash-restart.
                // SAFETY: we own it now.
                unsafe { libc::pthread_mutex_consistent(self.raw()) == 0 }
            }
            _ => false,
        }
    }

    /// Does its holder live? Reads the word that the kernel marks, and takes nothing: whoever tried to lock it would be
    /// its holder for a moment in the eyes of others, and glibc's trylock keeps a mutex that it calls unrecoverable.
    pub fn is_held(&self) -> bool {
        // SAFETY: the word is inside the mutex, aligned as it is, and shared between processes as an atomic.
        let word = unsafe { AtomicU32::from_ptr(self.raw().cast::<u32>().add(LOCK_WORD)) }.load(SeqCst);
        word & libc::FUTEX_TID_MASK != 0 && word & libc::FUTEX_OWNER_DIED == 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::thread;

    use super::*;

    /// Takes it, and dies.
    fn hold_and_die(mutex: &RobustMutex) {
        thread::scope(|scope| assert!(scope.spawn(|| mutex.hold()).join().unwrap()));
    }

    #[test]
    fn only_a_living_holder_counts() {
        let mutex = RobustMutex::default();
        mutex.init();
        assert!(!mutex.is_held());
        hold_and_die(&mutex);
        for _ in 0..3 {
            assert!(!mutex.is_held());
        }
        // After all who have looked.
        assert!(mutex.hold());
        thread::scope(|scope| assert!(scope.spawn(|| mutex.is_held() && !mutex.hold()).join().unwrap()));
    }

    #[test]
    fn the_next_holder_needs_nobody_to_have_looked() {
        let mutex = RobustMutex::default();
        mutex.init();
        hold_and_die(&mutex);
        assert!(mutex.hold());
    }
}
