//! Failure: the loader of A asks for B, whose loader asks for A; both wait for each other until somebody
//! restarts the process.

use super::{cache, promptly};
use larder::clock::ManualClock;
use larder::{BoxError, Cache, EntryOptions, ErrorKind};
use std::collections::HashMap;

fn new() -> Cache<String, u64> {
    cache(&ManualClock::new(), &[], EntryOptions::default())
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_is_told() {
    let cache = new();
    let within = cache.clone();
    let load = move |_| async move { within.get_or_load("a", |_| async { Ok::<u64, BoxError>(1) }).await };
    let error = promptly(cache.get_or_load("a", load)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NestedLoad);
    assert_eq!(cache.get_or_load("a", |_| async { Ok::<u64, BoxError>(2) }).await.unwrap(), 2);
}

#[tokio::test]
async fn a_ring_of_three_is_told_and_a_chain_is_not() {
    fn hop(cache: &Cache<String, u64>, path: &'static [&'static str]) -> BoxedLoad {
        let (key, rest) = path.split_first().unwrap();
        let (cache, within) = (cache.clone(), cache.clone());
        Box::pin(async move {
            let load = move |_| async move { if rest.is_empty() { Ok(1) } else { hop(&within, rest).await } };
            cache.get_or_load(*key, load).await
        })
    }
    type BoxedLoad = std::pin::Pin<Box<dyn Future<Output = larder::Result<u64>> + Send>>;
    let cache = new();
    let error = promptly(hop(&cache, &["a", "b", "c", "a"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NestedLoad);
    assert_eq!(promptly(hop(&cache, &["d", "e", "f", "g"])).await.unwrap(), 1);
}

#[tokio::test]
async fn a_batch_that_asks_for_one_of_its_own_keys_is_told() {
    for own in ["a", "b"] {
        let cache = new();
        let within = cache.clone();
        let load = move |_: Vec<String>| async move {
            let value = within.get_or_load(own, |_| async { Ok::<u64, BoxError>(1) }).await?;
            Ok::<_, BoxError>(HashMap::from([("a".to_owned(), value), ("b".to_owned(), value)]))
        };
        let keys = ["a".to_owned(), "b".to_owned()];
        let options = cache.options();
        let answers = promptly(cache.get_many_or_load(&keys, &options, load)).await;
        for answer in answers {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::NestedLoad, "{own}");
        }
    }
}
