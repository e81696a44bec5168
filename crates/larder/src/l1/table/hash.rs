//! How keys become bits: one 64-bit hash per operation, of which each part of the table reads its own.
//!
//! Low 32 bits: the fingerprint, from which index, ghost, sketch and panel derive their places. Bits 32 to
//! 38: whether the panel sees the key. Bits 48 up: the shard.

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::LazyLock;

/// Most shards, for the bits that choose one.
pub(super) const SHARDS_MAX: usize = 1 << 12;
/// Most that the panel thins its sample: one access in 64.
pub(super) const SAMPLE_RATE_MAX: u32 = 64;

/// The default hasher: foldhash (quality variant), keyed from the operating system's randomness.
///
/// Not cryptographic: it resists flooding by who can neither read hashes nor time single probes. By itself
/// foldhash seeds from addresses and the time, which can be guessed, so the seed is not left to it.
pub type KeyedState = SeedableRandomState;

/// A hasher under `seed`, or under a random one.
pub(super) fn keyed_state(seed: Option<u64>) -> KeyedState {
    static SHARED: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(random()));
    static FIXED: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(0));
    match seed {
        Some(seed) => SeedableRandomState::with_seed(seed, &FIXED),
        None => SeedableRandomState::with_seed(random(), &SHARED),
    }
}

/// A hasher under a random seed.
pub(crate) fn keyed_at_random() -> KeyedState {
    keyed_state(None)
}

/// 64 bits of the system's randomness; std's hasher is the one door to it that needs no dependency.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// What stands for a key inside a shard. Never 0, so that an empty slot costs no extra byte.
pub(super) fn fingerprint(hash: u64) -> NonZeroU32 {
    NonZeroU32::new(hash as u32).unwrap_or(NonZeroU32::MIN)
}

pub(super) fn is_sampled(hash: u64, rate: u32) -> bool {
    (hash >> 32) as u32 & (rate - 1) == 0
}

pub(super) fn shard(hash: u64, shards: usize) -> usize {
    (hash >> 48) as usize & (shards - 1)
}

/// The hash of a fingerprint for hashbrown, which reads its low and its top bits.
#[inline]
pub(super) fn index_hash(fingerprint: u32) -> u64 {
    u64::from(fingerprint).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// 64 bits from a fingerprint, independent for each odd `salt`.
#[inline]
pub(super) fn mix(fingerprint: u32, salt: u64) -> u64 {
    let product = u128::from(u64::from(fingerprint) ^ salt) * u128::from(salt | 1);
    let folded = (product as u64) ^ (product >> 64) as u64;
    folded.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_right(29).wrapping_mul(salt | 1)
}
