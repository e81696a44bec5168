//! All arithmetic beside the products: one text for all instruction sets, in loops that the compiler vectorises.

use super::per_isa;

/// Sums are kept in this many parts, whatever the instruction set, so that all come to the same.
const LANES: usize = 16;

/// One head of one text.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) tokens: usize,
    /// Its dimensions, a multiple of 16.
    pub(crate) head: usize,
    /// From one token's queries or values to the next one's.
    pub(crate) stride: usize,
    pub(crate) out_stride: usize,
}

per_isa! {
    /// Adds `bias` to each row and applies GELU (with `erf`, as BERT does).
    pub(crate) fn add_bias_gelu(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x = gelu(*x + bias);
            }
        }
    }

    /// Adds `bias` to each row.
    pub(crate) fn add_bias(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x += bias;
            }
        }
    }

    /// Adds `more` and `bias` to each row, then normalises the row to mean 0 and variance 1, scales and shifts it.
    pub(crate) fn add_and_normalise(
        rows: &mut [f32], more: &[f32], bias: &[f32], scale: &[f32], shift: &[f32], epsilon: f32,
    ) {
        let width = scale.len();
        for (row, more) in rows.chunks_exact_mut(width).zip(more.chunks_exact(width)) {
            for ((x, more), bias) in row.iter_mut().zip(more).zip(bias) {
                *x += more + bias;
            }
            normalise(row, scale, shift, epsilon);
        }
    }

    /// Softmax-weighted sums of `values` for the queries of one head of one text. `keys` is transposed: a row per
    /// dimension of the head, a column per token.
    pub(crate) fn attend(
        shape: Head, queries: &[f32], keys: &[f32], values: &[f32], scores: &mut [f32], out: &mut [f32],
    ) {
        let Head { tokens, head, stride, out_stride } = shape;
        let scale = 1.0 / (head as f32).sqrt();
        for token in 0..tokens {
            let scores = &mut scores[..tokens];
            scores.fill(0.0);
            let query = &queries[token * stride..][..head];
            for (factor, keys) in query.iter().zip(keys.chunks_exact(tokens)) {
                let factor = factor * scale;
                for (score, key) in scores.iter_mut().zip(keys) {
                    *score += factor * key;
                }
            }
            softmax(scores);
            let out = &mut out[token * out_stride..][..head];
            for (part, out) in out.chunks_exact_mut(LANES).enumerate() {
                let mut sums = [0f32; LANES];
                for (other, score) in scores.iter().enumerate() {
                    let value = &values[other * stride + part * LANES..][..LANES];
                    for (sum, value) in sums.iter_mut().zip(value) {
                        *sum += score * value;
                    }
                }
                out.copy_from_slice(&sums);
            }
        }
    }

    /// Rows to bytes, each by its own scale: `x = (byte - 128) * scale`.
    pub(crate) fn quantise(rows: &[f32], width: usize, bytes: &mut [u8], scales: &mut [f32]) {
        for ((row, bytes), scale) in rows.chunks_exact(width).zip(bytes.chunks_exact_mut(width)).zip(scales) {
            let mut largest = [0f32; LANES];
            for part in row.chunks_exact(LANES) {
                for (largest, x) in largest.iter_mut().zip(part) {
                    *largest = if x.abs() > *largest { x.abs() } else { *largest };
                }
            }
            let largest = largest.iter().fold(0f32, |a, &b| a.max(b));
            *scale = largest / 127.0;
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (byte, x) in bytes.iter_mut().zip(row) {
                // The sum lies in [1, 255], and its last bits are the rounded number.
                *byte = ((x * inverse + 128.0 + ROUND).to_bits() & 0xff) as u8;
            }
        }
    }

    /// The sums of products of bytes as floats: less what the offset of 128 added, times both scales.
    pub(crate) fn dequantise(
        sums: &[i32], row_scales: &[f32], column_scales: &[f32], column_sums: &[i32], out: &mut [f32],
    ) {
        let width = column_scales.len();
        for ((sums, out), row_scale) in sums.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(row_scales) {
            for (((sum, out), scale), column_sum) in sums.iter().zip(out).zip(column_scales).zip(column_sums) {
                *out = (sum - 128 * column_sum) as f32 * (row_scale * scale);
            }
        }
    }
}

