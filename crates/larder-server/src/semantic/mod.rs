//! `larder semantic`: what a policy would have served of labelled questions, and how often wrongly (`eval`); the models
//! to embed them with ([`model`]).

mod data;
mod embedder;
mod model;
mod report;
mod vectors;

use crate::commands::Failure;
use crate::replay::progress::Progress;
use clap::{Args, ValueEnum};
use data::Data;
use embedder::{BUILT_IN, Live};
use larder::semantic::decide::{
    CostAware, CostOptions, Policy, Pooled, PooledOptions, Threshold, ThresholdOptions, VCache, VCacheOptions,
};
use larder::semantic::evaluate::{
    Embedded, Labelled, Pair, StreamOptions, replay_lookups, replay_pairs, replay_stream,
};
pub(crate) use model::ModelArgs;
use report::{Report, Section};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use vectors::{Embed, VectorFile};

/// Replay labelled questions through a policy: hits, errors, traps served
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// CSV, JSON or JSON lines: text with category, label or intent; origin with similar; a with b and same_answer
    #[arg(required = true, value_name = "DATA")]
    data: Vec<PathBuf>,
    /// What embeds the texts: ngrams, which is built in and sees spelling alone, or the folder of a model
    #[arg(long, value_name = "ngrams|DIR", default_value = BUILT_IN)]
    embedder: PathBuf,
    /// JSON lines of {"text", "vector"} for every text of the data, in place of an embedder
    #[arg(long, value_name = "FILE", conflicts_with = "embedder")]
    vectors: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "pooled")]
    policy: PolicyName,
    /// Highest share of questions that may get a wrong answer, for pooled and vcache
    #[arg(long, value_name = "SHARE", default_value_t = PooledOptions::default().error_rate_max)]
    error_rate_max: f64,
    /// Least similarity that is served, for threshold and cost, and for pooled until it has data
    #[arg(long, value_name = "COSINE", default_value_t = ThresholdOptions::default().similarity_min)]
    threshold: f32,
    /// Shuffles of a stream
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    seeds: u64,
    /// Share of verdicts that are the wrong way round
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    judge_noise: f64,
    /// Share of misses that are judged
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    judged: f64,
    /// Share of verdicts that pooled takes the judge to have wrong
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    judge_noise_known: f64,
    /// What a wrong answer costs, in calls, for cost
    #[arg(long, value_name = "CALLS", default_value_t = 10.0)]
    loss: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print no plot
    #[arg(long)]
    no_plot: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyName {
    Threshold,
    Cost,
    Vcache,
    Pooled,
}

impl EvalArgs {
    fn check(&self) -> Result<(), Failure> {
        let shares = [
            ("--error-rate-max", self.error_rate_max, 1.0),
            ("--judge-noise", self.judge_noise, 1.0),
            ("--judged", self.judged, 1.0),
            ("--judge-noise-known", self.judge_noise_known, 0.45),
        ];
        for (name, value, most) in shares {
            if !(0.0..=most).contains(&value) {
                return Err(Failure::new(format!("{name} is {value}: a share from 0 to {most} is expected")));
            }
        }
        if !(-1.0..=1.0).contains(&self.threshold) {
            return Err(Failure::new(format!(
                "--threshold is {}: a cosine from -1 to 1 is expected",
                self.threshold
            )));
        }
        if !(1..=1000).contains(&self.seeds) {
            return Err(Failure::new(format!("--seeds is {}: 1 to 1000 are expected", self.seeds)));
        }
        Ok(())
    }

    fn policy(&self, seed: u64) -> Box<dyn Policy> {
        let cold = ThresholdOptions { similarity_min: self.threshold, ..ThresholdOptions::default() };
        match self.policy {
            PolicyName::Threshold => Box::new(Threshold::new(cold)),
            PolicyName::Cost => Box::new(CostAware::new(CostOptions {
                threshold: cold,
                ..CostOptions::new(self.loss, 1.0, 0.0)
            })),
            PolicyName::Vcache => {
                Box::new(VCache::new(VCacheOptions { error_rate_max: self.error_rate_max, seed }))
            }
            PolicyName::Pooled => {
                let judge_noise = self.judge_noise_known;
                Box::new(Pooled::new(PooledOptions {
                    error_rate_max: self.error_rate_max,
                    judge_noise,
                    cold,
                    seed,
                    ..PooledOptions::default()
                }))
            }
        }
    }
}

