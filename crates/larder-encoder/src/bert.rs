//! The forward pass of BERT: token ids to a vector per token. Texts of a batch lie behind each other without padding,
//! so that a text's vector does not depend on what it is encoded with.

use std::io::{Read, Seek};
use std::ops::Range;

use crate::config::Shape;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Isa;
use crate::kernels::elementwise::{Head, add_and_normalise, add_bias, add_bias_gelu, attend};
use crate::linear::{Bytes, Linear, Weights};
use crate::safetensors::Tensors;

/// More pieces than any BERT has.
const VOCABULARY_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Bert {
    width: usize,
    heads: usize,
    between: usize,
    epsilon: f32,
    words: Vec<f32>,
    /// With the type's vector added, which is the same for all tokens of a single text.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values in one product.
    attention: Linear,
    attended: Linear,
    attended_norm: Norm,
    widen: Linear,
    narrow: Linear,
    narrow_norm: Norm,
}

#[derive(Debug)]
struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// What a forward pass needs beside the weights; some 30 kB per token of the batch at the width of MiniLM.
#[derive(Debug, Default)]
struct Memory {
    attention: Vec<f32>,
    keys: Vec<f32>,
    scores: Vec<f32>,
    attended: Vec<f32>,
    wide: Vec<f32>,
    out: Vec<f32>,
    bytes: Bytes,
}

