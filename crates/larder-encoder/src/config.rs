//! What the JSON files of a model's folder say, and what of it this crate can run.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// A tokenizer of 250,000 pieces has 17 MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The shape of a BERT model, from `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Shape {
    #[serde(default)]
    model_type: Option<String>,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) type_vocab_size: usize,
    #[serde(default = "epsilon")]
    pub(crate) layer_norm_eps: f32,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

fn epsilon() -> f32 {
    1e-12
}

impl Shape {
    pub(crate) fn check(&self) -> Result<()> {
        let named = [
            ("model_type", &self.model_type, "bert"),
            ("hidden_act", &self.hidden_act, "gelu"),
            ("position_embedding_type", &self.position_embedding_type, "absolute"),
        ];
        for (setting, value, only) in named {
            if let Some(value) = value.as_deref().filter(|&value| value != only) {
                return Err(unsupported(format!("{setting} is {value:?}; {only:?} is understood")));
            }
        }
        let sizes = [
            ("hidden_size", self.hidden_size, 4096),
            ("num_hidden_layers", self.num_hidden_layers, 64),
            ("num_attention_heads", self.num_attention_heads, 256),
            ("intermediate_size", self.intermediate_size, 16_384),
            ("max_position_embeddings", self.max_position_embeddings, 8192),
            ("type_vocab_size", self.type_vocab_size, 1024),
        ];
        for (setting, value, max) in sizes {
            if value == 0 || value > max {
                return Err(unsupported(format!("{setting} is {value}; 1 to {max} are allowed")));
            }
        }
        if self.max_position_embeddings < 3 {
            return Err(unsupported(
                "max_position_embeddings leaves no room for a token between [CLS] and [SEP]",
            ));
        }
        let head = self.hidden_size / self.num_attention_heads;
        if head * self.num_attention_heads != self.hidden_size || !head.is_multiple_of(16) {
            let message = format!(
                "hidden_size {} over num_attention_heads {} is not a multiple of 16",
                self.hidden_size, self.num_attention_heads
            );
            return Err(unsupported(message));
        }
        if !self.intermediate_size.is_multiple_of(16) {
            return Err(unsupported(format!(
                "intermediate_size {} is not a multiple of 16",
                self.intermediate_size
            )));
        }
        if !(0.0..1.0).contains(&self.layer_norm_eps) {
            return Err(unsupported(format!("layer_norm_eps is {}; it lies in [0, 1)", self.layer_norm_eps)));
        }
        Ok(())
    }
}

/// How the vectors of a text's tokens become the text's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The mean of all.
    Mean,
    /// That of the first token.
    Cls,
}

/// `1_Pooling/config.json`, in its older and its newer form.
#[derive(Deserialize)]
struct PoolingFile {
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

/// How to pool, by the files in `dir`. Without any, the mean: what sentence-transformers does for a plain BERT.
pub(crate) fn pooling(dir: &Path) -> Result<Pooling> {
    let path = dir.join("modules.json");
    for module in optional::<Vec<Module>>(&path)?.unwrap_or_default() {
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        if !matches!(kind, "Transformer" | "Pooling" | "Normalize") {
            let message =
                format!("module {:?}; Transformer, Pooling and Normalize are understood", module.kind);
            return Err(unsupported(message).at(&path));
        }
    }
    let path = dir.join("1_Pooling/config.json");
    let Some(file) = optional::<PoolingFile>(&path)? else { return Ok(Pooling::Mean) };
    let others = file.pooling_mode_max_tokens
        || file.pooling_mode_mean_sqrt_len_tokens
        || file.pooling_mode_weightedmean_tokens
        || file.pooling_mode_lasttoken;
    match (file.pooling_mode.as_deref(), file.pooling_mode_mean_tokens, file.pooling_mode_cls_token) {
        (Some("mean"), _, _) | (None, true, false) if !others => Ok(Pooling::Mean),
        (Some("cls"), _, _) | (None, false, true) if !others => Ok(Pooling::Cls),
        _ => Err(unsupported("pooling other than by mean or by cls").at(&path)),
    }
}

#[derive(Deserialize)]
struct SentenceFile {
    max_seq_length: Option<usize>,
}

/// `tokenizer_config.json`.
#[derive(Default, Deserialize)]
pub(crate) struct TokenizerFile {
    /// Some models say 10^30 for "no limit".
    model_max_length: Option<f64>,
    pub(crate) do_lower_case: Option<bool>,
    pub(crate) strip_accents: Option<bool>,
    pub(crate) tokenize_chinese_chars: Option<bool>,
}

/// How many tokens of a text count, `[CLS]` and `[SEP]` among them: `max_seq_length`, else `model_max_length`, and no
/// more than the model has positions.
pub(crate) fn tokens_max(dir: &Path, tokenizer: &TokenizerFile, positions: usize) -> Result<usize> {
    let path = dir.join("sentence_bert_config.json");
    let said = optional::<SentenceFile>(&path)?.and_then(|file| file.max_seq_length);
    let said = said.or(tokenizer.model_max_length.map(|max| max as usize)).unwrap_or(positions);
    if said < 3 {
        return Err(unsupported(format!("{said} tokens leave no room between [CLS] and [SEP]")).at(&path));
    }
    Ok(said.min(positions))
}

/// The JSON in `path`.
pub(crate) fn required<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(path, &bytes(path)?)
}

/// The JSON in `path`, if there is such a file.
pub(crate) fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    required(path).map(Some)
}

/// All of a file that is not too large for what it should be.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|problem| Error::io(path, "open it", problem))?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|problem| Error::io(path, "read it", problem))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("more than {FILE_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::TooLarge, message).at(path));
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|problem| Error::new(ErrorKind::Corrupt, problem.to_string()).at(path))
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
