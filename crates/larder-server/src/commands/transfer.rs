//! What `migrate`, `export` and `import` share: places by name, all entries of a place, and entries into a
//! place. Envelopes are carried as they are; what stands in their headers (stamp, expiries, tags) goes with
//! them.

use super::{Failure, settings_of};
use crate::config::Settings;
use crate::store;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use larder::backend::{Backend, Cursor, Needs, Put, PutOutcome, Registry, Scan};
use larder::clock::{Clock, NEVER_MS};
use larder::entry::Meta;
use larder::envelope::Envelope;
use larder::key::{EntryKey, Namespace};
use std::path::Path;
use std::sync::Arc;

/// Most entries, and bytes of envelopes, that are in memory at a time.
pub(super) const BATCH_ENTRIES: usize = 256;
pub(super) const BATCH_BYTES: u64 = 16 << 20;
/// How often an entry is offered to a place where others write at the same time.
const TRIES: usize = 4;

/// An entry on its way.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    pub(super) key: EntryKey,
    pub(super) meta: Meta,
    pub(super) sealed: Bytes,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    pub(super) stored: u64,
    /// The place had the same entry, or a later one.
    pub(super) kept: u64,
}

/// What opens and seals plain values, with the keys of the settings.
pub(super) fn envelope(settings: &Settings) -> Result<Envelope, Failure> {
    let envelope = Envelope::new(store::envelope(settings))?;
    Ok(match settings.encryption.protection()? {
        Some(protection) => envelope.protect(protection),
        None => envelope,
    })
}

/// A configured tier by its name.
pub(super) async fn open_tier(settings: &Settings, name: &str) -> Result<Arc<dyn Backend>, Failure> {
    let tiers = settings.tiers.as_deref().unwrap_or_default();
    let Some(tier) = tiers.iter().find(|tier| tier.name == name) else {
        let known: Vec<&str> = tiers.iter().map(|tier| &*tier.name).collect();
        return Err(Failure::new(match known.is_empty() {
            true => {
                format!("there is no tier {name:?}: the settings list none; --config names a file that does")
            }
            false => format!("there is no tier {name:?}; there are: {}", known.join(", ")),
        }));
    };
    let opening = tier.clone();
    match tokio::task::spawn_blocking(move || opening.open()).await? {
        Ok((backend, _)) => Ok(backend),
        Err(error) => Err(tier.refusal_of(&error).into()),
    }
}

/// Opens `NAME:PATH`, as in `jsonl:DIR` or `sqlite:FILE`, or `tier:NAME` of the configuration.
pub(super) async fn open(
    place: &str,
    is_source: bool,
    config: Option<&Path>,
) -> Result<Arc<dyn Backend>, Failure> {
    if let Some(name) = place.strip_prefix("tier:") {
        return open_tier(&settings_of(config, None, None)?, name).await;
    }
    let registry = Registry::with_defaults();
    let Some((name, path)) = place.split_once(':') else {
        let known: Vec<&str> = registry.names().collect();
        return Err(Failure::new(format!(
            "{place:?} is no place; NAME:PATH is expected, as in sqlite:FILE, or tier:NAME; known names are: {}",
            known.join(", ")
        )));
    };
    if is_source && !Path::new(path).exists() {
        return Err(Failure::new(format!("there is no {path}")));
    }
    let (name, settings) = (name.to_owned(), serde_json::json!({ "path": path }));
    let needs = Needs { durable: true, scan: true };
    let opened = tokio::task::spawn_blocking(move || registry.open(&name, settings, needs, &Clock::system()))
        .await??;
    if is_source && let Some(note) = opened.notes().first() {
        // What was set aside or mended is not what was asked for.
        return Err(Failure::new(format!("{place}: {note}")));
    }
    Ok(opened)
}

/// Walks over all valid entries, page by page.
pub(super) struct Walk<'b> {
    backend: &'b dyn Backend,
    namespaces: Vec<Namespace>,
    after: Option<Cursor>,
    /// Keys of the last page that were not read yet, with the sizes of their envelopes.
    listed: Vec<(EntryKey, u64)>,
}

