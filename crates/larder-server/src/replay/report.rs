//! What a replay found, as a table for people and as JSON lines for programs.

use super::Latencies;
use super::latency::{Histogram, SAMPLED_ONE_IN};
use super::plot::{self, Series};
use super::settings::By;
use super::stack::TierReport;
use super::trace::Trace;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// Everything about one trace.
pub(super) struct Report {
    pub(super) trace: Trace,
    pub(super) by: By,
    pub(super) best: Best,
    pub(super) distinct_bytes: u64,
    pub(super) ttl: Option<Duration>,
    pub(super) rows: Vec<Row>,
}

/// One capacity.
pub(super) struct Row {
    pub(super) capacity: u64,
    /// What all distinct keys would need.
    pub(super) whole: u64,
    pub(super) lru_hits: u64,
    pub(super) best_hits: u64,
    pub(super) tiers: Vec<TierReport>,
    pub(super) latencies: Latencies,
}

/// What the best possible is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Best {
    /// The optimum itself.
    Belady,
    /// A bound that the optimum can't exceed.
    Pfoo,
}

impl Best {
    fn title(self) -> &'static str {
        match self {
            Self::Belady => "Belady",
            Self::Pfoo => "bound",
        }
    }
}

impl Row {
    /// Hits of the whole stack.
    fn hits(&self) -> u64 {
        self.tiers.iter().map(|tier| tier.hits).sum()
    }

    /// Hits of L1, which stand beside LRU's and the best at the same capacity.
    fn l1_hits(&self) -> u64 {
        self.tiers[0].hits
    }

    /// How far L1 got on the way from LRU to the best; `None` when there is no way to go.
    fn way(&self) -> Option<f64> {
        let whole = self.best_hits as f64 - self.lru_hits as f64;
        (whole != 0.0).then(|| (self.l1_hits() as f64 - self.lru_hits as f64) / whole)
    }
}

