//! Failure: one customer is served what was cached for another, or a request that lost its tenant on the way reads
//! and writes what belongs to nobody, which is everybody.

use super::{SECOND, memory, promptly, settle};
use larder::backend::Backend;
use larder::clock::{Clock, ManualClock};
use larder::entry::Tags;
use larder::key::{EntryKey, Namespace, Pattern};
use larder::tenant::{self, Tenant, TenantFrom};
use larder::{Cache, EntryOptions, Error, ErrorKind, KeysRequest, Loaded, Stale};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use tokio::sync::Notify;

type Values = Cache<String, u64>;

fn named(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

fn with_tenants(clock: &ManualClock, tiers: &[Arc<dyn Backend>], from: TenantFrom) -> Values {
    let builder = Cache::builder().clock(Clock::from(clock.clone())).tenants(from);
    match tiers {
        [] => builder.build().unwrap(),
        _ => tiers.iter().fold(builder, |builder, tier| builder.tier(Arc::clone(tier))).build().unwrap(),
    }
}

/// Every stack: nothing below L1, memory, two tiers, SQLite.
async fn stacks(clock: &ManualClock, folder: &std::path::Path) -> Vec<Vec<Arc<dyn Backend>>> {
    let stacks = vec![vec![], vec![memory(clock)], vec![memory(clock), memory(clock)]];
    #[cfg(feature = "sqlite")]
    let stacks = {
        use larder::backend::{SqliteBackend, SqliteOptions};
        let clock = Clock::from(clock.clone());
        let options = SqliteOptions { clock, ..SqliteOptions::new(folder.join("larder.db")) };
        let sqlite: Arc<dyn Backend> = Arc::new(SqliteBackend::open(options).await.unwrap());
        let mut stacks = stacks;
        stacks.push(vec![sqlite]);
        stacks
    };
    let _ = folder;
    stacks
}

/// What `theirs` learns of what `ours` does, or does to it. `fresh` makes the same two views of a new cache on the
/// same tiers, which has nothing in L1.
async fn leaks(ours: &Values, theirs: &Values, fresh: impl Fn() -> (Values, Values)) -> Vec<&'static str> {
    let mut leaks = Vec::new();
    let mut note = |is_leak: bool, what| {
        if is_leak {
            leaks.push(what);
        }
    };
    let red = EntryOptions::default().tags(Tags::new(["red"]).unwrap());

    ours.set_with("a".into(), 1, &red).await.unwrap();
    note(theirs.peek("a").is_some() || theirs.get("a").await.is_some(), "a value");
    note(theirs.lookup("a", Stale::Allow).await.is_some(), "a value that is looked up");
    note(theirs.get_many(&["a".into()]).await[0].is_some(), "one of many values");
    note(!theirs.keys(&KeysRequest::default()).await.unwrap().keys.is_empty(), "a list of keys");
    note(theirs.explain("a").await.tiers.iter().any(|tier| tier.entry.is_some()), "an explanation");
    note(fresh().1.get("a").await.is_some(), "a value below L1");

    for remove in ["a removal", "a tag's removal", "a pattern's removal", "a clear", "a set"] {
        ours.set_with("a".into(), 1, &red).await.unwrap();
        match remove {
            "a removal" => drop(theirs.remove("a").await.unwrap()),
            "a tag's removal" => drop(theirs.remove_tag("red").await.unwrap()),
            "a pattern's removal" => drop(theirs.remove_matching(&Pattern::new("*").unwrap()).await.unwrap()),
            "a clear" => drop(theirs.clear().await.unwrap()),
            _ => drop(theirs.set("a".into(), 2).await.unwrap()),
        }
        note(ours.get("a").await != Some(1), remove);
        let below = fresh().0;
        // Without a tier a new cache has nothing, whoever removed it.
        if below.stats().tiers.is_empty() {
            continue;
        }
        note(below.get("a").await != Some(1), remove);
    }

    let (go, began) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let loading = tokio::spawn({
        let (ours, go, began) = (ours.clone(), Arc::clone(&go), Arc::clone(&began));
        async move {
            let load = |_| async move {
                began.store(true, SeqCst);
                go.notified().await;
                Ok::<_, Infallible>(1)
            };
            ours.get_or_load("slow", load).await
        }
    });
    while !began.load(SeqCst) {
        tokio::task::yield_now().await;
    }
    let load = {
        let go = Arc::clone(&go);
        |_| async move {
            go.notify_one();
            Ok::<_, Infallible>(2)
        }
    };
    let opener = {
        let go = Arc::clone(&go);
        // Joined to our load, theirs never runs and never lets it end.
        tokio::spawn(async move {
            settle().await;
            go.notify_one();
        })
    };
    note(promptly(theirs.get_or_load("slow", load)).await.unwrap() != 2, "a load");
    promptly(loading).await.unwrap().unwrap();
    opener.abort();
    leaks
}

