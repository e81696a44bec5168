//! How good the embedders are at telling texts apart, what the index finds of what there is, and how long it takes:
//! `cargo run --release -p larder --features semantic-local --example semantic_figures -- MODEL TEXTS`, with a line
//! `label TAB text` per text in TEXTS; texts of one label mean the same.

#![allow(clippy::print_stdout, reason = "it prints figures")]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use larder::semantic::embed::{Embedder, Local, LocalOptions, NgramCounts, Ngrams};
use larder::semantic::index::{Partition, Scan, ScanOptions, VectorIndex};

const P: Partition = Partition([0; 16]);

type Vectors = Vec<Vec<f32>>;

/// In 16 sums, so that the compiler may vectorise it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// The share of pairs of one (two texts of a label, two of different ones) in which the former are nearer.
fn auc(labels: &[String], vectors: &Vectors) -> f64 {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut same, mut other) = (Vec::new(), Vec::new());
    while same.len() < 20_000 || other.len() < 20_000 {
        let (a, b) = (random.usize(..labels.len()), random.usize(..labels.len()));
        let pairs = if labels[a] == labels[b] { &mut same } else { &mut other };
        if a != b && pairs.len() < 20_000 {
            pairs.push(dot(&vectors[a], &vectors[b]));
        }
    }
    other.sort_by(f32::total_cmp);
    let below = |x: &f32| other.partition_point(|y| y < x) as f64 / other.len() as f64;
    same.iter().map(below).sum::<f64>() / same.len() as f64
}

/// The least and the median time of a call, with another argument each time.
fn time(queries: &Vectors, mut call: impl FnMut(&[f32])) -> (Duration, Duration) {
    let mut times: Vec<Duration> = queries
        .iter()
        .map(|query| {
            let begin = Instant::now();
            call(query);
            begin.elapsed()
        })
        .collect();
    times.sort();
    (times[0], times[times.len() / 2])
}

fn best(query: &[f32], entries: &Vectors) -> (usize, f32) {
    let all = entries.iter().map(|entry| dot(query, entry)).enumerate();
    all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

fn index(name: &str, entries: &Vectors, queries: &Vectors) -> Result<(), larder::Error> {
    let model =
        larder::semantic::Model { name: "m".into(), version: "1".into(), dimensions: entries[0].len() };
    let mut options = ScanOptions::default();
    options.entries_max = entries.len();
    let index = Scan::new(model, options)?;
    let begin = Instant::now();
    for (id, entry) in entries.iter().enumerate() {
        index.insert(P, id as u64, entry)?;
    }
    let insert = begin.elapsed() / entries.len() as u32;
    let found = |query: &Vec<f32>| Ok::<_, larder::Error>(index.search(P, query, 1, -1.0)?[0]);
    let mut hits = 0;
    for query in queries {
        hits += usize::from((found(query)?.similarity - best(query, entries).1).abs() < 1e-5);
    }
    let (least, median) = time(queries, |query| drop(black_box(index.search(P, query, 10, -1.0))));
    let (naive_least, naive) = time(&queries[..queries.len().min(100)].to_vec(), |query| {
        black_box(best(query, entries));
    });
    println!(
        "{name}: {} entries: recall@1 {:.4}; search {least:.1?} / {median:.1?} (least / median), insert {insert:.1?}; \
         plain scan {naive_least:.1?} / {naive:.1?}: {:.3} of it",
        entries.len(),
        hits as f64 / queries.len() as f64,
        median.as_secs_f64() / naive.as_secs_f64()
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(texts)) = (arguments.next(), arguments.next()) else {
        return Err("usage: semantic_figures MODEL TEXTS".into());
    };
    let file = std::fs::read_to_string(texts)?;
    let mut lines: Vec<(&str, &str)> = file.lines().filter_map(|line| line.split_once('\t')).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut lines);
    let labels: Vec<String> = lines.iter().map(|line| line.0.to_owned()).collect();
    let texts: Vec<&str> = lines.iter().map(|line| line.1).collect();

    let plain = Ngrams::new();
    let mut counts = NgramCounts::new();
    texts.iter().for_each(|text| counts.observe(text));
    for (name, embedder) in [("n-grams, fixed weights", plain), ("n-grams, learned weights", counts.build())]
    {
        let begin = Instant::now();
        let vectors = embedder.embed(&texts).await?;
        let each = begin.elapsed() / texts.len() as u32;
        println!("{name}: AUC {:.3}, {each:.1?} a text", auc(&labels, &vectors));
        let (queries, entries) = vectors.split_at(1000);
        index(name, &entries.to_vec(), &queries.to_vec())?;
    }

    let local = Local::open(Path::new(&model), &LocalOptions::default())?;
    let begin = Instant::now();
    let vectors = local.embed(&texts).await?;
    let each = begin.elapsed() / texts.len() as u32;
    println!("{}: AUC {:.3}, {each:.1?} a text", local.model(), auc(&labels, &vectors));
    let (queries, entries) = vectors.split_at(1000);
    let queries = queries.to_vec();
    for count in [1000, 10_000, entries.len()] {
        index("model", &entries[..count.min(entries.len())].to_vec(), &queries)?;
    }
    // More than there are: between two texts each.
    let mut random = fastrand::Rng::with_seed(3);
    let mixed = (0..100_000).map(|_| {
        let (a, b) = (&entries[random.usize(..entries.len())], &entries[random.usize(..entries.len())]);
        let mixed: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + 0.5 * b).collect();
        let length = dot(&mixed, &mixed).sqrt();
        mixed.iter().map(|x| x / length).collect()
    });
    index("model, mixed", &mixed.collect(), &queries[..200].to_vec())?;
    Ok(())
}
