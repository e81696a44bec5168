//! Flights: who waits, who leaves, and what happens to the others.

use super::World;
use super::memory::schedules;
use super::world::{KEY, run, together};
use crate::cache::LoadContext;
use crate::cache::flight::{Boarding, Purpose};
use crate::error::{BoxError, ErrorKind};
use crate::l1::Slot;
use crate::sync::atomic::Ordering::SeqCst;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

/// Polls a future at most `polls` times, then drops it.
async fn give_up_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Polled again at once, as an executor with other things to do might.
            Poll::Pending => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    })
    .await
}

pub(super) fn callers_of_a_cold_key() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move { a.load().await },
            async move { b.load().await },
            async move { c.load().await }
        );
        assert_eq!(world.loads.load(SeqCst), 1, "one load for all");
    });
}

pub(super) fn leader_is_cancelled() {
    run(async {
        let world = World::in_memory();
        let polls = shuttle::rand::Rng::gen_range(&mut shuttle::rand::thread_rng(), 0..3);
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move {
                give_up_after(polls, a.load()).await;
            },
            async move { b.load().await },
            async move { c.load().await },
        );
        assert_eq!(world.loads.load(SeqCst), 1, "one load for all");
    });
}

/// Whoever waits for a flight that is dropped loads for itself.
pub(super) fn landing_is_dropped() {
    run(async {
        let world = World::in_memory();
        let slot = Slot { space: world.cache.space.id, key: KEY };
        let shared = &world.cache.shared;
        let boarding =
            shared.flights.board(&slot, Purpose::Load, |_| true, || None::<()>, || shared.depart());
        let Boarding::Started(landing) = boarding else { panic!("nobody else flies yet") };
        let (b, c) = (world.clone(), world.clone());
        together!(async move { drop(landing) }, async move { b.load().await }, async move { c.load().await });
        assert!(world.loads.load(SeqCst) <= 2);
    });
}

pub(super) fn loader_panics() {
    run(async {
        let world = World::in_memory();
        let caller = |world: World| async move {
            let load = |_: LoadContext<u64>| async {
                // Without the panic hook, which would print a million times.
                std::panic::resume_unwind(Box::new("boom"));
                #[expect(unreachable_code, reason = "names the loader's type")]
                Ok::<u64, BoxError>(0)
            };
            let error = world.cache.get_or_load(&KEY, load).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
        };
        let (a, b) = (caller(world.clone()), caller(world.clone()));
        together!(a, b);
        world.load().await;
    });
}

/// The loaders of two keys each load the other one.
pub(super) fn loads_wait_for_each_other() {
    run(async {
        let world = World::in_memory();
        let caller = |world: World, outer: u8, inner: u8| async move {
            let within = world.clone();
            let load = move |_: LoadContext<u64>| async move {
                within.cache.get_or_load(&inner, |_| async { Ok::<u64, BoxError>(1) }).await
            };
            if let Err(error) = world.cache.get_or_load(&outer, load).await {
                assert!(matches!(error.kind(), ErrorKind::NestedLoad | ErrorKind::Loader), "{error}");
            }
        };
        let (a, b) = (caller(world.clone(), 1, 2), caller(world.clone(), 2, 1));
        together!(a, b);
    });
}

/// As above, with the first in a batch.
pub(super) fn batches_wait_for_each_other() {
    run(async {
        let world = World::in_memory();
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                let within = a.clone();
                let load = move |missing: Vec<u8>| async move {
                    let inner = within.cache.get_or_load(&3, |_| async { Ok::<u64, BoxError>(1) }).await?;
                    Ok::<_, BoxError>(missing.into_iter().map(|key| (key, inner)).collect())
                };
                drop(a.cache.get_many_or_load(&[1, 2], &a.cache.options(), load).await);
            },
            async move {
                let within = b.clone();
                let load = move |_: LoadContext<u64>| async move {
                    within.cache.get_or_load(&2, |_| async { Ok::<u64, BoxError>(1) }).await
                };
                drop(b.cache.get_or_load(&3, load).await);
            },
        );
    });
}

mod runs {
    super::schedules!(
        callers_of_a_cold_key,
        leader_is_cancelled,
        landing_is_dropped,
        loader_panics,
        loads_wait_for_each_other,
        batches_wait_for_each_other,
    );
}
