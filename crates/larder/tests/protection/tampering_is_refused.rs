//! Prevents: somebody who can write to a tier changes a value, moves it to another key, or takes its protection
//! off, and the service believes it.

use super::{encrypting, key, meta, options, signing, with_right_checksum};
use bytes::Bytes;
use larder::envelope::{Envelope, Fate, Refused};
use larder::key::{EntryKey, Namespace};

const FIXED_BYTES: usize = 84;

fn value() -> String {
    "the value".to_owned()
}

fn cases() -> [(Envelope, Refused); 2] {
    [(encrypting(&[1, 2]), Refused::Tampered), (signing(&[1, 2]), Refused::Signature)]
}

/// Which reasons a changed byte may have: what the envelope's shape depends on is found by its shape, the key
/// id names another key or none, and all else is found by the authentication.
fn is_expected(place: usize, refused: Refused, by_authentication: Refused) -> bool {
    use Refused::*;
    match place {
        0..4 => refused == Magic,
        4 => refused == Version,
        8..12 => matches!(refused, KeyId) || refused == by_authentication,
        14..20 | 80..84 => matches!(refused, Truncated | Length) || refused == by_authentication,
        // The flag that says whether it is a signature or a cipher text decides how it is looked at.
        5 => matches!(refused, Tampered | Signature),
        _ => refused == by_authentication,
    }
}

#[test]
fn every_changed_byte_also_with_a_right_checksum() {
    for (envelope, by_authentication) in cases() {
        let sealed = envelope.seal(&key("k"), &meta(), Some(&value())).unwrap();
        assert_eq!(envelope.open(&key("k"), &sealed), Ok((meta(), Some(value()))));
        let mut authenticated = 0;
        for place in 0..sealed.len() - 8 {
            for flip in 1..=255 {
                let mut bytes = sealed.to_vec();
                bytes[place] ^= flip;
                let refused = envelope.open::<String>(&key("k"), &with_right_checksum(bytes)).unwrap_err();
                assert!(is_expected(place, refused, by_authentication), "byte {place} ^ {flip}: {refused}");
                authenticated += u32::from(refused.fate() == Fate::Quarantine);
            }
        }
        // Not all by their shape.
        assert!(authenticated > 255 * (sealed.len() as u32 - 30), "{authenticated}");
        // Without repairing the checksum it is damage, which raises no alarm.
        let mut bytes = sealed.to_vec();
        bytes[FIXED_BYTES + 20] ^= 1;
        let refused = envelope.open::<String>(&key("k"), &bytes.into());
        assert_eq!(refused, Err(Refused::Checksum));
    }
}

/// The negative control: without protection, who can compute a checksum can change what an entry says.
#[test]
fn without_protection_a_changed_byte_with_a_right_checksum_is_believed() {
    let plain = Envelope::new(options()).unwrap();
    let sealed = plain.seal(&key("k"), &meta(), Some(&value())).unwrap();
    let mut bytes = sealed.to_vec();
    let end = bytes.len() - 8;
    bytes[end - 1] ^= 1;
    let mut covered = vec![5];
    covered.extend_from_slice(b"users");
    covered.extend_from_slice(&(key("k").as_bytes().len() as u32).to_le_bytes());
    covered.extend_from_slice(key("k").as_bytes());
    covered.extend_from_slice(&bytes[..end]);
    bytes[end..].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(&covered).to_le_bytes());
    assert_eq!(plain.open(&key("k"), &bytes.into()), Ok((meta(), Some("the valud".to_owned()))));
}

#[test]
fn every_length() {
    for (envelope, _) in cases() {
        let sealed = envelope.seal(&key("k"), &meta(), Some(&value())).unwrap();
        for length in 0..sealed.len() {
            assert!(envelope.open::<String>(&key("k"), &sealed.slice(..length)).is_err(), "{length}");
            if length >= 8 {
                let repaired = with_right_checksum(sealed[..length].to_vec());
                assert!(envelope.open::<String>(&key("k"), &repaired).is_err(), "{length}");
            }
        }
    }
}

