//! `larder import`.

use super::lines::Line;
use super::transfer::{self, BATCH_BYTES, BATCH_ENTRIES, Carried, Delivered};
use super::{Failure, Outcome};
use crate::backing::Backing;
use crate::config::Secret;
use crate::data::{DataFolder, Occupied, database_in};
use clap::Args;
use larder::backend::Backend;
use larder::clock::{Clock, NEVER_MS};
use larder::envelope::Envelope;
use larder::key::Namespace;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::Duration;

/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// What `larder export` wrote; - is the input
    file: PathBuf,
    /// Data folder; a server that has it is told of each entry, as long as the lines are plain
    #[arg(long, value_name = "DIR", default_value = "larder-data")]
    data: PathBuf,
    /// Another place, as NAME:PATH: jsonl:DIR, sqlite:FILE
    #[arg(long, value_name = "PLACE", conflicts_with = "data")]
    to: Option<String>,
    /// Keys of encrypted entries [default: where the data folder's server had them]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// What became of the lines.
#[derive(Default)]
struct Counts {
    delivered: Delivered,
    expired: u64,
}

impl Import {
    /// Entries that expired since are passed over. Where the same key has a later stamp, that one stays.
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let input: Box<dyn Read> =
            if self.file.as_os_str() == "-" {
                Box::new(std::io::stdin().lock())
            } else {
                Box::new(File::open(&self.file).map_err(|error| {
                    Failure::new(format!("{} can't be read: {error}", self.file.display()))
                })?)
            };
        let mut lines = Lines { input: BufReader::new(input), number: 0 };
        let key_file = self.key_file.as_deref();
        let counts = match &self.to {
            Some(place) => {
                let envelope = transfer::envelope(None, key_file)?;
                into_backend(&mut lines, &*transfer::open(place, false).await?, &envelope).await?
            }
            None => match DataFolder::for_command(&self.data) {
                Ok(folder) => {
                    let envelope = transfer::envelope(Some(&self.data), key_file)?;
                    let place = format!("sqlite:{}", database_in(&self.data).display());
                    let counts =
                        into_backend(&mut lines, &*transfer::open(&place, false).await?, &envelope).await?;
                    drop(folder);
                    counts
                }
                Err(Occupied::Server(Some(_))) => self.tell_server(&mut lines).await?,
                Err(Occupied::Server(None)) => {
                    return Err(Failure::new(format!("{} is in use", self.data.display())));
                }
                Err(Occupied::Failed(error)) => {
                    return Err(Failure::new(format!("{} can't be opened: {error}", self.data.display())));
                }
            },
        };
        let Counts { delivered: Delivered { stored, kept }, expired } = counts;
        eprintln!("{stored} entries imported, {kept} were there already, {expired} have expired");
        Ok(Outcome::Done)
    }

    async fn tell_server(&self, lines: &mut Lines) -> Result<Counts, Failure> {
        let mut counts = Counts::default();
        let mut of_namespace: HashMap<Namespace, Backing> = HashMap::new();
        while let Some((number, line)) = lines.next()? {
            let failed = |why: String| Failure::new(format!("line {number}: {why}"));
            let (namespace, key, body, content_type, (fresh_until, gone_at), tags) =
                line.parts().map_err(failed)?;
            let now_ms = Clock::system().wall_ms();
            if gone_at <= now_ms || fresh_until <= now_ms {
                counts.expired += 1;
                continue;
            }
            let ttl = match fresh_until {
                NEVER_MS => Duration::MAX,
                until => Duration::from_millis(until - now_ms),
            };
            if !of_namespace.contains_key(&namespace) {
                let token = std::env::var("LARDER_TOKEN").ok().map(Secret::new);
                let backing = Backing::folder(&self.data, None, token, namespace.clone()).await?;
                of_namespace.insert(namespace.clone(), backing);
            }
            let backing = &of_namespace[&namespace];
            backing
                .set(&key, body, content_type.as_deref(), Some(ttl), tags)
                .await
                .map_err(|failure| failed(failure.to_string()))?;
            counts.delivered.stored += 1;
        }
        Ok(counts)
    }
}

async fn into_backend(lines: &mut Lines, to: &dyn Backend, envelope: &Envelope) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let (mut batch, mut bytes): (Vec<Carried>, u64) = (Vec::new(), 0);
    let mut is_end = false;
    while !is_end {
        match lines.next()? {
            None => is_end = true,
            Some((number, line)) => {
                let entry =
                    line.entry(envelope).map_err(|why| Failure::new(format!("line {number}: {why}")))?;
                if entry.meta.is_gone(Clock::system().wall_ms()) {
                    counts.expired += 1;
                } else {
                    bytes += entry.sealed.len() as u64;
                    batch.push(entry);
                }
            }
        }
        if is_end || batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
            let delivered = transfer::deliver(to, std::mem::take(&mut batch)).await?;
            counts.delivered.stored += delivered.stored;
            counts.delivered.kept += delivered.kept;
            bytes = 0;
        }
    }
    to.close().await?;
    Ok(counts)
}

/// The lines of the input, counted from 1.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    number: u64,
}

impl Lines {
    fn next(&mut self) -> Result<Option<(u64, Line)>, Failure> {
        loop {
            let mut text = Vec::new();
            let read = (&mut self.input).take(LINE_BYTES_MAX).read_until(b'\n', &mut text)? as u64;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            if read == LINE_BYTES_MAX {
                return Err(Failure::new(format!("line {number}: it is longer than {LINE_BYTES_MAX} bytes")));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let line = serde_json::from_slice(&text).map_err(|error| {
                // serde's place is within the line; its message names fields, never values.
                Failure::new(format!("line {number}: {error}"))
            })?;
            return Ok(Some((number, line)));
        }
    }
}
