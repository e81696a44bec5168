//! Prevents: a value or a key in a file, a log line, a metric, an explanation, an error or a `Debug`. Canaries are
//! searched for in all of them; that the search finds them is shown by a cache without protection.

use super::{ring, secret, with_right_checksum};
use larder::backend::{Backend, Put, SqliteBackend, SqliteOptions};
use larder::entry::{EntryKind, Meta};
use larder::envelope::{Envelope, KeySource, Keyring, OnTampering, Protection, SecretKey};
use larder::key::{EntryKey, Namespace};
use larder::{Cache, TierOptions};
use std::fmt::{Debug, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const VALUE: &str = "canary-value-8f3a";
const NAME: &str = "canary-name-77b1";

/// Writes down every event with all its fields.
struct Log(Arc<Mutex<String>>);

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = self.0.lock().unwrap();
        event.record(&mut |field: &tracing::field::Field, value: &dyn Debug| {
            let _ = write!(text, "{field}={value:?} ");
        });
        text.push('\n');
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// All bytes of the database, its log and the rest of the folder.
fn files(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        bytes.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    bytes
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn keyring() -> Keyring {
    Keyring::builder().encrypt_with(secret(1)).hide_names_with(secret(77)).build().unwrap()
}

/// Uses a cache in every way, and returns all that it showed.
async fn use_it(folder: &Path, protection: Option<Protection>) -> String {
    let log = Arc::new(Mutex::new(String::new()));
    // One thread: this subscriber sees what the cache's tasks and this test say.
    let guard = tracing::subscriber::set_default(Log(Arc::clone(&log)));
    let mut shown = String::new();
    let tier = Arc::new(SqliteBackend::open(SqliteOptions::new(folder.join("c.sqlite"))).await.unwrap());
    let mut options = TierOptions::default();
    options.hide_keys = protection.is_some();
    let build = || -> Cache<String, String> {
        let builder = Cache::builder().tier_with(tier.clone(), options.clone());
        match protection.clone() {
            Some(protection) => builder.protection(protection).build().unwrap(),
            None => builder.build().unwrap(),
        }
    };
    let cache = build();
    for at in 0..20 {
        cache.set(format!("{NAME} {at}"), VALUE.repeat(20)).await.unwrap();
    }
    let name = format!("{NAME} 1");
    assert!(build().get(name.as_str()).await.is_some());
    let namespace = Namespace::default();
    let page = tier
        .scan(larder::backend::Scan { namespace: &namespace, pattern: None, after: None, limit: 5 })
        .await
        .unwrap();
    for listed in &page.entries {
        let _ = writeln!(shown, "{listed:?}");
        let read = tier.get(&listed.key).await.unwrap();
        let mut bytes = read.found.unwrap().to_vec();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        let sealed = with_right_checksum(bytes);
        let meta = Meta { kind: EntryKind::Load, ..Envelope::header(&sealed).unwrap().meta };
        let ticket = read.ticket;
        let _ = writeln!(shown, "{:?}", Envelope::header(&sealed));
        tier.put(Put { key: listed.key.clone(), meta, sealed, ticket }).await.unwrap();
    }
    let reader = build();
    for at in 0..20 {
        let key = format!("{NAME} {at}");
        let _ = writeln!(
            shown,
            "{}\n{:?}",
            reader.explain(key.as_str()).await,
            reader.explain(key.as_str()).await
        );
        let load = |_| async { Err::<String, _>(std::io::Error::other("no source")) };
        if let Err(error) = reader.get_or_load(key.as_str(), load).await {
            let _ = writeln!(shown, "{error} {error:?}");
        }
    }
    let _ = writeln!(shown, "{}", serde_json::to_string(&reader.stats()).unwrap());
    let _ = writeln!(shown, "{:?} {:?}", reader, reader.health().await);
    let _ = writeln!(
        shown,
        "{:?} {:?}",
        tier,
        tier.quarantined().await.unwrap().iter().map(|q| &q.reason).collect::<Vec<_>>()
    );
    let _ = writeln!(shown, "{protection:?} {options:?}");
    drop(guard);
    shown.push_str(&log.lock().unwrap());
    shown
}

#[tokio::test]
async fn no_canary_in_files_logs_metrics_explanations_errors_or_debug() {
    let folder = tempfile::tempdir().unwrap();
    let protection = Protection::encrypt(keyring()).on_tampering(OnTampering::Error);
    let shown = use_it(folder.path(), Some(protection)).await;
    assert!(shown.contains("tampered") && shown.contains("encrypted with key"), "{shown}");
    let files = files(folder.path());
    assert!(files.len() > 20_000);
    for canary in [VALUE, NAME] {
        assert!(!holds(&files, canary.as_bytes()), "{canary} is in a file");
        assert!(!shown.contains(canary), "{canary} in {shown}");
    }
    for key in [secret(1), secret(77)] {
        let hex = key.to_hex();
        let bytes: Vec<u8> =
            (0..64).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        assert!(!holds(&files, &bytes) && !holds(&files, hex.as_bytes()), "a key is in a file");
        assert!(!shown.to_lowercase().contains(&hex[..16]), "{shown}");
    }
}

/// The negative control.
#[tokio::test]
async fn without_protection_the_search_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    use_it(folder.path(), None).await;
    let files = files(folder.path());
    assert!(holds(&files, VALUE.as_bytes()) && holds(&files, NAME.as_bytes()));
}

#[test]
fn keys_have_no_debug() {
    let key = SecretKey::from_bytes(&[b"canary"[0]; 32].map({
        let mut at = 0u8;
        move |byte| {
            at += 1;
            byte ^ at
        }
    }))
    .unwrap();
    let hex = key.to_hex();
    let keyring = ring(&[5]);
    let builder = Keyring::builder().encrypt_with(key.clone()).decrypt_with(secret(3));
    let source = KeySource::Callback(Arc::new(|| Ok(SecretKey::generate().to_hex())));
    let shown = format!("{key:?} {keyring:?} {builder:?} {source:?} {:?}", Protection::sign(keyring.clone()));
    assert!(!shown.contains(&hex[..8]), "{shown}");
    assert!(shown.contains(&key.id().to_string()), "{shown}");
    // A panic of the service's own, with all of it at hand.
    let panic = std::panic::catch_unwind(|| panic!("{key:?}")).unwrap_err();
    assert!(!panic.downcast_ref::<String>().unwrap().contains(&hex[..8]));
    let key = EntryKey::new(&Namespace::default(), "k").unwrap();
    let envelope = Envelope::new(Default::default()).unwrap().protect(Protection::encrypt(keyring));
    let sealed = envelope.seal(&key, &super::meta(), Some(&VALUE.to_owned())).unwrap();
    assert!(!format!("{envelope:?} {:?}", envelope.verify(&key, &sealed)).contains("canary"));
}
