//! What of the values, absences and errors that a function returns is kept, and who gets it.

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
