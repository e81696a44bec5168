//! `larder health`.

use super::{At, Failure, Outcome, printed};
use clap::{Args, ValueEnum};
use larder::HealthLevel;
use serde_json::Value;
use std::io::Write;

/// Ends with 0 when the cache is healthy or degraded, with 2 when it is unhealthy, doesn't answer or can't be
/// opened. A degraded cache serves, without something that it should have.
#[derive(Debug, Args)]
pub(crate) struct Health {
    /// How thoroughly to look
    #[arg(long, value_enum, default_value = "basic")]
    level: Level,
    /// End with 1 when it is degraded
    #[arg(long)]
    strict: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    /// What is known without asking a tier
    Ping,
    /// And a sign of life from every tier
    Basic,
    /// And an entry written, read and removed in every tier
    Full,
}

impl Health {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let level = match self.level {
            Level::Ping => HealthLevel::Ping,
            Level::Basic => HealthLevel::Basic,
            Level::Full => HealthLevel::Full,
        };
        let health = backing.health(level).await?;
        // A tier that is down can't be closed well, which has been said already.
        if let Err(failure) = backing.close().await {
            eprintln!("warning: {failure}");
        }
        let mut output = std::io::stdout().lock();
        printed(match self.json {
            true => writeln!(output, "{health}"),
            false => output.write_all(table(&health).as_bytes()),
        })?;
        Ok(match health["state"].as_str() {
            Some("healthy") => Outcome::Done,
            Some("degraded") if self.strict => Outcome::Absent,
            Some("degraded") => Outcome::Done,
            _ => Outcome::Unhealthy,
        })
    }
}

/// A line for the whole, one for each tier, and one for each reason.
fn table(health: &Value) -> String {
    let tiers = health["tiers"].as_array().map_or(&[][..], Vec::as_slice);
    let width = tiers.iter().filter_map(|tier| tier["name"].as_str()).map(str::len).max().unwrap_or(0).max(6);
    let mut text = String::new();
    let mut line = |name: &str, part: &Value| {
        let state = part["state"].as_str().unwrap_or("?");
        let mut facts = Vec::new();
        for (field, what) in [("ping_us", "ping"), ("round_trip_us", "round trip")] {
            if let Some(us) = part[field].as_u64() {
                facts.push(format!("{what} {:.2} ms", us as f64 / 1e3));
            }
        }
        if let (Some(entries), Some(bytes)) =
            (part["usage"]["entries"].as_u64(), part["usage"]["bytes"].as_u64())
        {
            facts.push(format!("{entries} entries, {bytes} bytes"));
        }
        if let Some(share) = part["memory_share"].as_f64() {
            facts.push(format!("{:.0} % of the memory used", share * 100.0));
        }
        text.push_str(format!("{name:width$}  {state:<9}  {}", facts.join(", ")).trim_end());
        text.push('\n');
        for reason in part["reasons"].as_array().into_iter().flatten() {
            let kind = reason["kind"].as_str().unwrap_or("?");
            let detail = reason["detail"].as_str().map(|detail| format!(": {detail}")).unwrap_or_default();
            text.push_str(&format!("{:width$}    {kind}{detail}\n", ""));
        }
    };
    line("larder", health);
    tiers.iter().for_each(|tier| line(tier["name"].as_str().unwrap_or("?"), tier));
    text
}