impl<'b> Walk<'b> {
    /// Over one namespace, or over all.
    pub(super) async fn over(backend: &'b dyn Backend, only: Option<&Namespace>) -> Result<Self, Failure> {
        let mut namespaces = match only {
            Some(namespace) => vec![namespace.clone()],
            None => backend.namespaces().await?,
        };
        namespaces.sort_by(|one, two| two.cmp(one));
        Ok(Walk { backend, namespaces, after: None, listed: Vec::new() })
    }

    /// The next entries, and how many could not be understood; `None` at the end. An entry that goes
    /// meanwhile is passed over.
    pub(super) async fn next(&mut self) -> Result<Option<(Vec<Carried>, u64)>, Failure> {
        while self.listed.is_empty() {
            let Some(namespace) = self.namespaces.last().cloned() else { return Ok(None) };
            let after = self.after.take();
            let scan = Scan { namespace: &namespace, pattern: None, after, limit: BATCH_ENTRIES };
            let page = self.backend.scan(scan).await?;
            self.listed = page.entries.into_iter().map(|listed| (listed.key, listed.sealed_bytes)).collect();
            self.after = page.next;
            if self.after.is_none() {
                self.namespaces.pop();
            }
        }
        let mut bytes = 0;
        let mut keys = Vec::new();
        while let Some((key, size)) = self.listed.pop() {
            keys.push(key);
            bytes += size;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        let mut found = Vec::with_capacity(keys.len());
        let mut unreadable = 0;
        for (read, key) in self.backend.get_many(&keys).await.into_iter().zip(keys) {
            let Ok(sealed) = read?.found else { continue };
            match Envelope::header(&sealed) {
                Ok(header) => found.push(Carried { key, meta: header.meta, sealed }),
                Err(_) => unreadable += 1,
            }
        }
        Ok(Some((found, unreadable)))
    }
}

/// Puts entries into a place, unless it has them or later ones: to do it again changes nothing.
pub(super) async fn deliver(to: &dyn Backend, mut entries: Vec<Carried>) -> Result<Delivered, Failure> {
    let mut delivered = Delivered::default();
    for _ in 0..TRIES {
        let keys: Vec<EntryKey> = entries.iter().map(|entry| entry.key.clone()).collect();
        let mut offered = Vec::new();
        let mut puts = Vec::new();
        // The ticket is of the moment when the place was looked at: a removal since then refuses the put.
        for (read, entry) in to.get_many(&keys).await.into_iter().zip(entries) {
            let read = read?;
            let there = read.found.ok().and_then(|sealed| Envelope::header(&sealed).ok());
            if there.is_some_and(|header| header.meta.stamp >= entry.meta.stamp) {
                delivered.kept += 1;
                continue;
            }
            let Carried { key, meta, sealed } = entry.clone();
            puts.push(Put { key, meta, sealed, ticket: read.ticket });
            offered.push(entry);
        }
        let mut refused = Vec::new();
        for (outcome, entry) in to.put_many(puts).await.into_iter().zip(offered) {
            match outcome? {
                PutOutcome::Stored => delivered.stored += 1,
                PutOutcome::Older(_) => delivered.kept += 1,
                PutOutcome::Fenced => refused.push(entry),
            }
        }
        if refused.is_empty() {
            return Ok(delivered);
        }
        entries = refused;
    }
    // Entries of one batch may refuse each other; one by one they don't.
    for Carried { key, meta, sealed } in entries {
        let ticket = to.ticket(&key).await?;
        match to.put(Put { key: key.clone(), meta, sealed, ticket }).await? {
            PutOutcome::Stored => delivered.stored += 1,
            PutOutcome::Older(_) => delivered.kept += 1,
            PutOutcome::Fenced => {
                return Err(Failure::new(format!(
                    "{key:?} can't be stored: others remove entries there all the time; run it again"
                )));
            }
        }
    }
    Ok(delivered)
}

/// A bar over so many entries; silent when the error output is no terminal.
pub(super) fn progress(what: &'static str, entries: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix:>9} [{bar:32}] {human_pos}/{human_len} entries, {eta} left")
            .expect("the template is valid")
            .progress_chars("=> ");
    ProgressBar::new(entries).with_style(style).with_prefix(what)
}

/// A time for JSON: `None` is never.
pub(super) fn time(ms: u64) -> Option<u64> {
    (ms != NEVER_MS).then_some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid() {
        progress("moving", 1);
    }
}
