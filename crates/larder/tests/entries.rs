//! Prevents: nobody can say why an entry is kept or for how long, and what comes from one source lives longer than the
//! source allows.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::{Clock, ManualClock};
use larder::entry::Tags;
use larder::key::{EntryKey, Namespace};
use larder::{Cache, EntryOptions, ErrorKind, Loaded};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn memory(clock: &ManualClock) -> Arc<dyn Backend> {
    let clock = Clock::from(clock.clone());
    Arc::new(MemoryBackend::new(MemoryOptions { clock, ..MemoryOptions::default() }))
}

fn cache(clock: &ManualClock, tier: &Arc<dyn Backend>) -> Cache<String, u64> {
    let builder = Cache::builder().clock(Clock::from(clock.clone())).tier(Arc::clone(tier));
    builder.tag_ttl_max("feed", 10 * SECOND).tag_ttl_max("ticker", SECOND).build().unwrap()
}

#[tokio::test]
async fn an_entry_says_what_is_known_of_it() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let here = cache(&clock, &tier);
    assert!(here.entry("a").await.is_none());
    let options = here.options().ttl(60 * SECOND).tags(Tags::new(["red"]).unwrap());
    here.set_with("a".into(), 1, &options).await.unwrap();
    clock.advance(5 * SECOND);
    here.get("a").await.unwrap();
    here.get("a").await.unwrap();
    let entry = here.entry("a").await.unwrap();
    assert_eq!((entry.kind, entry.accesses, entry.fresh_ms_left), ("set", Some(2), Some(55_000)));
    assert_eq!((&*entry.tags, entry.source), (&["red".to_owned()][..], None));
    assert!(entry.idle_ms.unwrap() < 2_000 && entry.created_ms > 0);
    assert_eq!(here.entry("a").await.unwrap().accesses, Some(2), "to look is no access");
    let below = cache(&clock, &tier).entry("a").await.unwrap();
    assert_eq!((below.stamp, below.source.as_deref()), (entry.stamp, Some("memory")));
}

#[tokio::test]
async fn the_ttl_that_is_left_can_be_read_and_changed() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let here = cache(&clock, &tier);
    let options = here.options().ttl(60 * SECOND).stale_on_error(60 * SECOND);
    here.set_with("a".into(), 1, &options).await.unwrap();
    here.set_with("ever".into(), 1, &here.options().ttl(Duration::MAX)).await.unwrap();
    assert_eq!(here.ttl_left("ever").await, Some(Duration::MAX));
    clock.advance(20 * SECOND);
    assert_eq!(here.ttl_left("a").await, Some(40 * SECOND));
    assert_eq!(cache(&clock, &tier).ttl_left("a").await, Some(40 * SECOND), "in the tier below");
    assert!(here.expire("a", 5 * SECOND).await.unwrap());
    assert_eq!(here.ttl_left("a").await, Some(5 * SECOND));
    here.set_with("old".into(), 1, &options).await.unwrap();
    clock.advance(61 * SECOND);
    assert_eq!(here.ttl_left("old").await, Some(Duration::ZERO), "stale");
    assert_eq!(here.ttl_left("none").await, None);
    here.get_or_load_optional("absent", &options, |_| async { Ok::<_, Infallible>(None) }).await.unwrap();
    assert_eq!(here.ttl_left("absent").await, None, "an absence is no value");
    assert!(here.entry("absent").await.unwrap().is_negative);
}

#[tokio::test]
async fn a_tag_limits_the_ttl_of_sets_and_loads_and_of_several_the_shortest_counts() {
    let clock = ManualClock::new();
    let here = cache(&clock, &memory(&clock));
    let with = |tags: &[&str]| here.options().ttl(60 * SECOND).tags(Tags::new(tags).unwrap());
    for (tags, left) in [(&["red"][..], 60), (&["feed"], 10), (&["feed", "red", "ticker"], 1)] {
        here.set_with("set".into(), 1, &with(tags)).await.unwrap();
        assert_eq!(here.ttl_left("set").await, Some(left * SECOND), "{tags:?}");
        here.remove("load").await.unwrap();
        let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
        let load = move |_| async move {
            Ok::<_, Infallible>(tags.into_iter().fold(Loaded::new(1).ttl(60 * SECOND), Loaded::tag))
        };
        here.get_or_load("load", load).await.unwrap();
        assert_eq!(here.ttl_left("load").await, Some(left * SECOND));
    }
    here.set_with("short".into(), 1, &with(&["feed"]).ttl(2 * SECOND)).await.unwrap();
    assert_eq!(here.ttl_left("short").await, Some(2 * SECOND), "it makes none longer");
    let zero = Cache::<String, u64>::builder().tag_ttl_max("feed", Duration::ZERO).build();
    assert_eq!(zero.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_listener_hears_of_entries_that_could_not_be_opened_and_may_panic() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    cache(&clock, &tier).set("a".into(), 1).await.unwrap();
    cache(&clock, &tier).set("b".into(), 1).await.unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let texts: Cache<String, String> = Cache::builder()
        .clock(Clock::from(clock.clone()))
        .tier(Arc::clone(&tier))
        .on_discard({
            let heard = Arc::clone(&heard);
            move |key: &EntryKey, tier: &str, reason| {
                heard.lock().unwrap().push((key.clone(), tier.to_owned(), reason));
                panic!("a listener that panics");
            }
        })
        .defaults(EntryOptions::default())
        .build()
        .unwrap();
    assert_eq!((texts.get("a").await, texts.get("b").await), (None, None));
    let key = |text: &str| EntryKey::new(&Namespace::default(), text).unwrap();
    let reason = texts.stats().tiers[0].refused[0].0.clone();
    let heard = heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let keys: Vec<_> = heard.iter().map(|(key, ..)| key.clone()).collect();
    assert_eq!(keys, [key("a"), key("b")]);
    assert!(heard.iter().all(|(_, tier, why)| tier == "memory" && *why == reason), "{heard:?}");
}
