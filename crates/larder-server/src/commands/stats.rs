//! `larder stats`.

use super::{At, Failure, Outcome, printed};
use clap::Args;
use serde_json::Value;
use std::io::Write;

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

impl Stats {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let stats = backing.stats().await?;
        backing.close().await?;
        let mut output = std::io::stdout().lock();
        if self.json {
            return printed(writeln!(output, "{stats}"));
        }
        let mut lines = Vec::new();
        flatten("", &stats, &mut lines);
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        printed(lines.iter().try_for_each(|(name, value)| writeln!(output, "{name:width$}  {value:>12}")))
    }
}

/// One line per number, named by its path.
fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let inner = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(members) => {
            members.iter().filter(|(name, _)| *name != "name").for_each(|(name, value)| {
                flatten(&inner(name), value, lines);
            });
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(at, item)| {
            let name = item["name"].as_str().map_or_else(|| at.to_string(), str::to_owned);
            flatten(&inner(&name), item, lines);
        }),
        Value::String(text) => lines.push((path.to_owned(), text.clone())),
        other => lines.push((path.to_owned(), other.to_string())),
    }
}
