//! Prevents: a release that can't read what an earlier one wrote, in a cache that outlives both.
//!
//! The vectors in `golden/` were checked once by a second implementation, in Python, of the tables in the
//! docs of `larder::envelope` and of the key encoding. They are never regenerated: a change that breaks
//! one needs a new version of the envelope.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use bytes::Bytes;
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Codec, Compression, Envelope, EnvelopeOptions};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const KEYS: &str = include_str!("golden/keys-v1.txt");
const ENVELOPES: &str = include_str!("golden/envelope-v1.txt");

fn vectors(file: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    file.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect())
}

fn unhex(hex: &str) -> Bytes {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

#[derive(Serialize)]
struct Id(u64);

#[derive(Serialize)]
enum By {
    All,
    Name(&'static str),
    Range(u8, u8),
    Page { from: u8, to: u8 },
}

fn key(name: &str) -> EntryKey {
    fn of<K: Serialize + ?Sized>(key: &K) -> EntryKey {
        EntryKey::new(&Namespace::new("users").unwrap(), key).unwrap()
    }
    match name {
        "empty" => of(""),
        "str" => of("user:é"),
        "bytes" => of(&Bytes::from_static(&[0, 0xff])),
        "unit" => of(&()),
        "true" => of(&true),
        "char" => of(&'é'),
        "i8" => of(&-1i8),
        "i32" => of(&-2i32),
        "i64" => of(&i64::MIN),
        "i128" => of(&-1i128),
        "u8" => of(&255u8),
        "u64" => of(&1u64),
        "u128" => of(&u128::MAX),
        "f32" => of(&-0.0f32),
        "f64" => of(&-f64::NAN),
        "none" => of(&None::<u8>),
        "some" => of(&Some("a")),
        "tuple" => of(&("a", 1u8, ())),
        "seq" => of(&vec![1u16, 2]),
        "map" => of(&BTreeMap::from([("bb", 1u8), ("a", 2), ("ccc", 3)])),
        "struct" => of(&User { id: 7, name: "x".into() }),
        "newtype" => of(&Id(7)),
        "unit_variant" => of(&By::All),
        "newtype_variant" => of(&By::Name("x")),
        "tuple_variant" => of(&By::Range(1, 2)),
        "struct_variant" => of(&By::Page { from: 1, to: 2 }),
        "length_200" => of(&("é".repeat(100), 1u8)),
        "at_limit" => of(&"x".repeat(1023)),
        "long" => of(&"é".repeat(600)),
        "long_tuple" => of(&("a", "x".repeat(2000))),
        other => panic!("the golden file has an unknown key {other}"),
    }
}

#[test]
fn keys_keep_their_encoding_and_hash() {
    let mut count = 0;
    for vector in vectors(KEYS) {
        let [name, encoding, hash] = vector[..] else { panic!("{vector:?}") };
        let key = key(name);
        assert_eq!(hex(key.as_bytes()), encoding, "{name}");
        assert_eq!(format!("{:016x}", key.hash64()), hash, "{name}");
        assert_eq!(EntryKey::from_bytes(key.namespace(), unhex(encoding)).unwrap(), key);
        count += 1;
    }
    assert_eq!(count, 30);
}

fn meta() -> Meta {
    Meta {
        kind: EntryKind::Set,
        stamp: Stamp::new(1_767_225_600_000, 3, 0xdead_beef),
        created_ms: 1_767_225_600_000,
        fresh_until_ms: 1_767_225_660_000,
        revalidate_until_ms: 1_767_225_720_000,
        gone_at_ms: NEVER_MS,
        load_ms: 12,
        is_negative: false,
        tags: Tags::new(["user:7", "de"]).unwrap(),
    }
}

fn user() -> User {
    User { id: 7, name: "Ada ".repeat(20) }
}

/// The envelope of a name like "json-lz4", and whether the bytes it writes are its own choice: LZ4 and
/// zstd may compress better one day, and then still read what they wrote.
fn envelope(name: &str) -> Option<(Envelope, bool)> {
    let (codec, compression) = name.split_once('-').unwrap();
    let codec = match codec {
        "postcard" => Codec::Postcard,
        "msgpack" => Codec::MessagePack,
        "json" => Codec::Json,
        other => panic!("the golden file has an unknown codec {other}"),
    };
    let compression = match compression {
        "none" | "absent" => Compression::None,
        "lz4" => Compression::Lz4,
        "zstd" => Compression::Zstd,
        other => panic!("the golden file has an unknown compression {other}"),
    };
    let options = EnvelopeOptions {
        codec,
        compression,
        compress_above_bytes: 16,
        schema: Some("user/1".into()),
        ..EnvelopeOptions::default()
    };
    let is_built = codec.is_built() && compression.is_built();
    is_built.then(|| (Envelope::new(options).unwrap(), compression == Compression::None))
}

#[test]
fn envelopes_keep_their_layout() {
    let mut count = 0;
    for vector in vectors(ENVELOPES) {
        let [name, golden] = vector[..] else { panic!("{vector:?}") };
        count += 1;
        let Some((envelope, is_exact)) = envelope(name) else { continue };
        let value = (!name.ends_with("absent")).then(user);
        let sealed = envelope.seal(&key("tuple"), &meta(), value.as_ref()).unwrap();
        if is_exact {
            assert_eq!(hex(&sealed), golden, "{name}");
        }
        let expected = Meta { is_negative: value.is_none(), ..meta() };
        assert_eq!(envelope.open(&key("tuple"), &unhex(golden)), Ok((expected, value)), "{name}");
    }
    assert_eq!(count, 10);
}

/// The table of the module docs, read by offsets.
#[test]
fn fields_stand_where_the_table_says() {
    let (_, golden) = ENVELOPES.lines().find_map(|line| line.split_once("postcard-none ")).unwrap();
    let sealed = unhex(golden);
    let name = "Ada ".repeat(20);
    let u64_at = |at: usize| u64::from_le_bytes(sealed[at..at + 8].try_into().unwrap());
    assert_eq!(&sealed[..12], b"LRDR\x01\0\x01\0\0\0\0\0");
    assert_eq!(&sealed[12..20], b"\x01\x02\x0c\0\0\0\0\0", "set, 2 tags of 12 bytes, no extension");
    assert_eq!(sealed[20..32], meta().stamp.to_bytes());
    assert_eq!(u64_at(32), 1_767_225_600_000);
    assert_eq!(u64_at(40), 1_767_225_660_000);
    assert_eq!(u64_at(48), 1_767_225_720_000);
    assert_eq!(u64_at(56), u64::MAX);
    assert_eq!(u64_at(64), xxhash_rust::xxh3::xxh3_64(b"user/1"));
    assert_eq!(&sealed[72..84], b"\x0c\0\0\0\x52\0\0\0\x52\0\0\0");
    assert_eq!(&sealed[84..96], b"\x02\0de\x06\0user:7");
    assert_eq!(sealed[96..98], [7, 80]);
    assert_eq!(&sealed[98..178], name.as_bytes());
    assert_eq!(sealed.len(), 178 + 8);
}

/// With `LARDER_PRINT_GOLDEN` set, prints the golden files' contents for a new version. Every vector can be made
/// again in any case.
#[test]
fn vectors_can_be_printed_anew() {
    let print = |line: String| {
        if std::env::var_os("LARDER_PRINT_GOLDEN").is_some() {
            println!("{line}");
        }
    };
    let keys = "empty str bytes unit true char i8 i32 i64 i128 u8 u64 u128 f32 f64 none some tuple seq map struct \
                newtype unit_variant newtype_variant tuple_variant struct_variant length_200 at_limit long long_tuple";
    for name in keys.split_whitespace() {
        print(format!("K {name} {} {:016x}", hex(key(name).as_bytes()), key(name).hash64()));
    }
    for codec in ["postcard", "msgpack", "json"] {
        for compression in ["none", "lz4", "zstd"] {
            let name = format!("{codec}-{compression}");
            let sealed = envelope(&name).unwrap().0.seal(&key("tuple"), &meta(), Some(&user())).unwrap();
            print(format!("E {name} {}", hex(&sealed)));
        }
    }
    let absent = envelope("postcard-absent").unwrap().0.seal(&key("tuple"), &meta(), None::<&User>).unwrap();
    print(format!("E postcard-absent {}", hex(&absent)));
}
