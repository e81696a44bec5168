//! `#[cached]` as callers of the function see it: who runs the body, what is kept and for how long, what
//! the companions do, and what becomes of failures.

use larder::clock::{Clock, ManualClock};
use larder::key::EntryKey;
use larder::{Cache, EntryOptions, ErrorKind, cached};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Counts the runs of one body.
macro_rules! runs {
    ($($name:ident),*) => { $(static $name: AtomicUsize = AtomicUsize::new(0);)* };
}

fn run(runs: &AtomicUsize) -> usize {
    runs.fetch_add(1, SeqCst) + 1
}

/// A cache whose time a test moves.
struct Timed<V: Clone>(Cache<EntryKey, V>, ManualClock);

fn timed<V: larder::Value>() -> Timed<V> {
    let clock = ManualClock::new();
    Timed(Cache::builder().clock(Clock::from(clock.clone())).build().unwrap(), clock)
}

mod one_flight {
    use super::*;

    runs!(ASYNC, BLOCKING);

    #[cached]
    async fn slow(id: u64) -> usize {
        tokio::time::sleep(Duration::from_millis(20)).await;
        run(&ASYNC) + id as usize
    }

    #[cached]
    fn slow_blocking(id: u64) -> usize {
        std::thread::sleep(Duration::from_millis(20));
        run(&BLOCKING) + id as usize
    }

