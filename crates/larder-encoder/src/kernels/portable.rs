//! Products in plain Rust, for processors without a kernel of their own. Not fused: without the instruction, a fused
//! product is a call of the C library.

use super::{Lanes, PANEL, Quads, tiles};

const ROWS: usize = 4;

pub(super) fn product_f32(
    x: &[f32],
    rows: usize,
    inputs: usize,
    panels: &[Lanes],
    outputs: usize,
    out: &mut [f32],
) {
    for column in (0..outputs).step_by(PANEL) {
        let panel = &panels[column / PANEL * inputs..][..inputs];
        tiles(rows, ROWS, |begin, height| {
            let mut sums = [[0f32; PANEL]; ROWS];
            for (k, weights) in panel.iter().enumerate() {
                for (row, sums) in sums.iter_mut().take(height).enumerate() {
                    let factor = x[(begin + row) * inputs + k];
                    for (sum, weight) in sums.iter_mut().zip(&weights.0) {
                        *sum += factor * weight;
                    }
                }
            }
            for (row, sums) in sums.iter().take(height).enumerate() {
                out[(begin + row) * outputs + column..][..PANEL].copy_from_slice(sums);
            }
        });
    }
}

pub(super) fn product_i8(
    x: &[[u8; 4]],
    rows: usize,
    quads: usize,
    panels: &[Quads],
    outputs: usize,
    out: &mut [i32],
) {
    for column in (0..outputs).step_by(PANEL) {
        let panel = &panels[column / PANEL * quads..][..quads];
        for row in 0..rows {
            let mut sums = [0i32; PANEL];
            for (factors, weights) in x[row * quads..][..quads].iter().zip(panel) {
                for (sum, weights) in sums.iter_mut().zip(&weights.0) {
                    for (&factor, &weight) in factors.iter().zip(weights) {
                        *sum += i32::from(factor) * i32::from(weight);
                    }
                }
            }
            out[row * outputs + column..][..PANEL].copy_from_slice(&sums);
        }
    }
}
