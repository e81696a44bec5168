//! Removals win over writes that began before them, and sets are ordered by their stamps.

use super::{Bench, Case, Needs, Verdict, load, same, set};
use crate::backend::{Mark, Miss, PutOutcome, Ticket};
use crate::entry::{EntryKind, Tags};
use crate::key::{EntryKey, Pattern};
use crate::stamp::{STAMP_AHEAD_MAX_MS, Stamp};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "removal_refuses_earlier_writes",
            needs: Needs::Nothing,
            run: |b| Box::pin(by_removal(b)),
        },
        Case { name: "tag_refuses_earlier_writes", needs: Needs::Nothing, run: |b| Box::pin(by_tag(b)) },
        Case { name: "clear_refuses_earlier_writes", needs: Needs::Nothing, run: |b| Box::pin(by_clear(b)) },
        Case { name: "pattern_refuses_earlier_writes", needs: Needs::Scan, run: |b| Box::pin(by_pattern(b)) },
        Case { name: "set_refuses_earlier_loads", needs: Needs::Nothing, run: |b| Box::pin(load_by_set(b)) },
        Case { name: "refused_set_removes", needs: Needs::Nothing, run: |b| Box::pin(refused_set(b)) },
        Case {
            name: "another_incarnation_is_refused",
            needs: Needs::Nothing,
            run: |b| Box::pin(incarnation(b)),
        },
        Case { name: "later_stamp_wins", needs: Needs::Nothing, run: |b| Box::pin(stamps(b)) },
        Case {
            name: "evicted_set_is_not_overtaken",
            needs: Needs::Nothing,
            run: |b| Box::pin(evicted_set(b)),
        },
        Case {
            name: "distrusted_stamp_does_not_win",
            needs: Needs::Nothing,
            run: |b| Box::pin(distrusted(b)),
        },
        Case { name: "promotion", needs: Needs::Nothing, run: |b| Box::pin(promotion(b)) },
        Case { name: "reads_do_not_age_tickets", needs: Needs::Nothing, run: |b| Box::pin(read_tickets(b)) },
    ]
}

/// What happens while a write is in flight.
#[derive(Clone, Copy)]
enum Between {
    Removal,
    /// A set in between doesn't hide the removal, nor does what follows.
    RemovalSetRemoval,
    Tag,
    Clear,
    Pattern,
}

impl Between {
    async fn happen(self, b: &Bench<'_>) -> Verdict {
        match self {
            Between::Removal => drop(b.backend.remove(&b.key("k")?).await?),
            Between::RemovalSetRemoval => {
                for removed in b.backend.remove_many(&[b.key("other")?, b.key("k")?]).await {
                    removed?;
                }
                b.set(&b.key("k")?, "between").await?;
                b.backend.remove(&b.key("k")?).await?;
            }
            Between::Tag => b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?,
            Between::Clear => b.backend.mark(&b.namespace, &Mark::Clear).await?,
            Between::Pattern => drop(b.backend.remove_matching(&b.namespace, &Pattern::new("k*")?).await?),
        }
        Ok(())
    }
}

/// Both kinds of write, refused after what happens in between, and admitted with a later ticket.
async fn refused_after(b: &Bench<'_>, tags: &[&str], between: Between) -> Verdict {
    let key = b.key("k")?;
    for kind in [EntryKind::Load, EntryKind::Set] {
        for was_present in [false, true] {
            let what = format!("a {kind:?} that began before, entry present: {was_present}");
            b.backend.remove(&key).await?;
            if was_present {
                b.set_tagged(&key, "before", tags).await?;
            }
            let write = |body: &str, ticket| {
                let mut put = set(&key, body, ticket, b.stamp());
                put.meta.kind = kind;
                put.meta.tags = Tags::new(tags)?;
                Ok::<_, super::Failure>(put)
            };
            let tickets = [b.ticket(&key).await?, b.backend.get(&key).await?.ticket];
            between.happen(b).await?;
            for ticket in tickets {
                same(&what, b.put(write("late", ticket)?).await?, PutOutcome::Fenced)?;
                same(&format!("{what}: no value is there"), b.read(&key).await?.ok(), None)?;
            }
            let fresh = write("fresh", b.ticket(&key).await?)?;
            same(&format!("{what}: one that began after"), b.put(fresh).await?, PutOutcome::Stored)?;
            b.reads(&what, &key, "fresh").await?;
        }
    }
    Ok(())
}