    #[tokio::test]
    async fn a_hundred_callers_run_the_body_once() {
        let callers: Vec<_> = (0..100).map(|_| tokio::spawn(slow(7))).collect();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), 8);
        }
        assert_eq!(ASYNC.load(SeqCst), 1);
    }

    #[test]
    fn a_hundred_threads_run_a_blocking_body_once() {
        let callers: Vec<_> = (0..100).map(|_| std::thread::spawn(|| slow_blocking(7))).collect();
        for caller in callers {
            assert_eq!(caller.join().unwrap(), 8);
        }
        assert_eq!(BLOCKING.load(SeqCst), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_blocking_function_works_on_a_current_thread_runtime() {
        #[cached]
        fn twice(n: u32) -> u32 {
            n * 2
        }
        assert_eq!(twice(4), 8);
        assert_eq!(twice_if_cached(4), Some(8));
    }
}

mod keys {
    use super::*;

    runs!(PICKED, PATTERN, UNNAMED);

    #[cached(key = id)]
    async fn picked(id: String, trace: &str) -> String {
        run(&PICKED);
        format!("{id}/{trace}")
    }

    #[cached(key = (b, a), tags = [format!("a{a}")])]
    async fn pattern((a, b): (u32, u32), mut scale: u32) -> Result<u32, larder::Error> {
        run(&PATTERN);
        scale += 1;
        Ok((a + b) * scale)
    }

    #[cached]
    fn unnamed(_: u32, items: &[u32], label: &'static str, text: &String) -> String {
        run(&UNNAMED);
        format!("{items:?}{label}{text}")
    }

    #[tokio::test]
    async fn the_key_is_what_the_attribute_says_else_all_arguments() {
        assert_eq!(picked("a".to_owned(), "x").await, "a/x");
        assert_eq!(picked("a".to_owned(), "y").await, "a/x");
        assert_eq!(picked("b".to_owned(), "y").await, "b/y");
        assert_eq!(PICKED.load(SeqCst), 2);
        assert_eq!(pattern((1, 2), 1).await.unwrap(), 6);
        assert_eq!(pattern((1, 2), 100).await.unwrap(), 6);
        pattern_cache().remove_tag("a1").await.unwrap();
        assert_eq!(pattern((1, 2), 2).await.unwrap(), 9);
        let text = "t".to_owned();
        assert_eq!(unnamed(1, &[1, 2], "l", &text), "[1, 2]lt");
        unnamed(1, &[1, 2], "l", &text);
        assert_eq!(UNNAMED.load(SeqCst), 1);
        unnamed(2, &[1, 2], "l", &text);
        assert_eq!(UNNAMED.load(SeqCst), 2);
    }

    #[test]
    fn two_functions_never_share_entries() {
        mod other {
            #[larder::cached]
            pub(super) fn same(n: u32) -> u32 {
                n + 1
            }
        }
        #[cached]
        fn same(n: u32) -> u32 {
            n + 2
        }
        assert_eq!((same(1), other::same(1)), (3, 2));
        assert_ne!(same_cache().namespace_name(), other::same_cache().namespace_name());
    }
}

mod time {
    use super::*;

    static CLOCKED: LazyLock<Timed<usize>> = LazyLock::new(timed);
    runs!(LITERAL, COMPUTED, REVALIDATED, STALE);

    #[cached(ttl = "1m", cache = CLOCKED.0)]
    async fn literal() -> usize {
        run(&LITERAL)
    }

    #[cached(ttl = SECOND * n, cache = CLOCKED.0, namespace = "computed")]
    async fn computed(n: u32) -> usize {
        run(&COMPUTED)
    }

    #[cached(ttl = 10, stale_while_revalidate = "10s", cache = CLOCKED.0)]
    async fn revalidated() -> usize {
        run(&REVALIDATED)
    }

    #[cached(ttl = 10, stale_on_error = "1h", cache = CLOCKED.0)]
    async fn stale() -> std::io::Result<usize> {
        match run(&STALE) {
            1 => Ok(1),
            _ => Err(std::io::Error::other("the source is down")),
        }
    }

    #[tokio::test]
    async fn entries_live_as_long_as_the_attribute_says() {
        let clock = &CLOCKED.1;
        assert_eq!((literal().await, computed(5).await, computed(90).await), (1, 1, 2));
        assert_eq!((revalidated().await, stale().await.unwrap()), (1, 1));
        clock.advance(9 * SECOND);
        assert_eq!((literal().await, computed(5).await, computed(90).await), (1, 3, 2));
        clock.advance(2 * SECOND);
        assert_eq!(revalidated().await, 1);
        while REVALIDATED.load(SeqCst) < 2 || revalidated_cache().stats().flights > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(revalidated().await, 2);
        assert_eq!(stale().await.unwrap(), 1, "an old value beats an error");
        assert_eq!(STALE.load(SeqCst), 2);
        clock.advance(50 * SECOND);
        assert_eq!((literal().await, computed(90).await), (2, 2));
        computed_prime(7, 70).await.unwrap();
        clock.advance(6 * SECOND);
        assert_eq!(computed_if_cached(7).await, Some(70));
        clock.advance(SECOND);
        assert_eq!(computed_if_cached(7).await, None, "a primed value has the TTL of a returned one");
    }

    #[tokio::test]
    async fn a_shared_cache_keeps_functions_apart_and_shares_tags() {
        static SHARED: LazyLock<Timed<u32>> = LazyLock::new(timed);
        #[cached(cache = SHARED.0, tags = ["both"])]
        async fn one(n: u32) -> u32 {
            n + 1
        }
        #[cached(cache = SHARED.0, tags = ["both"])]
        async fn two(n: u32) -> u32 {
            n + 2
        }
        #[cached(cache = SHARED.0, namespace = "apart", tags = ["both"])]
        async fn three(n: u32) -> u32 {
            n + 3
        }
        assert_eq!((one(1).await, two(1).await, three(1).await), (2, 3, 4));
        SHARED.0.remove_tag("both").await.unwrap();
        assert_eq!((one_if_cached(1).await, two_if_cached(1).await), (None, None));
        assert_eq!(three_if_cached(1).await, Some(4), "a namespace has tags of its own");
        assert_eq!(three_cache().namespace_name().as_str(), "apart");
    }
}

mod companions {
    use super::*;

    runs!(ASYNC, BLOCKING);

    /// Documented.
    #[cached(tags = ["users", format!("user:{id}")], entries_max = 10)]
    async fn user(id: u64) -> usize {
        run(&ASYNC)
    }

    #[cached(condition = *"skip" != *name, refresh_after = 0.8, ttl_jitter = 0.1, load_timeout_soft = 1)]
    fn named(name: &str) -> usize {
        run(&BLOCKING)
    }

    #[tokio::test]
    async fn bypass_prime_refresh_invalidate_and_inspect() {
        assert_eq!(user_if_cached(1).await, None);
        assert_eq!((user(1).await, user(1).await), (1, 1));
        assert_eq!(user_if_cached(1).await, Some(1));
        assert_eq!(user_uncached(1).await, 2);
        assert_eq!(user(1).await, 1, "a bypass stores nothing");
        assert_eq!((user_refresh(1).await, user(1).await), (3, 3));
        assert!(user_invalidate(1).await.unwrap().existed);
        assert_eq!(user(1).await, 4);
        user_prime(1, 100).await.unwrap();
        assert_eq!(user(1).await, 100);
        user_cache().remove_tag("user:1").await.unwrap();
        assert_eq!(user(1).await, 5, "a primed value has the tags of a returned one");
        assert!(user_cache().namespace_name().as_str().ends_with("companions::user"));
        let page = user_cache().keys(&larder::KeysRequest::default()).await.unwrap();
        assert_eq!(page.keys[0].key.text(), "1");
        assert_eq!(user_cache().stats().entries, 1);
    }

    #[test]
    fn the_same_from_a_plain_thread() {
        assert_eq!(named_if_cached("a"), None);
        assert_eq!((named("a"), named("a")), (1, 1));
        assert_eq!(named_if_cached("a"), Some(1));
        assert_eq!((named_uncached("a"), named("a")), (2, 1));
        assert_eq!((named_refresh("a"), named("a")), (3, 3));
        assert!(named_invalidate("a").unwrap().existed);
        named_prime("a", 100).unwrap();
        assert_eq!(named("a"), 100);
        assert_eq!((named("skip"), named("skip")), (4, 5), "the condition bypasses the cache");
        assert_eq!(named_if_cached("skip"), None);
    }
}

mod returns {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Refused {
        Source(usize),
        Cache(ErrorKind),
    }

    impl From<larder::Error> for Refused {
        fn from(error: larder::Error) -> Self {
            Refused::Cache(error.kind())
        }
    }

    runs!(OK, ERR, SHARED, ONCE, OPTION, FORGET, BOTH, ALIAS);

    #[cached]
    async fn fallible(n: u32) -> Result<usize, Refused> {
        if n == 0 { Err(Refused::Source(run(&ERR))) } else { Ok(run(&OK)) }
    }

    #[cached]
    async fn shared(_n: u32) -> Result<u32, Refused> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Err(Refused::Source(run(&SHARED)))
    }

    #[cached]
    async fn once(_n: u32) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Err(format!("failure {}", run(&ONCE)).into())
    }

    #[cached(negative_ttl = "1h")]
    async fn option(n: u32) -> Option<u32> {
        run(&OPTION);
        (n > 0).then_some(n)
    }

    #[cached(cache_none = false)]
    fn forgetful(n: u32) -> Option<u32> {
        run(&FORGET);
        (n > 0).then_some(n)
    }

    #[cached]
    fn both(n: u32) -> Result<Option<u32>, Refused> {
        match (run(&BOTH), n) {
            (runs, 0) => Err(Refused::Source(runs)),
            (_, 1) => Ok(None),
            _ => Ok(Some(n)),
        }
    }

    #[cached]
    async fn alias(n: u32) -> larder::Result<usize> {
        Ok(run(&ALIAS) + n as usize)
    }

    #[tokio::test]
    async fn only_ok_is_kept() {
        assert_eq!((fallible(1).await, fallible(1).await), (Ok(1), Ok(1)));
        assert_eq!(fallible(0).await, Err(Refused::Source(1)));
        assert_eq!(fallible(0).await, Err(Refused::Source(2)));
        assert_eq!(fallible_refresh(0).await, Err(Refused::Source(3)));
        assert_eq!((alias(1).await.unwrap(), alias(1).await.unwrap()), (2, 2));
    }

    #[tokio::test]
    async fn every_waiter_gets_the_error_where_it_can_be_cloned() {
        let callers: Vec<_> = (0..10).map(|_| tokio::spawn(shared(1))).collect();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Err(Refused::Source(1)));
        }
    }

    #[tokio::test]
    async fn else_one_gets_it_and_the_others_an_error_with_its_text() {
        let callers: Vec<_> = (0..10).map(|_| tokio::spawn(once(1))).collect();
        let mut originals = 0;
        for caller in callers {
            let error = caller.await.unwrap().unwrap_err();
            assert!(error.to_string().contains("failure 1"), "{error}");
            originals += usize::from(!error.is::<larder::Error>());
        }
        assert_eq!((originals, ONCE.load(SeqCst)), (1, 1));
    }

    #[tokio::test]
    async fn absences_are_remembered_unless_told_otherwise() {
        assert_eq!((option(0).await, option(0).await, option(2).await), (None, None, Some(2)));
        assert_eq!(OPTION.load(SeqCst), 2);
        assert_eq!(option_refresh(0).await, None);
        assert_eq!((forgetful(0), forgetful(0), forgetful(1), forgetful(1)), (None, None, Some(1), Some(1)));
        assert_eq!(FORGET.load(SeqCst), 3);
        assert_eq!((both(1), both(1), both(2), both(2)), (Ok(None), Ok(None), Ok(Some(2)), Ok(Some(2))));
        assert_eq!((both(0), both(0)), (Err(Refused::Source(3)), Err(Refused::Source(4))));
        assert_eq!(both_refresh(1), Ok(None));
    }
}

