//! Schedules: small programs on a cache whose every interleaving must keep the promise, run by shuttle in
//! many random orders.
//!
//! `RUSTFLAGS="--cfg larder_shuttle" cargo test -p larder --lib --profile shuttle schedules`. The variable
//! `LARDER_SCHEDULES` is how many schedules each program gets. For each rule of the protocol a negative
//! control switches it off and asks the same program to find the violation.

mod controls;
mod flights;
mod memory;
mod tiers;
mod world;

use crate::rules::{Rule, without};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use world::World;

/// Enough for a developer to notice what is grossly wrong, in a second or two.
const SCHEDULES_DEFAULT: usize = 1000;
/// Most schedules that a negative control may need: the worst known takes a tenth.
const CONTROL_MAX: usize = 200_000;
/// PCT finds every bug of this many ordering constraints with a known probability (Burckhardt et al., "A
/// Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010).
const PCT_DEPTH: usize = 3;

fn config(failures: FailurePersistence) -> Config {
    let mut config = Config::new();
    // Futures of the read path are deep where the compiler doesn't inline.
    config.stack_size = 1 << 18;
    config.failure_persistence = failures;
    config.silence_warnings = true;
    config
}

/// Runs a program in many schedules, half of them random, half by PCT.
fn explore(program: fn()) {
    static TOTAL: AtomicUsize = AtomicUsize::new(0);
    let schedules = std::env::var("LARDER_SCHEDULES").ok().and_then(|count| count.parse().ok());
    let half = schedules.unwrap_or(SCHEDULES_DEFAULT).div_ceil(2);
    let start = Instant::now();
    let random = RandomScheduler::new(half);
    let pct = PctScheduler::new(PCT_DEPTH, half);
    let ran = Runner::new(random, config(FailurePersistence::Print)).run(program)
        + Runner::new(pct, config(FailurePersistence::Print)).run(program);
    let rate = ran as f64 / start.elapsed().as_secs_f64();
    let total = TOTAL.fetch_add(ran, Relaxed) + ran;
    println!("{ran} schedules, {rate:.0} a second; {total} in total so far");
}

/// Asks a program to fail without `rule`.
#[track_caller]
fn fails_without(rule: Rule, program: fn()) {
    for batch in 0..CONTROL_MAX / 2000 {
        let found = without(Some(rule), || {
            let random = RandomScheduler::new_from_seed(batch as u64, 1000);
            let pct = PctScheduler::new_from_seed(batch as u64, PCT_DEPTH, 1000);
            catch_unwind(AssertUnwindSafe(|| {
                Runner::new(random, config(FailurePersistence::None)).run(program);
                Runner::new(pct, config(FailurePersistence::None)).run(program);
            }))
            .is_err()
        });
        if found {
            println!("{rule:?}: found within {} schedules", (batch + 1) * 2000);
            return;
        }
    }
    panic!("without {rule:?} nothing went wrong in {CONTROL_MAX} schedules: its guard is not tested");
}
