//! Whether what was found may be served: policies behind one trait.
//!
//! Entries that share one answer form a **cluster**; an entry is one question that got it. A policy sees the entries
//! nearest to a question and says [`Action::Serve`], [`Action::Ask`] or [`Action::ServeAndAudit`]. Whoever asked, or
//! audited, has the true answer judged against that of the proposed cluster ([`Judge`]), tells the policy with
//! [`Policy::learn`], and puts the question where [`Placement`] says.
//!
//! Nothing here reads a clock, waits, or touches a store; the same seed and the same calls give the same decisions.

mod bound;
mod cost;
mod judge;
mod logistic;
mod pooled;
mod records;
mod state;
mod threshold;
mod vcache;

pub use cost::{CostAware, CostOptions};
pub use judge::{AnswerEquality, Judge, Verdict, normalised_answer};
pub use pooled::{Pooled, PooledOptions};
pub use state::StateError;
pub use threshold::{Threshold, ThresholdOptions};
pub use vcache::{VCache, VCacheOptions};

use crate::semantic::veto::{Comparison, Vetoes};
use serde::{Deserialize, Serialize};

/// Entries that share one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

/// One question that has an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId(pub u64);

/// An entry near the question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The entry.
    pub entry: EntryId,
    /// The answer it shares.
    pub cluster: ClusterId,
    /// Cosine of the two embeddings, -1 to 1.
    pub similarity: f32,
    /// What their texts say of each other.
    pub comparison: Comparison,
}

/// A question, and what was found for it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The nearest entries, in any order. [`CANDIDATES_ADVISED`] are enough.
    pub candidates: &'a [Candidate],
    /// Tokens that asking is expected to cost, for [`CostAware`].
    pub tokens: f64,
    /// Seconds that asking is expected to take, for [`CostAware`].
    pub seconds: f64,
}

/// How many entries to look for: enough that a popular answer's many aliases leave room for its rivals.
pub const CANDIDATES_ADVISED: usize = 32;

/// What to do with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Serve the proposed answer.
    Serve,
    /// Ask for a new answer.
    Ask,
    /// Serve the proposed answer; ask all the same, behind the caller's back, and have it judged.
    ServeAndAudit,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing is near.
    NoCandidate,
    /// What is near must not serve.
    Vetoed(Vetoes),
    /// Too far for the threshold in force.
    BelowThreshold,
    /// Near enough, but something stands in one text alone, and it is not learned yet what that means.
    Doubtful,
    /// Near enough.
    AboveThreshold,
    /// The probability of being wrong is too high for the bound.
    TooRisky,
    /// The probability of being wrong is within the bound.
    WithinBound,
    /// Likely right, but asked to learn more.
    Exploring,
    /// The loss that is to be expected outweighs what serving saves.
    NotWorthIt,
}

/// What a policy decided. Keep it until the answer has been judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The entry whose answer is, or would be, served.
    pub proposed: Option<(EntryId, ClusterId)>,
    /// Estimated probability that the proposed answer is right; 0 where there is none.
    pub probability: f64,
    /// Why.
    pub reason: Reason,
    /// Clusters that may have the answer, likeliest first, the proposed one at their head; at most
    /// [`CONTENDERS_MAX`]. A judge may compare with each until one is equal.
    pub contenders: Vec<ClusterId>,
    /// How likely this was to be judged, the weight of what it teaches; 0 where it is not to be.
    propensity: f64,
    features: Vec<f32>,
}

/// How many clusters a new answer is compared with. Each is a call where the judge is a model, and the likeliest come
/// first.
pub const CONTENDERS_MAX: usize = 3;

/// Where a question that has been answered belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Its answer is this cluster's: add it as one more question that has it.
    Alias(ClusterId),
    /// Its answer is new.
    NewCluster,
    /// What is stored stands for it: add nothing to what is found by meaning.
    Known,
}

/// How often a policy errs, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Questions decided.
    pub requests: u64,
    /// Of them, served.
    pub served: u64,
    /// Wrong answers, as a share of all questions; `None` before anything was judged.
    pub error_rate: Option<f64>,
    /// Interval of `error_rate`, at the policy's confidence.
    pub interval: Option<(f64, f64)>,
    /// The same as a share of served questions.
    pub error_rate_served: Option<f64>,
}

/// Decides, and learns from what was judged.
///
/// Object-safe. Calls come one at a time: a lock around it is the caller's, and none is held while one waits for an
/// answer or a judge.
pub trait Policy: Send + std::fmt::Debug {
    /// The policy's name, in explanations and metrics.
    fn name(&self) -> &'static str;

