//! WordPiece: words into the ids of the longest known pieces. Equal to the `tokenizers` crate for BERT models, which
//! would bring some sixty crates; `tests/tokenizer_equals_reference.rs` holds the two together.

mod normalize;

use std::collections::HashMap;
use std::ops::ControlFlow;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
pub(crate) use normalize::Normalizer;

/// Added tokens are looked for at every byte of a text; BERT has five.
const ADDED_TOKENS_MAX: usize = 64;
const PREFIX: &str = "##";

/// Text into token ids.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    normalizer: Normalizer,
    word_chars_max: usize,
    begins: HashMap<Box<str>, u32>,
    /// Without their prefix.
    continues: HashMap<Box<str>, u32>,
    piece_bytes_max: usize,
    unknown: u32,
    first: u32,
    last: u32,
    /// Found in a text before it is normalised: `[MASK]` is a token, also when a user writes it.
    added: Vec<(Box<str>, u32)>,
    id_max: u32,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<FileNormalizer>,
    pre_tokenizer: Option<Typed>,
    post_processor: Option<PostProcessor>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

#[derive(Deserialize)]
struct FileNormalizer {
    #[serde(rename = "type")]
    kind: String,
    clean_text: Option<bool>,
    handle_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
    lowercase: Option<bool>,
}

#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct PostProcessor {
    #[serde(rename = "type")]
    kind: String,
    /// Of `BertProcessing`.
    cls: Option<(String, u32)>,
    sep: Option<(String, u32)>,
    /// Of `TemplateProcessing`.
    single: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<Box<str>, u32>,
    #[serde(default = "unknown")]
    unk_token: String,
    #[serde(default = "prefix")]
    continuing_subword_prefix: String,
    #[serde(default = "word_chars_max")]
    max_input_chars_per_word: usize,
}

fn unknown() -> String {
    "[UNK]".into()
}

fn prefix() -> String {
    PREFIX.into()
}

fn word_chars_max() -> usize {
    100
}

