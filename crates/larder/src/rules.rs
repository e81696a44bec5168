//! The rules of the protocol that a test may switch off, to see that the schedules notice.
//!
//! A schedule test proves something only if it fails without the rule that it is about. In builds without
//! `--cfg larder_shuttle`, every rule holds and the question costs nothing.

/// A rule of `DESIGN.md`, "Coherence".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A removal refuses writes that began before it.
    Removed,
    /// A set refuses loads that began before it.
    SetFencesLoad,
    /// A set refuses sets that began before it and find no set to compare with.
    SetFencesSet,
    /// A removed tag invalidates and refuses what is older.
    Tag,
    /// A clear invalidates and refuses what is older.
    Clear,
    /// A pattern removal refuses what is older.
    Floor,
    /// A pattern removal waits until what was admitted before it is stored.
    FloorWaits,
    /// A ticket of another incarnation is refused.
    Incarnation,
    /// Nobody joins a flight that began before a removal or set of its key.
    Join,
    /// A value whose tag was removed is not delivered to who joined late.
    Delivery,
    /// A stale value is served for a failed load only if it is still there and valid.
    StaleIsCurrent,
    /// "Not modified" renews only what is still there after the ticket was taken.
    PreviousIsCurrent,
    /// "Not modified" is written to no store below the one that the value came from.
    PreviousGoesUp,
    /// The ticket of a promotion is older than what was read.
    TicketFirst,
    /// A removal reaches the lowest tier first and L1 last.
    BottomUp,
    /// The later stamp of two sets stays.
    StampOrder,
    /// A refused set removes what it meets.
    RefusedSetRemoves,
    /// A tier that is set aside is not read.
    AsideIsNotRead,
    /// A removal that could not be delivered is kept and replayed.
    UndeliveredIsKept,
    /// A set that a tier could not take removes the key there.
    FailedSetRemoves,
    /// A caller who finds no flight looks into L1 once more before it starts one.
    LookAgain,
    /// A flight that its runner drops lands all the same.
    DroppedLands,
    /// What a shared tier could not be told is kept in a file.
    JournalIsDurable,
    /// Nothing is read above the shared tier before it has heard of what it missed.
    CaughtUpFirst,
    /// A cursor is kept only after what it covers was applied.
    CursorFollowsData,
    /// What another node removed or set is removed from L1.
    ForeignRemoves,
    /// A set of another node is applied as a removal.
    ForeignSetRemoves,
    /// A log that is not whole drops everything above it.
    GapClears,
    /// A log that was begun anew drops everything above it.
    IncarnationClears,
    /// Nobody joins a flight that began long ago while its node has not heard of the others.
    FlightAge,
    /// What is promoted keeps the moment at which it was known not to be outdated.
    PromotionKeepsTime,
    /// A node that has not heard of the others serves only what was known not to be outdated a short while ago.
    Suspect,
}

#[cfg(all(test, not(larder_shuttle)))]
impl Rule {
    /// Those that the simulation of nodes is about.
    pub(crate) const OF_NODES: [Rule; 22] = [
        Rule::Removed,
        Rule::SetFencesLoad,
        Rule::Tag,
        Rule::Clear,
        Rule::Incarnation,
        Rule::Join,
        Rule::TicketFirst,
        Rule::BottomUp,
        Rule::StampOrder,
        Rule::RefusedSetRemoves,
        Rule::AsideIsNotRead,
        Rule::UndeliveredIsKept,
        Rule::FailedSetRemoves,
        Rule::JournalIsDurable,
        Rule::CaughtUpFirst,
        Rule::CursorFollowsData,
        Rule::ForeignRemoves,
        Rule::ForeignSetRemoves,
        Rule::GapClears,
        Rule::IncarnationClears,
        Rule::Suspect,
        Rule::PromotionKeepsTime,
    ];
}

#[cfg(not(any(larder_shuttle, test)))]
#[inline(always)]
pub(crate) fn holds(_: Rule) -> bool {
    true
}

#[cfg(any(larder_shuttle, test))]
std::thread_local! {
    // Shuttle runs all tasks of a schedule on the thread of its test, and so does the simulation of nodes.
    static SWITCHED_OFF: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

#[cfg(any(larder_shuttle, test))]
pub(crate) fn holds(rule: Rule) -> bool {
    SWITCHED_OFF.get() != Some(rule)
}

/// Runs `then` on this thread without a rule.
#[cfg(test)]
pub(crate) fn without<T>(rule: Option<Rule>, then: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            SWITCHED_OFF.set(None);
        }
    }
    let _restore = Restore;
    SWITCHED_OFF.set(rule);
    then()
}