#[test]
fn another_key_another_namespace_another_ring() {
    for (envelope, by_authentication) in cases() {
        let sealed = envelope.seal(&key("k"), &meta(), Some(&value())).unwrap();
        let elsewhere = EntryKey::new(&Namespace::new("users2").unwrap(), "k").unwrap();
        for other in [key("K"), key(""), key("kk"), elsewhere] {
            assert_eq!(envelope.open::<String>(&other, &sealed), Err(by_authentication), "{other:?}");
            assert_eq!(envelope.reseal(&other, &sealed, &meta()), Err(by_authentication));
            assert_eq!(envelope.verify(&other, &sealed).unwrap_err(), by_authentication);
        }
    }
    let sealed = encrypting(&[3]).seal(&key("k"), &meta(), Some(&value())).unwrap();
    assert_eq!(encrypting(&[1, 2]).open::<String>(&key("k"), &sealed), Err(Refused::KeyId));
    assert_eq!(Envelope::new(options()).unwrap().open::<String>(&key("k"), &sealed), Err(Refused::KeyId));
}

/// Parts of two sound entries put together.
#[test]
fn the_payload_the_extension_or_the_header_of_another_entry() {
    for (envelope, by_authentication) in cases() {
        let one = envelope.seal(&key("k"), &meta(), Some(&"value one".to_owned())).unwrap();
        let mut later = meta();
        later.fresh_until_ms += 1;
        let two = envelope.seal(&key("k"), &later, Some(&"value two".to_owned())).unwrap();
        assert_eq!(one.len(), two.len());
        let end = one.len() - 8;
        for range in [0..FIXED_BYTES, FIXED_BYTES + 12..FIXED_BYTES + 44, FIXED_BYTES + 44..end] {
            let mut mixed = one.to_vec();
            mixed[range.clone()].copy_from_slice(&two[range.clone()]);
            let refused = envelope.open::<String>(&key("k"), &with_right_checksum(mixed));
            assert_eq!(refused, Err(by_authentication), "{range:?}");
        }
    }
}

#[test]
fn protection_can_not_be_taken_off() {
    let plain = Envelope::new(options()).unwrap();
    let bare = plain.seal(&key("k"), &meta(), Some(&value())).unwrap();
    assert_eq!(encrypting(&[1]).open::<String>(&key("k"), &bare), Err(Refused::Plaintext));
    assert_eq!(signing(&[1]).open::<String>(&key("k"), &bare), Err(Refused::Unsigned));
    let signed = signing(&[1]).seal(&key("k"), &meta(), Some(&value())).unwrap();
    assert_eq!(encrypting(&[1]).open::<String>(&key("k"), &signed), Err(Refused::Plaintext));
    // Encrypted is more than signed.
    let encrypted = encrypting(&[1]).seal(&key("k"), &meta(), Some(&value())).unwrap();
    assert_eq!(signing(&[1]).open(&key("k"), &encrypted), Ok((meta(), Some(value()))));
    // The signed one, cut down to a plain one.
    let tags_end = FIXED_BYTES + 12;
    let mut stripped = [&signed[..tags_end], &signed[tags_end + 32..]].concat();
    stripped[5] = 0;
    stripped[8..12].fill(0);
    stripped[16..20].fill(0);
    assert_eq!(signing(&[1]).open::<String>(&key("k"), &stripped.clone().into()), Err(Refused::Checksum));
    let end = stripped.len() - 8;
    stripped[end..].copy_from_slice(&bare[bare.len() - 8..]);
    assert_eq!(Bytes::from(stripped.clone()), bare);
    assert_eq!(signing(&[1]).open::<String>(&key("k"), &stripped.into()), Err(Refused::Unsigned));
}

#[test]
fn an_extension_of_another_length() {
    for (envelope, by_authentication) in cases() {
        let sealed = envelope.seal(&key("k"), &meta(), Some(&value())).unwrap();
        let at = FIXED_BYTES + 12;
        for length in [0_usize, 1, 15, 16, 31, 33, 48] {
            let extension: Vec<u8> = sealed[at..at + 32].iter().copied().cycle().take(length).collect();
            let mut bytes = [&sealed[..at], &extension, &sealed[at + 32..]].concat();
            bytes[16..20].copy_from_slice(&(length as u32).to_le_bytes());
            let refused = envelope.open::<String>(&key("k"), &with_right_checksum(bytes));
            assert_eq!(refused, Err(by_authentication), "{length}");
        }
    }
}
