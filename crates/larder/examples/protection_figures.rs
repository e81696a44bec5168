//! What encryption and signing cost, as ratios to a plain envelope in one run:
//! `cargo run --release --example protection_figures --features encryption`.

use bytes::Bytes;
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Envelope, EnvelopeOptions, Keyring, Protection, SecretKey};
use larder::key::{EntryKey, Namespace};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;

/// The median of some rounds of one operation of each kind, taken in turn, in nanoseconds.
fn medians(operations: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); operations.len()];
    for _ in 0..ROUNDS {
        for (operation, times) in operations.iter_mut().zip(&mut times) {
            let (start, mut count) = (Instant::now(), 0_u32);
            while start.elapsed() < Duration::from_millis(20) {
                (0..16).for_each(|_| operation());
                count += 16;
            }
            times.push(start.elapsed().as_nanos() as f64 / f64::from(count));
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[ROUNDS / 2]
        })
        .collect()
}

#[expect(clippy::print_stdout, reason = "its purpose")]
fn main() -> larder::Result<()> {
    let keyring = Keyring::builder().encrypt_with(SecretKey::generate()).build()?;
    let plain = Envelope::new(EnvelopeOptions::default())?;
    let envelopes = [
        plain.clone(),
        plain.clone().protect(Protection::encrypt(keyring.clone())),
        plain.protect(Protection::sign(keyring)),
    ];
    let key = EntryKey::new(&Namespace::default(), "user:17")?;
    let meta = Meta {
        kind: EntryKind::Set,
        stamp: Default::default(),
        created_ms: 0,
        fresh_until_ms: 1,
        revalidate_until_ms: 1,
        gone_at_ms: 1,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    println!("bytes   operation      plain ns   encrypted   signed (ratios to plain)");
    for bytes in [1 << 10, 64 << 10] {
        let value = Bytes::from(vec![7_u8; bytes]);
        let sealed: Vec<Bytes> = envelopes
            .iter()
            .map(|envelope| envelope.seal(&key, &meta, Some(&value)))
            .collect::<larder::Result<_>>()?;
        let mut seals: Vec<_> = envelopes
            .iter()
            .map(|envelope| || drop(black_box(envelope.seal(&key, &meta, Some(&value)))))
            .collect();
        let mut opens: Vec<_> = envelopes
            .iter()
            .zip(&sealed)
            .map(|(envelope, sealed)| || drop(black_box(envelope.open::<Bytes>(&key, sealed))))
            .collect();
        let mut all: Vec<&mut dyn FnMut()> = Vec::new();
        all.extend(seals.iter_mut().map(|one| one as &mut dyn FnMut()));
        all.extend(opens.iter_mut().map(|one| one as &mut dyn FnMut()));
        let times = medians(&mut all);
        for (name, times) in [("seal", &times[..3]), ("open", &times[3..])] {
            let [base, encrypted, signed] = [times[0], times[1], times[2]];
            println!("{bytes:<7} {name:<12} {base:>10.0} {:>11.2} {:>8.2}", encrypted / base, signed / base);
        }
    }
    Ok(())
}
