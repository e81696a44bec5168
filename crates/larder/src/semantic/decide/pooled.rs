//! Verified, with all clusters' evidence in one model: the default. A logistic model says how likely the nearest
//! answer is right. Audits of what was served, and misses that were nearly served, say by which factor the model is
//! wrong. The largest risk is accepted at which the error of the last questions, times that factor (or its upper bound),
//! stays within what the user allows.
//!
//! `DESIGN.md`, "Deciding by meaning", has the measurements, and what was tried and dropped.

use super::bound;
use super::logistic::Logistic;
use super::records::Records;
use super::threshold::{ThresholdOptions, proposal};
use super::{
    Action, CONTENDERS_MAX, ClusterId, Contender, Contest, Decision, Estimate, Placement, Policy, Question,
    Reason, StateError, Verdict, state,
};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const NAME: &str = "pooled";
/// Version of the state. A change of the features is one too.
const VERSION: u32 = 1;
/// Judged questions that the model is fitted to, the last ones: enough for its dozen weights, and few enough to
/// follow a service that changes.
const JUDGED_MAX: usize = 6000;
/// Questions over which the error rate is kept, the last ones: the rate of .02 is then one of 40 errors.
const SEEN_MAX: usize = 2000;
/// Judged questions before the model decides: four for each weight.
const JUDGED_MIN: usize = 50;
/// A fit is due when a tenth more has been judged, within these bounds: early ones teach most, and cost least.
const FIT_EVERY: (u64, u64) = (10, 50);
/// Errors and expected errors that the factor begins with, as if the model had been found right on them.
const PRIOR: f64 = 2.0;
/// Misses this many times riskier than the limit still count for the factor: close enough to err as what is served
/// does, and free, since they are judged anyway. They also lead out of a limit that bad luck set too low.
const NEAR: f64 = 4.0;
/// Least risk of anything, as a share of the bound. Below it one risk is as good as another, and no factor could make
/// up for a model that takes what is wrong for certain.
const RISK_LEAST: f64 = 0.1;
/// How many of the first served questions are audited: every other, then fewer, as 1 / (1 + served / 100).
const AUDITS_FIRST: f64 = 0.5;
const SERVED_STEP: f64 = 100.0;
/// Every served question may be audited, however safe it looks: nothing is learned of what never is.
const AUDIT_LEAST: f64 = 0.01;
const WIDTH: usize = 12;

/// Settings of [`Pooled`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PooledOptions {
    /// Highest share of all questions that may get a wrong answer, 0 to 1. Default .02.
    ///
    /// A target over the last 2,000 questions, not a promise for each: see `confidence`.
    pub error_rate_max: f64,
    /// How sure the bound has to be, above 0 and below 1, at all times at once; `None` takes the estimate itself.
    ///
    /// Default `None`: the error is then within the bound on average over streams, and a single one may pass it by
    /// what the audits leave unknown. With .95 it stays at about half of the bound, and there are fewer hits.
    pub confidence: Option<f64>,
    /// Share of served questions that are audited in the long run, on average. Default .03: each costs a call, and a
    /// stream of 10,000 then has some 300 of them.
    pub audits_min: f64,
    /// Share of verdicts that are known to be the wrong way round, 0 to .45. Default 0, with which a judge's mistakes
    /// count as the cache's: safe, and it serves little where the judge errs more than `error_rate_max`.
    pub judge_noise: f64,
    /// What decides before there is enough data.
    pub cold: ThresholdOptions,
    /// Chooses what is audited.
    pub seed: u64,
}

impl Default for PooledOptions {
    fn default() -> Self {
        PooledOptions {
            error_rate_max: 0.02,
            confidence: None,
            audits_min: 0.03,
            judge_noise: 0.0,
            cold: ThresholdOptions::default(),
            seed: 0,
        }
    }
}

/// Keeps the share of wrong answers within a bound, and learns from all clusters at once.
///
/// Memory: some 600 KiB, and the clusters' records. A decision costs microseconds; a verdict too, but each tenth to
/// fiftieth one fits the model anew, which takes milliseconds.
#[derive(Clone, Debug)]
pub struct Pooled {
    options: PooledOptions,
    state: State,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    requests: u64,
    served: u64,
    /// The sum of the risks of what was served, as they were estimated then.
    risk_served: f64,
    judged: u64,
    fitted_at: u64,
    draws: u64,
    rows: VecDeque<Row>,
    /// Features of the last questions; empty where nothing was proposed.
    seen: VecDeque<Vec<f32>>,
    records: Records,
    model: Option<Logistic>,
    /// The largest risk that is served; `None` serves nothing.
    limit: Option<f64>,
}

/// What was judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    features: Vec<f32>,
    is_right: bool,
    /// The risk that was estimated before it was judged.
    risk: f64,
    use_as: Use,
}

/// What a judged question says about the model's factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Use {
    Nothing,
    Near,
    Audit,
}

