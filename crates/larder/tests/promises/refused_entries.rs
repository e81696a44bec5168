//! Failure: bytes in a tier are damaged, of another type or from a newer version, and the service crashes, or
//! serves garbage, or trips over the same entry on every read.

use super::{SECOND, memory};
use bytes::Bytes;
use larder::Cache;
use larder::backend::{Backend, Put, PutOutcome};
use larder::clock::{Clock, ManualClock};
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::convert::Infallible;
use std::sync::Arc;

type Texts = Cache<String, String>;

fn texts(clock: &ManualClock, tier: &Arc<dyn Backend>) -> Texts {
    Cache::builder().clock(Clock::from(clock.clone())).tier(Arc::clone(tier)).build().unwrap()
}

fn key() -> EntryKey {
    EntryKey::new(&Namespace::default(), &"a").unwrap()
}

async fn plant(clock: &ManualClock, tier: &Arc<dyn Backend>, sealed: Bytes) {
    let now = Clock::from(clock.clone()).wall_ms();
    let until = now + 3_600_000;
    let meta = Meta {
        kind: EntryKind::Load,
        stamp: Stamp::new(now, 0, 9),
        created_ms: now,
        fresh_until_ms: until,
        revalidate_until_ms: until,
        gone_at_ms: until,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    let ticket = tier.ticket(&key()).await.unwrap();
    assert_eq!(tier.put(Put { key: key(), meta, sealed, ticket }).await.unwrap(), PutOutcome::Stored);
}

/// A counted miss that names its reason, an entry that is dropped, and a reload.
async fn is_refused(clock: &ManualClock, tier: &Arc<dyn Backend>, what: &str) {
    let cache = texts(clock, tier);
    assert_eq!(cache.get("a").await, None, "{what}");
    let refused: u64 = cache.stats().tiers[0].refused.iter().map(|(_, count)| count).sum();
    assert_eq!(refused, 1, "{what}: {:?}", cache.stats().tiers[0].refused);
    assert!(tier.get(&key()).await.unwrap().found.is_err(), "{what} was left in the tier");
    let load = |_| async { Ok::<_, Infallible>("new".to_owned()) };
    assert_eq!(cache.get_or_load("a", load).await.unwrap(), "new", "{what}");
    super::settle().await;
    assert_eq!(texts(clock, tier).get("a").await.as_deref(), Some("new"), "{what}");
}

#[tokio::test]
async fn every_flipped_byte_and_every_length() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    texts(&clock, &tier).set("a".into(), "the value".into()).await.unwrap();
    let sealed = tier.get(&key()).await.unwrap().found.unwrap();
    for place in 0..sealed.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = sealed.to_vec();
            bytes[place] ^= flip;
            plant(&clock, &tier, bytes.into()).await;
            is_refused(&clock, &tier, &format!("byte {place} ^ {flip}")).await;
        }
    }
    for length in 0..sealed.len() {
        plant(&clock, &tier, sealed.slice(..length)).await;
        is_refused(&clock, &tier, &format!("{length} bytes")).await;
    }
    plant(&clock, &tier, Bytes::from_static(b"what another program wrote here")).await;
    is_refused(&clock, &tier, "foreign bytes").await;
}

#[tokio::test]
async fn a_value_of_another_type() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let numbers: Cache<String, u64> =
        Cache::builder().clock(Clock::from(clock.clone())).tier(tier.clone()).build().unwrap();
    numbers.set("a".into(), 7).await.unwrap();
    is_refused(&clock, &tier, "a number").await;
}

#[tokio::test]
async fn an_entry_of_another_key() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let cache = texts(&clock, &tier);
    cache.set("b".into(), "of b".into()).await.unwrap();
    let other = EntryKey::new(&Namespace::default(), &"b").unwrap();
    let sealed = tier.get(&other).await.unwrap().found.unwrap();
    plant(&clock, &tier, sealed).await;
    is_refused(&clock, &tier, "the entry of another key").await;
}

#[tokio::test]
async fn a_clock_that_was_a_year_ahead_does_not_disable_the_tiers() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let cache = texts(&clock, &tier);
    let now = Clock::from(clock.clone()).wall_ms();
    clock.set_wall_ms(now + 365 * 86_400_000);
    cache.set("a".into(), "from the future".into()).await.unwrap();
    clock.set_wall_ms(now);
    clock.advance(SECOND);
    cache.set("b".into(), "now".into()).await.unwrap();
    assert_eq!(texts(&clock, &tier).get("b").await.as_deref(), Some("now"));
    cache.set("a".into(), "replaced".into()).await.unwrap();
    assert_eq!(texts(&clock, &tier).get("a").await.as_deref(), Some("replaced"));
}
