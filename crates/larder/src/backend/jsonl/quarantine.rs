//! What can't be served and should not vanish: damaged lines and entries that fail authentication, in one
//! bounded file; and the notes for the operator. Never fails a caller.

use super::log::Damage;
use crate::key::EntryKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file grows no further than this, in bytes. An operator who looked at it deletes it.
const BYTES_MAX: u64 = 4 << 20;
/// Most notes remembered.
const NOTES_MAX: usize = 16;

pub(super) struct Quarantine {
    path: PathBuf,
    notes: Mutex<Vec<String>>,
}

impl Quarantine {
    pub(super) fn new(folder: &Path) -> Self {
        Quarantine { path: folder.join("quarantine.jsonl"), notes: Mutex::default() }
    }

    /// Keeps a damaged line, its number counted from 1.
    pub(super) fn damaged(&self, shard: &Path, damage: &Damage) {
        let shard = name(shard);
        tracing::warn!(shard, line = damage.line, "a damaged line was quarantined");
        self.note_text(format!("{shard}: line {} was damaged and quarantined", damage.line));
        self.append(&serde_json::json!({
            "why": "damaged", "shard": shard, "line": damage.line, "base64": STANDARD.encode(&damage.bytes),
        }));
    }

    /// Keeps an entry that failed authentication.
    pub(super) fn refused(&self, key: &EntryKey, sealed: &[u8], why: &'static str) {
        tracing::warn!(why, "an entry was quarantined");
        self.note_text(format!("an entry was quarantined: {why}"));
        self.append(&serde_json::json!({
            "why": why,
            "ns": key.namespace().as_str(),
            "key64": STANDARD.encode(key.as_bytes()),
            "sealed": STANDARD.encode(sealed),
        }));
    }

    pub(super) fn note(&self, shard: &Path, what: &str) {
        let shard = name(shard);
        tracing::warn!(shard, "{what}");
        self.note_text(format!("{shard}: {what}"));
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_text(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() == NOTES_MAX {
            notes.remove(0);
        }
        notes.push(text);
    }

    fn append(&self, line: &serde_json::Value) {
        let line = format!("{line}\n");
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        // Best effort: what could not be kept is named in the notes all the same.
        if let Ok(mut file) = open()
            && file.metadata().is_ok_and(|found| found.len() + line.len() as u64 <= BYTES_MAX)
        {
            drop(file.write_all(line.as_bytes()));
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
