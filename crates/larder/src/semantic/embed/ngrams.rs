//! The embedder that needs no model: a text's words and their runs of 3 to 5 letters, hashed, weighted and projected
//! to few dimensions by random signs. It sees spelling, not meaning: "cancel my card" and "card cancellation" are
//! near, "refund" and "money back" are not.

use async_trait::async_trait;
use xxhash_rust::xxh3::xxh3_64;

use super::Embedder;
use crate::error::{Error, ErrorKind, Result};
use crate::semantic::Model;

const NAME: &str = "larder-ngrams";
/// Raised whenever a text's vector changes by a change of this file.
const ALGORITHM: u32 = 1;
const DIMENSIONS: usize = 512;
const SHORTEST: usize = 3;
const LONGEST: usize = 5;
/// Each feature is added to so many dimensions, with a sign of its own in each.
const PLACES: u32 = 4;
/// Features share a weight if their hashes are the same in these many bits.
const WEIGHT_BITS: u32 = 15;
const WEIGHTS: usize = 1 << WEIGHT_BITS;
/// A weight of 1.
const ONE: u8 = 16;
/// A whole word says more than one of its parts.
const WORD_FACTOR: f32 = 2.0;
/// Letters of a text that count; what a question is about stands in far fewer.
const CHARS_MAX: usize = 8192;
const MAGIC: &[u8; 8] = b"larderN1";

/// Words that say little about what a sentence is about. Negations and prepositions of direction are not among them.
const COMMON: &str = "a an the i you he she it we they me my your his her its our their this that these those is are \
    was were be been am do does did have has had can could would should will shall may might must of in on at by for \
    as and or but if so than then there here what which who whom how when where why please tell just also very";
const COMMON_WEIGHT: u8 = 4;

/// Hashed letters: no download, a few microseconds a text, and no more than that. Beside a sentence encoder it misses
/// paraphrases, and what differs by one word looks alike to both.
///
/// A built one never changes. [`Ngrams::new`] knows the common words of English; [`NgramCounts`] learns from texts
/// which features are rare, and yields an embedder of another version.
#[derive(Clone, Debug)]
pub struct Ngrams {
    model: Model,
    weights: Box<[u8]>,
}

/// In how many texts each feature was seen: the inverse document frequency, while it is being learned.
#[derive(Clone, Debug)]
pub struct NgramCounts {
    texts: u32,
    counts: Box<[u32]>,
}

impl Default for Ngrams {
    fn default() -> Self {
        Self::new()
    }
}

impl Ngrams {
    /// The one with fixed weights.
    pub fn new() -> Self {
        let mut weights = vec![ONE; WEIGHTS].into_boxed_slice();
        features(COMMON, |hash, _| weights[weight_of(hash)] = COMMON_WEIGHT);
        Self::with(weights)
    }

    fn with(weights: Box<[u8]>) -> Self {
        let version = format!("{ALGORITHM}-{:016x}", xxh3_64(&weights));
        Ngrams { model: Model { name: NAME.into(), version, dimensions: DIMENSIONS }, weights }
    }

    /// The vector of `text`, of length 1. Takes some microseconds.
    pub fn vector(&self, text: &str) -> Vec<f32> {
        let mut found: Vec<(u64, f32)> = Vec::with_capacity(4 * text.len().min(CHARS_MAX) + 1);
        features(text, |hash, factor| found.push((hash, factor)));
        if found.is_empty() {
            // No letters: "???" is like itself and like nothing else.
            found.push((xxh3_64(text.as_bytes()), 1.0));
        }
        // How often a feature occurs counts by its root, or one word that is repeated would be all of the text.
        found.sort_unstable_by_key(|&(hash, _)| hash);
        let mut vector = vec![0f32; DIMENSIONS];
        for same in found.chunk_by(|a, b| a.0 == b.0) {
            let (hash, factor) = same[0];
            let value = factor * f32::from(self.weights[weight_of(hash)]) * (same.len() as f32).sqrt();
            for place in 0..PLACES {
                let bits = hash >> (place * 10);
                let value = if bits & 1 == 1 { value } else { -value };
                vector[(bits >> 1) as usize % DIMENSIONS] += value;
            }
        }
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|x| *x /= length);
        } else {
            // Features that cancel each other out, to the last.
            vector[0] = 1.0;
        }
        vector
    }

    /// What [`from_bytes`](Self::from_bytes) reads: 32 kB.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&ALGORITHM.to_le_bytes());
        bytes.extend_from_slice(&self.weights);
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// The embedder that [`to_bytes`](Self::to_bytes) was called on: equal texts get equal vectors.
    ///
    /// # Errors
    /// `Corrupt` if these are not its bytes; `Unsupported` if they are of a version of larder whose vectors are others.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let corrupt = || {
            Error::new(ErrorKind::Corrupt, "open").message("these are not the bytes of an n-gram embedder")
        };
        let (content, sum) = bytes.split_last_chunk::<8>().ok_or_else(corrupt)?;
        let rest = content.strip_prefix(MAGIC).ok_or_else(corrupt)?;
        let (algorithm, weights) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
        if u64::from_le_bytes(*sum) != xxh3_64(content) || weights.len() != WEIGHTS {
            return Err(corrupt());
        }
        let algorithm = u32::from_le_bytes(*algorithm);
        if algorithm != ALGORITHM {
            let message = format!("an n-gram embedder of version {algorithm}; this larder has {ALGORITHM}");
            return Err(Error::new(ErrorKind::Unsupported, "open").message(message));
        }
        Ok(Self::with(weights.into()))
    }
}

