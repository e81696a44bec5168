//! Prevents: a panic, a huge allocation, or worst of all a wrong value, from bytes that a tier gave back
//! truncated, changed, or under another key.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use bytes::Bytes;
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Codec, Compression, Envelope, EnvelopeOptions, NESTING_MAX, Refused};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use larder::{ErrorKind, clock::NEVER_MS};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

fn key(text: &str) -> EntryKey {
    EntryKey::new(&Namespace::default(), text).unwrap()
}

fn meta() -> Meta {
    Meta {
        kind: EntryKind::Set,
        stamp: Stamp::new(1_767_225_600_000, 3, 9),
        created_ms: 1_767_225_600_000,
        fresh_until_ms: 1_767_225_660_000,
        revalidate_until_ms: 1_767_225_720_000,
        gone_at_ms: NEVER_MS,
        load_ms: 12,
        is_negative: false,
        tags: Tags::new(["user:7", "ünïcode"]).unwrap(),
    }
}

fn envelope(codec: Codec, compression: Compression) -> Envelope {
    let options = EnvelopeOptions { codec, compression, compress_above_bytes: 16, ..Default::default() };
    Envelope::new(options).unwrap()
}

fn plain() -> Envelope {
    envelope(Codec::Postcard, Compression::None)
}

/// Every codec with every compression that is compiled in.
fn all() -> Vec<Envelope> {
    let codecs =
        [Codec::Postcard, Codec::MessagePack, Codec::Json].into_iter().filter(|codec| codec.is_built());
    codecs
        .flat_map(|codec| {
            [Compression::None, Compression::Lz4, Compression::Zstd]
                .into_iter()
                .filter(|compression| compression.is_built())
                .map(move |compression| envelope(codec, compression))
        })
        .collect()
}

/// Puts the right checksum on a changed envelope, as a writer with a defect or ill will would.
fn with_checksum(key: &EntryKey, mut sealed: Vec<u8>) -> Bytes {
    let body = sealed.len() - 8;
    let namespace = key.namespace().as_str();
    let mut covered = vec![u8::try_from(namespace.len()).unwrap()];
    covered.extend_from_slice(namespace.as_bytes());
    covered.extend_from_slice(&u32::try_from(key.as_bytes().len()).unwrap().to_le_bytes());
    covered.extend_from_slice(key.as_bytes());
    covered.extend_from_slice(&sealed[..body]);
    let checksum = xxh3_64(&covered).to_le_bytes();
    sealed[body..].copy_from_slice(&checksum);
    sealed.into()
}

/// Opens a sealed value of type `W` as a `V`, with the fingerprint of `V` and a right checksum.
fn open_as<V: DeserializeOwned + Serialize + std::fmt::Debug>(
    codec: Codec,
    payload: &[u8],
) -> Result<Option<V>, Refused> {
    let envelope = envelope(codec, Compression::None);
    let absent = envelope.seal::<V>(&key("k"), &Meta { tags: Tags::NONE, ..meta() }, None).unwrap();
    let mut sealed = absent[..absent.len() - 8].to_vec();
    sealed[5] = 0;
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    sealed[76..80].copy_from_slice(&length);
    sealed[80..84].copy_from_slice(&length);
    sealed.extend_from_slice(payload);
    sealed.extend_from_slice(&[0; 8]);
    envelope.open::<V>(&key("k"), &with_checksum(&key("k"), sealed)).map(|(_, value)| value)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    scores: BTreeMap<String, f64>,
}

fn user() -> User {
    let scores = [("a", 1.5), ("b", -0.25)].map(|(name, score)| (name.to_owned(), score)).into();
    User { id: 7, name: "Grace Grace Grace Grace Grace Grace Grace Grace".into(), scores }
}

