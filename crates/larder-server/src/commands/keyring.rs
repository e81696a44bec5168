//! `larder keys new|status|rotate|quarantine`: the keys that protect a data folder.

use super::{At, Failure, Outcome};
use clap::{Args, Subcommand};
use larder::Cache;
use larder::backend::Quarantined;
use larder::envelope::{KeySource, Keyring, KeyringBuilder, SecretKey, Zeroizing};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Make a key file for its owner only; with --add, a new key at the top of an old file
    New(New),
    /// Count the entries that each key protects
    Status(Status),
    /// Seal all entries under the current key; begun again, it goes on
    Rotate(Rotate),
    /// List the entries that failed authentication; with --clear, forget them, so that health is well again
    Quarantine(Quarantine),
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// The file, which must not exist
    file: PathBuf,
    /// Put the new key before those of the file, which then only decrypt
    #[arg(long)]
    add: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub(crate) struct Quarantine {
    /// Forget them, once they were looked at
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    at: At,
}

impl Action {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        match self {
            Action::New(new) => new.run(),
            Action::Status(status) => status.run().await,
            Action::Rotate(rotate) => rotate.run().await,
            Action::Quarantine(quarantine) => quarantine.run().await,
        }
    }
}

impl New {
    fn run(self) -> Result<Outcome, Failure> {
        let key = SecretKey::generate();
        let file = self.file.display();
        if !self.add {
            let text = Zeroizing::new(format!("# Key {}\n{}\n", key.id(), *key.to_hex()));
            write_private(&self.file, &text).map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Failure::new(format!("{file} exists; --add puts a new key into it"))
                }
                _ => Failure::new(format!("{file} can't be made: {error}")),
            })?;
            eprintln!("made {file} with the key {}; without it, what it encrypts is lost", key.id());
            return Ok(Outcome::Done);
        }
        // Read as the server reads it: a file that it would refuse is not added to.
        let before = KeySource::File(self.file.clone()).load()?;
        let old = Zeroizing::new(std::fs::read_to_string(&self.file)?);
        let text = Zeroizing::new(format!("# Key {}\n{}\n{}", key.id(), *key.to_hex(), *old));
        KeyringBuilder::parse(&text).and_then(KeyringBuilder::build)?;
        let draft = self.file.with_extension("new");
        write_private(&draft, &text)
            .map_err(|error| Failure::new(format!("{} can't be made: {error}", draft.display())))?;
        std::fs::rename(&draft, &self.file)?;
        eprintln!(
            "added the key {} to {file}; {} only decrypts from the next start of the server on.\n\
             With several servers, give all of them the new key below the old one first, then above it.",
            key.id(),
            before.current()
        );
        Ok(Outcome::Done)
    }
}

/// Makes a file that did not exist, with its mode from the start, and syncs it.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

impl Status {
    async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let (cache, keyring) = backing.protected()?;
        let quarantined = backing.quarantined().await?;
        let counted = print_usage(cache, &keyring).await?;
        print_quarantined(&quarantined)?;
        backing.close().await?;
        Ok(counted)
    }
}

impl Rotate {
    async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let (cache, keyring) = backing.protected()?;
        let mut rotation = cache.rotate_keys().await?;
        let shows = std::io::stderr().is_terminal();
        while let Some(done) = rotation.step().await? {
            if shows {
                eprint!("\r{} entries seen, {} sealed anew ", done.seen, done.resealed);
            }
        }
        let done = rotation.progress();
        if shows {
            eprintln!();
        }
        println(&format!(
            "{} entries seen, {} sealed anew under {}",
            done.seen,
            done.resealed,
            keyring.current()
        ))?;
        for (count, what) in [
            (done.unknown, "are under a key that is not in the key file, and stay"),
            (done.tampered, "were tampered with, and are quarantined"),
            (done.refused, "are not protected, or damaged: a reader drops them"),
        ] {
            if count > 0 {
                eprintln!("warning: {count} entries {what}");
            }
        }
        backing.close().await?;
        Ok(Outcome::Done)
    }
}

impl Quarantine {
    async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        print_quarantined(&backing.quarantined().await?)?;
        if self.clear {
            backing.forget_quarantined().await?;
        }
        backing.close().await?;
        Ok(Outcome::Done)
    }
}

fn print_quarantined(entries: &[Quarantined]) -> Result<(), Failure> {
    for entry in entries {
        println(&format!(
            "quarantined at {} ms: {}, {} bytes, in {}",
            entry.wall_ms,
            entry.reason,
            entry.sealed_bytes,
            entry.key.namespace()
        ))?;
    }
    Ok(())
}

async fn print_usage<K: larder::Key, V: larder::Value>(
    cache: &Cache<K, V>,
    keyring: &Keyring,
) -> Result<Outcome, Failure> {
    let known = keyring.ids();
    for tier in cache.key_usage().await? {
        let count_of = |id| tier.entries.iter().filter(move |(_, found, _)| *found == Some(id));
        for id in &known {
            let entries: u64 = count_of(*id).map(|(_, _, count)| count).sum();
            let role = match (*id == keyring.current(), entries) {
                (true, _) => "current",
                (false, 0) => "old, no longer needed",
                (false, _) => "old",
            };
            println(&format!("{id}  {entries:>10} entries  {role}"))?;
        }
        for (sealing, id, entries) in &tier.entries {
            match id {
                Some(id) if known.contains(id) => {}
                Some(id) => {
                    println(&format!("{id}  {entries:>10} entries  UNKNOWN KEY, {}", sealing.name()))?;
                }
                None => println(&format!("{:8}  {entries:>10} entries  NOT PROTECTED", "-"))?,
            }
        }
        if tier.unreadable > 0 {
            println(&format!("{:8}  {:>10} entries  unreadable", "-", tier.unreadable))?;
        }
    }
    Ok(Outcome::Done)
}

fn println(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
