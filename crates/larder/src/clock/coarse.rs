//! Monotonic milliseconds for one relaxed load: a thread writes them down every few milliseconds.
//!
//! Even the kernel's coarse clock costs as much as half a lookup. The thread runs while the process does
//! something; when it is idle for a second, the thread sleeps until the next reading, which then asks the
//! operating system.

use super::{millis, since_start};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::Duration;

/// How often the time is written down: the kernel's own coarse resolution on most systems.
const TICK: Duration = Duration::from_millis(4);
/// The ticks of about a second, over which the process is found to be busy or idle.
const TICKS_PER_CHECK: u32 = 250;
/// A process that used less time than this between two checks is idle; the ticker itself uses a fifth of it.
const IDLE_US: i64 = 5_000;

/// The time, or 0 while nobody writes it down.
static NOW_MS: AtomicU64 = AtomicU64::new(0);
/// The process whose ticker it is: a fork has the time, and no thread that goes on with it.
static TICKER_OF: AtomicU32 = AtomicU32::new(0);
static TICKER: AtomicPtr<Thread> = AtomicPtr::new(std::ptr::null_mut());

/// [`Clock::mono_ms`](super::Clock::mono_ms), at most a tick and a scheduling delay late.
#[inline]
pub(super) fn now_ms() -> u64 {
    match NOW_MS.load(std::sync::atomic::Ordering::Relaxed) {
        0 => wake(),
        now_ms => now_ms,
    }
}

fn precise_ms() -> u64 {
    1 + millis(since_start())
}

/// Asks the operating system, and sees to it that the next reader need not.
#[cold]
fn wake() -> u64 {
    let process = std::process::id();
    let ticked = TICKER_OF.load(SeqCst);
    if ticked == process {
        // SAFETY: `TICKER` is null or a `Thread` that was leaked, never freed.
        if let Some(ticker) = unsafe { TICKER.load(SeqCst).as_ref() } {
            ticker.unpark();
        }
    } else if TICKER_OF.compare_exchange(ticked, process, SeqCst, SeqCst).is_ok() {
        start();
    }
    precise_ms()
}

fn start() {
    forget_at_fork();
    // Without a thread every reading asks the operating system: slower, and as right.
    if let Ok(ticker) = thread::Builder::new().name("larder-clock".to_owned()).spawn(tick) {
        TICKER.store(Box::into_raw(Box::new(ticker.thread().clone())), SeqCst);
    }
}

fn tick() {
    let mut used_us = cpu_time_us();
    let mut ticks = 0;
    loop {
        NOW_MS.store(precise_ms(), SeqCst);
        thread::sleep(TICK);
        ticks += 1;
        if ticks == TICKS_PER_CHECK {
            ticks = 0;
            let was_used_us = std::mem::replace(&mut used_us, cpu_time_us());
            if used_us - was_used_us < IDLE_US {
                NOW_MS.store(0, SeqCst);
                thread::park();
            }
        }
    }
}

/// A forked child has a copy of the last time and nobody to move it.
fn forget_at_fork() {
    extern "C" fn forget() {
        NOW_MS.store(0, SeqCst);
    }
    // SAFETY: `forget` only stores to an atomic, which is allowed between fork and exec.
    unsafe { libc::pthread_atfork(None, None, Some(forget)) };
}

fn cpu_time_us() -> i64 {
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `used` is a valid timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut used) };
    // 32 bits wide on some systems.
    #[allow(clippy::unnecessary_cast)]
    let (seconds, nanoseconds) = (used.tv_sec as i64, used.tv_nsec as i64);
    seconds * 1_000_000 + nanoseconds / 1000
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::*;

    fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn follows_the_precise_clock_and_never_runs_ahead_of_it() {
        wait_until("somebody writes the time down", || now_ms() > 0 && NOW_MS.load(SeqCst) > 0);
        let first = now_ms();
        wait_until("time goes on", || now_ms() > first + 20);
        assert!(now_ms() <= precise_ms());
    }

    #[test]
    fn a_forked_child_asks_the_system() {
        wait_until("somebody writes the time down", || now_ms() > 0 && NOW_MS.load(SeqCst) > 0);
        // SAFETY: the child only loads an atomic and leaves at once.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let forgotten = NOW_MS.load(SeqCst) == 0;
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if forgotten { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: `status` is a valid integer that outlives the call.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0, "the child kept a time that nobody moves");
    }
}