mod methods {
    use super::*;

    #[derive(Clone)]
    struct Repo {
        tenant: u32,
        runs: Arc<AtomicUsize>,
        entries: Cache<EntryKey, usize>,
    }

    impl Repo {
        fn new(tenant: u32) -> Self {
            Repo { tenant, runs: Arc::default(), entries: Cache::builder().build().unwrap() }
        }

        #[cached(key = (self.tenant, id))]
        async fn find(&self, id: u64) -> usize {
            run(&self.runs) + id as usize
        }

        #[cached(cache = self.entries)]
        pub fn own(&self, id: u64) -> usize {
            run(&self.runs) + id as usize
        }

        #[cached]
        async fn through_arc(self: &Arc<Self>, id: u64) -> Result<usize, larder::Error> {
            Ok(run(&self.runs) + id as usize)
        }

        #[cached]
        async fn by_arc(self: Arc<Self>) -> usize {
            run(&self.runs)
        }

        #[cached(associated)]
        fn lengths(text: &str) -> usize {
            text.len()
        }

        #[cached(associated, key = tenant, cache_none = false)]
        fn open(tenant: u32) -> Option<Self> {
            (tenant > 0).then(|| Repo::new(tenant))
        }
    }

    #[tokio::test]
    async fn a_method_keeps_what_its_key_says_for_all_its_values() {
        let (one, two) = (Repo::new(1), Repo::new(2));
        assert_eq!((one.find(5).await, one.find(5).await, two.find(5).await), (6, 6, 6));
        assert_eq!((one.runs.load(SeqCst), two.runs.load(SeqCst)), (1, 1));
        one.find_invalidate(5).await.unwrap();
        assert_eq!(one.find(5).await, 7);
        assert!(Repo::find_cache().namespace_name().as_str().ends_with("methods::Repo::find"));
        let arc = Arc::new(one.clone());
        let first = arc.through_arc(1).await.unwrap();
        assert_eq!(arc.through_arc(1).await.unwrap(), first);
        assert_eq!(arc.clone().by_arc().await, arc.clone().by_arc().await);
        assert_eq!((Repo::lengths("abc"), Repo::lengths_if_cached("abc")), (3, Some(3)));
        assert!(Arc::ptr_eq(&Repo::open(1).unwrap().runs, &Repo::open(1).unwrap().runs));
    }

