//! `larder export`.

use super::lines::Line;
use super::transfer::{self, Walk};
use super::{Failure, Outcome, settings_of};
use crate::data::database_in;
use clap::Args;
use larder::key::Namespace;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Envelopes as they are: compressed and encrypted values stay so
    #[arg(long, required_unless_present = "plain", conflicts_with = "plain")]
    sealed: bool,
    /// Values that anybody can read
    #[arg(long)]
    plain: bool,
    /// Data folder; its server may run, and what is in its memory alone is not exported
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Settings of serve; of several tiers the lowest is exported [default: those that the folder was served with]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Another place, as NAME:PATH: jsonl:DIR, sqlite:FILE; or tier:NAME of the settings
    #[arg(long, value_name = "PLACE", conflicts_with = "data")]
    from: Option<String>,
    /// Keys of encrypted entries [default: where the data folder's server had them]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Only this key space; all by default
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
}

impl Export {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let namespace = self.namespace.as_deref().map(Namespace::new).transpose()?;
        let settings = settings_of(self.config.as_deref(), self.data.as_deref(), self.key_file.as_deref())?;
        // What is passed on as it is needs no keys.
        let envelope = if self.plain { Some(transfer::envelope(&settings)?) } else { None };
        let from = match (&self.from, settings.tiers.as_deref()) {
            (Some(place), _) => transfer::open(place, true, self.config.as_deref()).await?,
            (None, Some([.., lowest])) => transfer::open_tier(&settings, &lowest.name).await?,
            (None, Some([])) => {
                return Err(Failure::new("the settings list no tier, and memory is not exported"));
            }
            (None, None) => {
                let place = format!("sqlite:{}", database_in(&settings.data).display());
                transfer::open(&place, true, None).await?
            }
        };
        let mut output = BufWriter::new(std::io::stdout().lock());
        let (mut written, mut passed_over) = (0_u64, 0);
        let bar = transfer::progress("exporting", from.usage().await?.entries);
        let mut walk = Walk::over(&*from, namespace.as_ref()).await?;
        while let Some((entries, unreadable)) = walk.next().await? {
            bar.inc(entries.len() as u64 + unreadable);
            passed_over += unreadable;
            for entry in &entries {
                let line = if let Some(envelope) = &envelope {
                    match Line::plain(entry, envelope) {
                        Ok(Some(line)) => line,
                        // An absence has no value to show.
                        Ok(None) => continue,
                        Err(_) => {
                            passed_over += 1;
                            continue;
                        }
                    }
                } else {
                    Line::sealed(entry)
                };
                match writeln!(output, "{}", serde_json::to_string(&line)?) {
                    // The reader has seen enough, as `head` has.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Outcome::Done),
                    written => written?,
                }
                written += 1;
            }
        }
        output.flush()?;
        bar.finish_and_clear();
        from.close().await?;
        eprintln!("{written} entries exported");
        if passed_over > 0 {
            return Err(Failure::new(format!(
                "{passed_over} entries were passed over: they can't be read as plain values; --sealed takes \
                 those of other programs and encrypted ones"
            )));
        }
        Ok(Outcome::Done)
    }
}
