//! The policy of "vCache: Verified Semantic Prompt Caching" (arXiv 2502.03771), written from the paper: each entry
//! learns its own threshold. Few errors, and few hits where questions have a long tail.

use super::logistic::sigmoid;
use super::threshold::{Counted, proposal};
use super::{
    Action, ClusterId, Contest, Decision, EntryId, Estimate, Placement, Policy, Question, Reason, StateError,
    Verdict, state,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Judged observations an entry needs before it serves: the paper's figure.
const OBSERVATIONS_MIN: usize = 6;
/// Observations kept of an entry, the last ones: a fit of two parameters gains little from more.
const OBSERVATIONS_MAX: usize = 64;
/// Entries with observations, at most: 30 MiB when all are full.
const ENTRIES_MAX: usize = 50_000;
/// Values of epsilon that are tried: the paper's figure.
const EPSILONS: usize = 50;

/// Settings of [`VCache`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VCacheOptions {
    /// Highest share of all questions that may get a wrong answer. Default .02.
    pub error_rate_max: f64,
    /// Chooses what is explored.
    pub seed: u64,
}

impl Default for VCacheOptions {
    fn default() -> Self {
        VCacheOptions { error_rate_max: 0.02, seed: 0 }
    }
}

/// Explores each question with the probability that keeps its error within the bound.
///
/// An entry's judged observations (similarity s, right or wrong) give a logistic curve L(s; t, g). For each epsilon,
/// t' is the upper confidence bound of t, and α = (1 - epsilon) L(s; t', g) bounds the probability of being right from
/// below; it asks with probability min over epsilon of 1 - δ / (1 - α).
#[derive(Clone, Debug)]
pub struct VCache {
    options: VCacheOptions,
    state: State,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    counted: Counted,
    draws: u64,
    entries: BTreeMap<EntryId, VecDeque<(f32, bool)>>,
}

impl VCache {
    /// A policy with these settings.
    pub fn new(options: VCacheOptions) -> VCache {
        VCache { options, state: State::default() }
    }

    /// The probability with which to ask, and that of being right.
    fn exploration(&self, entry: EntryId, similarity: f64) -> (f64, f64) {
        let Some(seen) = self.state.entries.get(&entry).filter(|seen| seen.len() >= OBSERVATIONS_MIN) else {
            return (1.0, 0.5);
        };
        let curve = Curve::fit(seen);
        let explored = (1..=EPSILONS).map(|step| {
            let epsilon = step as f64 / (EPSILONS + 1) as f64;
            let threshold = curve.threshold + normal_quantile(1.0 - epsilon) * curve.deviation;
            let right = (1.0 - epsilon) * sigmoid(curve.slope * (similarity - threshold));
            1.0 - self.options.error_rate_max / (1.0 - right)
        });
        (explored.fold(1.0, f64::min).max(0.0), sigmoid(curve.slope * (similarity - curve.threshold)))
    }
}

