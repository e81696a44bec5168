//! What this prevents: vectors that are nearly those of the reference implementation, so that thresholds measured
//! elsewhere do not hold, and a model's vectors of today can't be compared with those of tomorrow.
//!
//! The golden files are `tools/golden.py`'s, by sentence-transformers on PyTorch. The full model is a package's and is
//! not kept here: `LARDER_MINILM` names its folder.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::path::{Path, PathBuf};

use larder_encoder::{Encoder, EncoderOptions, Kernels, Weights};
use serde::Deserialize;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn options(kernels: Kernels, weights: Weights) -> EncoderOptions {
    let mut options = EncoderOptions::default();
    options.kernels = Some(kernels);
    options.weights = weights;
    options
}

fn available() -> impl Iterator<Item = Kernels> {
    Kernels::ALL.into_iter().filter(|kernels| kernels.is_available())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    mean: Vec<f32>,
    cls: Vec<f32>,
}

fn rows() -> Vec<Row> {
    serde_json::from_slice(&std::fs::read(golden("tiny.json")).unwrap()).unwrap()
}

/// A copy of the tiny model with some of its files changed.
fn tiny_with(changes: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for name in [
        "config.json",
        "vocab.txt",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(golden("tiny").join(name), dir.path().join(name)).unwrap();
    }
    for (name, content) in changes {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

const CLS: &str = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;

#[test]
fn a_tiny_model_equals_the_reference_with_all_kernels() {
    let cls = tiny_with(&[("1_Pooling/config.json", CLS)]);
    for kernels in available() {
        for (dir, is_cls) in [(golden("tiny"), false), (cls.path().to_owned(), true)] {
            let encoder = Encoder::open_with(&dir, &options(kernels, Weights::F32)).unwrap();
            assert_eq!((encoder.dimensions(), encoder.tokens_max(), encoder.kernels()), (48, 32, kernels));
            for row in rows() {
                assert_eq!(encoder.tokens(&row.text), row.ids, "{:?}", row.text);
                let vector = encoder.encode(&row.text).unwrap();
                let expected = if is_cls { &row.cls } else { &row.mean };
                let largest = vector.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(largest < 3e-6, "{kernels:?} {:?}: differs by {largest}", row.text);
                assert!((cosine(&vector, &vector) - 1.0).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn bytes_for_weights_give_nearly_the_same_and_equal_on_all_kernels() {
    let texts: Vec<String> = rows().into_iter().map(|row| row.text).collect();
    let exact = Encoder::open(&golden("tiny")).unwrap();
    let vectors = exact.encode_batch(&texts).unwrap();
    let mut of_bytes: Option<Vec<Vec<f32>>> = None;
    for kernels in available() {
        let encoder = Encoder::open_with(&golden("tiny"), &options(kernels, Weights::Int8)).unwrap();
        assert_ne!(encoder.version(), exact.version(), "vectors that are not the same have the same version");
        let got = encoder.encode_batch(&texts).unwrap();
        for (a, b) in got.iter().zip(&vectors) {
            assert!(cosine(a, b) > 0.99, "{kernels:?}: {}", cosine(a, b));
        }
        assert!(of_bytes.as_ref().is_none_or(|before| *before == got), "{kernels:?}");
        of_bytes = Some(got);
    }
}

#[test]
fn a_text_has_the_same_vector_in_any_company() {
    let encoder = Encoder::open(&golden("tiny")).unwrap();
    // More tokens than go through the model at once.
    let texts: Vec<String> = rows().iter().cycle().take(300).map(|row| row.text.clone()).collect();
    let together = encoder.encode_batch(&texts).unwrap();
    for (text, vector) in texts.iter().zip(&together).step_by(7) {
        assert_eq!(&encoder.encode(text).unwrap(), vector);
    }
    assert_eq!(encoder.encode_batch::<&str>(&[]).unwrap(), Vec::<Vec<f32>>::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(encoder.encode_batch(&texts).unwrap(), together));
        }
    });
}

fn splitmix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xCBF2_9CE4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The golden file has a projection of each vector. It keeps distances (in the mean, with 25 % of spread for 32 random
/// directions), and a cosine of .99999 is a squared distance of 2e-5.
#[test]
fn minilm_equals_the_reference_on_1000_texts() {
    const DIMENSIONS: usize = 32;
    let folder = std::env::var_os("LARDER_MINILM").expect(
        "LARDER_MINILM names no folder with all-MiniLM-L6-v2: `.ci/minilm` fetches one and prints the folder",
    );
    let encoder = Encoder::open(Path::new(&folder)).unwrap();
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(golden("texts.json")).unwrap()).unwrap();
    let rows = std::fs::read(golden("minilm.bin")).unwrap();
    assert_eq!(rows.len(), texts.len() * (8 + 4 * DIMENSIONS));
    let (mut worst, mut sum) = (0f64, 0f64);
    let vectors = encoder.encode_batch(&texts).unwrap();
    for ((text, vector), row) in texts.iter().zip(&vectors).zip(rows.chunks(8 + 4 * DIMENSIONS)) {
        let ids = fnv(encoder.tokens(text).into_iter().flat_map(u32::to_le_bytes));
        assert_eq!(ids.to_le_bytes(), row[..8], "tokens of {text:?}");
        let distance: f64 = (0..DIMENSIONS)
            .map(|j| {
                let sign = |i: usize| if splitmix((i * DIMENSIONS + j) as u64) & 1 == 1 { 1.0 } else { -1.0 };
                let projected: f64 = vector.iter().enumerate().map(|(i, x)| sign(i) * f64::from(*x)).sum();
                let expected = f32::from_le_bytes(row[8 + 4 * j..][..4].try_into().unwrap());
                (projected / (DIMENSIONS as f64).sqrt() - f64::from(expected)).powi(2)
            })
            .sum();
        worst = worst.max(distance);
        sum += distance;
    }
    println!("1 - cosine: mean {:.1e}, worst {:.1e}", sum / 2.0 / texts.len() as f64, worst / 2.0);
    assert!(worst < 1e-9, "worst squared distance {worst}");

    let bytes = Encoder::open_with(Path::new(&folder), &options(Kernels::detect(), Weights::Int8)).unwrap();
    let sample: Vec<&String> = texts.iter().step_by(5).collect();
    let cosines: Vec<f64> = bytes
        .encode_batch(&sample)
        .unwrap()
        .iter()
        .zip(vectors.iter().step_by(5))
        .map(|(a, b)| cosine(a, b))
        .collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    println!("int8: cosine mean {mean:.5}, worst {:.5}", cosines.iter().copied().fold(1.0, f64::min));
    assert!(mean > 0.99, "{mean}");
}