#[test]
fn every_changed_byte_is_refused() {
    for envelope in all() {
        let sealed = envelope.seal(&key("k"), &meta(), Some(&user())).unwrap();
        for at in 0..sealed.len() {
            for by in [0xff, 0x01, 0x80, 0x20] {
                let mut changed = sealed.to_vec();
                changed[at] ^= by;
                let changed = Bytes::from(changed);
                let refused = envelope.open::<User>(&key("k"), &changed).unwrap_err();
                let expected: &[Refused] = match at {
                    0..4 => &[Refused::Magic],
                    4 => &[Refused::Version],
                    14..20 | 80..84 => &[Refused::Truncated, Refused::Length, Refused::Checksum],
                    _ => &[Refused::Checksum],
                };
                assert!(expected.contains(&refused), "byte {at} ^ {by}: {refused}");
                assert!(envelope.reseal(&key("k"), &changed, &meta()).is_err());
                let _ = Envelope::header(&changed);
            }
        }
    }
}

#[test]
fn every_truncation_and_every_tail_is_refused() {
    for envelope in all() {
        let sealed = envelope.seal(&key("k"), &meta(), Some(&user())).unwrap();
        for length in 0..sealed.len() {
            let refused = envelope.open::<User>(&key("k"), &sealed.slice(..length)).unwrap_err();
            assert_eq!(refused, Refused::Truncated, "first {length} bytes");
        }
        let mut longer = sealed.to_vec();
        longer.push(0);
        assert_eq!(envelope.open::<User>(&key("k"), &longer.into()).unwrap_err(), Refused::Length);
    }
}

#[test]
fn another_key_or_namespace_is_refused() {
    let sealed = plain().seal(&key("k"), &meta(), Some(&1u8)).unwrap();
    let elsewhere = EntryKey::new(&Namespace::new("other").unwrap(), "k").unwrap();
    for wrong in [key("K"), key(""), elsewhere] {
        assert_eq!(plain().open::<u8>(&wrong, &sealed), Err(Refused::Checksum));
        assert_eq!(plain().reseal(&wrong, &sealed, &meta()), Err(Refused::Checksum));
    }
}

#[test]
fn another_type_is_refused() {
    mod later {
        use super::*;
        #[derive(Debug, Serialize, Deserialize)]
        pub(super) struct User {
            pub(super) id: u64,
        }
    }
    let sealed = plain().seal(&key("k"), &meta(), Some(&7u32)).unwrap();
    assert_eq!(plain().open::<i32>(&key("k"), &sealed), Err(Refused::Type));
    assert_eq!(plain().open::<Option<u32>>(&key("k"), &sealed), Err(Refused::Type));
    let sealed = plain().seal(&key("k"), &meta(), None::<&User>).unwrap();
    assert_eq!(plain().open::<later::User>(&key("k"), &sealed).unwrap_err(), Refused::Type);
    assert_eq!(plain().open::<User>(&key("k"), &sealed), Ok((Meta { is_negative: true, ..meta() }, None)));
}

#[test]
fn a_schema_stands_for_the_type() {
    let with = |schema: &str| {
        Envelope::new(EnvelopeOptions { schema: Some(schema.into()), ..Default::default() }).unwrap()
    };
    let sealed = with("number/1").seal(&key("k"), &meta(), Some(&7u32)).unwrap();
    assert_eq!(with("number/1").open::<u64>(&key("k"), &sealed), Ok((meta(), Some(7))));
    assert_eq!(with("number/2").open::<u32>(&key("k"), &sealed), Err(Refused::Type));
    assert_eq!(plain().open::<u32>(&key("k"), &sealed), Err(Refused::Type));
}

