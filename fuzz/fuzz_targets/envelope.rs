//! Whatever bytes a tier gives back, the envelope opens as what was sealed or is refused; with a right
//! checksum over wrong fields and payloads, decoding still ends.

#![no_main]

use bytes::Bytes;
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Codec, Compression, Envelope, EnvelopeOptions, Keyring, Protection, SecretKey};
use larder::key::{EntryKey, Namespace};
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Tree {
    Leaf(i32),
    Text(String),
    Bytes(Bytes),
    Branch(Vec<Tree>),
    Named(BTreeMap<String, Option<Box<Tree>>>),
    Nothing(Vec<()>),
}

fn tree() -> Tree {
    let named = [("a", None), ("b", Some(Box::new(Tree::Text("text ".repeat(20)))))];
    Tree::Branch(vec![
        Tree::Leaf(-7),
        Tree::Bytes(Bytes::from_static(&[0; 40])),
        Tree::Named(named.map(|(name, tree)| (name.to_owned(), tree)).into()),
        Tree::Nothing(vec![(); 3]),
    ])
}

struct Sample {
    envelope: Envelope,
    sealed: Bytes,
}

static KEY: LazyLock<EntryKey> =
    LazyLock::new(|| EntryKey::new(&Namespace::default(), &("tree", 7u8)).expect("a sound key"));

static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
    let meta = Meta {
        kind: EntryKind::Load,
        stamp: Default::default(),
        created_ms: 1,
        fresh_until_ms: 2,
        revalidate_until_ms: 3,
        gone_at_ms: 4,
        load_ms: 5,
        is_negative: false,
        tags: Tags::new(["a", "b"]).expect("sound tags"),
    };
    let mut samples = Vec::new();
    for codec in [Codec::Postcard, Codec::MessagePack, Codec::Json] {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let options = EnvelopeOptions {
                codec,
                compression,
                compress_above_bytes: 1,
                value_bytes_max: 1 << 20,
                ..EnvelopeOptions::default()
            };
            let envelope = Envelope::new(options).expect("sound options");
            let sealed = envelope.seal(&KEY, &meta, Some(&tree())).expect("a sound value");
            samples.push(Sample { envelope, sealed });
        }
    }
    let key = SecretKey::from_bytes(&std::array::from_fn(|at| at as u8)).expect("a sound key");
    let keyring = Keyring::builder().encrypt_with(key).build().expect("a sound keyring");
    for protection in [Protection::encrypt(keyring.clone()), Protection::sign(keyring)] {
        let envelope = Envelope::new(EnvelopeOptions::default()).expect("sound options").protect(protection);
        let sealed = envelope.seal(&KEY, &meta, Some(&tree())).expect("a sound value");
        samples.push(Sample { envelope, sealed });
    }
    samples
});

/// Whether it says that it is protected: then nothing but what was sealed opens, whatever the checksum.
fn has_key_id(sealed: &[u8]) -> bool {
    sealed[8..12] != [0; 4]
}

fn put_right_checksum(sealed: &mut [u8]) {
    let body = sealed.len() - 8;
    if has_key_id(sealed) {
        let checksum = xxh3_64(&sealed[..body]).to_le_bytes();
        sealed[body..].copy_from_slice(&checksum);
        return;
    }
    let namespace = KEY.namespace().as_str();
    let mut covered = vec![namespace.len() as u8];
    covered.extend_from_slice(namespace.as_bytes());
    covered.extend_from_slice(&(KEY.as_bytes().len() as u32).to_le_bytes());
    covered.extend_from_slice(KEY.as_bytes());
    covered.extend_from_slice(&sealed[..body]);
    sealed[body..].copy_from_slice(&xxh3_64(&covered).to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((&how, rest)) = input.split_first() else { return };
    let Sample { envelope, sealed } = &SAMPLES[usize::from(how >> 2) % SAMPLES.len()];
    let open = |bytes: Vec<u8>| {
        let _ = Envelope::header(&bytes);
        envelope.open::<Tree>(&KEY, &bytes.into())
    };
    match how & 3 {
        // Arbitrary bytes.
        0 => {
            let _ = open(rest.to_vec());
        }
        // A sound one with some bytes changed: refused, unless nothing was.
        1 => {
            let mut bytes = sealed.to_vec();
            for change in rest.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
                bytes[at] ^= change[2];
            }
            let is_same = bytes == sealed[..];
            assert_eq!(open(bytes).is_ok(), is_same);
        }
        // The same with a right checksum: any answer.
        2 => {
            let mut bytes = sealed.to_vec();
            for change in rest.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
                bytes[at] ^= change[2];
            }
            // What is authenticated ends before the checksum, which is computed anew.
            let end = bytes.len() - 8;
            let is_same = bytes[..end] == sealed[..end];
            put_right_checksum(&mut bytes);
            let opened = open(bytes);
            assert!(!has_key_id(sealed) || opened.is_ok() == is_same);
        }
        // A payload of the fuzzer's with a right header.
        _ => {
            let tags = usize::from(u16::from_le_bytes([sealed[14], sealed[15]]));
            let mut bytes = sealed[..84 + tags].to_vec();
            bytes[80..84].copy_from_slice(&(rest.len() as u32).to_le_bytes());
            if bytes[7] == 0 {
                bytes[76..80].copy_from_slice(&(rest.len() as u32).to_le_bytes());
            }
            let extension = usize::from(bytes[16]);
            bytes.extend_from_slice(&sealed[84 + tags..84 + tags + extension]);
            bytes.extend_from_slice(rest);
            bytes.extend_from_slice(&[0; 8]);
            put_right_checksum(&mut bytes);
            let is_authentic = bytes == sealed[..];
            let opened = open(bytes);
            assert!(!has_key_id(sealed) || opened.is_ok() == is_authentic);
        }
    }
});
