//! A key that tiers see as the typed key of a cache: taken as it is, and never for another namespace's.

use larder::ErrorKind;
use larder::key::{EntryKey, Namespace};
use serde::Serialize;

#[test]
fn an_entry_key_as_a_typed_key_is_itself_again() {
    let (users, other) = (Namespace::new("users").unwrap(), Namespace::new("other").unwrap());
    let long = "k".repeat(5000);
    for key in [
        EntryKey::new(&users, &("profile", 17)).unwrap(),
        EntryKey::new(&users, "profile").unwrap(),
        EntryKey::new(&users, &long).unwrap(),
    ] {
        assert_eq!(EntryKey::new(&users, &key).unwrap(), key);
        assert_eq!(EntryKey::new(&users, &&key).unwrap().text(), key.text());
        assert_ne!(EntryKey::new(&users, &(&key, 1)).unwrap(), EntryKey::new(&users, &(&key, 2)).unwrap());
        let error = EntryKey::new(&other, &key).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Key);
        assert!(error.to_string().contains("namespace users"), "{error}");
    }
    #[derive(Serialize)]
    #[serde(rename = "larder::EntryKey")]
    struct Forged(u8);
    assert_eq!(EntryKey::new(&users, &Forged(1)).unwrap_err().kind(), ErrorKind::Corrupt);
}
