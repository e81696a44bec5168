//! Any two texts have normal forms and compare, the same both ways, with nothing against themselves.

#![no_main]

use larder::semantic::normalise::normalise;
use larder::semantic::veto::Profile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (one, other) = input;
    let normal = normalise(one);
    assert_eq!(normalise(&normal), normal);
    let (one, other) = (Profile::of(one), Profile::of(other));
    assert_eq!(one.compare(&other), other.compare(&one));
    assert!(one.compare(&one).vetoes.is_empty());
});
