//! How the database is protected, and where the keys are. Never the keys themselves: neither a flag, nor the
//! configuration, nor what `--check` prints, nor the data folder holds one.

use larder::envelope::{KeySource, OnTampering, Protection};
use larder::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Which settings a data folder was used with last, so that commands use the same.
const RECORD_FILE: &str = "encryption.json";

/// Encryption or signing of what is in the database. Off without a place to take keys from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EncryptionSettings {
    /// A file that `larder keys new` made, readable by its owner only.
    pub(crate) key_file: Option<PathBuf>,
    /// The name of an environment variable with the same text.
    pub(crate) key_variable: Option<String>,
    /// Default: encrypt.
    pub(crate) mode: Mode,
    /// Whether entries found under an old key are written back under the current one. Default: no.
    pub(crate) reseal_on_read: bool,
    /// What a reader gets who meets an entry that was tampered with. Default: a miss.
    pub(crate) on_tampering: OnTampering,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    #[default]
    Encrypt,
    Sign,
}

impl EncryptionSettings {
    pub(crate) fn is_on(&self) -> bool {
        self.key_file.is_some() || self.key_variable.is_some()
    }

    /// Reads the keys; `None` where it is off.
    ///
    /// # Errors
    /// Those of the place where they are.
    pub(crate) fn protection(&self) -> Result<Option<Protection>> {
        let source = match (&self.key_file, &self.key_variable) {
            (Some(path), None) => KeySource::File(path.clone()),
            (None, Some(name)) => KeySource::Env(name.clone()),
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(Error::new(larder::ErrorKind::Config, "keyring")
                    .message("key_file and key_variable are set; one of them is allowed"));
            }
        };
        let keyring = source.load()?;
        let protection = match self.mode {
            Mode::Encrypt => Protection::encrypt(keyring),
            Mode::Sign => Protection::sign(keyring),
        };
        Ok(Some(protection.on_tampering(self.on_tampering).reseal_on_read(self.reseal_on_read)))
    }

    /// What a data folder was used with.
    pub(crate) fn recorded(folder: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(folder.join(RECORD_FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers in a data folder what it is used with, which is on.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn record(&self, folder: &Path) -> io::Result<()> {
        // Commands run elsewhere.
        let key_file = self.key_file.as_deref().map(std::path::absolute).transpose()?;
        let text = serde_json::to_string_pretty(&EncryptionSettings { key_file, ..self.clone() })?;
        let draft = folder.join("encryption.json.new");
        std::fs::write(&draft, text)?;
        std::fs::rename(draft, folder.join(RECORD_FILE))
    }

    /// Refuses to go on in plain text where a data folder was protected.
    ///
    /// # Errors
    /// In words for a person, with the cure.
    pub(crate) fn check_folder(&self, folder: &Path) -> Result<(), String> {
        let record = folder.join(RECORD_FILE);
        match Self::recorded(folder) {
            Err(error) => Err(format!("{} can't be read: {error}", record.display())),
            Ok(Some(recorded)) if recorded.is_on() && !self.is_on() => Err(format!(
                "{} is encrypted or signed, and there is no key: set encryption.key_file or \
                 encryption.key_variable. To go on in plain text with an empty cache, remove {}",
                folder.display(),
                record.display()
            )),
            Ok(_) => Ok(()),
        }
    }
}
