//! Chance: the generator, and what may go wrong by it.

use biha_core::Millis;

/// Disorder, while it is on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chaos {
    /// Of 1000 messages, so many are lost.
    pub loss: u64,
    /// Of 1000 messages, so many arrive twice.
    pub duplicates: u64,
    /// Messages are late by up to so many ms, each by its own delay: they overtake each other.
    pub jitter: Millis,
    /// Of 1000 orders, so many fail; and they take longer.
    pub failing_orders: u64,
    /// Of 10000 outputs, so many are the last before a crash.
    pub crash: u64,
    /// The server's hint is wrong now and then, as PostgreSQL's is.
    pub lying_hints: bool,
    /// What a standby received is on disk only a moment later, and a host that loses power loses it.
    pub torn_wal: bool,
    /// A start takes so much longer, at most: recovery.
    pub slow_start: Millis,
    /// Of 1000 writes of a state file, so many take up to `slow_write` ms.
    pub slow_writes: u64,
    pub slow_write: Millis,
}

/// xorshift64* (Vigna 2016).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    pub fn of_1000(&mut self, chance: u64) -> bool {
        chance > 0 && self.below(1000) < chance
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }
}
