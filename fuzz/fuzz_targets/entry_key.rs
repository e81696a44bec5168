//! Any bytes are the encoding of a key or refused; any string is a key and comes back.

#![no_main]

use larder::key::{ENTRY_KEY_BYTES_MAX, EntryKey, Namespace};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let namespace = Namespace::default();
    if let Ok(key) = EntryKey::from_bytes(&namespace, input.to_vec().into()) {
        assert_eq!(&key.as_bytes()[..], input);
        assert!(input.len() <= ENTRY_KEY_BYTES_MAX);
        let text = key.text().into_owned();
        if let Some(string) = key.decode_str() {
            assert_eq!(string, text);
            assert_eq!(EntryKey::new(&namespace, string).expect("a string is a key"), key);
        }
    }
    let key = EntryKey::new(&namespace, &(input, String::from_utf8_lossy(input))).expect("a pair is a key");
    let again =
        EntryKey::from_bytes(&namespace, key.as_bytes().clone()).expect("what was encoded is canonical");
    assert_eq!((&again, again.hash64(), again.text()), (&key, key.hash64(), key.text()));
});