async fn by_removal(b: &Bench<'_>) -> Verdict {
    refused_after(b, &[], Between::Removal).await?;
    refused_after(b, &["red"], Between::RemovalSetRemoval).await
}

async fn by_tag(b: &Bench<'_>) -> Verdict {
    refused_after(b, &["blue", "red"], Between::Tag).await?;
    let key = b.key("untagged")?;
    let ticket = b.ticket(&key).await?;
    b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?;
    same("a load without the tag", b.put(load(&key, "v", ticket, b.stamp())).await?, PutOutcome::Stored)
}

async fn by_clear(b: &Bench<'_>) -> Verdict {
    refused_after(b, &[], Between::Clear).await
}

async fn by_pattern(b: &Bench<'_>) -> Verdict {
    refused_after(b, &[], Between::Pattern).await
}

async fn load_by_set(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let ticket = b.ticket(&key).await?;
    b.set(&key, "set").await?;
    same("a load from before a set", b.put(load(&key, "old", ticket, b.stamp())).await?, PutOutcome::Fenced)?;
    b.reads("the set", &key, "set").await?;
    let ticket = b.ticket(&key).await?;
    same(
        "a load from after the set",
        b.put(load(&key, "new", ticket, b.stamp())).await?,
        PutOutcome::Stored,
    )?;
    b.reads("the load", &key, "new").await
}

/// A removal, then a load that stores what the source has now, then a set that began before both: it
/// must not be stored, and must not leave what it was meant to replace.
async fn refused_set(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let ticket = b.ticket(&key).await?;
    b.backend.remove(&key).await?;
    b.put(load(&key, "loaded", b.ticket(&key).await?, b.stamp())).await?;
    let in_flight = b.ticket(&key).await?;
    same(
        "a set from before a removal",
        b.put(set(&key, "set", ticket, b.stamp())).await?,
        PutOutcome::Fenced,
    )?;
    b.misses("what it left", &key, Miss::Absent).await?;
    let late = b.put(load(&key, "late", in_flight, b.stamp())).await?;
    same("a load from before the refused set, which acts as a removal", late, PutOutcome::Fenced)?;
    b.misses("after it", &key, Miss::Absent).await
}

async fn incarnation(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let Ticket { inc, pos } = b.ticket(&key).await?;
    for ticket in [Ticket { inc: inc.wrapping_add(1), pos }, Ticket { inc: !inc, pos: u64::MAX }] {
        same(
            "a load of another incarnation",
            b.put(load(&key, "v", ticket, b.stamp())).await?,
            PutOutcome::Fenced,
        )?;
        b.misses("after it", &key, Miss::Absent).await?;
    }
    b.set(&key, "old").await?;
    let foreign = Ticket { inc: !inc, pos: u64::MAX };
    same(
        "a set of another incarnation",
        b.put(set(&key, "v", foreign, b.stamp())).await?,
        PutOutcome::Fenced,
    )?;
    b.misses("what a refused set leaves", &key, Miss::Absent).await
}

async fn stamps(b: &Bench<'_>) -> Verdict {
    let [first, second] = [b.stamp(), b.stamp()];
    for (name, is_later_ticket) in [("early ticket", false), ("late ticket", true)] {
        let key = b.key(name)?;
        let early = b.ticket(&key).await?;
        same(
            name,
            b.put(set(&key, "2", again(b, &key, early, is_later_ticket).await?, second)).await?,
            PutOutcome::Stored,
        )?;
        same(
            name,
            b.put(set(&key, "1", again(b, &key, early, is_later_ticket).await?, first)).await?,
            PutOutcome::Older(second),
        )?;
        b.reads("the later set", &key, "2").await?;
        same(
            name,
            b.put(set(&key, "2'", again(b, &key, early, is_later_ticket).await?, second)).await?,
            PutOutcome::Older(second),
        )?;
        b.reads("the same stamp twice: the first", &key, "2").await?;
        let third = b.stamp();
        same(
            name,
            b.put(set(&key, "3", again(b, &key, early, is_later_ticket).await?, third)).await?,
            PutOutcome::Stored,
        )?;
        b.reads("a still later set", &key, "3").await?;
    }
    let key = b.key("in order")?;
    let (one, two) = (b.ticket(&key).await?, b.ticket(&key).await?);
    same("in order", b.put(set(&key, "1", one, first)).await?, PutOutcome::Stored)?;
    same("in order", b.put(set(&key, "2", two, second)).await?, PutOutcome::Stored)?;
    b.reads("the later set", &key, "2").await?;
    let by_node = Stamp::new(second.wall_ms(), 7, 1);
    let other_node = Stamp::new(second.wall_ms(), 7, 2);
    let key = b.key("nodes")?;
    let ticket = b.ticket(&key).await?;
    b.put(set(&key, "2", ticket, other_node)).await?;
    let refused = b.put(set(&key, "1", ticket, by_node)).await?;
    same("equal times, lower node", refused, PutOutcome::Older(other_node))
}

