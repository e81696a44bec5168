//! Attributes, lifetimes and names that have to survive, and tiers below.

use super::*;

#[cached]
#[inline]
#[must_use]
#[allow(clippy::needless_lifetimes, reason = "named lifetimes are what is tested")]
fn with_lifetimes<'a, 'b>(a: &'a str, b: &'b [String]) -> String
where
    'a: 'b,
{
    format!("{a}{b:?}")
}

#[cached]
fn r#type(cache: u32, key: u32, value: u32, keep: u32, found: u32, error: u32, options: u32) -> u32 {
    cache + key + value + keep + found + error + options
}

#[test]
fn lifetimes_attributes_and_any_argument_names() {
    assert_eq!(with_lifetimes("a", &["b".to_owned()]), "a[\"b\"]");
    assert_eq!(r#type(1, 2, 3, 4, 5, 6, 7), 28);
    assert_eq!(type_if_cached(1, 2, 3, 4, 5, 6, 7), Some(28));
    type_prime(1, 2, 3, 4, 5, 6, 7, 0).unwrap();
    assert_eq!(r#type(1, 2, 3, 4, 5, 6, 7), 0);
}

#[test]
fn a_cache_with_a_tier_takes_the_keys() {
    let _ = EntryOptions::default();
    static TIERED: LazyLock<Cache<EntryKey, u32>> = LazyLock::new(|| {
        let tier = Arc::new(larder::backend::MemoryBackend::new(larder::backend::MemoryOptions::default()));
        Cache::builder().entries_max(1).tier(tier).build().unwrap()
    });
    runs!(RUNS);
    #[cached(cache = *TIERED)]
    fn tiered(n: u32) -> u32 {
        run(&RUNS);
        n
    }
    let all = || (0..100).map(tiered).collect::<Vec<_>>();
    assert_eq!(all(), all());
    assert!(RUNS.load(SeqCst) < 200, "tier hits are hits");
}
