//! L1 alone: loads against removals and sets.

use super::World;
use super::world::{KEY, SECOND, run, together};
use crate::cache::{LoadContext, Loaded};
use crate::key::Pattern;
use crate::options::EntryOptions;
use crate::sync::atomic::Ordering::SeqCst;
use std::convert::Infallible;
use std::sync::Arc;

pub(super) fn load_and_remove() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(async move { a.load().await }, async move { b.change_and_remove().await }, async move {
            c.get().await;
            c.load().await;
        },);
        world.settle().await;
    });
}

pub(super) fn load_and_set() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(async move { a.load().await }, async move { b.change_and_set().await }, async move {
            c.get().await;
            // Else nobody who comes after the set would need the flight from before it.
            c.evict();
            c.load().await;
        },);
        world.settle().await;
    });
}

pub(super) fn load_set_and_remove() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(async move { a.load().await }, async move { b.change_and_remove().await }, async move {
            c.cache.set(KEY, 10).await.unwrap();
            c.load().await;
        },);
        world.settle().await;
    });
}

pub(super) fn set_and_set() {
    run(async {
        let world = World::in_memory();
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                a.cache.set(KEY, 1).await.unwrap();
                a.cache.set(KEY, 2).await.unwrap();
            },
            async move {
                b.cache.set(KEY, 3).await.unwrap();
            },
        );
        let last = world.cache.get(&KEY).await;
        assert!(last != Some(1), "an acknowledged set was undone");
    });
}

pub(super) fn load_and_remove_tag() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move { a.load_tagged(Some("red")).await },
            async move { b.change(b.cache.remove_tag("red")).await.unwrap() },
            async move {
                c.get().await;
                c.load_tagged(Some("red")).await;
            },
        );
        world.settle().await;
    });
}

pub(super) fn load_and_clear() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move { a.load().await },
            async move { b.change(b.cache.clear()).await.unwrap() },
            async move {
                c.get().await;
                c.load().await;
            },
        );
        world.settle().await;
    });
}

pub(super) fn load_and_remove_matching() {
    run(async {
        let world = World::in_memory();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        let all = Pattern::new("*").unwrap();
        together!(
            async move { a.load().await },
            async move {
                b.change(b.cache.remove_matching(&all)).await.unwrap();
            },
            async move {
                c.get().await;
                c.load().await;
            },
        );
        world.settle().await;
    });
}

/// A stale value may stand in for a failed load, unless it was removed before the load failed.
pub(super) fn stale_on_error_and_remove() {
    run(async {
        let world = World::new(EntryOptions::default().ttl(SECOND).stale_on_error(60 * SECOND), Vec::new());
        world.cache.set(KEY, 1).await.unwrap();
        world.clock.advance(2 * SECOND);
        let fail = |world: &World| {
            let world = world.clone();
            async move {
                let known = Arc::new(crate::sync::atomic::AtomicU64::new(0));
                let (acknowledged, at_failure) = (Arc::clone(&world.acknowledged), Arc::clone(&known));
                let load = move |_: LoadContext<u64>| async move {
                    at_failure.store(acknowledged.load(SeqCst), SeqCst);
                    Err::<u64, _>("the source is down")
                };
                let served = world.cache.get_or_load(&KEY, load).await;
                let known = known.load(SeqCst);
                if let Ok(version) = served {
                    assert!(version >= known, "served {version} after the removal before {known}");
                }
            }
        };
        let (a, b, c) = (fail(&world), world.clone(), fail(&world));
        together!(a, async move { b.change_and_remove().await }, c);
        world.settle().await;
    });
}

pub(super) fn revalidate_and_remove() {
    run(async {
        let options = EntryOptions::default().ttl(SECOND).stale_while_revalidate(60 * SECOND);
        let world = World::new(options, Vec::new());
        world.cache.set(KEY, 1).await.unwrap();
        world.clock.advance(2 * SECOND);
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(async move { a.load().await }, async move { b.change_and_remove().await }, async move {
            c.load().await;
        },);
        world.settle().await;
    });
}

/// A new TTL must not bring back what is removed at the same time.
pub(super) fn expire_and_remove() {
    run(async {
        let world = World::in_memory();
        world.cache.set(KEY, 1).await.unwrap();
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                // Any error: the removal came in between.
                let _ = a.cache.expire(&KEY, 60 * SECOND).await;
            },
            async move { b.change_and_remove().await },
        );
        world.settle().await;
    });
}

/// A reload that finds its value unmodified, and a set that it must not undo.
pub(super) fn reload_and_set() {
    run(async {
        let world = World::in_memory();
        world.cache.set(KEY, 1).await.unwrap();
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                let same = |_: LoadContext<u64>| async { Ok::<_, Infallible>(Loaded::<u64>::not_modified()) };
                let _ = a.cache.reload(&KEY, &a.cache.options(), same).await;
            },
            async move { b.change_and_set().await },
        );
        world.settle().await;
    });
}

macro_rules! schedules {
    ($($program:ident),+ $(,)?) => { $(
        #[test]
        fn $program() {
            $crate::cache::schedules::explore(super::$program);
        }
    )+ };
}
pub(super) use schedules;

mod runs {
    super::schedules!(
        load_and_remove,
        load_and_set,
        load_set_and_remove,
        set_and_set,
        load_and_remove_tag,
        load_and_clear,
        load_and_remove_matching,
        stale_on_error_and_remove,
        revalidate_and_remove,
        expire_and_remove,
        reload_and_set,
    );
}
