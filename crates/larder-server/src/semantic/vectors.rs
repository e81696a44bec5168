//! Where embeddings come from. For now: a file of JSON lines, written beforehand by whatever embeds.

use crate::commands::Failure;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Turns texts into vectors of one length.
pub(super) trait Embed {
    /// The vectors of the texts, in their order.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure>;
}

/// Vectors by the exact text they belong to.
pub(super) struct VectorFile {
    path: PathBuf,
    vectors: HashMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
    vector: Vec<f32>,
}

impl VectorFile {
    /// Reads lines of `{"text": "…", "vector": [0.1, …]}`.
    pub(super) fn read(path: &Path) -> Result<VectorFile, Failure> {
        let failed = |what: String| Failure::new(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let mut vectors: HashMap<String, Vec<f32>> = HashMap::new();
        let mut dimensions = None;
        for (at, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|error| failed(error.to_string()))?;
            if line.trim().is_empty() {
                continue;
            }
            let Line { text, vector } = serde_json::from_str(&line)
                .map_err(|error| failed(format!("line {} is no text with a vector: {error}", at + 1)))?;
            let expected = *dimensions.get_or_insert(vector.len());
            if vector.len() != expected || vector.is_empty() || vector.iter().any(|part| !part.is_finite()) {
                let length = vector.len();
                return Err(failed(format!(
                    "line {}: a vector of {length} numbers, where {expected} finite ones are expected",
                    at + 1
                )));
            }
            vectors.insert(text, vector);
        }
        Ok(VectorFile { path: path.to_owned(), vectors })
    }
}

impl Embed for VectorFile {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        let missing = || {
            format!(
                "{} lacks the vector of a text: write one line for each text of the data",
                self.path.display()
            )
        };
        texts
            .iter()
            .map(|text| self.vectors.get(*text).cloned().ok_or_else(|| Failure::new(missing())))
            .collect()
    }
}
