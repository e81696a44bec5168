//! Any bytes are refused, or are replies that don't change with what follows them; and what is cut off is never
//! taken for a whole.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| larder::backend::check_replies(input));
