//! Products with Advanced SIMD: tiles of up to 6 rows by 16 columns, whose 24 sums stay in registers.

use std::arch::aarch64::*;

use super::{Lanes, PANEL, tiles};

/// # Safety
/// The processor has NEON. `x` has `rows * inputs` numbers, `panels` `inputs * outputs / 16` and `out`
/// `rows * outputs`; `outputs` is a multiple of 16.
#[target_feature(enable = "neon")]
pub(super) unsafe fn product_f32(
    x: &[f32],
    rows: usize,
    inputs: usize,
    panels: &[Lanes],
    outputs: usize,
    out: &mut [f32],
) {
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    for column in (0..outputs).step_by(PANEL) {
        tiles(rows, 6, |begin, height| {
            // SAFETY: rows `begin .. begin + height` and 16 columns from `column` on are within all three.
            unsafe {
                let x = x.add(begin * inputs);
                let out = out.add(begin * outputs + column);
                let panel = panels.as_ptr().add(column / PANEL * inputs);
                match height {
                    1 => tile_f32::<1>(x, inputs, panel, outputs, out),
                    2 => tile_f32::<2>(x, inputs, panel, outputs, out),
                    3 => tile_f32::<3>(x, inputs, panel, outputs, out),
                    4 => tile_f32::<4>(x, inputs, panel, outputs, out),
                    5 => tile_f32::<5>(x, inputs, panel, outputs, out),
                    _ => tile_f32::<6>(x, inputs, panel, outputs, out),
                }
            }
        });
    }
}

/// # Safety
/// As [`product_f32`], for `R` rows and one panel from the places that the pointers show.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn tile_f32<const R: usize>(
    x: *const f32,
    inputs: usize,
    panel: *const Lanes,
    outputs: usize,
    out: *mut f32,
) {
    let mut sums = [[vdupq_n_f32(0.0); 4]; R];
    for k in 0..inputs {
        // SAFETY: `k` is below `inputs` and `row` below `R`; a panel's lane has 16 numbers.
        unsafe {
            let weights: *const f32 = panel.add(k).cast();
            let mut lanes = [vdupq_n_f32(0.0); 4];
            for (part, lanes) in lanes.iter_mut().enumerate() {
                *lanes = vld1q_f32(weights.add(part * 4));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = vdupq_n_f32(*x.add(row * inputs + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = vfmaq_f32(*sum, factor, lanes);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (part, &sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { vst1q_f32(out.add(row * outputs + part * 4), sum) };
        }
    }
}