impl Tokenizer {
    /// From the text of a `tokenizer.json`. Its truncation and padding are not used: lengths are the model's.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self> {
        let file: File = serde_json::from_slice(json).map_err(|problem| corrupt(problem.to_string()))?;
        if let Some(kind) = file.model.kind.as_deref().filter(|&kind| kind != "WordPiece") {
            return Err(unsupported(format!("model {kind:?}; WordPiece is understood")));
        }
        let Some(normalizer) = file.normalizer.filter(|normalizer| normalizer.kind == "BertNormalizer")
        else {
            return Err(unsupported("the normalizer is not BertNormalizer"));
        };
        if file.pre_tokenizer.is_none_or(|splitter| splitter.kind != "BertPreTokenizer") {
            return Err(unsupported("the pre_tokenizer is not BertPreTokenizer"));
        }
        if file.model.continuing_subword_prefix != PREFIX {
            return Err(unsupported("continuing_subword_prefix is not \"##\""));
        }
        let lowercase = normalizer.lowercase.unwrap_or(true);
        let normalizer = Normalizer {
            clean_text: normalizer.clean_text.unwrap_or(true),
            handle_chinese_chars: normalizer.handle_chinese_chars.unwrap_or(true),
            strip_accents: normalizer.strip_accents.unwrap_or(lowercase),
            lowercase,
        };
        let (first, last) = ends(file.post_processor)?;
        let mut added = Vec::new();
        for token in file.added_tokens {
            if token.single_word
                || token.lstrip
                || token.rstrip
                || token.normalized
                || token.content.is_empty()
            {
                let message = format!(
                    "added token {:?} is empty or has single_word, lstrip, rstrip or normalized",
                    token.content
                );
                return Err(unsupported(message));
            }
            added.push((token.content.into_boxed_str(), token.id));
        }
        Self::build(
            file.model.vocab,
            normalizer,
            file.model.max_input_chars_per_word,
            [&file.model.unk_token, &first, &last],
            added,
        )
    }

    /// From the text of a `vocab.txt`: one piece a line, its id the line's number.
    pub(crate) fn from_vocabulary(text: &str, normalizer: Normalizer) -> Result<Self> {
        let mut vocabulary = HashMap::new();
        for (id, line) in text.lines().enumerate() {
            let id = u32::try_from(id).map_err(|_| corrupt("more than 2^32 lines".into()))?;
            vocabulary.insert(line.into(), id);
        }
        let named = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
        let added = named.iter().filter_map(|&name| Some((name.into(), *vocabulary.get(name)?))).collect();
        Self::build(vocabulary, normalizer, word_chars_max(), ["[UNK]", "[CLS]", "[SEP]"], added)
    }

    fn build(
        vocabulary: HashMap<Box<str>, u32>,
        normalizer: Normalizer,
        word_chars_max: usize,
        special: [&str; 3],
        mut added: Vec<(Box<str>, u32)>,
    ) -> Result<Self> {
        if added.len() > ADDED_TOKENS_MAX {
            return Err(unsupported(format!("{} added tokens; {ADDED_TOKENS_MAX} are allowed", added.len())));
        }
        let id = |name: &str| {
            let by_vocabulary = vocabulary.get(name).copied();
            let by_addition = || added.iter().find(|(text, _)| **text == *name).map(|&(_, id)| id);
            by_vocabulary
                .or_else(by_addition)
                .ok_or_else(|| corrupt(format!("{name:?} is not in the vocabulary")))
        };
        let (unknown, first, last) = (id(special[0])?, id(special[1])?, id(special[2])?);
        // Where two begin at the same place, the longer one counts.
        added.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        let ids = vocabulary.values().chain(added.iter().map(|(_, id)| id));
        let id_max = ids.copied().max().unwrap_or(0);
        let piece_bytes_max = vocabulary.keys().map(|piece| piece.len()).max().unwrap_or(0);
        let continues =
            vocabulary.iter().filter_map(|(piece, &id)| Some((piece.strip_prefix(PREFIX)?.into(), id)));
        let continues = continues.collect();
        Ok(Tokenizer {
            normalizer,
            word_chars_max,
            begins: vocabulary,
            continues,
            piece_bytes_max,
            unknown,
            first,
            last,
            added,
            id_max,
        })
    }

    /// The largest id that [`encode`](Self::encode) can yield.
    pub(crate) fn id_max(&self) -> u32 {
        self.id_max
    }

    /// The ids of `text` between those of `[CLS]` and `[SEP]`, at most `tokens_max` together: the rest of the text is
    /// cut off, and hardly looked at.
    pub(crate) fn encode(&self, text: &str, tokens_max: usize) -> Vec<u32> {
        let room = tokens_max.saturating_sub(1);
        let mut ids = vec![self.first];
        let mut rest = text;
        while !rest.is_empty() && ids.len() < room {
            let found = self.find_added(rest);
            let before = found.map_or(rest.len(), |(at, _, _)| at);
            let _ = self.normalizer.words(&rest[..before], self.word_chars_max, |word| {
                match word {
                    Some(word) => self.push_pieces(word, &mut ids),
                    None => ids.push(self.unknown),
                }
                if ids.len() < room { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            match found {
                Some((at, bytes, id)) => {
                    ids.push(id);
                    rest = &rest[at + bytes..];
                }
                None => break,
            }
        }
        ids.truncate(room.max(1));
        ids.push(self.last);
        ids
    }

    /// Where the first added token is in `text`, its length and its id.
    fn find_added(&self, text: &str) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        (0..bytes.len()).find_map(|at| {
            let found = self.added.iter().find(|(token, _)| bytes[at..].starts_with(token.as_bytes()));
            found.map(|(token, id)| (at, token.len(), *id))
        })
    }

    /// Greedily the longest piece first; a word with a part that is in no piece is unknown as a whole.
    fn push_pieces(&self, word: &str, ids: &mut Vec<u32>) {
        let had = ids.len();
        let mut start = 0;
        while start < word.len() {
            let pieces = if start == 0 { &self.begins } else { &self.continues };
            let mut end = boundary(word, start + self.piece_bytes_max);
            let found = loop {
                if end <= start {
                    break None;
                }
                if let Some(&id) = pieces.get(&word[start..end]) {
                    break Some(id);
                }
                end = boundary(word, end - 1);
            };
            let Some(id) = found else {
                ids.truncate(had);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            start = end;
        }
    }
}

/// The last boundary between characters at or before `at`.
fn boundary(word: &str, at: usize) -> usize {
    (0..=at.min(word.len())).rev().find(|&at| word.is_char_boundary(at)).unwrap_or(0)
}

/// The tokens at both ends of a single text.
fn ends(processor: Option<PostProcessor>) -> Result<(String, String)> {
    let Some(processor) = processor else {
        return Err(unsupported("there is no post_processor that adds [CLS] and [SEP]"));
    };
    let ends = match processor.kind.as_str() {
        "BertProcessing" => processor.cls.zip(processor.sep).map(|(first, last)| (first.0, last.0)),
        "TemplateProcessing" => match processor.single.as_deref() {
            Some([first, text, last]) if text.get("Sequence").is_some() => {
                let name = |part: &serde_json::Value| part["SpecialToken"]["id"].as_str().map(str::to_owned);
                name(first).zip(name(last))
            }
            _ => None,
        },
        _ => None,
    };
    ends.ok_or_else(|| {
        unsupported(format!("post_processor {:?} does not frame a text by two tokens", processor.kind))
    })
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
