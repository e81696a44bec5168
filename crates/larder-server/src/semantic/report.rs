//! What an evaluation prints: tables, a plot of precision and recall, or JSON.

use crate::replay::plot::{self, Series};
use larder::semantic::Model;
use larder::semantic::evaluate::{Curve, LookupReport, PairReport, StreamReport};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, Write};

pub(super) struct Report {
    pub(super) policy: &'static str,
    pub(super) embedder: Model,
    pub(super) sections: Vec<Section>,
}

pub(super) enum Section {
    /// One report for each seed.
    Stream(Vec<StreamReport>),
    Lookups(String, LookupReport),
    Pairs(String, PairReport),
}

/// Thresholds of the tables, from where almost all is served to where almost nothing is.
const THRESHOLDS: [f32; 11] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98];

impl Report {
    pub(super) fn write_table(&self, out: &mut impl Write, plot: bool) -> io::Result<()> {
        writeln!(out, "embedded by {}", self.embedder)?;
        for section in &self.sections {
            writeln!(out)?;
            let curve = match section {
                Section::Stream(seeds) => {
                    self.write_stream(out, seeds)?;
                    &seeds[0].curve
                }
                Section::Lookups(name, report) => {
                    writeln!(
                        out,
                        "{name}, policy {}: {} right, {} wrong, {} missed",
                        self.policy, report.right, report.wrong, report.missed
                    )?;
                    &report.curve
                }
                Section::Pairs(name, report) => {
                    self.write_pairs(out, name, report)?;
                    &report.curve
                }
            };
            write_curve(out, curve, plot)?;
        }
        Ok(())
    }

    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let sections: Vec<Value> = self.sections.iter().map(Section::to_json).collect();
        let Model { name, version, dimensions } = &self.embedder;
        let embedder = json!({ "name": name, "version": version, "dimensions": dimensions });
        writeln!(out, "{}", json!({ "policy": self.policy, "embedder": embedder, "sections": sections }))
    }

    fn write_stream(&self, out: &mut impl Write, seeds: &[StreamReport]) -> io::Result<()> {
        writeln!(out, "stream of {} questions, policy {}", seeds[0].requests, self.policy)?;
        writeln!(
            out,
            "   seed    hits   saved   wrong  of hits   audits  verdicts   estimated error (interval)"
        )?;
        for (seed, report) in seeds.iter().enumerate() {
            let estimate = match (report.estimate.error_rate, report.estimate.interval) {
                (Some(rate), Some((low, high))) => format!("{rate:.4} ({low:.4} to {high:.4})"),
                _ => "none: nothing is audited".to_owned(),
            };
            let hits = (report.exact + report.served).max(1) as f64;
            writeln!(
                out,
                "{seed:>7} {:>7.4} {:>7.4} {:>7.4}  {:>7.4} {:>8} {:>9}   {estimate}",
                report.hits(),
                report.saved(),
                report.error_rate(),
                report.wrong as f64 / hits,
                report.audits,
                report.verdicts
            )?;
        }
        let Means { hits, saved, wrong, wrong_worst_seed } = Means::of(seeds);
        writeln!(
            out,
            "   mean {hits:>7.4} {saved:>7.4} {wrong:>7.4}           worst seed {wrong_worst_seed:.4}"
        )
    }

    fn write_pairs(&self, out: &mut impl Write, name: &str, report: &PairReport) -> io::Result<()> {
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let policy = self.policy;
        let (served, traps) = (share(report.served, report.same), share(report.traps_served, report.traps));
        writeln!(
            out,
            "{name}, policy {policy}: served {} of {} that one answer may serve ({served:.1}%), {} of {} traps ({traps:.1}%)",
            report.served, report.same, report.traps_served, report.traps
        )?;
        for (kind, (all, served)) in &report.kinds {
            writeln!(out, "   {kind:<24} {served:>5} of {all:>5} served")?;
        }
        Ok(())
    }
}

/// Shares of all questions, over the seeds.
#[derive(Serialize)]
struct Means {
    /// Served, with those that were asked all the same to audit them.
    hits: f64,
    /// Hits less audits.
    saved: f64,
    wrong: f64,
    wrong_worst_seed: f64,
}

impl Means {
    fn of(seeds: &[StreamReport]) -> Means {
        let mean =
            |value: &dyn Fn(&StreamReport) -> f64| seeds.iter().map(value).sum::<f64>() / seeds.len() as f64;
        Means {
            hits: mean(&StreamReport::hits),
            saved: mean(&StreamReport::saved),
            wrong: mean(&StreamReport::error_rate),
            wrong_worst_seed: seeds.iter().map(StreamReport::error_rate).fold(0.0, f64::max),
        }
    }
}

impl Section {
    fn to_json(&self) -> Value {
        match self {
            Section::Stream(seeds) => {
                json!({ "kind": "stream", "mean": Means::of(seeds), "seeds": seeds, "thresholds": points(&seeds[0].curve) })
            }
            Section::Lookups(name, report) => {
                json!({ "kind": "lookups", "data": name, "report": report, "thresholds": points(&report.curve) })
            }
            Section::Pairs(name, report) => {
                json!({ "kind": "pairs", "data": name, "report": report, "thresholds": points(&report.curve) })
            }
        }
    }
}

fn points(curve: &Curve) -> Value {
    json!({ "positives": curve.positives(), "points": curve.points(&THRESHOLDS) })
}

fn write_curve(out: &mut impl Write, curve: &Curve, plot: bool) -> io::Result<()> {
    let (points, positives) = (curve.points(&THRESHOLDS), curve.positives().max(1) as f64);
    writeln!(out, "\na threshold alone, on the nearest          and with vetoes")?;
    writeln!(out, "threshold  right  wrong  precision  recall   right  wrong  precision  recall")?;
    let row = |right: u64, wrong: u64| {
        let precision = if right + wrong == 0 {
            "-".to_owned()
        } else {
            format!("{:.3}", right as f64 / (right + wrong) as f64)
        };
        format!("{right:>6} {wrong:>6}  {precision:>9}  {:>6.3}", right as f64 / positives)
    };
    for point in &points {
        let unvetoed = row(point.right_unvetoed, point.wrong_unvetoed);
        writeln!(out, "{:>9.2} {}  {unvetoed}", point.threshold, row(point.right, point.wrong))?;
    }
    // A threshold that serves nothing has no precision to draw.
    let drawn: Vec<_> = points
        .iter()
        .filter(|point| point.right_unvetoed + point.wrong_unvetoed > 0 && point.right + point.wrong > 0)
        .collect();
    if !plot || drawn.len() < 2 {
        return Ok(());
    }
    let share = |part: u64, whole: f64| part as f64 / whole;
    let series = |value: &dyn Fn(usize) -> f64| {
        (0..drawn.len()).map(|at| (f64::from(drawn[at].threshold), value(at))).collect()
    };
    let unvetoed = |at: usize| {
        share(drawn[at].right_unvetoed, (drawn[at].right_unvetoed + drawn[at].wrong_unvetoed) as f64)
    };
    let plain = |at: usize| drawn[at].precision().unwrap_or_default();
    let recall = |at: usize| share(drawn[at].right_unvetoed, positives);
    let series = [
        Series { name: "precision with vetoes", glyph: '●', points: series(&unvetoed) },
        Series { name: "precision", glyph: '○', points: series(&plain) },
        Series { name: "recall with vetoes", glyph: '▲', points: series(&recall) },
    ];
    let ticks: Vec<String> = drawn.iter().map(|point| format!("{:.2}", point.threshold)).collect();
    writeln!(out)?;
    plot::write(out, &series, &ticks, "against the threshold")
}
