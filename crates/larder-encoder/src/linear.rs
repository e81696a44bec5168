//! A layer's matrix, packed for the kernels: 16 outputs side by side, as floats or as bytes with a scale per output.

use crate::kernels::elementwise::{dequantise, quantise};
use crate::kernels::{Isa, Lanes, PANEL, Quads, product_f32, product_i8};

/// How the weights of a model's layers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Weights {
    /// As in the file: the reference's vectors to 7 digits.
    #[default]
    F32,
    /// One byte per weight with a scale per output, and inputs scaled by token: a quarter of the memory of the layers,
    /// up to four times as fast, cosine .99 and more to the vectors of `F32`. They make vectors of another version:
    /// the two are not to be compared.
    Int8,
}

/// A matrix and what is added to its product.
#[derive(Debug)]
pub(crate) struct Linear {
    inputs: usize,
    outputs: usize,
    packed: Packed,
    pub(crate) bias: Vec<f32>,
}

#[derive(Debug)]
enum Packed {
    F32(Vec<Lanes>),
    Int8 { panels: Vec<Quads>, scales: Vec<f32>, sums: Vec<i32> },
}

/// Memory for inputs in bytes and their products.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    inputs: Vec<u8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Linear {
    /// Packs `matrix`, a row per output. Inputs and outputs are multiples of 16.
    pub(crate) fn new(matrix: &[f32], bias: Vec<f32>, kind: Weights) -> Self {
        let outputs = bias.len();
        let inputs = matrix.len() / outputs;
        let packed = match kind {
            Weights::F32 => Packed::F32(
                (0..outputs / PANEL * inputs)
                    .map(|at| {
                        let (panel, k) = (at / inputs, at % inputs);
                        Lanes(std::array::from_fn(|c| matrix[(panel * PANEL + c) * inputs + k]))
                    })
                    .collect(),
            ),
            Weights::Int8 => pack_bytes(matrix, inputs, outputs),
        };
        Linear { inputs, outputs, packed, bias }
    }

    /// `out = x * matrix`, without the bias. `out` says how many rows there are.
    pub(crate) fn multiply(&self, isa: Isa, x: &[f32], out: &mut [f32], memory: &mut Bytes) {
        let rows = out.len() / self.outputs;
        match &self.packed {
            Packed::F32(panels) => product_f32(isa, x, self.inputs, panels, self.outputs, out),
            Packed::Int8 { panels, scales, sums } => {
                memory.inputs.resize(rows * self.inputs, 0);
                memory.scales.resize(rows, 0.0);
                memory.sums.resize(out.len(), 0);
                let x = &x[..rows * self.inputs];
                quantise(isa, x, self.inputs, &mut memory.inputs, &mut memory.scales);
                let (inputs, _) = memory.inputs.as_chunks::<4>();
                product_i8(isa, inputs, self.inputs / 4, panels, self.outputs, &mut memory.sums);
                dequantise(isa, &memory.sums, &memory.scales, scales, sums, out);
            }
        }
    }
}

fn pack_bytes(matrix: &[f32], inputs: usize, outputs: usize) -> Packed {
    let scales: Vec<f32> = matrix
        .chunks_exact(inputs)
        .map(|row| row.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0)
        .collect();
    let byte = |output: usize, k: usize| {
        let scale = scales[output];
        if scale > 0.0 { (matrix[output * inputs + k] / scale).round() as i8 } else { 0 }
    };
    let quads = inputs / 4;
    let panels = (0..outputs / PANEL * quads)
        .map(|at| {
            let (panel, quad) = (at / quads, at % quads);
            Quads(std::array::from_fn(|c| std::array::from_fn(|k| byte(panel * PANEL + c, quad * 4 + k))))
        })
        .collect();
    let sums = (0..outputs).map(|output| (0..inputs).map(|k| i32::from(byte(output, k))).sum()).collect();
    Packed::Int8 { panels, scales, sums }
}