    #[test]
    fn a_cache_in_a_field_is_each_values_own() {
        let (one, two) = (Repo::new(1), Repo::new(1));
        assert_eq!((one.own(5), one.own(5), two.own(5)), (6, 6, 6));
        assert_eq!(two.runs.load(SeqCst), 1);
        assert_eq!(one.own_cache().stats().entries, 1);
    }

    #[test]
    fn types_of_one_generic_impl_have_caches_of_their_own() {
        #[derive(Clone)]
        struct Sized<T>(T);
        impl<T: Clone + Send + Sync + 'static> Sized<T> {
            #[cached]
            fn bytes(&self) -> usize {
                size_of::<T>()
            }
        }
        assert_eq!((Sized(1_u8).bytes(), Sized(1_u64).bytes(), Sized(2_u8).bytes()), (1, 8, 1));
    }
}

mod recursion {
    use super::*;

    runs!(FIB, NESTED, REFUSED);

    #[cached]
    fn fib(n: u64) -> u64 {
        run(&FIB);
        if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
    }

    #[cached]
    async fn fib_async(n: u64) -> u64 {
        if n < 2 { n } else { fib_async(n - 1).await + fib_async(n - 2).await }
    }

    /// Asks for its own key, twice.
    #[cached]
    fn nested(n: u64) -> u64 {
        if run(&NESTED) < 3 { nested(n) + 1 } else { 0 }
    }

