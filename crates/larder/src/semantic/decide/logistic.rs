//! Ridge logistic regression on standardised features, fitted by Newton's method. Few features, thousands of rows: a
//! fit costs about a millisecond.

use serde::{Deserialize, Serialize};

/// The strength of the prior that a standardised feature says nothing: that of one observation.
const RIDGE: f64 = 1.0;
/// Newton's method converges in about eight steps here.
const STEPS_MAX: usize = 30;

/// A fitted model: the probability that a row's label is true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Logistic {
    bias: f64,
    weights: Vec<f64>,
    means: Vec<f64>,
    scales: Vec<f64>,
}

impl Logistic {
    /// Fits rows of equal length; `None` where one label is missing, nothing is there, or nothing fits.
    pub(super) fn fit<'a>(rows: &(impl Iterator<Item = (&'a [f32], bool)> + Clone)) -> Option<Logistic> {
        let width = rows.clone().next()?.0.len();
        let (mut count, mut positives) = (0.0, 0.0);
        let (mut means, mut squares) = (vec![0.0; width], vec![0.0; width]);
        for (row, label) in rows.clone() {
            count += 1.0;
            positives += f64::from(u8::from(label));
            for (at, value) in row.iter().enumerate() {
                means[at] += f64::from(*value);
                squares[at] += f64::from(*value).powi(2);
            }
        }
        if positives == 0.0 || positives == count {
            return None;
        }
        let mut scales = vec![1.0; width];
        for at in 0..width {
            means[at] /= count;
            let deviation = (squares[at] / count - means[at] * means[at]).max(0.0).sqrt();
            // A feature that hardly ever varied has nothing to say yet.
            scales[at] = if deviation > 1e-6 { 1.0 / deviation } else { 0.0 };
        }
        let mut model = Logistic {
            bias: (positives / (count - positives)).ln(),
            weights: vec![0.0; width],
            means,
            scales,
        };
        let size = width + 1;
        let mut x = vec![0.0; size];
        for _ in 0..STEPS_MAX {
            let mut gradient = vec![0.0; size];
            let mut hessian = vec![0.0; size * size];
            for (row, label) in rows.clone() {
                model.standardise(row, &mut x);
                let p = sigmoid(model.bias + dot(&model.weights, &x[1..]));
                let (error, curve) = (f64::from(u8::from(label)) - p, (p * (1.0 - p)).max(1e-9));
                for i in 0..size {
                    gradient[i] += error * x[i];
                    for j in 0..=i {
                        hessian[i * size + j] += curve * x[i] * x[j];
                    }
                }
            }
            for at in 0..size {
                let ridge = if at == 0 { 1e-3 } else { RIDGE };
                gradient[at] -= if at == 0 { 0.0 } else { RIDGE * model.weights[at - 1] };
                hessian[at * size + at] += ridge;
            }
            let step = solve(&mut hessian, &gradient, size)?;
            let longest = step.iter().fold(0.0_f64, |longest, part| longest.max(part.abs()));
            // Far from the optimum Newton's step may overshoot.
            let damping = if longest > 3.0 { 3.0 / longest } else { 1.0 };
            model.bias += damping * step[0];
            for at in 0..width {
                model.weights[at] += damping * step[at + 1];
            }
            if longest < 1e-4 {
                return model.is_sound().then_some(model);
            }
        }
        // It did not converge: sure of anything it would be wrong.
        None
    }

    /// The probability that the row's label is true.
    pub(super) fn probability(&self, row: &[f32]) -> f64 {
        let sum: f64 = row
            .iter()
            .zip(&self.means)
            .zip(self.scales.iter().zip(&self.weights))
            .map(|((value, mean), (scale, weight))| (f64::from(*value) - mean) * scale * weight)
            .sum();
        sigmoid(self.bias + sum)
    }

    pub(super) fn is_sound(&self) -> bool {
        let lengths = self.weights.len() == self.means.len() && self.means.len() == self.scales.len();
        lengths
            && self.bias.is_finite()
            && [&self.weights, &self.means, &self.scales]
                .iter()
                .all(|row| row.iter().all(|value| value.is_finite()))
    }

    pub(super) fn width(&self) -> usize {
        self.weights.len()
    }

    fn standardise(&self, row: &[f32], x: &mut [f64]) {
        x[0] = 1.0;
        for (at, value) in row.iter().enumerate() {
            x[at + 1] = (f64::from(*value) - self.means[at]) * self.scales[at];
        }
    }
}

pub(super) fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// Solves the symmetric system whose lower triangle is given (Cholesky); `None` if it is not positive definite.
fn solve(matrix: &mut [f64], right: &[f64], size: usize) -> Option<Vec<f64>> {
    for i in 0..size {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| matrix[i * size + k] * matrix[j * size + k]).sum();
            let rest = matrix[i * size + j] - sum;
            matrix[i * size + j] = if i == j {
                if rest.is_nan() || rest <= 0.0 {
                    return None;
                }
                rest.sqrt()
            } else {
                rest / matrix[j * size + j]
            };
        }
    }
    let mut solution = right.to_vec();
    for i in 0..size {
        let sum: f64 = (0..i).map(|k| matrix[i * size + k] * solution[k]).sum();
        solution[i] = (solution[i] - sum) / matrix[i * size + i];
    }
    for i in (0..size).rev() {
        let sum: f64 = (i + 1..size).map(|k| matrix[k * size + i] * solution[k]).sum();
        solution[i] = (solution[i] - sum) / matrix[i * size + i];
    }
    Some(solution)
}