#[tokio::test]
async fn two_tenants_share_nothing_in_any_tier() {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    for tiers in stacks(&clock, folder.path()).await {
        let views = || {
            let cache = with_tenants(&clock, &tiers, TenantFrom::Argument);
            (cache.tenant(&named("acme")), cache.tenant(&named("other")))
        };
        let (ours, theirs) = views();
        assert_eq!(leaks(&ours, &theirs, views).await, Vec::<&str>::new(), "{} tiers", tiers.len());
    }
}

#[tokio::test]
async fn two_callers_that_are_deliberately_joined_are_found_to_share_everything() {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    for tiers in stacks(&clock, folder.path()).await {
        let views = || {
            let cache = with_tenants(&clock, &tiers, TenantFrom::Argument);
            (cache.tenant(&named("acme")), cache.tenant(&named("acme")))
        };
        let (ours, theirs) = views();
        let found = leaks(&ours, &theirs, views).await;
        let mut kinds = found.clone();
        kinds.dedup();
        assert_eq!(kinds.len(), if tiers.is_empty() { 11 } else { 12 }, "{found:?}");
    }
}

#[tokio::test]
async fn without_a_tenant_every_call_fails_and_nothing_is_loaded_or_stored() {
    let clock = ManualClock::new();
    let sources = [TenantFrom::Argument, TenantFrom::callback(|| None), TenantFrom::Context];
    for from in sources {
        for tiers in [vec![], vec![memory(&clock)]] {
            let cache = with_tenants(&clock, &tiers, from.clone());
            cache.tenant(&named("acme")).set("a".into(), 1).await.unwrap();
            let loads = Arc::new(AtomicUsize::new(0));
            let load = || {
                let loads = Arc::clone(&loads);
                move |_| async move {
                    loads.fetch_add(1, SeqCst);
                    Ok::<_, Infallible>(Loaded::new(2))
                }
            };
            let options = EntryOptions::default();
            let key = || "a".to_owned();
            let refusals: Vec<Error> = vec![
                cache.get_or_load("a", load()).await.unwrap_err(),
                cache.get_or_load_with("a", &options, load()).await.unwrap_err(),
                cache
                    .get_or_load_optional("a", &options, |_| async { Ok::<_, Infallible>(Some(2)) })
                    .await
                    .unwrap_err(),
                cache.get_or_insert_with("a", || async { 2 }).await.unwrap_err(),
                cache.reload("a", &options, load()).await.unwrap_err(),
                cache.expire("a", SECOND).await.unwrap_err(),
                cache
                    .get_many_or_load(&[key()], &options, |_| async {
                        Ok::<_, Infallible>([("a".to_owned(), 2)].into())
                    })
                    .await
                    .remove(0)
                    .unwrap_err(),
                cache.set(key(), 2).await.unwrap_err(),
                cache.set_with(key(), 2, &options).await.unwrap_err(),
                cache.set_many(vec![(key(), 2)], &options).await.remove(0).unwrap_err(),
                cache.remove("a").await.unwrap_err(),
                cache.remove_many(&[key()]).await.remove(0).unwrap_err(),
                cache.remove_tag("red").await.unwrap_err(),
                cache.remove_matching(&Pattern::new("*").unwrap()).await.unwrap_err(),
                cache.clear().await.unwrap_err(),
                cache.keys(&KeysRequest::default()).await.unwrap_err(),
                cache.namespaces().await.unwrap_err(),
            ];
            for error in &refusals {
                assert_eq!(error.kind(), ErrorKind::Tenant, "{error}");
            }
            assert_eq!((cache.peek("a"), cache.get("a").await), (None, None));
            assert!(cache.lookup("a", Stale::Allow).await.is_none());
            assert_eq!(cache.get_many(&[key()]).await, [None]);
            assert!(cache.explain("a").await.tiers.is_empty());
            assert_eq!(cache.stats().tenant_refused, refusals.len() as u64 + 5);
            settle().await;
            assert_eq!((loads.load(SeqCst), cache.stats().loads), (0, 0));
            assert_eq!(cache.stats().entries, 1, "the one of acme");
            assert_eq!(cache.tenant(&named("acme")).get("a").await, Some(1));
        }
    }
}

