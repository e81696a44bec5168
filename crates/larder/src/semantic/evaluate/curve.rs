//! Precision and recall of a plain threshold, with vetoes and without: what a policy has to beat.

use serde::Serialize;

/// One threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Least similarity that is served.
    pub threshold: f32,
    /// Right ones served.
    pub right: u64,
    /// Wrong ones served.
    pub wrong: u64,
    /// The same, where nothing is served that is vetoed.
    pub right_unvetoed: u64,
    /// See `right_unvetoed`.
    pub wrong_unvetoed: u64,
}

impl CurvePoint {
    /// Share of served ones that are right; `None` where nothing is served.
    pub fn precision(&self) -> Option<f64> {
        let served = self.right + self.wrong;
        (served > 0).then(|| self.right as f64 / served as f64)
    }
}

/// Similarities of the nearest, with the truth, gathered over a replay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Curve {
    #[serde(skip)]
    seen: Vec<(f32, bool, bool)>,
}

impl Curve {
    pub(super) fn add(&mut self, similarity: f32, is_right: bool, is_vetoed: bool) {
        self.seen.push((similarity, is_right, is_vetoed));
    }

    /// How many of those seen would be right to serve.
    pub fn positives(&self) -> u64 {
        self.seen.iter().filter(|(_, is_right, _)| *is_right).count() as u64
    }

    /// One point for each threshold.
    pub fn points(&self, thresholds: &[f32]) -> Vec<CurvePoint> {
        let count = |threshold: f32, right: bool, unvetoed: bool| {
            let counts =
                |seen: &&(f32, bool, bool)| seen.0 >= threshold && seen.1 == right && !(unvetoed && seen.2);
            self.seen.iter().filter(counts).count() as u64
        };
        thresholds
            .iter()
            .map(|&threshold| CurvePoint {
                threshold,
                right: count(threshold, true, false),
                wrong: count(threshold, false, false),
                right_unvetoed: count(threshold, true, true),
                wrong_unvetoed: count(threshold, false, true),
            })
            .collect()
    }
}