impl Policy for VCache {
    fn name(&self) -> &'static str {
        "vcache"
    }

    fn decide(&mut self, question: &Question<'_>) -> Decision {
        let contest = Contest::of(question);
        let decision = match contest.contenders.first() {
            None => Decision::ask(contest.absence()),
            Some(contender) => {
                let similarity = contender.nearest.similarity;
                let (explore, p) = self.exploration(contender.nearest.entry, f64::from(similarity));
                self.state.draws += 1;
                let draw = fastrand::Rng::with_seed(
                    self.options.seed ^ self.state.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15),
                )
                .f64();
                let (action, reason) = match draw < explore {
                    true => (Action::Ask, Reason::Exploring),
                    false => (Action::Serve, Reason::WithinBound),
                };
                let mut decision = proposal(&contest, contender, action, p, reason);
                decision.features = vec![similarity];
                decision.contenders.truncate(1);
                decision
            }
        };
        self.state.counted.note(&decision);
        decision
    }

    fn learn(&mut self, decision: &Decision, verdicts: &[Verdict]) -> Placement {
        if let (Some((entry, _)), Some(verdict), Some(similarity)) =
            (decision.proposed, verdicts.first(), decision.features.first())
        {
            if self.state.entries.len() >= ENTRIES_MAX && !self.state.entries.contains_key(&entry) {
                self.state.entries.pop_first();
            }
            let seen = self.state.entries.entry(entry).or_default();
            seen.push_back((*similarity, *verdict == Verdict::Same));
            if seen.len() > OBSERVATIONS_MAX {
                seen.pop_front();
            }
        }
        match verdicts.first() {
            // The paper adds no entry for a question whose nearest had its answer.
            Some(Verdict::Same) => Placement::Known,
            _ => Placement::NewCluster,
        }
    }

    fn complain(&mut self, cluster: ClusterId) {
        self.state.counted.complaints += 1;
        self.state.counted.records.note(cluster, false);
    }

    fn forget(&mut self, cluster: ClusterId) {
        self.state.counted.records.forget(cluster);
    }

    fn estimate(&self) -> Estimate {
        self.state.counted.estimate()
    }

    fn save(&self) -> Vec<u8> {
        let entries: Vec<_> = self.state.entries.iter().collect();
        state::write(self.name(), 1, &(&self.state.counted, self.state.draws, entries))
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        type Saved = (Counted, u64, Vec<(EntryId, VecDeque<(f32, bool)>)>);
        let (counted, draws, entries): Saved = state::read("vcache", 1, bytes)?;
        let sound = entries.len() <= ENTRIES_MAX
            && entries.iter().all(|(_, seen)| {
                seen.len() <= OBSERVATIONS_MAX && seen.iter().all(|(similarity, _)| similarity.is_finite())
            });
        if !sound {
            return Err(StateError::Damaged("an entry's observations are out of range".to_owned()));
        }
        self.state =
            State { counted: Counted::checked(counted)?, draws, entries: entries.into_iter().collect() };
        Ok(())
    }
}

/// A logistic curve of similarity: where it crosses one half, how sure that is, and how steep it is.
struct Curve {
    threshold: f64,
    deviation: f64,
    slope: f64,
}

impl Curve {
    /// Maximum likelihood with a weak prior, without which a perfectly parted entry would have an infinite slope.
    fn fit(seen: &VecDeque<(f32, bool)>) -> Curve {
        // Of bias and slope, for similarities about .8; a slope of ten takes ±.2 from .12 to .88.
        let (centre, prior_slope, ridge) = (0.8, 10.0, 0.01);
        let (mut bias, mut slope) = (0.0, prior_slope);
        let mut hessian = (1.0, 0.0, 1.0);
        for _ in 0..25 {
            let mut gradient = (-ridge * bias, -ridge * (slope - prior_slope));
            hessian = (ridge, 0.0, ridge);
            for (similarity, is_right) in seen {
                let x = f64::from(*similarity) - centre;
                let p = sigmoid(bias + slope * x);
                let (error, curve) = (f64::from(u8::from(*is_right)) - p, p * (1.0 - p));
                gradient = (gradient.0 + error, gradient.1 + error * x);
                hessian = (hessian.0 + curve, hessian.1 + curve * x, hessian.2 + curve * x * x);
            }
            let determinant = (hessian.0 * hessian.2 - hessian.1 * hessian.1).max(1e-12);
            let step = (
                (hessian.2 * gradient.0 - hessian.1 * gradient.1) / determinant,
                (hessian.0 * gradient.1 - hessian.1 * gradient.0) / determinant,
            );
            bias += step.0.clamp(-2.0, 2.0);
            slope = (slope + step.1.clamp(-10.0, 10.0)).clamp(1.0, 200.0);
            if step.0.abs() + step.1.abs() < 1e-6 {
                break;
            }
        }
        let determinant = (hessian.0 * hessian.2 - hessian.1 * hessian.1).max(1e-12);
        let offset = -bias / slope;
        // The delta method, for a quotient.
        let variance = (hessian.2 - 2.0 * offset * hessian.1 + offset * offset * hessian.0)
            / determinant
            / (slope * slope);
        Curve { threshold: centre + offset, deviation: variance.max(0.0).sqrt(), slope }
    }
}

/// The standard normal quantile, by bisection of the distribution function.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if normal_share(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The share of a standard normal below a value (Abramowitz and Stegun 7.1.26, error below 1e-7).
fn normal_share(value: f64) -> f64 {
    let x = value.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = ((((1.061_405_429 * t - 1.453_152_027) * t + 1.421_413_741) * t - 0.284_496_736) * t
        + 0.254_829_592)
        * t;
    let above = 0.5 * series * (-x * x).exp();
    if value < 0.0 { above } else { 1.0 - above }
}
