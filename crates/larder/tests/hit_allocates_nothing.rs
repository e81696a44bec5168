//! Failure: each hit allocates a key, a boxed future or a string, and the cache costs more than what it
//! saves.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use larder::backend::{MemoryBackend, MemoryOptions};
use larder::{BoxError, Cache};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate after its counter is gone.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a future that is ready at once, and says how often this thread allocated meanwhile.
fn allocations<T>(future: impl Future<Output = T>) -> (T, u64) {
    let mut future = std::pin::pin!(future);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let before = COUNT.get();
    let std::task::Poll::Ready(output) = future.as_mut().poll(&mut cx) else { panic!("a hit never waits") };
    (output, COUNT.get() - before)
}

fn check_numbers(cache: &Cache<u64, u64>) {
    cache.blocking().set(1, 7).unwrap();
    for _ in 0..1000 {
        assert_eq!(allocations(async { cache.peek(&1) }), (Some(7), 0));
        assert_eq!(allocations(cache.get(&1)), (Some(7), 0));
        let load = |_| async { Ok::<u64, BoxError>(8) };
        let (value, count) = allocations(cache.get_or_load(&1, load));
        assert_eq!((value.unwrap(), count), (7, 0));
    }
}

fn check_texts(cache: &Cache<String, u64>) {
    cache.blocking().set("some key".into(), 7).unwrap();
    for _ in 0..1000 {
        assert_eq!(allocations(async { cache.peek("some key") }), (Some(7), 0));
        assert_eq!(allocations(cache.get("some key")), (Some(7), 0));
        let load = |_| async { Ok::<u64, BoxError>(8) };
        let (value, count) = allocations(cache.get_or_load("some key", load));
        assert_eq!((value.unwrap(), count), (7, 0));
    }
}

#[test]
fn with_and_without_a_tier_and_after_a_marker_moved() {
    let tier = || Arc::new(MemoryBackend::new(MemoryOptions::default()));
    let numbers = [Cache::builder().build().unwrap(), Cache::builder().tier(tier()).build().unwrap()];
    let texts = [Cache::builder().build().unwrap(), Cache::builder().tier(tier()).build().unwrap()];
    for (numbers, texts) in numbers.iter().zip(&texts) {
        check_numbers(numbers);
        check_texts(texts);
        numbers.blocking().remove_tag("none of theirs").unwrap();
        texts.blocking().remove_tag("none of theirs").unwrap();
        assert_eq!(allocations(numbers.get(&1)), (Some(7), 0));
        assert_eq!(allocations(texts.get("some key")), (Some(7), 0));
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(async { Box::new(1_u8) }).1, 1);
}
