//! Prevents: a release that can't open what an earlier one protected, and cryptography that only agrees with
//! itself. The vectors were computed by `golden/check_protected.py`, which knows nothing of this code.

use super::{key, meta, options, ring, secret};
use bytes::Bytes;
use larder::backend::{Backend, MemoryBackend, MemoryOptions, Scan};
use larder::entry::Meta;
use larder::envelope::{Envelope, Keyring, Protection};
use larder::key::{EntryKey, Namespace};
use larder::{Cache, TierOptions};
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::sync::Arc;

const VECTORS: &str = include_str!("../golden/protected-v1.txt");

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

fn vector(name: &str) -> Vec<u8> {
    let find = |line: &'static str| line.split_once(' ').filter(|(found, _)| *found == name);
    let (_, hex) = VECTORS.lines().find_map(find).unwrap_or_else(|| panic!("no vector {name}"));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn envelope(name: &str) -> Bytes {
    let mut bytes = vector(name);
    bytes.extend_from_slice(&[0; 8]);
    super::with_right_checksum(bytes)
}

#[test]
fn what_another_implementation_protected_is_opened() {
    let user = || User { id: 7, name: "Ada ".repeat(20) };
    let key = EntryKey::new(&Namespace::new("users").unwrap(), &("a", 1u8, ())).unwrap();
    let plain = || Envelope::new(options()).unwrap();
    let (encrypting, signing) =
        (plain().protect(Protection::encrypt(ring(&[1]))), plain().protect(Protection::sign(ring(&[1]))));
    let absent = Meta { is_negative: true, ..meta() };
    assert_eq!(encrypting.open(&key, &envelope("encrypted")), Ok((meta(), Some(user()))));
    assert_eq!(encrypting.open::<User>(&key, &envelope("encrypted-absent")), Ok((absent.clone(), None)));
    assert_eq!(signing.open(&key, &envelope("signed")), Ok((meta(), Some(user()))));
    assert_eq!(signing.open::<User>(&key, &envelope("signed-absent")), Ok((absent, None)));
    // A signature has nothing random in it: it is made as the other implementation makes it.
    assert_eq!(signing.seal(&key, &meta(), Some(&user())).unwrap(), envelope("signed"));
    assert_eq!(secret(1).id().get().to_be_bytes(), vector("key-id")[..]);
}

#[tokio::test]
async fn names_are_hidden_as_another_implementation_hides_them() {
    let keyring = Keyring::builder().encrypt_with(secret(1)).hide_names_with(secret(101)).build().unwrap();
    let tier: Arc<dyn Backend> = Arc::new(MemoryBackend::new(MemoryOptions::default()));
    let mut options = TierOptions::default();
    options.hide_keys = true;
    let users = Namespace::new("users").unwrap();
    let cache: Cache<(&'static str, u8, ()), u64> = Cache::builder()
        .namespace(users.clone())
        .tier_with(Arc::clone(&tier), options)
        .encryption(keyring)
        .build()
        .unwrap();
    cache.set(("a", 1, ()), 7).await.unwrap();
    let scan = Scan { namespace: &users, pattern: None, after: None, limit: 10 };
    let page = tier.scan(scan).await.unwrap();
    assert_eq!(page.entries[0].key.as_bytes(), &vector("hidden-name")[..]);
}

/// Two seals of one value share nothing that could tell so.
#[test]
fn no_two_entries_have_a_salt_in_common() {
    let envelope = super::encrypting(&[1]);
    let sealed = |_| envelope.seal(&key("k"), &meta(), Some(&"value".to_owned())).unwrap();
    let salts: std::collections::HashSet<Vec<u8>> =
        (0..1000).map(sealed).map(|sealed| sealed[96..112].to_vec()).collect();
    assert_eq!(salts.len(), 1000);
}

/// The other implementation still computes what stands in the file.
#[test]
fn the_second_implementation_agrees() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/check_protected.py");
    let output = Command::new("python3").arg(script).arg("--check").output().expect("python3 is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
