//! The simplest policy: near enough, nothing against it, nothing in doubt.

use super::records::Records;
use super::{
    Action, ClusterId, Contender, Contest, Decision, Estimate, Placement, Policy, Question, Reason,
    StateError, Verdict, state,
};
use serde::{Deserialize, Serialize};

/// Settings of [`Threshold`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThresholdOptions {
    /// Least similarity that is served, -1 to 1.
    ///
    /// Default .8: with MiniLM two of three pairs of Quora's questions at that distance have the same meaning, and
    /// with the vetoes and doubts most of the others are held back. Every embedder has its own scale, so set it for
    /// another one.
    pub similarity_min: f32,
    /// Largest [`Comparison::residual`](crate::semantic::veto::Comparison::residual) that is served.
    ///
    /// Default .5: what differs between the texts is nearer to the same than to unrelated. Set 2 to leave it out, as
    /// for an embedder that does not average over words.
    pub residual_max: f32,
    /// Whether [`Comparison::has_doubts`](crate::semantic::veto::Comparison::has_doubts) asks. Default: yes.
    pub asks_in_doubt: bool,
}

impl Default for ThresholdOptions {
    fn default() -> Self {
        ThresholdOptions { similarity_min: 0.75, residual_max: 0.5, asks_in_doubt: true }
    }
}

impl ThresholdOptions {
    pub(super) fn judge(&self, contender: &Contender) -> Reason {
        let nearest = &contender.nearest;
        if nearest.similarity < self.similarity_min {
            Reason::BelowThreshold
        } else if nearest.comparison.residual(nearest.similarity) > self.residual_max
            || self.asks_in_doubt && nearest.comparison.has_doubts()
        {
            Reason::Doubtful
        } else {
            Reason::AboveThreshold
        }
    }
}

/// Serves what is at least as near as a threshold, and not vetoed. Learns only to place new questions, and to report.
#[derive(Clone, Debug)]
pub struct Threshold {
    options: ThresholdOptions,
    state: Counted,
}

/// What is counted of any policy that does not audit: complaints are all that is known of errors.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) requests: u64,
    pub(super) served: u64,
    pub(super) complaints: u64,
    pub(super) records: Records,
}

impl Counted {
    pub(super) fn estimate(&self) -> Estimate {
        Estimate {
            requests: self.requests,
            served: self.served,
            error_rate: None,
            interval: None,
            error_rate_served: None,
        }
    }

    /// What was read from a state, if it can be.
    pub(super) fn checked(read: Counted) -> Result<Counted, StateError> {
        if read.served <= read.requests && read.records.is_sound() {
            Ok(read)
        } else {
            Err(StateError::Damaged("its counts are out of range".to_owned()))
        }
    }

    pub(super) fn note(&mut self, decision: &Decision) {
        self.requests += 1;
        self.served += u64::from(decision.is_served());
    }
}

impl Threshold {
    /// A policy with these settings.
    pub fn new(options: ThresholdOptions) -> Threshold {
        Threshold { options, state: Counted::default() }
    }
}

/// The proposal of the nearest contender, before an action is chosen.
pub(super) fn proposal(
    contest: &Contest,
    contender: &Contender,
    action: Action,
    probability: f64,
    reason: Reason,
) -> Decision {
    Decision {
        action,
        proposed: Some((contender.nearest.entry, contender.nearest.cluster)),
        probability,
        reason,
        contenders: contest.clusters(),
        propensity: 1.0,
        features: Vec::new(),
    }
}

impl Policy for Threshold {
    fn name(&self) -> &'static str {
        "threshold"
    }

    fn decide(&mut self, question: &Question<'_>) -> Decision {
        let contest = Contest::of(question);
        // Only the nearest: where that one is in doubt, a farther one is no better.
        let decision = match contest.contenders.first() {
            None => Decision::ask(contest.absence()),
            Some(contender) => {
                let reason = self.options.judge(contender);
                let action = if reason == Reason::AboveThreshold { Action::Serve } else { Action::Ask };
                let probability = f64::from(contender.nearest.similarity.clamp(0.0, 1.0));
                proposal(&contest, contender, action, probability, reason)
            }
        };
        self.state.note(&decision);
        decision
    }

    fn learn(&mut self, decision: &Decision, verdicts: &[Verdict]) -> Placement {
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
        self.state = Counted::checked(state::read("threshold", 1, bytes)?)?;
        Ok(())
    }
}
