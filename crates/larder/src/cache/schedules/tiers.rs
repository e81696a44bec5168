//! L1 over tiers: promotion, write-back, and tiers that fail or forget.

use super::World;
use super::memory::schedules;
use super::world::{DOWN, KEY, MUTE, SECOND, Unreliable, WELL, memory, run, together};
use crate::cache::LoadContext;
use crate::options::EntryOptions;

/// Version 1 is in the tiers and not in L1.
async fn filled(world: World) -> World {
    world.cache.set(KEY, 1).await.unwrap();
    world.restarted()
}

pub(super) fn load_and_remove_over_a_tier() {
    run(async {
        let world = World::with_tier();
        let (a, b) = (world.clone(), world.clone());
        together!(async move { a.load().await }, async move { b.change_and_remove().await });
        world.settle().await;
    });
}

pub(super) fn promotion_and_remove() {
    run(async {
        let world = filled(World::with_tier()).await;
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                a.get().await;
            },
            async move { b.change_and_remove().await },
        );
        world.settle().await;
    });
}

pub(super) fn promotion_through_two_tiers_and_remove() {
    run(async {
        let (upper, lower) = (memory(), memory());
        let below = World::new(EntryOptions::default(), vec![lower.clone()]);
        below.cache.set(KEY, 1).await.unwrap();
        let world = World::new(EntryOptions::default(), vec![upper, lower]);
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                a.get().await;
            },
            async move { b.change_and_remove().await },
        );
        world.settle().await;
    });
}

pub(super) fn promotion_and_remove_tag() {
    run(async {
        let world = World::with_tier();
        world.load_tagged(Some("red")).await;
        world.quiet().await;
        let world = world.restarted();
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                a.get().await;
            },
            async move {
                b.change(b.cache.remove_tag("red")).await.unwrap();
            },
        );
        world.settle().await;
    });
}

pub(super) fn promotion_and_set() {
    run(async {
        let world = filled(World::with_tier()).await;
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                a.cache.lookup(&KEY, crate::Stale::Allow).await;
                a.get().await;
            },
            async move { b.change_and_set().await },
        );
        world.settle().await;
    });
}

/// A tier's stale value is served while it is refreshed, or for a load that failed.
fn stale_in_a_tier_and_remove(options: EntryOptions, fails: bool) {
    run(async move {
        let world = filled(World::new(options.ttl(SECOND), vec![memory()])).await;
        world.clock.advance(2 * SECOND);
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move {
                if fails {
                    let load = |_: LoadContext<u64>| async { Err::<u64, _>("the source is down") };
                    let _ = a.cache.get_or_load(&KEY, load).await;
                } else {
                    a.load().await;
                }
            },
            async move { b.change_and_remove().await },
            async move {
                c.get().await;
                if !fails {
                    c.load().await;
                }
            },
        );
        world.settle().await;
        if !fails {
            world.load().await;
        }
    });
}

pub(super) fn revalidate_over_a_tier_and_remove() {
    stale_in_a_tier_and_remove(EntryOptions::default().stale_while_revalidate(60 * SECOND), false);
}

pub(super) fn stale_on_error_over_a_tier_and_remove() {
    stale_in_a_tier_and_remove(EntryOptions::default().stale_on_error(60 * SECOND), true);
}

/// Once two sets are acknowledged, L1 and the tier agree on the later one.
pub(super) fn set_and_set_over_a_tier() {
    run(async {
        let world = World::with_tier();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move {
                a.cache.set(KEY, 1).await.unwrap();
            },
            async move {
                b.cache.set(KEY, 2).await.unwrap();
            },
            async move { c.evict() },
        );
        let above = world.cache.get(&KEY).await;
        let below = world.restarted().cache.get(&KEY).await;
        if let (Some(above), Some(below)) = (above, below) {
            assert_eq!(above, below, "L1 and the tier disagree");
        }
    });
}

/// A set is fenced by the removal of a key that shares its stripe: the older value must not stay.
pub(super) fn set_and_removal_of_neighbours() {
    run(async {
        let world = World::with_tier();
        world.cache.set(KEY, 1).await.unwrap();
        let (a, b) = (world.clone(), world.clone());
        together!(async move { a.change_and_set().await }, async move {
            for neighbour in 1..4 {
                b.cache.remove(&neighbour).await.unwrap();
            }
        },);
        world.settle().await;
    });
}

/// `expire` renews L1's copy while the tier has lost its own to a removal.
pub(super) fn expire_and_remove_over_a_tier() {
    run(async {
        let world = World::with_tier();
        world.cache.set(KEY, 1).await.unwrap();
        let (a, b) = (world.clone(), world.clone());
        together!(
            async move {
                let _ = a.cache.expire(&KEY, 60 * SECOND).await;
            },
            async move { b.change_and_remove().await },
        );
        world.settle().await;
    });
}

pub(super) fn load_and_remove_while_the_tier_restarts() {
    run(async {
        let tier = Unreliable::new();
        let world = World::new(EntryOptions::default(), vec![tier.clone()]);
        let (a, b) = (world.clone(), world.clone());
        together!(async move { a.load().await }, async move { b.change_and_remove().await }, async move {
            tier.restart()
        },);
        world.settle().await;
    });
}

fn remove_while_the_tier_is(mood: u8) {
    run(async move {
        let tier = Unreliable::new();
        let world = World::new(EntryOptions::default(), vec![tier.clone()]);
        world.cache.set(KEY, 1).await.unwrap();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move {
                a.evict();
                a.get().await;
            },
            async move { b.change_and_remove().await },
            async move {
                tier.feel(mood);
                c.cache.recover().await;
                tier.feel(WELL);
                c.cache.recover().await;
            },
        );
        world.settle().await;
        world.cache.recover().await;
        world.settle().await;
    });
}

pub(super) fn remove_while_the_tier_is_down() {
    remove_while_the_tier_is(DOWN);
}

pub(super) fn remove_while_the_tier_is_mute() {
    remove_while_the_tier_is(MUTE);
}

fn set_while_the_tier_is(mood: u8) {
    run(async move {
        let tier = Unreliable::new();
        let world = World::new(EntryOptions::default(), vec![tier.clone()]);
        world.cache.set(KEY, 1).await.unwrap();
        let (a, b, c) = (world.clone(), world.clone(), world.clone());
        together!(
            async move {
                a.get().await;
                a.evict();
            },
            async move { b.change_and_set().await },
            async move {
                tier.feel(mood);
                c.cache.recover().await;
                tier.feel(WELL);
                c.cache.recover().await;
            },
        );
        world.settle().await;
        world.cache.recover().await;
        world.settle().await;
    });
}

pub(super) fn set_while_the_tier_is_down() {
    set_while_the_tier_is(DOWN);
}

pub(super) fn set_while_the_tier_is_mute() {
    set_while_the_tier_is(MUTE);
}

mod runs {
    super::schedules!(
        load_and_remove_over_a_tier,
        promotion_and_remove,
        promotion_through_two_tiers_and_remove,
        promotion_and_remove_tag,
        promotion_and_set,
        revalidate_over_a_tier_and_remove,
        stale_on_error_over_a_tier_and_remove,
        set_and_set_over_a_tier,
        set_and_removal_of_neighbours,
        expire_and_remove_over_a_tier,
        load_and_remove_while_the_tier_restarts,
        remove_while_the_tier_is_down,
        remove_while_the_tier_is_mute,
        set_while_the_tier_is_down,
        set_while_the_tier_is_mute,
    );
}
