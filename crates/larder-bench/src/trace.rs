//! Access traces: read from files, or made up.
//!
//! Files: whatever `larder replay` reads, through its own reader. Made up: `zipf:SKEW`, `loop:KEYS`, `scan`,
//! `phases`, `churn`, each of a million accesses under a seed.

use crate::replay;
use std::collections::HashMap;
use std::path::Path;

pub struct Trace {
    pub name: String,
    /// Keys are renumbered from 0 in the order of their first access.
    pub keys: Vec<u32>,
    pub distinct: usize,
}

pub fn load(what: &str, seed: u64) -> Result<Trace, String> {
    match synthetic(what, seed) {
        Some(keys) => Ok(renumber(what.to_owned(), keys.into_iter())),
        None => replay::read(Path::new(what)),
    }
}

fn renumber(name: String, keys: impl Iterator<Item = u64>) -> Trace {
    let mut numbers = HashMap::new();
    let keys = keys.map(|key| {
        let next = numbers.len() as u32;
        *numbers.entry(key).or_insert(next)
    });
    let keys = keys.collect();
    Trace { name, keys, distinct: numbers.len() }
}

fn synthetic(what: &str, seed: u64) -> Option<Vec<u64>> {
    const ACCESSES: usize = 1_000_000;
    let mut rng = fastrand::Rng::with_seed(seed);
    let (kind, argument) = what.split_once(':').unwrap_or((what, ""));
    let keys = match kind {
        "zipf" => {
            let zipf = Zipf::new(200_000, argument.parse().ok()?);
            (0..ACCESSES).map(|_| zipf.draw(&mut rng)).collect()
        }
        "loop" => {
            let keys: u64 = argument.parse().ok()?;
            (0..ACCESSES as u64).map(|at| at % keys).collect()
        }
        // Three of four accesses by popularity, with sequential runs of 20,000 keys seen once in between.
        "scan" => {
            let (zipf, mut fresh) = (Zipf::new(100_000, 0.9), 1 << 32);
            let access = |at: usize| {
                if at % 80_000 < 20_000 {
                    fresh += 1;
                    return fresh;
                }
                zipf.draw(&mut rng)
            };
            (0..ACCESSES).map(access).collect()
        }
        // Every 100,000 accesses another kind: popularity (over new keys each time), a loop, recency.
        "phases" => {
            let zipf = Zipf::new(50_000, 1.0);
            let access = |at: usize| {
                let phase = (at / 100_000) as u64;
                let base = phase << 32;
                match phase % 3 {
                    0 => base + zipf.draw(&mut rng),
                    1 => (1 << 40) + at as u64 % 15_000,
                    _ => base + (at as u64 % 100_000 / 10).saturating_sub(recent(&mut rng)),
                }
            };
            (0..ACCESSES).map(access).collect()
        }
        // Keys are used often when new and never again: recency alone matters.
        "churn" => {
            let access = |at: usize| (at as u64 / 10).saturating_sub(recent(&mut rng));
            (0..ACCESSES).map(access).collect()
        }
        _ => return None,
    };
    Some(keys)
}

/// How long ago, in keys: mostly little.
fn recent(rng: &mut fastrand::Rng) -> u64 {
    (rng.f64().powi(4) * 40_000.0) as u64
}

/// Zipf-distributed ranks, scrambled.
pub struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    pub fn new(keys: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let cumulated = (1..=keys).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        Zipf { cumulated: cumulated.collect() }
    }

    pub fn draw(&self, rng: &mut fastrand::Rng) -> u64 {
        let total = self.cumulated.last().copied().unwrap_or(1.0);
        let at = rng.f64() * total;
        self.cumulated.partition_point(|&sum| sum < at) as u64
    }
}
