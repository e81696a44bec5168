//! How long a text takes: `cargo run --release -p larder-encoder --example encoder_figures FOLDER`.

#![allow(clippy::print_stdout, reason = "it prints figures")]

use std::path::Path;
use std::time::{Duration, Instant};

use larder_encoder::{Encoder, EncoderOptions, Kernels, Weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: encoder_figures FOLDER, with a model in it")?;
    let short = "can you tell me how to reset the pin of my new card";
    let long = format!("{short} ").repeat(10);
    for weights in [Weights::F32, Weights::Int8] {
        for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.is_available()) {
            let mut options = EncoderOptions::default();
            options.weights = weights;
            options.kernels = Some(kernels);
            let loading = Instant::now();
            let encoder = Encoder::open_with(Path::new(&folder), &options)?;
            let loaded = loading.elapsed();
            for text in [short, &long] {
                let mut times = Vec::new();
                let begin = Instant::now();
                while times.len() < 300 && begin.elapsed() < Duration::from_secs(4) {
                    let one = Instant::now();
                    encoder.encode(text)?;
                    times.push(one.elapsed());
                }
                times.sort();
                let tokens = encoder.tokens(text).len();
                let (least, median) = (times[0], times[times.len() / 2]);
                println!(
                    "{weights:?} {kernels:?}: {tokens} tokens, least {least:.2?}, median {median:.2?}; loaded in {loaded:.0?}"
                );
            }
        }
    }
    let encoder = Encoder::open(Path::new(&folder))?;
    let begin = Instant::now();
    let texts = 1000;
    for _ in 0..texts {
        std::hint::black_box(encoder.tokens(short));
    }
    println!("tokenizer: {:.2?} a text", begin.elapsed() / texts);
    Ok(())
}