impl Report {
    fn unit(&self) -> &'static str {
        match self.by {
            By::Entries => "entries",
            By::Bytes => "bytes",
        }
    }

    fn has_tiers(&self) -> bool {
        self.rows.iter().any(|row| row.tiers.len() > 1)
    }

    /// What L1's hit ratios are called beside LRU's.
    fn l1_title(&self) -> &'static str {
        if self.has_tiers() { "L1" } else { "larder" }
    }

    fn ratio(&self, hits: u64) -> f64 {
        hits as f64 / self.trace.len() as f64
    }

    /// Writes headings, the table and, if wanted, the plot; at most 100 columns wide.
    pub(super) fn write_table(&self, out: &mut impl Write, plot: bool) -> io::Result<()> {
        self.write_heading(out)?;
        let (unit, best) = (self.unit(), self.best.title());
        writeln!(
            out,
            "{:>11} {:>6}  {:^20} {:>6} {:>11} {:>8} {:^15} {:^15}",
            "capacity",
            "% of",
            "─── hit ratio, % ───",
            "LRU to",
            "",
            "",
            if self.has_tiers() {
                " ─── L1 hit ───"
            } else {
                " ───── hit ────"
            },
            " ──── miss ────"
        )?;
        writeln!(
            out,
            "{:>11} {:>6}  {:>6} {:>6} {best:>6} {best:>6} {:>11} {:>8} {:>7} {:>7} {:>7} {:>7}",
            unit,
            if self.by == By::Entries { "keys" } else { "bytes" },
            self.l1_title(),
            "LRU",
            "evictions",
            "held",
            "p50",
            "p99",
            "p50",
            "p99"
        )?;
        for row in &self.rows {
            let l1 = &row.tiers[0];
            let [hit_p50, hit_p99] = [0.5, 0.99].map(|share| time(row.latencies.hits[0].quantile(share)));
            let [miss_p50, miss_p99] = [0.5, 0.99].map(|share| time(row.latencies.misses.quantile(share)));
            writeln!(
                out,
                "{:>11} {:>6}  {:>6} {:>6} {:>6} {:>6} {:>11} {:>8} {hit_p50:>7} {hit_p99:>7} {miss_p50:>7} {miss_p99:>7}",
                self.capacity_label(row.capacity),
                share_of(row.capacity, row.whole),
                percent(self.ratio(row.l1_hits())),
                percent(self.ratio(row.lru_hits)),
                percent(self.ratio(row.best_hits)),
                row.way().map_or_else(|| "–".to_owned(), |way| format!("{:.0}%", way * 100.0)),
                count(l1.evictions),
                bytes(l1.bytes),
            )?;
        }
        if self.has_tiers() {
            self.write_tiers(out)?;
        }
        self.write_too_large(out)?;
        if plot && self.rows.len() > 1 {
            writeln!(out)?;
            let points = |hits: &dyn Fn(&Row) -> u64| {
                self.rows.iter().map(|row| (row.capacity as f64, self.ratio(hits(row)))).collect()
            };
            let mut series = vec![
                Series { name: self.l1_title(), glyph: '●', points: points(&Row::l1_hits) },
                Series { name: self.best.title(), glyph: '▲', points: points(&|row| row.best_hits) },
                Series { name: "LRU", glyph: '○', points: points(&|row| row.lru_hits) },
            ];
            if self.has_tiers() {
                series.insert(0, Series { name: "all tiers", glyph: '■', points: points(&Row::hits) });
            }
            let ticks: Vec<String> = self.rows.iter().map(|row| self.capacity_label(row.capacity)).collect();
            plot::write(out, &series, &ticks, "hit ratio against capacity")?;
        }
        Ok(())
    }

    fn capacity_label(&self, capacity: u64) -> String {
        match self.by {
            By::Entries => grouped(capacity),
            By::Bytes => bytes(capacity),
        }
    }

    fn write_heading(&self, out: &mut impl Write) -> io::Result<()> {
        let trace = &self.trace;
        writeln!(out, "{}", trace.name)?;
        let packed = match trace.compression.name() {
            "none" => String::new(),
            name => format!(", {name}"),
        };
        writeln!(
            out,
            "  {} accesses to {} keys ({}{packed}){}{}",
            grouped(trace.len() as u64),
            grouped(u64::from(trace.distinct)),
            trace.layout,
            if trace.cut { ", cut by --limit" } else { "" },
            match trace.malformed.lines {
                0 => String::new(),
                lines => format!(", {} malformed lines skipped", grouped(lines)),
            },
        )?;
        match trace.assumed_size() {
            Some(size) => writeln!(
                out,
                "  values taken as {} each (--value-bytes), {} in all",
                bytes(u64::from(size)),
                bytes(self.distinct_bytes)
            )?,
            None => writeln!(out, "  values of all keys take {}", bytes(self.distinct_bytes))?,
        }
        if let Some(ttl) = self.ttl {
            writeln!(out, "  entries live {ttl:?}; LRU and {} know no TTL", self.best.title())?;
        }
        match self.best {
            Best::Belady => writeln!(out, "  Belady: the most hits that any policy could have had")?,
            Best::Pfoo => {
                writeln!(
                    out,
                    "  bound: no policy can have more hits (PFOO-L); by bytes the optimum is NP-hard"
                )?;
            }
        }
        if self.has_tiers() {
            writeln!(out, "  sqlite: every set waits for its commit, which is not synced to the disk")?;
            writeln!(
                out,
                "          (Durability::Process); LRU and {} are those of L1 alone",
                self.best.title()
            )?;
        }
        writeln!(out, "  times: of one access in {SAMPLED_ONE_IN}, on one thread")?;
        writeln!(out)
    }

    fn write_tiers(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "\n{:<6} {:>11} {:>11} {:>7} {:>7} {:>11} {:>11} {:>9} {:>7} {:>7}",
            "tier", "capacity", "asked", "hit, %", "of all", "evictions", "entries", "held", "hit p50", "p99"
        )?;
        for row in &self.rows {
            for (tier, latency) in row.tiers.iter().zip(&row.latencies.hits) {
                let asked = tier.hits + tier.misses;
                writeln!(
                    out,
                    "{:<6} {:>11} {:>11} {:>7} {:>7} {:>11} {:>11} {:>9} {:>7} {:>7}",
                    tier.name,
                    tier.capacity
                        .map_or_else(|| "unlimited".to_owned(), |capacity| self.capacity_label(capacity)),
                    grouped(asked),
                    if asked == 0 { "–".to_owned() } else { percent(tier.hits as f64 / asked as f64) },
                    percent(self.ratio(tier.hits)),
                    count(tier.evictions),
                    grouped(tier.entries),
                    bytes(tier.bytes),
                    time(latency.quantile(0.5)),
                    time(latency.quantile(0.99)),
                )?;
            }
            let hits = row.hits();
            writeln!(
                out,
                "{:<6} {:>11} {:>11} {:>7} {:>7}",
                "all",
                "",
                grouped(self.trace.len() as u64),
                percent(self.ratio(hits)),
                percent(self.ratio(hits))
            )?;
        }
        Ok(())
    }

    /// Says where values were not kept because of their size: their misses are no fault of the policy.
    fn write_too_large(&self, out: &mut impl Write) -> io::Result<()> {
        for row in &self.rows {
            for tier in row.tiers.iter().filter(|tier| tier.too_large > 0) {
                writeln!(
                    out,
                    "  capacity {}: {} times a value was too large for {} and not kept",
                    self.capacity_label(row.capacity),
                    grouped(tier.too_large),
                    tier.name
                )?;
            }
        }
        Ok(())
    }

    /// Writes one object for the trace and one for each capacity, a line each.
    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let trace = &self.trace;
        write_line(
            out,
            &TraceLine {
                kind: "trace",
                trace: &trace.name,
                format: trace.layout.to_string(),
                compression: trace.compression.name(),
                lines: trace.lines,
                malformed_lines: trace.malformed.lines,
                cut_by_limit: trace.cut,
                accesses: trace.len() as u64,
                distinct_keys: trace.distinct,
                distinct_bytes: self.distinct_bytes,
                value_bytes_assumed: trace.assumed_size(),
                ttl_ms: self.ttl.map(|ttl| ttl.as_millis()),
                latency_sampled_one_in: SAMPLED_ONE_IN,
            },
        )?;
        for row in &self.rows {
            let best = Oracle { hits: row.best_hits, hit_ratio: self.ratio(row.best_hits) };
            let (belady, bound_pfoo_l) = match self.best {
                Best::Belady => (Some(best), None),
                Best::Pfoo => (None, Some(best)),
            };
            let tiers = row.tiers.iter().zip(&row.latencies.hits).map(|(tier, latency)| TierLine {
                name: tier.name,
                capacity: tier.capacity,
                hits: tier.hits,
                misses: tier.misses,
                hit_ratio: (tier.hits + tier.misses > 0)
                    .then(|| tier.hits as f64 / (tier.hits + tier.misses) as f64),
                evictions: tier.evictions,
                too_large: tier.too_large,
                failures: tier.failures,
                entries: tier.entries,
                bytes: tier.bytes,
                hit_latency_ns: Percentiles::of(latency),
            });
            write_line(
                out,
                &CapacityLine {
                    kind: "capacity",
                    trace: &trace.name,
                    by: self.unit(),
                    capacity: row.capacity,
                    accesses: trace.len() as u64,
                    hits: row.hits(),
                    hit_ratio: self.ratio(row.hits()),
                    lru: Oracle { hits: row.lru_hits, hit_ratio: self.ratio(row.lru_hits) },
                    belady,
                    bound_pfoo_l,
                    lru_to_best: row.way(),
                    tiers: tiers.collect(),
                    miss_latency_ns: Percentiles::of(&row.latencies.misses),
                },
            )?;
        }
        Ok(())
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    writeln!(out)
}

