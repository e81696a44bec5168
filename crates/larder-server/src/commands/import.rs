//! `larder import`.

use super::lines::Line;
use super::transfer::{self, BATCH_BYTES, BATCH_ENTRIES, Carried, Delivered};
use super::{Failure, Outcome, settings_of};
use crate::backing::Backing;
use crate::config::{Secret, Settings};
use crate::data::{DataFolder, Occupied};
use crate::store::{self, OnFault};
use clap::Args;
use larder::backend::Backend;
use larder::clock::{Clock, NEVER_MS};
use larder::envelope::Envelope;
use larder::key::Namespace;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// Bad lines that are named; of more, only how many.
const NAMED_MAX: u64 = 20;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// What `larder export` wrote; - is the input
    file: PathBuf,
    /// Data folder; a server that has it is told of each entry, as long as the lines are plain
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Settings of serve; all their tiers get the entries [default: those that the folder was served with]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Another place, as NAME:PATH: jsonl:DIR, sqlite:FILE; or tier:NAME of the settings
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
    bad: u64,
}

impl Counts {
    /// A line that is passed over: the others don't wait until somebody has mended it.
    fn bad(&mut self, number: u64, why: &str) {
        self.bad += 1;
        if self.bad <= NAMED_MAX {
            eprintln!("line {number}: {why}");
        }
    }
}

impl Import {
    /// Entries that expired since are passed over. Where the same key has a later stamp, that one stays. A line
    /// that can't be understood is named, and fails the command once all others are imported.
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
        let settings = settings_of(self.config.as_deref(), self.data.as_deref(), self.key_file.as_deref())?;
        let folder = &settings.data;
        let counts = match &self.to {
            Some(place) => {
                let envelope = transfer::envelope(&settings)?;
                let to = transfer::open(place, false, self.config.as_deref()).await?;
                into_backends(&mut lines, &[to], &envelope).await?
            }
            None => match DataFolder::for_command(folder) {
                Ok(held) => {
                    let envelope = transfer::envelope(&settings)?;
                    let mut to = store::open(&settings, Some(folder), OnFault::Fail).await?.backends;
                    // The lowest first, as with any write.
                    to.reverse();
                    let counts = into_backends(&mut lines, &to, &envelope).await?;
                    drop(held);
                    counts
                }
                Err(Occupied::Server(Some(_))) => tell_server(&mut lines, &settings).await?,
                Err(Occupied::Server(None)) => {
                    return Err(Failure::new(format!("{} is in use", folder.display())));
                }
                Err(Occupied::Failed(error)) => {
                    return Err(Failure::new(format!("{} can't be opened: {error}", folder.display())));
                }
            },
        };
        let Counts { delivered: Delivered { stored, kept }, expired, bad } = counts;
        eprintln!("{stored} entries imported, {kept} were there already, {expired} have expired");
        if bad > 0 {
            return Err(Failure::new(format!("{bad} lines are not imported; mend them and run it again")));
        }
        Ok(Outcome::Done)
    }
}

async fn tell_server(lines: &mut Lines, settings: &Settings) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let mut of_namespace: HashMap<Namespace, Backing> = HashMap::new();
    while let Some((number, line)) = lines.next()? {
        let failed = |why: String| Failure::new(format!("line {number}: {why}"));
        let parts = match line.and_then(Line::parts) {
            Ok(parts) => parts,
            Err(why) => {
                counts.bad(number, &why);
                continue;
            }
        };
        let (namespace, key, body, content_type, (fresh_until, gone_at), tags) = parts;
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
            let backing = Backing::folder(settings, token, namespace.clone()).await?;
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

/// Puts the lines into every tier, and counts what became of them in the first.
async fn into_backends(
    lines: &mut Lines,
    to: &[Arc<dyn Backend>],
    envelope: &Envelope,
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let (mut batch, mut bytes): (Vec<Carried>, u64) = (Vec::new(), 0);
    let (mut is_end, mut stopped) = (false, None);
    while !is_end {
        match lines.next() {
            Ok(None) => is_end = true,
            // What was read before is not lost with what can't be.
            Err(failure) => (is_end, stopped) = (true, Some(failure)),
            Ok(Some((number, line))) => match line.and_then(|line| line.entry(envelope)) {
                Err(why) => counts.bad(number, &why),
                Ok(entry) if entry.meta.is_gone(Clock::system().wall_ms()) => counts.expired += 1,
                Ok(entry) => {
                    bytes += entry.sealed.len() as u64;
                    batch.push(entry);
                }
            },
        }
        if is_end || batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
            let entries = std::mem::take(&mut batch);
            for (at, to) in to.iter().enumerate() {
                let delivered = transfer::deliver(&**to, entries.clone()).await?;
                if at == 0 {
                    counts.delivered.stored += delivered.stored;
                    counts.delivered.kept += delivered.kept;
                }
            }
            bytes = 0;
        }
    }
    for to in to {
        to.close().await?;
    }
    stopped.map_or(Ok(counts), Err)
}

/// A line, or why it is none of larder's.
type Parsed = Result<Line, String>;

/// The lines of the input, counted from 1.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    number: u64,
}

impl Lines {
    /// The next line that isn't empty.
    fn next(&mut self) -> Result<Option<(u64, Parsed)>, Failure> {
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
            return Ok(Some((number, serde_json::from_slice(&text).map_err(|error| describe(&error)))));
        }
    }
}

/// serde's words where they are of fields, and only the place where they could show a value.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let names_fields = ["missing field", "unknown field", "duplicate field"];
    match error.classify() {
        serde_json::error::Category::Data if !names_fields.iter().any(|named| text.starts_with(named)) => {
            format!("column {}: a field is not as export writes it", error.column())
        }
        _ => text,
    }
}