impl Bert {
    pub(crate) fn load<R: Read + Seek>(
        file: &mut Tensors<R>,
        shape: &Shape,
        weights: Weights,
    ) -> Result<Self> {
        let width = shape.hidden_size;
        let prefix = if file.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let at = |name: &str| format!("{prefix}{name}");

        let name = at("embeddings.word_embeddings.weight");
        let vocabulary = file.rows(&name)?;
        if vocabulary > VOCABULARY_MAX {
            let message = format!("{vocabulary} rows; {VOCABULARY_MAX} are allowed");
            return Err(Error::new(ErrorKind::TooLarge, message).in_tensor(&name));
        }
        let words = file.read(&name, &[vocabulary, width])?;
        let mut positions =
            file.read(&at("embeddings.position_embeddings.weight"), &[shape.max_position_embeddings, width])?;
        let types =
            file.read(&at("embeddings.token_type_embeddings.weight"), &[shape.type_vocab_size, width])?;
        for position in positions.chunks_exact_mut(width) {
            position.iter_mut().zip(&types[..width]).for_each(|(x, more)| *x += more);
        }
        let norm = Norm::load(file, &at("embeddings.LayerNorm"), width)?;

        let layers = (0..shape.num_hidden_layers).map(|index| {
            let at = |name: &str| at(&format!("encoder.layer.{index}.{name}"));
            let (mut matrix, mut bias) = (Vec::new(), Vec::new());
            for part in ["query", "key", "value"] {
                let name = at(&format!("attention.self.{part}"));
                matrix.extend(file.read(&format!("{name}.weight"), &[width, width])?);
                bias.extend(file.read(&format!("{name}.bias"), &[width])?);
            }
            let attention = Linear::new(&matrix, bias, weights);
            let mut linear = |name: &str, outputs: usize, inputs: usize| -> Result<Linear> {
                let matrix = file.read(&at(&format!("{name}.weight")), &[outputs, inputs])?;
                let bias = file.read(&at(&format!("{name}.bias")), &[outputs])?;
                Ok(Linear::new(&matrix, bias, weights))
            };
            Ok(Layer {
                attention,
                attended: linear("attention.output.dense", width, width)?,
                widen: linear("intermediate.dense", shape.intermediate_size, width)?,
                narrow: linear("output.dense", width, shape.intermediate_size)?,
                attended_norm: Norm::load(file, &at("attention.output.LayerNorm"), width)?,
                narrow_norm: Norm::load(file, &at("output.LayerNorm"), width)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Bert {
            width,
            heads: shape.num_attention_heads,
            between: shape.intermediate_size,
            epsilon: shape.layer_norm_eps,
            words,
            positions,
            norm,
            layers,
        })
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.words.len() / self.width
    }

    /// The vectors of all tokens of `texts`, one after the other. Ids are below [`vocabulary`](Self::vocabulary), and
    /// no text is longer than there are positions.
    pub(crate) fn forward(&self, isa: Isa, texts: &[Vec<u32>]) -> Vec<f32> {
        let width = self.width;
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let mut hidden = Vec::with_capacity(tokens * width);
        for text in texts {
            for &id in text {
                hidden.extend_from_slice(&self.words[id as usize * width..][..width]);
            }
        }
        let mut positions = Vec::with_capacity(tokens * width);
        for text in texts {
            positions.extend_from_slice(&self.positions[..text.len() * width]);
        }
        let none = vec![0.0; width];
        self.norm.apply(isa, &mut hidden, &positions, &none, self.epsilon);

        let mut memory = Memory::default();
        memory.attention.resize(tokens * 3 * width, 0.0);
        memory.attended.resize(tokens * width, 0.0);
        memory.wide.resize(tokens * self.between, 0.0);
        memory.out.resize(tokens * width, 0.0);
        for layer in &self.layers {
            self.layer(isa, layer, texts, &mut hidden, &mut memory);
        }
        hidden
    }

    fn layer(&self, isa: Isa, layer: &Layer, texts: &[Vec<u32>], hidden: &mut [f32], memory: &mut Memory) {
        let Memory { attention, keys, scores, attended, wide, out, bytes } = memory;
        layer.attention.multiply(isa, hidden, attention, bytes);
        add_bias(isa, attention, &layer.attention.bias);
        let mut first = 0;
        for text in texts {
            self.attend(isa, first..first + text.len(), attention, keys, scores, attended);
            first += text.len();
        }
        layer.attended.multiply(isa, attended, out, bytes);
        layer.attended_norm.apply(isa, hidden, out, &layer.attended.bias, self.epsilon);

        layer.widen.multiply(isa, hidden, wide, bytes);
        add_bias_gelu(isa, wide, &layer.widen.bias);
        layer.narrow.multiply(isa, wide, out, bytes);
        layer.narrow_norm.apply(isa, hidden, out, &layer.narrow.bias, self.epsilon);
    }

    /// Lets the tokens of one text attend to each other, head by head.
    fn attend(
        &self,
        isa: Isa,
        text: Range<usize>,
        attention: &[f32],
        keys: &mut Vec<f32>,
        scores: &mut Vec<f32>,
        attended: &mut [f32],
    ) {
        let (width, tokens) = (self.width, text.len());
        let (head, stride) = (width / self.heads, 3 * width);
        let attention = &attention[text.start * stride..text.end * stride];
        let attended = &mut attended[text.start * width..text.end * width];
        let shape = Head { tokens, head, stride, out_stride: width };
        keys.resize(head * tokens, 0.0);
        scores.resize(tokens, 0.0);
        for begin in (0..width).step_by(head) {
            for (token, row) in attention.chunks_exact(stride).enumerate() {
                for (dimension, &key) in row[width + begin..][..head].iter().enumerate() {
                    keys[dimension * tokens + token] = key;
                }
            }
            let values = &attention[2 * width + begin..];
            let queries = &attention[begin..];
            attend(isa, shape, queries, keys, values, scores, &mut attended[begin..]);
        }
    }
}

impl Norm {
    fn load<R: Read + Seek>(file: &mut Tensors<R>, name: &str, width: usize) -> Result<Self> {
        // Models that were converted from TensorFlow have the older names.
        let older = file.has(&format!("{name}.gamma"));
        let [scale, shift] = if older { ["gamma", "beta"] } else { ["weight", "bias"] };
        Ok(Norm {
            scale: file.read(&format!("{name}.{scale}"), &[width])?,
            shift: file.read(&format!("{name}.{shift}"), &[width])?,
        })
    }

    fn apply(&self, isa: Isa, rows: &mut [f32], more: &[f32], bias: &[f32], epsilon: f32) {
        add_and_normalise(isa, rows, more, bias, &self.scale, &self.shift, epsilon);
    }
}