#[derive(Serialize)]
struct TraceLine<'a> {
    kind: &'static str,
    trace: &'a str,
    format: String,
    compression: &'static str,
    lines: u64,
    malformed_lines: u64,
    cut_by_limit: bool,
    accesses: u64,
    distinct_keys: u32,
    distinct_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_bytes_assumed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u128>,
    latency_sampled_one_in: u64,
}

#[derive(Serialize)]
struct CapacityLine<'a> {
    kind: &'static str,
    trace: &'a str,
    by: &'static str,
    capacity: u64,
    accesses: u64,
    hits: u64,
    hit_ratio: f64,
    lru: Oracle,
    #[serde(skip_serializing_if = "Option::is_none")]
    belady: Option<Oracle>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_pfoo_l: Option<Oracle>,
    lru_to_best: Option<f64>,
    tiers: Vec<TierLine>,
    miss_latency_ns: Percentiles,
}

#[derive(Serialize)]
struct Oracle {
    hits: u64,
    hit_ratio: f64,
}

#[derive(Serialize)]
struct TierLine {
    name: &'static str,
    /// `None` is unlimited.
    capacity: Option<u64>,
    hits: u64,
    misses: u64,
    /// Of what reached the tier.
    hit_ratio: Option<f64>,
    evictions: Option<u64>,
    too_large: u64,
    failures: u64,
    entries: u64,
    bytes: u64,
    hit_latency_ns: Percentiles,
}