/// Adding it to a small number leaves that number, rounded to an integer, in the last bits.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let parts = values.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        for (sum, &x) in sums.iter_mut().zip(part) {
            *sum += of(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += of(x);
    }
    sums.iter().sum()
}

#[inline(always)]
fn normalise(row: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let mean = sum(row, |x| x) / row.len() as f32;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
    let factor = 1.0 / (variance + epsilon).sqrt();
    for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
        *x = (*x - mean) * factor * scale + shift;
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let factor = 1.0 / sum(scores, |x| x);
    for score in scores.iter_mut() {
        *score *= factor;
    }
}

/// `e^x` for `x` up to 88; below -87 the smallest normal numbers. Relative error 2e-7. After Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts: the product of the first with `n` is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_5e-1)
        * r
        + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power
}

/// `x * P(X <= x)` for a normal `X`. The error function is a rational approximation on [-4, 4] (of the kind that Eigen
/// and XLA use), beyond which it is 1 in `f32`.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let t = x * std::f32::consts::FRAC_1_SQRT_2;
    let t = if t > 4.0 { 4.0 } else { t };
    let t = if t < -4.0 { -4.0 } else { t };
    let s = t * t;
    let p = ((((((-2.726_142e-10 * s + 2.770_681_4e-8) * s - 2.101_024e-6) * s - 5.692_506_3e-5) * s
        - 7.349_906_3e-4)
        * s
        - 2.954_6e-3)
        * s
        - 1.609_603_3e-2)
        * t;
    let q =
        (((-1.456_607_2e-5 * s - 2.133_740_5e-4) * s - 1.682_827e-3) * s - 7.373_329e-3) * s - 1.426_473_9e-2;
    0.5 * x * (1.0 + p / q)
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernels};
    use super::*;

    /// The error function by its power series, or by its continued fraction where that converges better.
    fn erf(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let mut term = x;
            let mut sum = x;
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let mut tail = 0.0;
            for n in (1..100).rev() {
                tail = f64::from(n) / 2.0 / (x.abs() + tail);
            }
            let rest = (-x * x).exp() / (x.abs() + tail) * std::f64::consts::FRAC_2_SQRT_PI / 2.0;
            (1.0 - rest).copysign(x)
        }
    }

    #[test]
    fn gelu_is_right() {
        for step in -12_000..=12_000 {
            let x = step as f32 / 1000.0;
            let exact = 0.5 * f64::from(x) * (1.0 + erf(f64::from(x) / std::f64::consts::SQRT_2));
            let error = (f64::from(gelu(x)) - exact).abs();
            // One unit in the last place of the error function counts for as much as x is large.
            assert!(error < 2e-7 * (1.0 + f64::from(x.abs())), "gelu({x}): {} and not {exact}", gelu(x));
        }
    }

    #[test]
    fn exp_is_right() {
        for step in -87_000..=1_000 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "exp({x}): {} and not {exact}", exp(x));
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn the_instruction_sets_agree_to_the_bit() {
        let x: Vec<f32> = (0..48 * 7).map(|n| ((n * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let results = Kernels::ALL.into_iter().filter_map(|kernels| Isa::new(kernels).ok()).map(|isa| {
            let mut rows = x.clone();
            add_bias_gelu(isa, &mut rows, &x[..48]);
            add_and_normalise(isa, &mut rows, &x, &x[..48], &x[48..96], &x[96..144], 1e-12);
            let (mut bytes, mut scales) = (vec![0; rows.len()], vec![0.0; 7]);
            quantise(isa, &rows, 48, &mut bytes, &mut scales);
            for ((x, &byte), at) in rows.iter().zip(&bytes).zip(0..) {
                let back = (f32::from(byte) - 128.0) * scales[at / 48];
                assert!((x - back).abs() <= scales[at / 48] * 0.501, "{x} {back}");
            }
            let mut out = vec![0.0; 7 * 16];
            let shape = Head { tokens: 7, head: 16, stride: 48, out_stride: 16 };
            attend(isa, shape, &rows, &x[..16 * 7], &x, &mut [0.0; 7], &mut out);
            (rows, bytes, out)
        });
        let results: Vec<_> = results.collect();
        assert!(results.windows(2).all(|two| two[0] == two[1]));
    }
}
