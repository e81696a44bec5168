//! A stream of questions whose labels say which share an answer: each is looked up, decided, asked, judged and added
//! as a cache would, from empty.

use super::search::Search;
use super::{Curve, Embedded};
use crate::semantic::decide::{
    Action, CANDIDATES_ADVISED, CONTENDERS_MAX, Candidate, ClusterId, Estimate, Placement, Policy, Question,
    Verdict,
};
use serde::Serialize;
use std::collections::HashMap;

/// A labelled question.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// The question.
    pub question: Embedded,
    /// Which answer it has.
    pub label: String,
}

/// How a stream is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamOptions {
    /// Shuffles the stream, and draws the judge's mistakes; `None` keeps the order.
    pub seed: Option<u64>,
    /// Share of verdicts that are the wrong way round, 0 to 1. Default 0.
    pub judge_noise: f64,
    /// Share of misses that are judged, 0 to 1. Default 1. Audits always are.
    pub judged_share: f64,
    /// Clusters that a new answer is compared with. Default [`CONTENDERS_MAX`].
    pub contenders_max: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions { seed: Some(0), judge_noise: 0.0, judged_share: 1.0, contenders_max: CONTENDERS_MAX }
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct StreamReport {
    /// Questions.
    pub requests: u64,
    /// Served because an equal question was stored.
    pub exact: u64,
    /// Served by meaning.
    pub served: u64,
    /// Wrong answers, of either.
    pub wrong: u64,
    /// Of those served by meaning, asked all the same.
    pub audits: u64,
    /// Comparisons of answers.
    pub verdicts: u64,
    /// What the policy says of itself at the end.
    pub estimate: Estimate,
    /// What a threshold alone makes of the nearest.
    #[serde(skip)]
    pub curve: Curve,
}

impl StreamReport {
    /// Share of questions that were served.
    pub fn hits(&self) -> f64 {
        self.share(self.exact + self.served)
    }

    /// Share of questions for which nothing was asked: hits less audits.
    pub fn saved(&self) -> f64 {
        self.share(self.exact + self.served - self.audits)
    }

    /// Wrong answers, as a share of all questions.
    pub fn error_rate(&self) -> f64 {
        self.share(self.wrong)
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.requests.max(1) as f64
    }
}

/// Replays the items, and calls `asked` for each. Searched is what the stream has stored by then, so that early
/// questions find as little as they would in service.
pub fn replay_stream(
    items: &[Labelled],
    policy: &mut dyn Policy,
    options: &StreamOptions,
    mut asked: impl FnMut(),
) -> StreamReport {
    let mut rng = fastrand::Rng::with_seed(options.seed.unwrap_or(0));
    let mut order: Vec<usize> = (0..items.len()).collect();
    if options.seed.is_some() {
        rng.shuffle(&mut order);
    }
    let mut store = Store::new(items);
    let (mut exact, mut served, mut wrong, mut audits, mut verdicts) = (0, 0, 0, 0, 0);
    let mut curve = Curve::default();
    for at in order {
        asked();
        let item = &items[at];
        if let Some(cluster) = store.exact.get(item.question.key.as_str()) {
            exact += 1;
            wrong += u64::from(store.answers[cluster.0 as usize] != item.label);
            continue;
        }
        let candidates = store.near(&item.question);
        let is_right = |cluster: ClusterId| store.answers[cluster.0 as usize] == item.label;
        if let Some(nearest) = candidates.first() {
            curve.add(nearest.similarity, is_right(nearest.cluster), !nearest.comparison.vetoes.is_empty());
        }
        let decision = policy.decide(&Question { candidates: &candidates, tokens: 0.0, seconds: 0.0 });
        if let Some((_, cluster)) = decision.proposed.filter(|_| decision.is_served()) {
            served += 1;
            wrong += u64::from(!is_right(cluster));
        }
        if decision.action == Action::Serve {
            continue;
        }
        audits += u64::from(decision.is_served());
        let mut judged = Vec::new();
        if decision.is_served() || rng.f64() < options.judged_share {
            for cluster in decision.contenders.iter().take(options.contenders_max) {
                let says_same = is_right(*cluster) != (rng.f64() < options.judge_noise);
                judged.push(if says_same { Verdict::Same } else { Verdict::Different });
                if says_same {
                    break;
                }
            }
        }
        verdicts += judged.len() as u64;
        let placement = policy.learn(&decision, &judged);
        store.add(at, placement);
    }
    let requests = items.len() as u64;
    StreamReport { requests, exact, served, wrong, audits, verdicts, estimate: policy.estimate(), curve }
}

/// A cache's entries, as far as a policy sees them.
struct Store<'a> {
    items: &'a [Labelled],
    search: Search,
    stored: Vec<(usize, ClusterId)>,
    exact: HashMap<&'a str, ClusterId>,
    /// The true label of each cluster's answer.
    answers: Vec<&'a str>,
}

impl<'a> Store<'a> {
    fn new(items: &'a [Labelled]) -> Store<'a> {
        Store {
            items,
            search: Search::new(items.first().map(|item| &item.question), items.len()),
            stored: Vec::new(),
            exact: HashMap::new(),
            answers: Vec::new(),
        }
    }

    fn near(&self, question: &Embedded) -> Vec<Candidate> {
        let found = self.search.nearest(question, CANDIDATES_ADVISED).into_iter();
        found
            .map(|(place, similarity)| {
                let (at, cluster) = self.stored[place];
                self.items[at].question.candidate(question, place, cluster, similarity)
            })
            .collect()
    }

    fn add(&mut self, at: usize, placement: Placement) {
        let item = &self.items[at];
        let cluster = match placement {
            Placement::Alias(cluster) => cluster,
            Placement::NewCluster => {
                self.answers.push(&item.label);
                ClusterId(self.answers.len() as u64 - 1)
            }
            Placement::Known => return,
        };
        self.search.add(self.stored.len(), &item.question);
        self.stored.push((at, cluster));
        self.exact.insert(&item.question.key, cluster);
    }
}
