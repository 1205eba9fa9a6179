//! A part of the state that most steps leave alone: shared between states, its hash worked out once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

#[derive(Clone, Debug)]
pub struct Shared<T> {
    value: Arc<T>,
    hash: OnceLock<u64>,
}

impl<T: Clone + Hash> Shared<T> {
    pub fn new(value: T) -> Self {
        Shared { value: Arc::new(value), hash: OnceLock::new() }
    }

    /// The value, to be changed.
    pub fn change(&mut self) -> &mut T {
        self.hash = OnceLock::new();
        Arc::make_mut(&mut self.value)
    }

    pub fn fingerprint(&self) -> u64 {
        *self.hash.get_or_init(|| {
            // Its keys are fixed: the same value has the same hash in every run.
            let mut hasher = DefaultHasher::new();
            self.value.hash(&mut hasher);
            hasher.finish()
        })
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Clone + Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.fingerprint());
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value) || self.value == other.value
    }
}

impl<T: Eq> Eq for Shared<T> {}