#[async_trait]
impl Embedder for Ngrams {
    fn model(&self) -> &Model {
        &self.model
    }

    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }
}

impl Default for NgramCounts {
    fn default() -> Self {
        Self::new()
    }
}

impl NgramCounts {
    /// Nothing seen yet.
    pub fn new() -> Self {
        NgramCounts { texts: 0, counts: vec![0; WEIGHTS].into_boxed_slice() }
    }

    /// Counts the features of one more text.
    pub fn observe(&mut self, text: &str) {
        let mut places = Vec::new();
        features(text, |hash, _| places.push(weight_of(hash)));
        places.sort_unstable();
        places.dedup();
        self.texts = self.texts.saturating_add(1);
        for place in places {
            self.counts[place] = self.counts[place].saturating_add(1);
        }
    }

    /// How many texts were seen.
    pub fn texts(&self) -> u32 {
        self.texts
    }

    /// The embedder that weighs features by how few of the texts have them (a smoothed IDF). Its version is its own:
    /// what is in an index has to be embedded again.
    pub fn build(&self) -> Ngrams {
        let most = f32::ln(1.0 + self.texts as f32);
        let weight = |&count: &u32| {
            let idf = ((1.0 + self.texts as f32) / (1.0 + count as f32)).ln();
            let share = if most > 0.0 { idf / most } else { 1.0 };
            (f32::from(ONE) * 4.0 * share).round().max(1.0) as u8
        };
        Ngrams::with(self.counts.iter().map(weight).collect())
    }
}

fn weight_of(hash: u64) -> usize {
    (hash >> (64 - WEIGHT_BITS)) as usize
}

/// Calls `each` with the hash and the factor of every feature of `text`: its words, and their runs of letters with
/// the word's borders.
fn features(text: &str, mut each: impl FnMut(u64, f32)) {
    let mut word = String::from("<");
    // Where each letter of the word begins.
    let mut begins = vec![0];
    let mut end = |word: &mut String, begins: &mut Vec<usize>| {
        if begins.len() > 1 {
            begins.push(word.len());
            word.push('>');
            each(xxh3_64(word.as_bytes()), WORD_FACTOR);
            begins.push(word.len());
            for length in SHORTEST..=LONGEST {
                // A run of the whole word was counted as the word.
                for run in begins.windows(length + 1).filter(|run| run[length] - run[0] < word.len()) {
                    each(xxh3_64(&word.as_bytes()[run[0]..run[length]]), 1.0);
                }
            }
        }
        word.truncate(1);
        begins.truncate(1);
    };
    for c in text.chars().take(CHARS_MAX).flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            begins.push(word.len());
            word.push(c);
        } else if c != '\'' && c != '\u{2019}' {
            end(&mut word, &mut begins);
        }
    }
    end(&mut word, &mut begins);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(embedder: &Ngrams, a: &str, b: &str) -> f32 {
        embedder.vector(a).iter().zip(embedder.vector(b)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn what_is_spelled_alike_is_near() {
        let embedder = Ngrams::new();
        let near = similarity(&embedder, "How do I cancel my card?", "card cancellation, please");
        let far = similarity(&embedder, "How do I cancel my card?", "What is the weather in Rome?");
        assert!(near > 0.3 && far < 0.15, "{near} {far}");
        assert!((similarity(&embedder, "Don't PANIC!", "dont panic") - 1.0).abs() < 1e-6);
        assert!(similarity(&embedder, "what is the time", "what is the price") < 0.6);
    }

    #[test]
    fn every_text_has_a_vector_of_length_1() {
        let embedder = Ngrams::new();
        for text in
            ["", " ", "?", "a", "中文", "é", "\0", &"x".repeat(100_000), &"word ".repeat(100_000), "🙂"]
        {
            let vector = embedder.vector(text);
            let length: f32 = vector.iter().map(|x| x * x).sum();
            assert!(vector.len() == DIMENSIONS && (length - 1.0).abs() < 1e-5, "{length}");
        }
    }

    /// A vector that changes from one release to the next makes every index that was stored wrong. If this fails on
    /// purpose, raise `ALGORITHM`.
    #[test]
    fn vectors_are_the_same_for_ever() {
        let embedder = Ngrams::new();
        let vector = embedder.vector("How do I reset the PIN of my card? 3 × naïve");
        let bits: Vec<u8> = vector.iter().flat_map(|x| ((x * 1e4).round() as i32).to_le_bytes()).collect();
        assert_eq!(
            (ALGORITHM, xxh3_64(&bits), embedder.model().version.as_str()),
            (1, 17_693_083_255_782_995_701, "1-cf461422ec5f5100")
        );
    }

    #[test]
    fn what_was_learned_is_another_version_and_comes_back() {
        let mut counts = NgramCounts::new();
        for n in 0..100 {
            counts.observe(&format!("customer number {n} asks about a card"));
        }
        let learned = counts.build();
        let plain = Ngrams::new();
        assert_ne!(learned.model().version, plain.model().version);
        let (a, b) = ("customer asks about zebras", "customer asks about a card");
        assert!(similarity(&learned, a, b) < similarity(&plain, a, b));
        let bytes = learned.to_bytes();
        let back = Ngrams::from_bytes(&bytes).unwrap();
        assert_eq!((back.model(), back.vector(a)), (learned.model(), learned.vector(a)));
        for cut in [0, 7, 20, bytes.len() - 1] {
            assert_eq!(Ngrams::from_bytes(&bytes[..cut]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let mut changed = bytes;
        changed[100] ^= 1;
        assert_eq!(Ngrams::from_bytes(&changed).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(NgramCounts::new().build().vector("a").len(), DIMENSIONS);
    }
}