    /// What to do with a question. Never fails; a similarity that is no number counts as no candidate.
    fn decide(&mut self, question: &Question<'_>) -> Decision;

    /// Takes in how the true answer compares with those of the decision's contenders, in their order. Fewer verdicts
    /// than contenders are fine; none says that nothing was judged.
    ///
    /// Call it once for what was asked or audited; what was served unseen has nothing to teach. A complaint of a user
    /// about a served answer is [`Policy::complain`].
    fn learn(&mut self, decision: &Decision, verdicts: &[Verdict]) -> Placement;

    /// Takes in that a user found a served answer of this cluster wrong.
    fn complain(&mut self, cluster: ClusterId);

    /// Forgets a cluster whose last entry is gone.
    fn forget(&mut self, cluster: ClusterId);

    /// How often this errs.
    fn estimate(&self) -> Estimate;

    /// All that was learned, as versioned bytes.
    fn save(&self) -> Vec<u8>;

    /// Takes back what [`Policy::save`] wrote. Settings stay those of this policy.
    ///
    /// # Errors
    /// When the bytes are another policy's, a later version's, or damaged. The policy is as it was.
    fn load(&mut self, bytes: &[u8]) -> Result<(), StateError>;
}

impl Decision {
    /// Whether the proposed answer goes to the caller.
    pub fn is_served(&self) -> bool {
        matches!(self.action, Action::Serve | Action::ServeAndAudit)
    }

    fn ask(reason: Reason) -> Decision {
        Decision {
            action: Action::Ask,
            proposed: None,
            probability: 0.0,
            reason,
            contenders: Vec::new(),
            propensity: 1.0,
            features: Vec::new(),
        }
    }

    /// The cluster that the first equal verdict names.
    fn placement(&self, verdicts: &[Verdict]) -> Placement {
        let equal = self.contenders.iter().zip(verdicts).find(|(_, verdict)| **verdict == Verdict::Same);
        equal.map_or(Placement::NewCluster, |(cluster, _)| Placement::Alias(*cluster))
    }
}

/// The nearest of each cluster that nothing forbids, nearest first, with how many entries of it are near; and what
/// forbids the nearest of all.
struct Contest {
    contenders: Vec<Contender>,
    vetoed: Option<Vetoes>,
}

#[derive(Clone, Copy, Debug)]
struct Contender {
    nearest: Candidate,
    neighbours: usize,
    /// Similarity of the nearest entry of any other cluster, or of the farthest that was looked at.
    rival: f32,
    /// Share of the neighbourhood's weight, 0 to 1, where weight falls off with similarity.
    share: f32,
}

/// How fast a neighbour's weight falls with similarity: by e for each step of this size. A twentieth of the scale:
/// embedders spread what means the same over about .1.
const SHARE_STEP: f32 = 0.05;

impl Contest {
    fn of(question: &Question<'_>) -> Contest {
        let mut candidates: Vec<&Candidate> =
            question.candidates.iter().filter(|found| found.similarity.is_finite()).collect();
        candidates.sort_by(|one, other| {
            other.similarity.total_cmp(&one.similarity).then(one.entry.cmp(&other.entry))
        });
        let Some(best) = candidates.first().map(|best| best.similarity) else {
            return Contest { contenders: Vec::new(), vetoed: None };
        };
        let farthest = candidates[candidates.len() - 1].similarity;
        let weight = |found: &Candidate| ((found.similarity - best) / SHARE_STEP).exp();
        let all: f32 = candidates.iter().map(|found| weight(found)).sum();
        let mut contenders: Vec<Contender> = Vec::new();
        for nearest in candidates.iter().filter(|found| found.comparison.vetoes.is_empty()) {
            if contenders.iter().any(|known| known.nearest.cluster == nearest.cluster) {
                continue;
            }
            let is_own = |found: &&&Candidate| found.cluster == nearest.cluster;
            contenders.push(Contender {
                nearest: **nearest,
                neighbours: candidates.iter().filter(is_own).count(),
                rival: candidates
                    .iter()
                    .find(|found| !is_own(found))
                    .map_or(farthest.min(0.0), |rival| rival.similarity),
                share: candidates.iter().filter(is_own).map(|found| weight(found)).sum::<f32>() / all,
            });
        }
        let vetoed = Some(candidates[0].comparison.vetoes).filter(|vetoes| !vetoes.is_empty());
        Contest { contenders, vetoed }
    }

    /// Why there is nothing to propose.
    fn absence(&self) -> Reason {
        self.vetoed.map_or(Reason::NoCandidate, Reason::Vetoed)
    }

    fn clusters(&self) -> Vec<ClusterId> {
        self.contenders.iter().take(CONTENDERS_MAX).map(|contender| contender.nearest.cluster).collect()
    }
}
