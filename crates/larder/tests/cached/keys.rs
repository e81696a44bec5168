//! What tells two calls apart.

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

#[tokio::test]
async fn a_hit_copies_no_argument() {
    runs!(CLONES);
    #[derive(serde::Serialize)]
    struct Counted(u32);
    impl Clone for Counted {
        fn clone(&self) -> Self {
            run(&CLONES);
            Counted(self.0)
        }
    }
    #[cached]
    async fn borrowed(counted: &Counted, owned: Counted) -> u32 {
        counted.0 + owned.0
    }
    for _ in 0..3 {
        assert_eq!(borrowed(&Counted(1), Counted(2)).await, 3);
    }
    assert_eq!(CLONES.load(SeqCst), 2, "one each for the load");
}