/// Errors among judged questions, and how many the model expected.
#[derive(Clone, Copy, Debug, Default)]
struct Audits {
    count: f64,
    errors: f64,
    expected: f64,
}

impl Pooled {
    /// A policy with these settings, that knows nothing yet.
    pub fn new(options: PooledOptions) -> Pooled {
        Pooled { options, state: State::default() }
    }

    fn features(&self, contender: &Contender) -> Vec<f32> {
        let (similarity, comparison) = (contender.nearest.similarity, &contender.nearest.comparison);
        let share = contender.share.clamp(0.001, 0.999);
        let flag = |found: bool| f32::from(u8::from(found));
        vec![
            similarity,
            similarity - contender.rival,
            self.state.records.log_odds(contender.nearest.cluster),
            (contender.neighbours as f32).ln_1p(),
            // The last tenth, where texts are almost equal, is another regime.
            (similarity - 0.9).max(0.0),
            (share / (1.0 - share)).ln(),
            comparison.overlap,
            comparison.residual(similarity),
            flag(comparison.has_lone_number),
            flag(comparison.has_lone_negation),
            flag(comparison.has_other_names),
            flag(comparison.has_lone_name),
        ]
    }

    /// The probability of being wrong, behind the judge's own mistakes.
    fn risk(&self, model: &Logistic, features: &[f32]) -> f64 {
        let noise = self.options.judge_noise;
        ((1.0 - model.probability(features) - noise) / (1.0 - 2.0 * noise))
            .clamp(RISK_LEAST * self.options.error_rate_max.clamp(1e-6, 1.0), 1.0)
    }

    /// The contender that is likeliest right, with features and risk; by nearness alone before there is a model.
    fn best<'a>(&self, contest: &'a Contest) -> Option<(&'a Contender, Vec<f32>, Option<f64>)> {
        let scored = contest.contenders.iter().take(CONTENDERS_MAX).map(|contender| {
            let features = self.features(contender);
            let risk = self.state.model.as_ref().map(|model| self.risk(model, &features));
            (contender, features, risk)
        });
        // The first of equals, which is the nearest.
        scored.reduce(|best, next| if next.2.unwrap_or(1.0) < best.2.unwrap_or(1.0) { next } else { best })
    }

    /// The probability with which a served question is audited: more where the risk is higher, so that the same
    /// number of audits says most (Neyman's allocation, by the deviation of what is estimated).
    fn propensity(&self, risk: f64) -> f64 {
        let served = self.state.served as f64;
        let share = (AUDITS_FIRST / (1.0 + served / SERVED_STEP)).max(self.options.audits_min);
        let mean = (self.state.risk_served + risk) / (served + 1.0);
        (share * (risk / mean).sqrt()).clamp(AUDIT_LEAST.min(self.options.audits_min), 1.0)
    }

    fn draw(&mut self) -> f64 {
        self.state.draws += 1;
        fastrand::Rng::with_seed(self.options.seed ^ self.state.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .f64()
    }

    fn audits(&self, counts: impl Fn(Use) -> bool) -> Audits {
        self.state.rows.iter().filter(|row| counts(row.use_as)).fold(Audits::default(), |sum, row| Audits {
            count: sum.count + 1.0,
            errors: sum.errors + f64::from(u8::from(!row.is_right)),
            expected: sum.expected + row.risk,
        })
    }

    /// True errors that are to be expected, where so many were seen by a judge who errs.
    fn behind_noise(&self, errors: f64, count: f64) -> f64 {
        let noise = self.options.judge_noise;
        ((errors - count * noise) / (1.0 - 2.0 * noise)).max(0.0)
    }

    fn fit(&mut self) {
        self.state.fitted_at = self.state.judged;
        let rows = self.state.rows.iter().map(|row| (row.features.as_slice(), row.is_right));
        if let Some(model) = Logistic::fit(&rows) {
            self.state.model = Some(model);
        }
        let Some(model) = &self.state.model else { return };
        let audits = self.audits(|use_as| use_as != Use::Nothing);
        let errors = audits.errors + PRIOR;
        let most =
            self.options.confidence.map_or(errors, |confidence| bound::expected(errors, 1.0 - confidence).1);
        let factor = self.behind_noise(most, audits.count) / (audits.expected + PRIOR);
        let mut risks: Vec<f64> = self
            .state
            .seen
            .iter()
            .filter(|features| !features.is_empty())
            .map(|features| self.risk(model, features))
            .collect();
        risks.sort_unstable_by(f64::total_cmp);
        let allowed = self.options.error_rate_max * self.state.seen.len() as f64;
        let mut sum = 0.0;
        let within = risks.into_iter().take_while(|risk| {
            sum += factor * risk;
            sum <= allowed
        });
        self.state.limit = within.last();
    }

    /// Whether to serve at this risk, and why.
    fn judge(&self, contender: &Contender, risk: Option<f64>) -> Reason {
        match (risk, self.state.limit) {
            (Some(risk), Some(limit)) if self.is_warm() && risk <= limit => Reason::WithinBound,
            (Some(_), _) if self.is_warm() => Reason::TooRisky,
            _ => self.options.cold.judge(contender),
        }
    }

    fn is_warm(&self) -> bool {
        self.state.model.is_some() && self.state.rows.len() >= JUDGED_MIN
    }
}

