//! Negative controls: without its rule, each program fails.

use super::{fails_without, flights, memory, tiers};
use crate::rules::Rule;

macro_rules! controls {
    ($($rule:ident: $name:ident, $program:path;)+) => { $(
        #[test]
        fn $name() {
            fails_without(Rule::$rule, $program);
        }
    )+ };
}

controls! {
    Removed: removed_in_memory, memory::load_and_remove;
    Removed: removed_in_a_tier, tiers::load_and_remove_over_a_tier;
    Removed: removed_while_revalidating, memory::revalidate_and_remove;
    SetFencesLoad: set_fences_load, memory::load_and_set;
    SetFencesLoad: set_fences_promotion, tiers::promotion_and_set;
    Removed: removed_while_a_tier_revalidates, tiers::revalidate_over_a_tier_and_remove;
    SetFencesSet: set_fences_set, tiers::set_and_set_over_a_tier;
    Tag: tag, memory::load_and_remove_tag;
    Clear: clear, memory::load_and_clear;
    Floor: floor, memory::load_and_remove_matching;
    FloorWaits: floor_waits, memory::load_and_remove_matching;
    Incarnation: incarnation, tiers::load_and_remove_while_the_tier_restarts;
    Join: join, memory::load_and_remove;
    Join: join_and_set, memory::load_and_set;
    Delivery: delivery, memory::load_and_remove_tag;
    StaleIsCurrent: stale_is_current, memory::stale_on_error_and_remove;
    PreviousIsCurrent: previous_is_current, memory::expire_and_remove;
    PreviousIsCurrent: previous_is_current_after_a_set, memory::reload_and_set;
    PreviousGoesUp: previous_goes_up, tiers::expire_and_remove_over_a_tier;
    TicketFirst: ticket_first, tiers::promotion_and_remove;
    BottomUp: bottom_up, tiers::promotion_and_remove;
    StampOrder: stamp_order, tiers::set_and_set_over_a_tier;
    RefusedSetRemoves: refused_set_removes, tiers::set_and_removal_of_neighbours;
    AsideIsNotRead: aside_is_not_read, tiers::remove_while_the_tier_is_down;
    UndeliveredIsKept: undelivered_is_kept, tiers::remove_while_the_tier_is_down;
    FailedSetRemoves: failed_set_removes, tiers::set_while_the_tier_is_down;
    LookAgain: look_again, flights::callers_of_a_cold_key;
    DroppedLands: dropped_lands, flights::landing_is_dropped;
}
