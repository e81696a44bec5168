//! Products with AVX-512: tiles of up to 12 rows by 32 columns, whose 24 sums stay in registers.

use std::arch::x86_64::*;

use super::{Lanes, PANEL, Quads, tiles};

const ROWS: usize = 12;

/// Calls `$tile::<ROWS, PANELS>` for a number of rows known only at run time.
macro_rules! for_height {
    (@call $tile:ident::<$rows:literal, $panels:literal> ($($argument:expr),*)) => {
        $tile::<$rows, $panels>($($argument),*)
    };
    ($height:expr, $tile:ident::<$panels:literal> $arguments:tt) => {
        for_height!($height, $tile, $panels, $arguments, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    ($height:expr, $tile:ident, $panels:literal, $arguments:tt, $($rows:literal)*) => {
        match $height {
            $($rows => for_height!(@call $tile::<$rows, $panels> $arguments),)*
            _ => unreachable!("tiles are at most 12 rows high"),
        }
    };
}

/// # Safety
/// The processor has AVX-512 F. `x` has `rows * inputs` numbers, `panels` `inputs * outputs / 16` and `out`
/// `rows * outputs`; `outputs` is a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn product_f32(
    x: &[f32],
    rows: usize,
    inputs: usize,
    panels: &[Lanes],
    outputs: usize,
    out: &mut [f32],
) {
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    let mut column = 0;
    while column < outputs {
        let two = column + 2 * PANEL <= outputs;
        tiles(rows, ROWS, |begin, height| {
            // SAFETY: rows `begin .. begin + height` and 16 or 32 columns from `column` on are within all three.
            unsafe {
                let x = x.add(begin * inputs);
                let out = out.add(begin * outputs + column);
                let panel = panels.as_ptr().add(column / PANEL * inputs);
                if two {
                    for_height!(height, tile_f32::<2>(x, inputs, panel, outputs, out));
                } else {
                    for_height!(height, tile_f32::<1>(x, inputs, panel, outputs, out));
                }
            }
        });
        column += if two { 2 * PANEL } else { PANEL };
    }
}

/// # Safety
/// As [`product_f32`], for `R` rows and `P` panels from the places that the pointers show.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn tile_f32<const R: usize, const P: usize>(
    x: *const f32,
    inputs: usize,
    panel: *const Lanes,
    outputs: usize,
    out: *mut f32,
) {
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    for k in 0..inputs {
        // SAFETY: `k` is below `inputs`, `p` below `P` and `row` below `R`.
        unsafe {
            let mut weights = [_mm512_setzero_ps(); P];
            for (p, weights) in weights.iter_mut().enumerate() {
                *weights = _mm512_load_ps(panel.add(p * inputs + k).cast());
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(*x.add(row * inputs + k));
                for (sum, &weights) in sums.iter_mut().zip(&weights) {
                    *sum = _mm512_fmadd_ps(factor, weights, *sum);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (p, &sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(out.add(row * outputs + p * PANEL), sum) };
        }
    }
}

/// # Safety
/// The processor has AVX-512 F and VNNI; lengths as for [`product_f32`], in quads.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn product_i8(
    x: &[[u8; 4]],
    rows: usize,
    quads: usize,
    panels: &[Quads],
    outputs: usize,
    out: &mut [i32],
) {
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    let mut column = 0;
    while column < outputs {
        let two = column + 2 * PANEL <= outputs;
        tiles(rows, ROWS, |begin, height| {
            // SAFETY: rows `begin .. begin + height` and 16 or 32 columns from `column` on are within all three.
            unsafe {
                let x = x.add(begin * quads);
                let out = out.add(begin * outputs + column);
                let panel = panels.as_ptr().add(column / PANEL * quads);
                if two {
                    for_height!(height, tile_i8::<2>(x, quads, panel, outputs, out));
                } else {
                    for_height!(height, tile_i8::<1>(x, quads, panel, outputs, out));
                }
            }
        });
        column += if two { 2 * PANEL } else { PANEL };
    }
}

/// # Safety
/// As [`product_i8`], for `R` rows and `P` panels from the places that the pointers show.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn tile_i8<const R: usize, const P: usize>(
    x: *const [u8; 4],
    quads: usize,
    panel: *const Quads,
    outputs: usize,
    out: *mut i32,
) {
    let mut sums = [[_mm512_setzero_si512(); P]; R];
    for k in 0..quads {
        // SAFETY: `k` is below `quads`, `p` below `P` and `row` below `R`.
        unsafe {
            let mut weights = [_mm512_setzero_si512(); P];
            for (p, weights) in weights.iter_mut().enumerate() {
                *weights = _mm512_load_si512(panel.add(p * quads + k).cast());
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factors = _mm512_set1_epi32(i32::from_le_bytes(*x.add(row * quads + k)));
                for (sum, &weights) in sums.iter_mut().zip(&weights) {
                    // Unsigned by signed bytes, summed in 32 bits without saturation.
                    *sum = _mm512_dpbusd_epi32(*sum, factors, weights);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (p, &sum) in sums.iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(out.add(row * outputs + p * PANEL).cast(), sum) };
        }
    }
}