impl Policy for Pooled {
    fn name(&self) -> &'static str {
        NAME
    }

    fn decide(&mut self, question: &Question<'_>) -> Decision {
        let contest = Contest::of(question);
        self.state.requests += 1;
        if self.state.seen.len() >= SEEN_MAX {
            self.state.seen.pop_front();
        }
        let Some((contender, features, risk)) = self.best(&contest) else {
            self.state.seen.push_back(Vec::new());
            return Decision::ask(contest.absence());
        };
        self.state.seen.push_back(features.clone());
        let reason = self.judge(contender, risk);
        let risk = risk.unwrap_or(0.5);
        let mut decision = proposal(&contest, contender, Action::Ask, 1.0 - risk, reason);
        // The proposed one is judged first, though another may be nearer.
        let proposed = contender.nearest.cluster;
        decision.contenders.retain(|cluster| *cluster != proposed);
        decision.contenders.insert(0, proposed);
        decision.features = features;
        if matches!(reason, Reason::WithinBound | Reason::AboveThreshold) {
            decision.propensity = self.propensity(risk);
            decision.action =
                if self.draw() < decision.propensity { Action::ServeAndAudit } else { Action::Serve };
            self.state.served += 1;
            self.state.risk_served += risk;
        }
        decision
    }

    fn learn(&mut self, decision: &Decision, verdicts: &[Verdict]) -> Placement {
        if let (Some((_, cluster)), Some(verdict)) = (decision.proposed, verdicts.first())
            && decision.features.len() == WIDTH
        {
            let risk = 1.0 - decision.probability;
            let is_near = self.is_warm() && self.state.limit.is_some_and(|limit| risk <= NEAR * limit);
            let use_as = match decision.action {
                Action::ServeAndAudit if self.is_warm() => Use::Audit,
                Action::Ask if is_near => Use::Near,
                _ => Use::Nothing,
            };
            let is_right = *verdict == Verdict::Same;
            self.state.records.note(cluster, is_right);
            if self.state.rows.len() >= JUDGED_MAX {
                self.state.rows.pop_front();
            }
            self.state.rows.push_back(Row { features: decision.features.clone(), is_right, risk, use_as });
            self.state.judged += 1;
            let due = (self.state.judged / 10).clamp(FIT_EVERY.0, FIT_EVERY.1);
            if self.state.judged - self.state.fitted_at >= due {
                self.fit();
            }
        }
        decision.placement(verdicts)
    }

    fn complain(&mut self, cluster: ClusterId) {
        self.state.records.note(cluster, false);
    }

    fn forget(&mut self, cluster: ClusterId) {
        self.state.records.forget(cluster);
    }

    /// The interval holds with 95 %, at all times at once, as long as the audits are those of the last 6,000 judged.
    fn estimate(&self) -> Estimate {
        let State { requests, served, risk_served, .. } = self.state;
        let audits = self.audits(|use_as| use_as == Use::Audit);
        let known = audits.expected > 0.0;
        let rate = |errors: f64| {
            let wrong = self.behind_noise(errors, audits.count) / audits.expected * risk_served;
            (wrong / requests as f64).min(1.0)
        };
        let (least, most) = bound::expected(audits.errors, 0.05);
        Estimate {
            requests,
            served,
            error_rate: known.then(|| rate(audits.errors)),
            interval: known.then(|| (rate(least), rate(most))),
            error_rate_served: known
                .then(|| (rate(audits.errors) * requests as f64 / served.max(1) as f64).min(1.0)),
        }
    }

    fn save(&self) -> Vec<u8> {
        state::write(NAME, VERSION, &self.state)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let read: State = state::read(NAME, VERSION, bytes)?;
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let is_row =
            |features: &Vec<f32>| features.len() == WIDTH && features.iter().all(|value| value.is_finite());
        let sound = read.served <= read.requests
            && read.fitted_at <= read.judged
            && read.risk_served.is_finite()
            && read.limit.is_none_or(is_share)
            && read.rows.len() <= JUDGED_MAX
            && read.rows.iter().all(|row| is_row(&row.features) && is_share(row.risk))
            && read.seen.len() <= SEEN_MAX
            && read.seen.iter().all(|features| features.is_empty() || is_row(features))
            && read.model.as_ref().is_none_or(|model| model.width() == WIDTH && model.is_sound())
            && read.records.is_sound();
        if !sound {
            return Err(StateError::Damaged("its values are out of range".to_owned()));
        }
        self.state = read;
        Ok(())
    }
}