/// Replays all data and prints what came out. Files with labelled texts are one stream.
pub(crate) fn evaluate(arguments: &EvalArgs) -> Result<io::Result<()>, Failure> {
    arguments.check()?;
    // Read first: what is wrong with them is known before anything takes long.
    let all = arguments.data.iter().map(|path| data::read(path)).collect::<Result<Vec<_>, _>>()?;
    let embed: Box<dyn Embed> = match &arguments.vectors {
        Some(path) => Box::new(VectorFile::read(path)?),
        None => Box::new(Live::open(&arguments.embedder)?),
    };
    let progress = Progress::reading();
    let mut stream = Vec::new();
    let (policy, embedder) = (arguments.policy(0).name(), embed.model());
    let mut report = Report { policy, embedder, sections: Vec::new() };
    for (path, data) in arguments.data.iter().zip(all) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match data {
            Data::Stream(rows) => {
                let texts: Vec<&str> = rows.iter().map(|(text, _)| text.as_str()).collect();
                let embedded = embedded(&*embed, &texts, &progress)?;
                stream.extend(rows.iter().map(|(text, label)| Labelled {
                    question: embedded[text.as_str()].clone(),
                    label: label.clone(),
                }));
            }
            Data::Lookups(rows) => {
                let rows = rows.into_iter().map(|texts| data::LabelledPair {
                    texts,
                    contexts: Default::default(),
                    is_same: true,
                    kind: String::new(),
                });
                let pairs = pairs(&*embed, &rows.collect::<Vec<_>>(), &progress)?;
                report
                    .sections
                    .push(Section::Lookups(name, replay_lookups(&pairs, &mut *arguments.policy(0))));
            }
            Data::Pairs(rows) => {
                let pairs = pairs(&*embed, &rows, &progress)?;
                report.sections.push(Section::Pairs(name, replay_pairs(&pairs, &mut *arguments.policy(0))));
            }
        }
    }
    if !stream.is_empty() {
        progress.begin_counting("replaying", "questions", arguments.seeds * stream.len() as u64);
        let replayed = (0..arguments.seeds).map(|seed| {
            progress.pass(format!("seed {seed}"));
            let options = StreamOptions {
                seed: Some(seed),
                judge_noise: arguments.judge_noise,
                judged_share: arguments.judged,
                ..StreamOptions::default()
            };
            replay_stream(&stream, &mut *arguments.policy(seed), &options, || progress.advance(1))
        });
        report.sections.insert(0, Section::Stream(replayed.collect()));
    }
    drop(progress);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = if arguments.json {
        report.write_json(&mut out)
    } else {
        report.write_table(&mut out, !arguments.no_plot)
    };
    Ok(written.and_then(|()| out.flush()))
}

fn pairs(embed: &dyn Embed, rows: &[data::LabelledPair], progress: &Progress) -> Result<Vec<Pair>, Failure> {
    let texts: Vec<&str> = rows.iter().flat_map(|row| [row.texts.0.as_str(), row.texts.1.as_str()]).collect();
    let embedded = embedded(embed, &texts, progress)?;
    let pair = |row: &data::LabelledPair| Pair {
        stored: embedded[row.texts.0.as_str()].clone(),
        asked: embedded[row.texts.1.as_str()].clone(),
        is_same: row.is_same,
        kind: row.kind.clone(),
        context: row.contexts.clone(),
    };
    Ok(rows.iter().map(pair).collect())
}

/// Each text once.
fn embedded<'a>(
    embed: &dyn Embed,
    texts: &[&'a str],
    progress: &Progress,
) -> Result<HashMap<&'a str, Embedded>, Failure> {
    let mut texts = texts.to_vec();
    texts.sort_unstable();
    texts.dedup();
    progress.begin_counting("embedding", "texts", texts.len() as u64);
    let found = embed.embed(&texts, &mut |more| progress.advance(more))?;
    Ok(texts.into_iter().zip(found).map(|(text, vector)| (text, Embedded::new(text, &vector))).collect())
}
