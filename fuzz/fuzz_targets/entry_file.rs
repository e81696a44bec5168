//! Any bytes are an entry's file or refused, and a file with any change is refused.

#![no_main]

use larder::backend::unstable_entry_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if unstable_entry_file(input) {
        for end in [0, input.len() / 2, input.len() - 1] {
            assert!(!unstable_entry_file(&input[..end]), "cut at {end}");
        }
        let mut changed = input.to_vec();
        let at = input.len() / 3;
        changed[at] ^= 1;
        assert!(!unstable_entry_file(&changed), "changed at {at}");
    }
    // As if its checksums were right: what is behind them has to stand any bytes, too.
    larder::backend::unstable_resealed_entry_file(input);
});
