//! What people read who use `#[cached]` wrongly: each message says what is wrong, why, and where.
//!
//! `TRYBUILD=overwrite` rewrites the expected texts. They are those of one compiler: CI runs this test with
//! the stable one.

#[test]
fn messages_are_understood() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
}
