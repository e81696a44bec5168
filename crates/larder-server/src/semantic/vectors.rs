//! Where embeddings come from; and one such place, a file of JSON lines, written beforehand by whatever embeds.

use super::data::json_problem;
use crate::commands::Failure;
use larder::semantic::Model;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Turns texts into vectors of one length.
pub(super) trait Embed {
    /// What the vectors are made by, for the report.
    fn model(&self) -> Model;

    /// The vectors of the texts, in their order. `embedded` is told of how many more there are, now and then.
    fn embed(&self, texts: &[&str], embedded: &mut dyn FnMut(usize)) -> Result<Vec<Vec<f32>>, Failure>;
}

/// Vectors by the exact text they belong to.
pub(super) struct VectorFile {
    path: PathBuf,
    dimensions: usize,
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
        let failed_at =
            |at: usize, what: String| Failure::new(format!("{}:{}: {what}", path.display(), at + 1));
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let mut vectors: HashMap<String, Vec<f32>> = HashMap::new();
        let mut dimensions = None;
        for (at, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|error| failed(error.to_string()))?;
            if line.trim().is_empty() {
                continue;
            }
            let Line { text, vector } = serde_json::from_str(&line)
                .map_err(|error| failed_at(at, format!("no text with a vector: {}", json_problem(&error))))?;
            let expected = *dimensions.get_or_insert(vector.len());
            if vector.len() != expected || vector.is_empty() || vector.iter().any(|part| !part.is_finite()) {
                let length = vector.len();
                return Err(failed_at(
                    at,
                    format!("a vector of {length} numbers, where {expected} finite ones are expected"),
                ));
            }
            vectors.insert(text, vector);
        }
        Ok(VectorFile { path: path.to_owned(), dimensions: dimensions.unwrap_or(0), vectors })
    }
}

impl Embed for VectorFile {
    fn model(&self) -> Model {
        let name = self.path.to_string_lossy().into_owned();
        Model { name, version: "as written".into(), dimensions: self.dimensions }
    }

    fn embed(&self, texts: &[&str], embedded: &mut dyn FnMut(usize)) -> Result<Vec<Vec<f32>>, Failure> {
        embedded(texts.len());
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