#[tokio::test]
async fn a_callback_is_asked_at_each_call() {
    let clock = ManualClock::new();
    let now = Arc::new(std::sync::Mutex::new(None));
    let from = {
        let now = Arc::clone(&now);
        TenantFrom::callback(move || now.lock().unwrap().clone())
    };
    let cache = with_tenants(&clock, &[], from);
    for (tenant, value) in [("acme", 1), ("other", 2)] {
        *now.lock().unwrap() = Some(named(tenant));
        cache.set("a".into(), value).await.unwrap();
    }
    *now.lock().unwrap() = Some(named("acme"));
    assert_eq!((cache.get("a").await, cache.peek("a")), (Some(1), Some(1)));
}

#[tokio::test]
async fn the_context_goes_with_awaits_loads_refreshes_and_children() {
    let clock = ManualClock::new();
    for tiers in [vec![], vec![memory(&clock)]] {
        let options = EntryOptions::default().ttl(SECOND).stale_while_revalidate(60 * SECOND);
        let outer = with_tenants(&clock, &tiers, TenantFrom::Context);
        let inner: Values = with_tenants(&clock, &[], TenantFrom::Context);
        let load = || {
            let inner = inner.clone();
            move |_| async move {
                tokio::task::yield_now().await;
                let mine = if tenant::current() == Some(named("acme")) { 1 } else { 2 };
                // A cache inside of the loader finds the same tenant.
                inner.get_or_load("inner", move |_| async move { Ok::<_, Infallible>(mine) }).await
            }
        };
        for (name, value) in [("acme", 1), ("other", 2)] {
            let (outer, options) = (outer.clone(), options.clone());
            let (first, later) = (load(), load());
            let clock = clock.clone();
            tenant::scope(named(name), async move {
                tokio::task::yield_now().await;
                assert_eq!(outer.get_or_load_with("a", &options, first).await.unwrap(), value);
                clock.advance(2 * SECOND);
                // Served stale; the refresh runs in the background, for the same tenant.
                assert_eq!(outer.get_or_load_with("a", &options, later).await.unwrap(), value);
                settle().await;
                assert_eq!(outer.get("a").await, Some(value));
                let child = tokio::spawn(tenant::inherit(async move { outer.get("a").await }));
                assert_eq!(child.await.unwrap(), Some(value));
            })
            .await;
        }
        let refreshes = outer.stats().refreshes;
        assert_eq!(refreshes, 2);
    }
    let orphan = tenant::scope(named("acme"), async { tokio::spawn(async { tenant::current() }).await });
    assert_eq!(orphan.await.unwrap(), None, "a child that doesn't inherit has no tenant");
}

#[test]
fn the_context_goes_with_blocking_loads() {
    let clock = ManualClock::new();
    let cache = with_tenants(&clock, &[], TenantFrom::Context).blocking();
    let load = || Ok::<_, Infallible>(if tenant::current() == Some(named("acme")) { 1 } else { 2 });
    let of = |name| tenant::with(named(name), || cache.get_or_load("a", load).unwrap());
    assert_eq!((of("acme"), of("other"), of("acme")), (1, 2, 1));
    assert_eq!(cache.get_or_load("a", load).unwrap_err().kind(), ErrorKind::Tenant);
}

