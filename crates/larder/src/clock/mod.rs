//! Time, always injected: the system's, or one that a test moves.
//!
//! Three readings: wall clock for what is stored (it may jump), monotonic milliseconds for deadlines and
//! L1 expiry (it never jumps), and a coarse monotonic reading for the hit path.

#[cfg(unix)]
mod coarse;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Never, as a time in milliseconds.
pub const NEVER_MS: u64 = u64::MAX;

/// A duration in whole milliseconds, saturating at [`NEVER_MS`]; a positive one is never rounded to 0.
pub fn millis(duration: Duration) -> u64 {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(NEVER_MS);
    if ms == 0 && !duration.is_zero() { 1 } else { ms }
}

/// Where a cache and its tiers read the time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(ManualClock),
    Runtime(RuntimeClock),
}

impl Clock {
    /// The system's clocks.
    pub fn system() -> Self {
        Clock(Source::System)
    }

    /// Milliseconds since 1970 by the wall clock. May jump in both directions.
    pub fn wall_ms(&self) -> u64 {
        match &self.0 {
            Source::System => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
            Source::Manual(manual) => manual.state().wall_ms,
            Source::Runtime(runtime) => runtime.wall_ms(),
        }
    }

    /// Milliseconds of a monotonic clock that never jumps; at least 1.
    pub fn mono_ms(&self) -> u64 {
        match &self.0 {
            Source::System => 1 + millis(since_start()),
            Source::Manual(manual) => manual.state().mono_ms,
            Source::Runtime(runtime) => runtime.mono_ms(),
        }
    }

    /// Microseconds of the same clock, to measure how long something took.
    pub fn mono_us(&self) -> u64 {
        match &self.0 {
            Source::System => 1 + u64::try_from(since_start().as_micros()).unwrap_or(u64::MAX - 1),
            Source::Manual(manual) => manual.state().mono_ms.saturating_mul(1000),
            Source::Runtime(runtime) => runtime.mono_ms().saturating_mul(1000),
        }
    }

    /// [`mono_ms`](Self::mono_ms), about 4 ms late at most while the process gets its share of processor time:
    /// one load instead of a system call.
    #[inline]
    pub fn coarse_ms(&self) -> u64 {
        match &self.0 {
            Source::System => coarse::now_ms(),
            Source::Manual(manual) => manual.state().mono_ms,
            Source::Runtime(runtime) => runtime.mono_ms(),
        }
    }

    /// Waits for `duration` of monotonic time.
    ///
    /// # Cancellation
    /// Dropping the future leaves nothing behind.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep(match &self.0 {
            Source::System => SleepSource::System(crate::runtime::sleep(duration)),
            Source::Runtime(_) => SleepSource::System(Box::pin(tokio::time::sleep(duration))),
            Source::Manual(manual) => {
                let mut state = manual.state();
                state.next_sleeper += 1;
                let wake_at = state.mono_ms.saturating_add(millis(duration));
                SleepSource::Manual { clock: manual.clone(), id: (wake_at, state.next_sleeper) }
            }
        })
    }
}

impl Clock {
    /// Whether it is a [`RuntimeClock`]: everything of the cache then runs on the runtime that it is used in.
    pub(crate) fn is_of_runtime(&self) -> bool {
        matches!(self.0, Source::Runtime(_))
    }
}

impl From<RuntimeClock> for Clock {
    fn from(runtime: RuntimeClock) -> Self {
        Clock(Source::Runtime(runtime))
    }
}

/// Tokio's time, for simulations of a service whose runtime has paused it. What a cache with this clock does in the
/// background runs on the runtime that it is built in, too, and ends with it. Clones share the same time.
#[derive(Clone, Debug)]
pub struct RuntimeClock {
    start: tokio::time::Instant,
    wall_ms: Arc<std::sync::atomic::AtomicU64>,
}

impl RuntimeClock {
    /// A clock at 2026-01-01 00:00 UTC. Inside of a runtime.
    pub fn new() -> Self {
        let wall_ms = Arc::new(std::sync::atomic::AtomicU64::new(1_767_225_600_000));
        RuntimeClock { start: tokio::time::Instant::now(), wall_ms }
    }

    /// Lets the wall clock jump; monotonic time goes on as before.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        let passed_ms = millis(self.start.elapsed());
        self.wall_ms.store(wall_ms.saturating_sub(passed_ms), std::sync::atomic::Ordering::SeqCst);
    }

    fn wall_ms(&self) -> u64 {
        let start_ms = self.wall_ms.load(std::sync::atomic::Ordering::SeqCst);
        start_ms.saturating_add(millis(self.start.elapsed()))
    }

    fn mono_ms(&self) -> u64 {
        1_000_000 + millis(self.start.elapsed())
    }
}

