//! Where larder's own tasks run: the caller's runtime, or one of larder's where there is none.
//!
//! A flight must outlive the caller that started it, so it needs a runtime even when the caller polls its
//! future outside of one. Every task that is spawned here is owned by a flight or a tier, which learns
//! from a drop guard when a runtime that shuts down drops it.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

#[cfg(not(larder_shuttle))]
use std::sync::OnceLock;
#[cfg(not(larder_shuttle))]
use tokio::runtime::{Builder, Handle, Runtime};

#[cfg(not(larder_shuttle))]
thread_local! {
    /// Whether this is a thread of larder's own runtime.
    static IS_OWN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Larder's own runtime, for callers outside of any; started at the first use.
#[cfg(not(larder_shuttle))]
pub(crate) fn own() -> &'static Handle {
    static OWN: OnceLock<Runtime> = OnceLock::new();
    OWN.get_or_init(|| {
        Builder::new_multi_thread()
            // Two: enough that one blocked loader doesn't stop the timers of the others.
            .worker_threads(2)
            .thread_name("larder")
            .enable_time()
            .enable_io()
            .on_thread_start(|| IS_OWN.set(true))
            .build()
            .expect("the operating system gives a process two threads")
    })
    .handle()
}

/// The runtime of the caller, else larder's own.
#[cfg(not(larder_shuttle))]
pub(crate) fn current() -> Handle {
    Handle::try_current().unwrap_or_else(|_| own().clone())
}

/// Where the background of a cache with this clock runs.
#[cfg(not(larder_shuttle))]
pub(crate) fn of(clock: &crate::clock::Clock) -> Handle {
    // Not the caller's by default: a cache in a static outlives the runtimes of tests that use it.
    if clock.is_of_runtime() { current() } else { own().clone() }
}

/// Runs a future to its end in the background.
#[cfg(not(larder_shuttle))]
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(current().spawn(future));
}

#[cfg(larder_shuttle)]
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(shuttle::future::spawn(future));
}

/// Runs what may wait for a disk on a thread that may wait. By a clock that stands still meanwhile, here.
///
/// # Errors
/// When the runtime is shut down, or it panics.
pub(crate) async fn blocking<T: Send + 'static>(
    clock: &crate::clock::Clock,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if clock.is_of_runtime() {
        return Ok(run());
    }
    tokio::task::spawn_blocking(run).await
}

/// A timer on larder's own runtime, so that it works outside of any, in one without timers, and while the
/// caller's is busy.
#[cfg(not(larder_shuttle))]
pub(crate) fn sleep(duration: Duration) -> Pin<Box<tokio::time::Sleep>> {
    let _own = own().enter();
    Box::pin(tokio::time::sleep(duration))
}

#[cfg(larder_shuttle)]
pub(crate) fn sleep(_: Duration) -> Pin<Box<tokio::time::Sleep>> {
    unreachable!("shuttle schedules use a manual clock")
}

/// Blocks this thread until a future is ready. Whatever the future spawns runs on larder's own runtime: the
/// one that this thread may belong to can't make progress while the thread is blocked.
#[cfg(not(larder_shuttle))]
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    if IS_OWN.get() {
        // A loader that blocks on another load: its thread's other tasks and timers move to a new thread,
        // or two such loaders would stop them all.
        return tokio::task::block_in_place(|| park_until_ready(future));
    }
    park_until_ready(future)
}

#[cfg(not(larder_shuttle))]
fn park_until_ready<T>(future: impl Future<Output = T>) -> T {
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }

    let _own = own().enter();
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