#[tokio::test]
async fn futures_that_are_polled_in_turns_on_one_thread_keep_their_tenants() {
    let clock = ManualClock::new();
    let cache = with_tenants(&clock, &[], TenantFrom::Context);
    let task = |name: &'static str| {
        let cache = cache.clone();
        tenant::scope(named(name), async move {
            for turn in 0..100_u64 {
                cache.set(format!("k{turn}"), name.len() as u64).await.unwrap();
                tokio::task::yield_now().await;
                assert_eq!(tenant::current(), Some(named(name)));
                assert_eq!(cache.get(&format!("k{turn}")).await, Some(name.len() as u64));
            }
        })
    };
    let bystander = async {
        for _ in 0..100 {
            assert_eq!(tenant::current(), None);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(task("a"), task("bb"), bystander, task("ccc"));
    // Dropped half-way, a scope leaves nothing behind either.
    let mut half = Box::pin(tenant::scope(named("a"), std::future::pending::<()>()));
    assert!(super::poll_once(&mut half).is_pending());
    drop(half);
    assert_eq!(tenant::current(), None);
}

#[tokio::test]
async fn a_view_of_one_tenant_leads_to_no_other() {
    let clock = ManualClock::new();
    for from in [None, Some(TenantFrom::Argument), Some(TenantFrom::Context)] {
        let is_bound_by_context = matches!(from, Some(TenantFrom::Context));
        let builder =
            Cache::<EntryKey, u64>::builder().clock(Clock::from(clock.clone())).tier(memory(&clock));
        let builder = match from {
            Some(from) => builder.tenants(from),
            None => builder,
        };
        let cache = builder.build().unwrap();
        let users = Namespace::new("users").unwrap();
        let key = |namespace| EntryKey::new(namespace, "a").unwrap();
        let (acme, other) = (cache.tenant(&named("acme")), cache.tenant(&named("other")));
        let others = users.of_tenant(&named("other"));
        other.namespace(&users).set(key(&users), 2).await.unwrap();
        assert_eq!(other.namespace(&others).get(&key(&others)).await, Some(2), "its own, by its full name");
        assert_eq!(acme.namespace(&users).get(&key(&users)).await, None);
        let escaped = acme.namespace(&others);
        assert_eq!(escaped.get(&key(&users)).await, None);
        assert_eq!(escaped.set(key(&users), 3).await.unwrap_err().kind(), ErrorKind::Tenant);
        assert_eq!(acme.set(key(&others), 3).await.unwrap_err().kind(), ErrorKind::Key);
        assert_eq!(acme.namespaces().await.unwrap().len(), 2, "users and default, both of acme");
        assert_eq!(acme.tenants().await.unwrap(), [named("acme")]);
        assert_eq!(acme.clear_tenant(&named("other")).await.unwrap_err().kind(), ErrorKind::Tenant);
        if is_bound_by_context {
            // Whose task it is, is for the context to say; what the task names can't widen it.
            let inside = async { cache.namespace(&others).set(key(&users), 3).await };
            let refused = tenant::scope(named("acme"), inside).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Tenant);
        }
    }
}

#[tokio::test]
async fn an_operator_lists_tenants_and_clears_one_in_all_its_namespaces() {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    for tiers in stacks(&clock, folder.path()).await {
        let cache = with_tenants(&clock, &tiers, TenantFrom::Context);
        let users = Namespace::new("users").unwrap();
        let hashed = Tenant::hashed("ada@example.org");
        for tenant in [&named("acme"), &hashed] {
            cache.tenant(tenant).set("a".into(), 1).await.unwrap();
            cache.namespace(&users).tenant(tenant).set("a".into(), 1).await.unwrap();
        }
        // Another process, whose memory knows nothing of them.
        let cache = if tiers.is_empty() { cache } else { with_tenants(&clock, &tiers, TenantFrom::Context) };
        assert_eq!(cache.tenants().await.unwrap(), [named("acme"), hashed.clone()]);
        cache.clear_tenant(&hashed).await.unwrap();
        for namespace in [&Namespace::default(), &users] {
            assert_eq!(cache.namespace(namespace).tenant(&hashed).get("a").await, None);
            assert_eq!(cache.namespace(namespace).tenant(&named("acme")).get("a").await, Some(1));
        }
    }
}