impl Default for RuntimeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl From<ManualClock> for Clock {
    fn from(manual: ManualClock) -> Self {
        Clock(Source::Manual(manual))
    }
}

/// Since the process first asked. Counts while the machine is suspended, where the system can tell: what was served
/// before must not seem as young afterwards.
#[cfg(target_os = "linux")]
fn since_start() -> Duration {
    static START: OnceLock<Duration> = OnceLock::new();
    let now = || {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec that outlives the call.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
        // 32 bits wide on some systems.
        #[allow(clippy::unnecessary_cast)]
        let seconds = now.tv_sec as u64;
        Duration::new(seconds, now.tv_nsec as u32)
    };
    let start = *START.get_or_init(now);
    now().saturating_sub(start)
}

#[cfg(not(target_os = "linux"))]
fn since_start() -> Duration {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(not(unix))]
mod coarse {
    pub(super) fn now_ms() -> u64 {
        1 + super::millis(super::since_start())
    }
}

/// A clock that stands still until it is told to move. Clones share the same time.
// Its lock is not shuttle's: reading the time is no step that a schedule needs to part.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<ManualState>>);

#[derive(Debug)]
struct ManualState {
    wall_ms: u64,
    mono_ms: u64,
    next_sleeper: u64,
    /// By wake-up time, then by order of arrival.
    sleepers: BTreeMap<(u64, u64), Waker>,
}

impl ManualClock {
    /// A clock at 2026-01-01 00:00 UTC.
    pub fn new() -> Self {
        ManualClock(Arc::new(Mutex::new(ManualState {
            wall_ms: 1_767_225_600_000,
            mono_ms: 1_000_000,
            next_sleeper: 0,
            sleepers: BTreeMap::new(),
        })))
    }

    /// Moves wall and monotonic time and wakes whoever slept until then.
    pub fn advance(&self, duration: Duration) {
        let due = {
            let mut state = self.state();
            state.wall_ms = state.wall_ms.saturating_add(millis(duration));
            state.mono_ms = state.mono_ms.saturating_add(millis(duration));
            let first_later = (state.mono_ms.saturating_add(1), 0);
            let later = state.sleepers.split_off(&first_later);
            std::mem::replace(&mut state.sleepers, later)
        };
        due.into_values().for_each(Waker::wake);
    }

    /// Lets the wall clock jump, as an operator or a time server would; monotonic time stands still.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.state().wall_ms = wall_ms;
    }

    /// How many [`Clock::sleep`] futures wait.
    pub fn sleepers(&self) -> usize {
        self.state().sleepers.len()
    }

    fn state(&self) -> MutexGuard<'_, ManualState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

/// The future of [`Clock::sleep`].
#[derive(Debug)]
pub struct Sleep(SleepSource);

#[derive(Debug)]
enum SleepSource {
    System(Pin<Box<tokio::time::Sleep>>),
    Manual { clock: ManualClock, id: (u64, u64) },
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            SleepSource::System(sleep) => sleep.as_mut().poll(cx),
            SleepSource::Manual { clock, id } => {
                let mut state = clock.state();
                if state.mono_ms >= id.0 {
                    return Poll::Ready(());
                }
                state.sleepers.insert(*id, cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let SleepSource::Manual { clock, id } = &self.0 {
            clock.state().sleepers.remove(id);
        }
    }
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn durations_saturate_and_never_round_down_to_nothing() {
        assert_eq!(millis(Duration::MAX), NEVER_MS);
        assert_eq!(millis(Duration::ZERO), 0);
        assert_eq!(millis(Duration::from_nanos(1)), 1);
    }

    #[test]
    fn coarse_and_precise_agree_within_a_tick() {
        let clock = Clock::system();
        let (coarse, precise) = (clock.coarse_ms(), clock.mono_ms());
        assert!(coarse <= precise && precise - coarse < 1000, "{coarse} {precise}");
    }

    #[tokio::test]
    async fn manual_sleepers_wake_in_order_and_leave_when_dropped() {
        let manual = ManualClock::new();
        let clock = Clock::from(manual.clone());
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(5)).await }
        });
        while manual.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        manual.advance(Duration::from_secs(4));
        assert_eq!(manual.sleepers(), 1);
        manual.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(manual.sleepers(), 0);
    }
}
