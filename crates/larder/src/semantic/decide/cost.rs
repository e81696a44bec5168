//! Serves where the loss that is to be expected of a wrong answer is no more than what asking costs.

use super::threshold::{Counted, ThresholdOptions, proposal};
use super::{
    Action, ClusterId, Contest, Decision, Estimate, Placement, Policy, Question, Reason, StateError, Verdict,
    state,
};

/// Settings of [`CostAware`]. Money is in any unit, the same one throughout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostOptions {
    /// What a wrong answer costs. No default: only the service knows.
    pub loss: f64,
    /// What a token costs.
    pub price_per_token: f64,
    /// What a second of waiting costs.
    pub price_per_second: f64,
    /// Below this nothing is served, whatever it would save.
    pub threshold: ThresholdOptions,
    /// Highest probability of being wrong that is served, whatever it would save; 0 to 1. Default .1.
    pub risk_max: f64,
}

impl CostOptions {
    /// Settings for this loss and these prices; the others are the defaults.
    pub fn new(loss: f64, price_per_token: f64, price_per_second: f64) -> CostOptions {
        CostOptions {
            loss,
            price_per_token,
            price_per_second,
            threshold: ThresholdOptions::default(),
            risk_max: 0.1,
        }
    }
}

/// Weighs the expected loss of an error against what serving saves: (1 - p) × loss ≤ tokens × price + seconds × price.
///
/// p comes from the similarity and the cluster's record: the share of a line from the threshold (one half) to equality
/// (one), in log odds, plus the log odds of what was judged. Use it where answers differ much in what they cost.
#[derive(Clone, Debug)]
pub struct CostAware {
    options: CostOptions,
    state: Counted,
}

impl CostAware {
    /// A policy with these settings.
    pub fn new(options: CostOptions) -> CostAware {
        CostAware { options, state: Counted::default() }
    }

    fn probability(&self, similarity: f32, cluster: ClusterId) -> f64 {
        let least = self.options.threshold.similarity_min;
        let way = f64::from(((similarity - least) / (1.0 - least).max(f32::EPSILON)).clamp(0.0, 1.0));
        let odds = (0.5 + 0.499 * way) / (0.5 - 0.499 * way);
        super::logistic::sigmoid(odds.ln() + f64::from(self.state.records.log_odds(cluster)))
    }
}

impl Policy for CostAware {
    fn name(&self) -> &'static str {
        "cost"
    }

    fn decide(&mut self, question: &Question<'_>) -> Decision {
        let contest = Contest::of(question);
        let decision = match contest.contenders.first() {
            None => Decision::ask(contest.absence()),
            Some(contender) => {
                let p = self.probability(contender.nearest.similarity, contender.nearest.cluster);
                let saved = question.tokens * self.options.price_per_token
                    + question.seconds * self.options.price_per_second;
                let reason = match self.options.threshold.judge(contender) {
                    Reason::AboveThreshold if 1.0 - p > self.options.risk_max => Reason::TooRisky,
                    // A saving or a loss that is no number serves nothing.
                    Reason::AboveThreshold if (1.0 - p) * self.options.loss <= saved => {
                        Reason::AboveThreshold
                    }
                    Reason::AboveThreshold => Reason::NotWorthIt,
                    held_back => held_back,
                };
                let action = if reason == Reason::AboveThreshold { Action::Serve } else { Action::Ask };
                proposal(&contest, contender, action, p, reason)
            }
        };
        self.state.note(&decision);
        decision
    }

    fn learn(&mut self, decision: &Decision, verdicts: &[Verdict]) -> Placement {
        if let (Some((_, cluster)), Some(verdict)) = (decision.proposed, verdicts.first()) {
            self.state.records.note(cluster, *verdict == Verdict::Same);
        }
        decision.placement(verdicts)
    }

    fn complain(&mut self, cluster: ClusterId) {
        self.state.complaints += 1;
        self.state.records.note(cluster, false);
    }

    fn forget(&mut self, cluster: ClusterId) {
        self.state.records.forget(cluster);
    }

    fn estimate(&self) -> Estimate {
        self.state.estimate()
    }

    fn save(&self) -> Vec<u8> {
        state::write(self.name(), 1, &self.state)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.state = Counted::checked(state::read("cost", 1, bytes)?)?;
        Ok(())
    }
}
