//! A function of several tenants keeps each one's values for that one.

use super::*;
use larder::tenant::{self, Tenant};
use larder::{Error, ErrorKind};

runs!(FALLIBLE, PLAIN);

#[cached(tenant = "context")]
async fn greeting(id: u64) -> Result<String, Error> {
    run(&FALLIBLE);
    Ok(format!("{id} of {}", tenant::current().unwrap()))
}

#[cached(tenant = "context")]
fn plain(id: u64) -> usize {
    run(&PLAIN) + id as usize
}

#[tokio::test]
async fn each_tenant_has_its_own_values_and_nobody_else_has_any() {
    let of = |name: &'static str| tenant::scope(Tenant::new(name).unwrap(), greeting(7));
    for _ in 0..2 {
        assert_eq!(of("acme").await.unwrap(), "7 of acme");
        assert_eq!(of("other").await.unwrap(), "7 of other");
    }
    assert_eq!(FALLIBLE.load(SeqCst), 2);
    assert_eq!(greeting(7).await.unwrap_err().kind(), ErrorKind::Tenant);
    assert_eq!(greeting_if_cached(7).await, None);
    let invalidate = tenant::scope(Tenant::new("acme").unwrap(), greeting_invalidate(7));
    assert!(invalidate.await.unwrap().existed);
    of("other").await.unwrap();
    assert_eq!(FALLIBLE.load(SeqCst), 2, "the other's is still there");
    of("acme").await.unwrap();
    assert_eq!(FALLIBLE.load(SeqCst), 3);
}

#[test]
fn a_function_that_cannot_say_so_runs_without_the_cache() {
    assert_eq!((plain(0), plain(0)), (1, 2));
    let of_acme = || tenant::with(Tenant::new("acme").unwrap(), || plain(0));
    assert_eq!((of_acme(), of_acme()), (3, 3));
    assert_eq!(plain(0), 4);
}
