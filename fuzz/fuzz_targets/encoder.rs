//! A model's weights and its tokenizer may be any bytes: they are refused, or read within their bounds.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    larder_encoder::fuzzing::weights(input);
    // Most inputs fail at the header's length, so that it is filled in, too.
    let mut file = (input.len() as u64 / 2).to_le_bytes().to_vec();
    file.extend_from_slice(input);
    larder_encoder::fuzzing::weights(&file);
    let (json, text) = input.split_at(input.len() / 2);
    larder_encoder::fuzzing::tokenizer(json, &String::from_utf8_lossy(text));
});