#[test]
fn fields_out_of_range_are_refused_by_name() {
    let sealed = plain().seal(&key("k"), &meta(), Some(&user())).unwrap().to_vec();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = sealed.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        plain().open::<User>(&key("k"), &with_checksum(&key("k"), changed)).map(|_| ())
    };
    assert_eq!(with(5, &[0]), Ok(()));
    assert_eq!(with(5, &[2]), Err(Refused::Header));
    assert_eq!(with(5, &[1]), Err(Refused::Length), "an absence with a payload");
    assert_eq!(with(6, &[0]), Err(Refused::Codec));
    assert_eq!(with(6, &[9]), Err(Refused::Codec));
    assert_eq!(with(7, &[3]), Err(Refused::Compression));
    // With a key id, the checksum covers the envelope alone.
    assert_eq!(with(8, &1u32.to_le_bytes()), Err(Refused::Checksum));
    let mut keyed = sealed.clone();
    keyed[8] = 1;
    let end = keyed.len() - 8;
    let checksum = xxh3_64(&keyed[..end]).to_le_bytes();
    keyed[end..].copy_from_slice(&checksum);
    assert_eq!(plain().open::<User>(&key("k"), &keyed.into()), Err(Refused::KeyId));
    assert_eq!(with(12, &[2]), Err(Refused::Header));
    assert_eq!(with(13, &[1]), Err(Refused::Tags));
    assert_eq!(with(13, &[3]), Err(Refused::Tags));
    assert_eq!(with(13, &[255]), Err(Refused::Tags));
    assert_eq!(with(84, &7u16.to_le_bytes()), Err(Refused::Tags));
    assert_eq!(with(86, b"z"), Ok(()), "still in order");
    assert_eq!(with(86, &[0xff]), Err(Refused::Tags), "not UTF-8");
    assert_eq!(with(86, "ÿ".as_bytes()), Err(Refused::Tags), "no longer in order");
    assert_eq!(with(64, &[0; 8]), Err(Refused::Type));
    assert_eq!(with(76, &5u32.to_le_bytes()), Err(Refused::Length));
    assert_eq!(with(76, &u32::MAX.to_le_bytes()), Err(Refused::TooLarge));
    assert_eq!(with(80, &u32::MAX.to_le_bytes()), Err(Refused::Truncated));
}

#[test]
fn what_is_not_compiled_in_is_refused_by_name() {
    let sealed = plain().seal(&key("k"), &meta(), Some(&user())).unwrap().to_vec();
    for (codec, id) in [(Codec::MessagePack, 2), (Codec::Json, 3)] {
        let mut changed = sealed.clone();
        changed[6] = id;
        let refused = plain().open::<User>(&key("k"), &with_checksum(&key("k"), changed)).unwrap_err();
        assert_eq!(refused, if codec.is_built() { Refused::Decode } else { Refused::CodecNotBuilt });
        assert_eq!(Envelope::new(EnvelopeOptions { codec, ..Default::default() }).is_ok(), codec.is_built());
    }
    for (compression, id) in [(Compression::Lz4, 1), (Compression::Zstd, 2)] {
        let mut changed = sealed.clone();
        changed[7] = id;
        let refused = plain().open::<User>(&key("k"), &with_checksum(&key("k"), changed)).unwrap_err();
        let built = compression.is_built();
        assert_eq!(refused, if built { Refused::Decompress } else { Refused::CompressionNotBuilt });
        assert_eq!(Envelope::new(EnvelopeOptions { compression, ..Default::default() }).is_ok(), built);
    }
}

#[cfg(all(feature = "lz4", feature = "zstd"))]
#[test]
fn bombs_are_refused_before_they_go_off() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let envelope = envelope(Codec::Postcard, compression);
        let zeros = "\0".repeat(4000);
        let sealed = envelope.seal(&key("k"), &meta(), Some(&zeros)).unwrap();
        assert!(sealed.len() < 1000);
        let claims = |plain_bytes: u32| {
            let mut changed = sealed.to_vec();
            changed[76..80].copy_from_slice(&plain_bytes.to_le_bytes());
            envelope.open::<String>(&key("k"), &with_checksum(&key("k"), changed)).map(|_| ())
        };
        assert_eq!(claims(4002), Ok(()));
        assert_eq!(claims(u32::MAX), Err(Refused::TooLarge));
        assert_eq!(claims(64 << 20), Err(Refused::Bomb));
        assert_eq!(claims(4001), Err(Refused::Decompress));
        assert_eq!(claims(4003), Err(Refused::Decompress));
    }
}

/// What is sealed can be opened under the same options, whatever the ratio.
#[cfg(feature = "zstd")]
#[test]
fn what_compresses_too_well_is_stored_as_it_is() {
    let envelope = envelope(Codec::Postcard, Compression::Zstd);
    let zeros = "\0".repeat(4 << 20);
    let sealed = envelope.seal(&key("k"), &meta(), Some(&zeros)).unwrap();
    assert_eq!(Envelope::header(&sealed).unwrap().compression, Compression::None);
    assert!(envelope.open::<String>(&key("k"), &sealed).unwrap().1 == Some(zeros));
}