    #[cached]
    async fn refused(n: u64) -> larder::Result<u64> {
        run(&REFUSED);
        refused(n).await
    }

    #[test]
    fn loads_inside_of_loads_are_no_deadlock() {
        // Deeper than the pool of blocking threads is wide.
        #[cached(load_timeout_hard = "5m")]
        fn depth(n: u64) -> u64 {
            if n == 0 { 0 } else { depth(n - 1) + 1 }
        }
        assert_eq!(fib(90), 2_880_067_194_370_816_120);
        assert_eq!(FIB.load(SeqCst), 91);
        assert_eq!(depth(700), 700);
    }

    #[tokio::test]
    async fn the_same_async() {
        assert_eq!(fib_async(90).await, 2_880_067_194_370_816_120);
    }

    #[tokio::test]
    async fn a_function_that_asks_for_its_own_key_runs_as_without_a_cache_or_fails() {
        assert_eq!(nested(1), 2);
        assert_eq!(NESTED.load(SeqCst), 3);
        assert_eq!(refused(1).await.unwrap_err().kind(), ErrorKind::NestedLoad);
        assert_eq!(REFUSED.load(SeqCst), 1);
    }
}

mod failures {
    use super::*;

    static CLOCKED: LazyLock<Timed<usize>> = LazyLock::new(timed);
    static TINY: LazyLock<Cache<EntryKey, u32>> =
        LazyLock::new(|| Cache::builder().flights_max(1).build().unwrap());
    runs!(HANGS, PANICS);

    #[cached(cache = CLOCKED.0, load_timeout_hard = "1s")]
    async fn hangs_once() -> usize {
        match run(&HANGS) {
            1 => std::future::pending().await,
            runs => runs,
        }
    }

    #[cached(cache = CLOCKED.0, load_timeout_hard = "1s", namespace = "late")]
    async fn hangs() -> std::io::Result<usize> {
        std::future::pending().await
    }

    #[cached(cache = *TINY)]
    async fn inner(n: u32) -> u32 {
        n
    }

    #[cached(cache = *TINY)]
    async fn outer(n: u32) -> u32 {
        inner(n).await + 1
    }

    #[cached]
    async fn panics(_n: u32) -> u32 {
        run(&PANICS);
        panic!("on purpose")
    }

    #[cached]
    fn panics_blocking(_n: u32) -> larder::Result<u32> {
        panic!("on purpose")
    }

    async fn after_a_second<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let late = tokio::spawn(future);
        while CLOCKED.1.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
        while !late.is_finished() {
            CLOCKED.1.advance(SECOND);
            tokio::task::yield_now().await;
        }
        late.await.unwrap()
    }

    #[tokio::test]
    async fn a_late_load_is_run_directly_or_is_an_error() {
        assert_eq!(after_a_second(hangs_once()).await, 2);
        assert_eq!(after_a_second(hangs()).await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_bound_of_the_cache_does_not_fail_the_function() {
        assert_eq!(outer(1).await, 2);
        assert_eq!(outer_if_cached(1).await, Some(2));
        assert_eq!(inner_if_cached(1).await, None, "there was no flight left for it");
    }

    #[tokio::test]
    async fn a_panic_reaches_the_caller_and_is_not_repeated() {
        let error = tokio::spawn(panics(1)).await.unwrap_err();
        let text = error.into_panic().downcast::<String>().unwrap();
        assert!(text.contains("panics panicked") && text.contains("on purpose"), "{text}");
        assert_eq!(PANICS.load(SeqCst), 1);
        assert_eq!(panics_blocking(1).unwrap_err().kind(), ErrorKind::LoaderPanicked);
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_encoded_does_not_fail_the_function() {
        struct Refuses;
        impl serde::Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }
        #[cached(key = Refuses)]
        async fn keyless(n: u32) -> u32 {
            n
        }
        assert_eq!(keyless(3).await, 3);
        assert_eq!(keyless_prime(3, 4).await.unwrap_err().kind(), ErrorKind::Key);
    }
}

mod passed_through {
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
}
