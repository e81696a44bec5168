//! Products with AVX2 and FMA: tiles of up to 6 rows by 16 columns for floats, 2 rows for bytes.

use std::arch::x86_64::*;

use super::{Lanes, PANEL, Quads, tiles};

/// # Safety
/// The processor has AVX2 and FMA. `x` has `rows * inputs` numbers, `panels` `inputs * outputs / 16` and `out`
/// `rows * outputs`; `outputs` is a multiple of 16.
#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn tile_f32<const R: usize>(
    x: *const f32,
    inputs: usize,
    panel: *const Lanes,
    outputs: usize,
    out: *mut f32,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for k in 0..inputs {
        // SAFETY: `k` is below `inputs` and `row` below `R`; a panel's lane has 16 numbers.
        unsafe {
            let weights: *const f32 = panel.add(k).cast();
            let weights = [_mm256_load_ps(weights), _mm256_load_ps(weights.add(8))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = _mm256_set1_ps(*x.add(row * inputs + k));
                sums[0] = _mm256_fmadd_ps(factor, weights[0], sums[0]);
                sums[1] = _mm256_fmadd_ps(factor, weights[1], sums[1]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(out.add(row * outputs), sums[0]);
            _mm256_storeu_ps(out.add(row * outputs + 8), sums[1]);
        }
    }
}

/// # Safety
/// The processor has AVX2; lengths as for [`product_f32`], in quads.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn product_i8(
    x: &[[u8; 4]],
    rows: usize,
    quads: usize,
    panels: &[Quads],
    outputs: usize,
    out: &mut [i32],
) {
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    for column in (0..outputs).step_by(PANEL) {
        tiles(rows, 2, |begin, height| {
            // SAFETY: rows `begin .. begin + height` and 16 columns from `column` on are within all three.
            unsafe {
                let x = x.add(begin * quads);
                let out = out.add(begin * outputs + column);
                let panel = panels.as_ptr().add(column / PANEL * quads);
                match height {
                    1 => tile_i8::<1>(x, quads, panel, outputs, out),
                    _ => tile_i8::<2>(x, quads, panel, outputs, out),
                }
            }
        });
    }
}

/// # Safety
/// As [`product_i8`], for `R` rows and one panel from the places that the pointers show.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn tile_i8<const R: usize>(
    x: *const [u8; 4],
    quads: usize,
    panel: *const Quads,
    outputs: usize,
    out: *mut i32,
) {
    // Each holds two sums of 4 columns: of the inputs 0 and 1, and of 2 and 3. The instruction for bytes
    // (`maddubs`) saturates at 16 bits, so that they are widened first.
    let mut sums = [[_mm256_setzero_si256(); 4]; R];
    for k in 0..quads {
        // SAFETY: `k` is below `quads` and `row` below `R`; a panel's quads are 64 bytes.
        unsafe {
            let weights: *const __m128i = panel.add(k).cast();
            let mut wide = [_mm256_setzero_si256(); 4];
            for (part, wide) in wide.iter_mut().enumerate() {
                *wide = _mm256_cvtepi8_epi16(_mm_load_si128(weights.add(part)));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factors = _mm_set1_epi32(i32::from_le_bytes(*x.add(row * quads + k)));
                let factors = _mm256_cvtepu8_epi16(factors);
                for (sum, &wide) in sums.iter_mut().zip(&wide) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(factors, wide));
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for half in 0..2 {
            // Adds neighbours; the order of the columns comes out as 0 1 4 5 2 3 6 7 and is put right.
            let pairs = _mm256_hadd_epi32(sums[half * 2], sums[half * 2 + 1]);
            let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            // SAFETY: as above.
            unsafe { _mm256_storeu_si256(out.add(row * outputs + half * 8).cast(), pairs) };
        }
    }
}