#[test]
fn values_over_the_limit_are_not_sealed() {
    for codec in
        [Codec::Postcard, Codec::MessagePack, Codec::Json].into_iter().filter(|codec| codec.is_built())
    {
        let options = EnvelopeOptions { codec, value_bytes_max: 100, ..Default::default() };
        let envelope = Envelope::new(options).unwrap();
        let error = envelope.seal(&key("k"), &meta(), Some(&"x".repeat(101))).unwrap_err();
        assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("value_bytes_max = 100"));
        assert!(envelope.seal(&key("k"), &meta(), Some(&"x".repeat(90))).is_ok());
    }
}

#[test]
fn trailing_bytes_are_refused() {
    assert_eq!(open_as::<u8>(Codec::Postcard, &[7]), Ok(Some(7)));
    assert_eq!(open_as::<u8>(Codec::Postcard, &[7, 7]), Err(Refused::Decode));
    assert_eq!(open_as::<u8>(Codec::Postcard, &[]), Err(Refused::Decode));
    if Codec::MessagePack.is_built() {
        assert_eq!(open_as::<u8>(Codec::MessagePack, &[7]), Ok(Some(7)));
        assert_eq!(open_as::<u8>(Codec::MessagePack, &[7, 7]), Err(Refused::Decode));
    }
    if Codec::Json.is_built() {
        assert_eq!(open_as::<u8>(Codec::Json, b"7 "), Ok(Some(7)));
        assert_eq!(open_as::<u8>(Codec::Json, b"7 7"), Err(Refused::Decode));
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Link(Option<Box<Link>>);

/// On a thread with the stack that tokio gives its workers.
#[test]
fn nesting_ends_before_the_stack_does() {
    let check = || {
        assert_eq!(open_as::<Link>(Codec::Postcard, &[1; 1 << 20]), Err(Refused::Decode));
        let links = NESTING_MAX / 2 - 1;
        let mut at_limit = vec![1; links];
        at_limit.push(0);
        assert!(open_as::<Link>(Codec::Postcard, &at_limit).is_ok());
        if Codec::Json.is_built() {
            assert_eq!(open_as::<Link>(Codec::Json, b"7"), Err(Refused::Decode));
            assert_eq!(
                open_as::<Vec<Link>>(Codec::Json, "[".repeat(10_000).as_bytes()),
                Err(Refused::Decode)
            );
        }
        if Codec::MessagePack.is_built() {
            assert_eq!(open_as::<Link>(Codec::MessagePack, &[7]), Err(Refused::Decode));
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(check).unwrap().join().unwrap();
}

#[test]
fn a_long_list_of_nothing_is_refused() {
    let claim = postcard::to_stdvec(&u64::MAX).unwrap();
    assert_eq!(open_as::<Vec<()>>(Codec::Postcard, &claim), Err(Refused::Decode));
    assert_eq!(open_as::<Vec<u64>>(Codec::Postcard, &claim), Err(Refused::Decode));
    assert_eq!(open_as::<String>(Codec::Postcard, &claim), Err(Refused::Decode));
    let few = postcard::to_stdvec(&1000u64).unwrap();
    assert_eq!(open_as::<Vec<()>>(Codec::Postcard, &few), Ok(Some(vec![(); 1000])));
}

#[cfg(feature = "json")]
#[test]
fn postcard_refuses_types_that_it_could_not_read_back() {
    let value = serde_json::json!({"a": [1, null]});
    let error = plain().seal(&key("k"), &meta(), Some(&value)).unwrap_err();
    assert!(error.kind() == ErrorKind::Codec && error.to_string().contains("msgpack or json"), "{error}");
    let json = envelope(Codec::Json, Compression::None);
    let sealed = json.seal(&key("k"), &meta(), Some(&value)).unwrap();
    assert_eq!(json.open(&key("k"), &sealed), Ok((meta(), Some(value))));
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let refused = |options| Envelope::new(options).unwrap_err();
    let default = EnvelopeOptions::default;
    for (error, setting) in [
        (refused(EnvelopeOptions { zstd_level: 99, ..default() }), "zstd_level = 99: -7 to 19"),
        (refused(EnvelopeOptions { value_bytes_max: 0, ..default() }), "value_bytes_max = 0"),
        (refused(EnvelopeOptions { ratio_max: 0, ..default() }), "ratio_max = 0"),
        (refused(EnvelopeOptions { schema: Some(String::new()), ..default() }), "schema = \"\""),
    ] {
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(setting), "{error}");
    }
    let unknown = serde_json::from_str::<EnvelopeOptions>(r#"{"codex": "json"}"#);
    assert!(unknown.unwrap_err().to_string().contains("codex"));
    let options: EnvelopeOptions =
        serde_json::from_str(r#"{"codec": "msgpack", "compression": "zstd"}"#).unwrap();
    assert_eq!((options.codec, options.compression), (Codec::MessagePack, Compression::Zstd));
}

#[test]
fn every_reason_has_its_own_name() {
    let names: std::collections::BTreeSet<_> = Refused::ALL.iter().map(|refused| refused.name()).collect();
    assert_eq!(names.len(), Refused::ALL.len());
}

fn metas() -> impl Strategy<Value = Meta> {
    let tags = proptest::collection::vec(".{1,20}", 0..5);
    let times = any::<[u64; 4]>();
    (any::<bool>(), any::<[u8; 12]>(), times, any::<u32>(), tags).prop_map(
        |(is_set, stamp, times, load_ms, tags)| {
            let [created_ms, fresh_until_ms, revalidate_until_ms, gone_at_ms] = times;
            Meta {
                kind: if is_set { EntryKind::Set } else { EntryKind::Load },
                stamp: Stamp::from_bytes(stamp),
                created_ms,
                fresh_until_ms,
                revalidate_until_ms,
                gone_at_ms,
                load_ms,
                is_negative: false,
                tags: Tags::new(tags).unwrap(),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened(
        meta in metas(), later in metas(), text in ".{0,40}",
        value in proptest::option::of(proptest::collection::vec((any::<i64>(), ".{0,30}"), 0..40)),
    ) {
        let key = key(&text);
        for envelope in all() {
            let sealed = envelope.seal(&key, &meta, value.as_ref()).unwrap();
            let expected = Meta { is_negative: value.is_none(), ..meta.clone() };
            prop_assert_eq!(envelope.open(&key, &sealed), Ok((expected.clone(), value.clone())));
            // Whoever opens it need not be configured like whoever sealed it.
            prop_assert_eq!(plain().open(&key, &sealed), Ok((expected.clone(), value.clone())));

            let header = Envelope::header(&sealed).unwrap();
            prop_assert_eq!(&header.meta, &expected);
            prop_assert_eq!(header.codec, envelope.options().codec);

            let resealed = envelope.reseal(&key, &sealed, &later).unwrap();
            let expected = Meta { is_negative: value.is_none(), ..later.clone() };
            prop_assert_eq!(envelope.open(&key, &resealed), Ok((expected, value.clone())));
        }
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), is_framed: bool) {
        let mut bytes = bytes;
        if is_framed && bytes.len() > 5 {
            bytes[..5].copy_from_slice(b"LRDR\x01");
        }
        let _ = Envelope::header(&bytes);
        prop_assert!(plain().open::<User>(&key("k"), &bytes.into()).is_err());
    }

    /// A payload that was never sealed, under a right checksum: any codec ends, with a value or without.
    #[test]
    fn any_payload_gets_an_answer(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        for codec in [Codec::Postcard, Codec::MessagePack, Codec::Json] {
            if codec.is_built() {
                let _ = open_as::<User>(codec, &payload);
                let _ = open_as::<Link>(codec, &payload);
                let _ = open_as::<Vec<Option<(String, Vec<()>)>>>(codec, &payload);
            }
        }
    }
}