async fn again(
    b: &Bench<'_>,
    key: &EntryKey,
    early: Ticket,
    is_later: bool,
) -> Result<Ticket, super::Failure> {
    if is_later { b.ticket(key).await } else { Ok(early) }
}

/// Two sets of one node; the second is stored and then dropped, by an expiry here; the first arrives late.
/// Nothing is there to compare it with, so it must not appear, whatever a load has put there since.
async fn evicted_set(b: &Bench<'_>) -> Verdict {
    for is_loaded in [false, true] {
        let key = b.key(&format!("loaded since: {is_loaded}"))?;
        let ticket = b.ticket(&key).await?;
        let [first, second] = [b.stamp(), b.stamp()];
        let brief = super::gone_at(set(&key, "2", ticket, second), b.now_ms() + 1);
        same("the second set", b.put(brief).await?, PutOutcome::Stored)?;
        b.clock.advance(std::time::Duration::from_millis(1));
        if is_loaded {
            b.put(load(&key, "2", b.ticket(&key).await?, b.stamp())).await?;
        } else {
            b.backend.sweep(100).await?;
        }
        same("the first set, late", b.put(set(&key, "1", ticket, first)).await?, PutOutcome::Fenced)?;
        b.misses("after it", &key, Miss::Expired).await?;
    }
    Ok(())
}

async fn distrusted(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let ahead = Stamp::new(b.now_ms() + STAMP_AHEAD_MAX_MS + 1, 0, 1);
    b.put(set(&key, "ahead", b.ticket(&key).await?, ahead)).await?;
    b.set(&key, "now").await?;
    b.reads("a set with an honest stamp", &key, "now").await
}

/// A promotion is a load that keeps the stamp of a set.
async fn promotion(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let [older, newer] = [b.stamp(), b.stamp()];
    let ticket = b.ticket(&key).await?;
    same("a promotion", b.put(load(&key, "promoted", ticket, older)).await?, PutOutcome::Stored)?;
    b.reads("it", &key, "promoted").await?;
    // A load's entry is no set: its stamp refuses nobody.
    let set_older = b.put(set(&key, "set", b.ticket(&key).await?, older)).await?;
    same("a set of the same stamp over a promotion", set_older, PutOutcome::Stored)?;
    let ticket = b.ticket(&key).await?;
    b.put(set(&key, "newer", ticket, newer)).await?;
    same(
        "a promotion that began before a set",
        b.put(load(&key, "old", ticket, older)).await?,
        PutOutcome::Fenced,
    )?;
    b.reads("the set", &key, "newer").await
}

/// Neither reads nor loads move the position: a write in flight is not refused for them.
async fn read_tickets(b: &Bench<'_>) -> Verdict {
    let (key, other) = (b.key("k")?, b.key("other")?);
    let ticket = b.ticket(&key).await?;
    for _ in 0..10 {
        same("the ticket of a read", b.backend.get(&key).await?.ticket, ticket)?;
        b.put(load(&other, "v", ticket, b.stamp())).await?;
        b.put(load(&key, "v", ticket, b.stamp())).await?;
    }
    same("a load with the first ticket", b.put(load(&key, "w", ticket, b.stamp())).await?, PutOutcome::Stored)
}
