//! `disk`: backends that keep files, their values plain and encrypted, beside raw files, `cacache`, `redb`,
//! `fjall` and `foyer`'s disk engine, at three sizes of values; and what encryption costs by itself.

use crate::kill;
use crate::measure::{Subject, single};
use crate::report::Report;
use crate::stores::cases::{Filled, Scale, put, value};
use crate::stores::larder::{self, Values::Encrypted, Values::Plain};
use crate::stores::peers::{Cacache, Files, Fjall, Foyer, Redb};
use crate::stores::{Durability, Maker, Result};
use ::larder::clock::NEVER_MS;
use ::larder::entry::{EntryKind, Meta, Tags};
use ::larder::envelope::{Envelope, EnvelopeOptions, Keyring, Protection, SecretKey};
use ::larder::key::{EntryKey, Namespace};
use ::larder::stamp::Stamp;
use Durability::{Synced, Unsynced};
use bytes::Bytes;
use std::hint::black_box;
use std::path::Path;

/// Raw files first: the ratios are to them.
pub fn makers() -> Vec<Maker> {
    vec![
        Maker::new("raw files synced", Synced, |folder| Files::open(folder, Synced)),
        Maker::new("larder-files synced", Synced, |folder| larder::files(folder, Synced, Plain)),
        Maker::new("larder-jsonl synced", Synced, |folder| larder::jsonl(folder, Synced, Plain)),
        Maker::new("larder-sqlite synced", Synced, |folder| larder::sqlite(folder, Synced, Plain)),
        Maker::new("redb synced", Synced, |folder| Redb::open(folder, Synced)),
        Maker::new("fjall synced", Synced, |folder| Fjall::open(folder, Synced)),
        Maker::new("raw files", Unsynced, |folder| Files::open(folder, Unsynced)),
        Maker::new("larder-files", Unsynced, |folder| larder::files(folder, Unsynced, Plain)),
        Maker::new("larder-files encrypted", Unsynced, |folder| larder::files(folder, Unsynced, Encrypted)),
        Maker::new("larder-jsonl", Unsynced, |folder| larder::jsonl(folder, Unsynced, Plain)),
        Maker::new("larder-jsonl encrypted", Unsynced, |folder| larder::jsonl(folder, Unsynced, Encrypted)),
        Maker::new("larder-sqlite", Unsynced, |folder| larder::sqlite(folder, Unsynced, Plain)),
        Maker::new("larder-sqlite encrypted", Unsynced, |folder| larder::sqlite(folder, Unsynced, Encrypted)),
        Maker::new("cacache", Unsynced, Cacache::open),
        Maker::new("redb", Unsynced, |folder| Redb::open(folder, Unsynced)),
        Maker::new("fjall", Unsynced, |folder| Fjall::open(folder, Unsynced)),
        Maker::new("foyer", Unsynced, Foyer::open),
    ]
}

pub fn run(is_quick: bool, folder: &Path, report: &mut Report) -> Result<()> {
    let makers = makers();
    let unsynced: Vec<Maker> = makers.iter().filter(|maker| maker.durability == Unsynced).copied().collect();
    for scale in Scale::all(is_quick) {
        // A file per entry is slow to make.
        let scale = Scale { entries: scale.entries.min(2000), ..scale };
        let size = scale.name();
        let folder = tempfile::tempdir_in(folder)?;
        let below = |name: &str| folder.path().join(name);
        Filled::new(&unsynced, &below("filled"), scale)?.get(&format!("disk get {size}"), scale, report)?;
        put(&format!("disk put {size}"), &makers, Unsynced, &below("put"), scale, report)?;
        put(&format!("disk put synced {size}"), &makers, Synced, &below("synced"), scale, report)?;
    }
    for bytes in [1 << 10, 64 << 10] {
        encryption(bytes, is_quick, report)?;
    }
    kill::run("disk", &makers, is_quick, folder, report)
}

/// Sealing and opening a value in memory: plain, encrypted, signed.
fn encryption(bytes: usize, is_quick: bool, report: &mut Report) -> Result<()> {
    let times = if is_quick { 100 } else { 2000 };
    let keyring = Keyring::builder().encrypt_with(SecretKey::generate()).build()?;
    let plain = Envelope::new(EnvelopeOptions::default())?;
    let envelopes = [
        ("plain", plain.clone()),
        ("encrypted", plain.clone().protect(Protection::encrypt(keyring.clone()))),
        ("signed", plain.protect(Protection::sign(keyring))),
    ];
    let key = EntryKey::new(&Namespace::default(), "user-00000017-profile")?;
    let meta = Meta {
        kind: EntryKind::Set,
        stamp: Stamp::MIN,
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    let value = Bytes::from(value(bytes, 1));
    let (mut seals, mut opens) = (Vec::new(), Vec::new());
    for (name, envelope) in &envelopes {
        let sealed = envelope.seal(&key, &meta, Some(&value))?;
        let (key, meta, value) = (&key, &meta, &value);
        let seal = Box::new(move || {
            (0..times).for_each(|_| drop(black_box(envelope.seal(key, meta, Some(value)))));
            times
        });
        let open = Box::new(move || {
            (0..times).for_each(|_| drop(black_box(envelope.open::<Bytes>(key, &sealed))));
            times
        });
        seals.push(Subject { name, batch: seal });
        opens.push(Subject { name, batch: open });
    }
    let size = format!("{} KiB", bytes >> 10);
    report.group(&single(&format!("disk encryption seal {size}"), seals), "median_ns");
    report.group(&single(&format!("disk encryption open {size}"), opens), "median_ns");
    Ok(())
}