#[derive(Serialize)]
struct Percentiles {
    samples: u64,
    p50: Option<u64>,
    p90: Option<u64>,
    p99: Option<u64>,
    #[serde(rename = "p99.9")]
    p99_9: Option<u64>,
}

impl Percentiles {
    fn of(latency: &Histogram) -> Self {
        let [p50, p90, p99, p99_9] = [0.5, 0.9, 0.99, 0.999].map(|share| latency.quantile(share));
        Self { samples: latency.total(), p50, p90, p99, p99_9 }
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number that may not be known.
fn count(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), grouped)
}

fn percent(ratio: f64) -> String {
    format!("{:.2}", ratio * 100.0)
}

/// A capacity as a share of what all keys need, with three digits at most.
fn share_of(part: u64, whole: u64) -> String {
    let percent = part as f64 / whole as f64 * 100.0;
    match percent {
        _ if percent >= 1000.0 => ">999%".to_owned(),
        _ if percent >= 9.95 => format!("{percent:.0}%"),
        _ if percent >= 0.095 => format!("{percent:.1}%"),
        _ => "<0.1%".to_owned(),
    }
}

fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn time(nanos: Option<u64>) -> String {
    nanos.map_or_else(|| "–".to_owned(), |nanos| scaled(nanos as f64, 1000.0, &["ns", "µs", "ms", "s"]))
}

/// A number with three digits and the unit that makes it so.
fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while number >= step.min(999.5) && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let decimals = if unit == 0 || number >= 99.95 { 0 } else { 1 };
    format!("{number:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_scaled() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(grouped), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1023, 1024, 1_500_000, u64::MAX].map(bytes),
            ["0 B", "1.0 KiB", "1.0 KiB", "1.4 MiB", "16.0 EiB"]
        );
        assert_eq!(
            [Some(7), Some(999), Some(1000), Some(123_400), None].map(time),
            ["7 ns", "999 ns", "1.0 µs", "123 µs", "–"]
        );
        assert_eq!(
            [1, 10, 100, 999, 20_000].map(|part| share_of(part, 1000)),
            ["0.1%", "1.0%", "10%", "100%", ">999%"]
        );
    }

    fn tier(name: &'static str, hits: u64, misses: u64) -> TierReport {
        TierReport {
            name,
            capacity: Some(999_999_999),
            hits,
            misses,
            evictions: Some(999_999_999),
            too_large: 0,
            failures: 0,
            entries: 999_999_999,
            bytes: 1023 << 10,
        }
    }

    fn report(tiers: &[TierReport]) -> Report {
        let latencies = Latencies { hits: vec![Histogram::new(); tiers.len()], misses: Histogram::new() };
        let row = |capacity, lru_hits, best_hits| Row {
            capacity,
            whole: 4,
            lru_hits,
            best_hits,
            tiers: tiers.to_vec(),
            latencies: latencies.clone(),
        };
        Report {
            trace: Trace::of(&[0, 1, 2, 0, 1, 3, 0, 1, 2, 3], None),
            by: By::Entries,
            best: Best::Belady,
            distinct_bytes: 4,
            ttl: None,
            rows: vec![row(2, 0, 4), row(999_999_999, 5, 5)],
        }
    }

    fn text(report: &Report) -> String {
        let mut out = Vec::new();
        report.write_table(&mut out, true).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn table_fits_into_100_columns_and_has_a_line_per_tier() {
        let one = text(&report(&[tier("l1", 2, 8)]));
        assert!(one.contains(" 50% ") && one.contains("● larder") && !one.contains("tier"), "{one}");
        let two = text(&report(&[tier("l1", 2, 8), tier("sqlite", 4, 4)]));
        assert!(two.contains(" 50% ") && two.contains("● L1"), "L1's 2 stand beside Belady's 4: {two}");
        let words = |first: &str| -> Vec<Vec<&str>> {
            let lines = two.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            lines.filter(|words| words.first() == Some(&first)).collect()
        };
        assert_eq!(words("l1").len(), 2, "{two}");
        assert_eq!(
            words("sqlite")[0][2..5],
            ["8", "50.00", "40.00"],
            "4 of the 8 that reached it, of 10 in all"
        );
        assert_eq!(words("all")[0][1..], ["10", "60.00", "60.00"]);
        for line in one.lines().chain(two.lines()) {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
    }
}
