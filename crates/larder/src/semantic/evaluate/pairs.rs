//! Pairs of questions: each by itself (may the one's answer serve the other?), or all first ones stored and all
//! second ones looked up.

use super::search::{Search, dot};
use super::{Curve, Embedded};
use crate::semantic::decide::{Action, CANDIDATES_ADVISED, ClusterId, Policy, Question, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

/// Two questions.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The one that is stored.
    pub stored: Embedded,
    /// The one that is looked up.
    pub asked: Embedded,
    /// Whether one answer may serve both.
    pub is_same: bool,
    /// What kind of pair it is, for the report.
    pub kind: String,
    /// What comes before the questions, which must be equal for anything to be served.
    pub context: (String, String),
}

/// What was served of pairs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PairReport {
    /// Pairs of which one answer may serve both.
    pub same: u64,
    /// Of them, served.
    pub served: u64,
    /// Pairs of which it may not.
    pub traps: u64,
    /// Of them, served.
    pub traps_served: u64,
    /// Kind of pair: how many, and how many served.
    pub kinds: BTreeMap<String, (u64, u64)>,
    /// What a threshold alone makes of them.
    #[serde(skip)]
    pub curve: Curve,
}

/// Asks of each pair by itself whether it would be served. Nothing is learned from one for the next.
pub fn replay_pairs(pairs: &[Pair], policy: &mut dyn Policy) -> PairReport {
    let mut report = PairReport::default();
    for pair in pairs {
        let fits = pair.context.0 == pair.context.1;
        let similarity = if pair.stored.vector.len() == pair.asked.vector.len() {
            dot(&pair.stored.vector, &pair.asked.vector)
        } else {
            -1.0
        };
        let candidate = pair.stored.candidate(&pair.asked, 0, ClusterId(0), similarity);
        let candidates = if fits { std::slice::from_ref(&candidate) } else { &[] };
        let is_served = fits && pair.stored.key == pair.asked.key
            || policy.decide(&Question { candidates, tokens: 0.0, seconds: 0.0 }).is_served();
        report.curve.add(similarity, pair.is_same, !candidate.comparison.vetoes.is_empty());
        let kind = report.kinds.entry(pair.kind.clone()).or_default();
        kind.0 += 1;
        kind.1 += u64::from(is_served);
        let (all, served) = if pair.is_same {
            (&mut report.same, &mut report.served)
        } else {
            (&mut report.traps, &mut report.traps_served)
        };
        *all += 1;
        *served += u64::from(is_served);
    }
    report
}

/// What came of looking up all second questions among all first ones.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LookupReport {
    /// Served with the right answer.
    pub right: u64,
    /// Served with another one's.
    pub wrong: u64,
    /// Asked.
    pub missed: u64,
    /// What a threshold alone makes of them.
    #[serde(skip)]
    pub curve: Curve,
}

/// Stores the first question of every pair, then looks up every second one, in their order. Misses are judged, and
/// the policy learns from them.
pub fn replay_lookups(pairs: &[Pair], policy: &mut dyn Policy) -> LookupReport {
    let mut report = LookupReport::default();
    let mut search = Search::new(pairs.first().map(|pair| &pair.stored), pairs.len());
    for (at, pair) in pairs.iter().enumerate() {
        search.add(at, &pair.stored);
    }
    // The same question twice has one answer.
    let mut keys: Vec<(&str, usize)> =
        pairs.iter().enumerate().map(|(at, pair)| (pair.stored.key.as_str(), at)).collect();
    keys.sort_unstable();
    keys.dedup_by_key(|(key, _)| *key);
    let cluster = |key: &str| {
        keys.binary_search_by_key(&key, |(known, _)| known).ok().map(|at| ClusterId(keys[at].1 as u64))
    };
    for pair in pairs {
        let truth = cluster(&pair.stored.key);
        if let Some(found) = cluster(&pair.asked.key) {
            *(if Some(found) == truth { &mut report.right } else { &mut report.wrong }) += 1;
            continue;
        }
        let candidates: Vec<_> = search
            .nearest(&pair.asked, CANDIDATES_ADVISED)
            .into_iter()
            .filter_map(|(at, similarity)| {
                Some(pairs[at].stored.candidate(&pair.asked, at, cluster(&pairs[at].stored.key)?, similarity))
            })
            .collect();
        if let Some(nearest) = candidates.first() {
            report.curve.add(
                nearest.similarity,
                Some(nearest.cluster) == truth,
                !nearest.comparison.vetoes.is_empty(),
            );
        }
        let decision = policy.decide(&Question { candidates: &candidates, tokens: 0.0, seconds: 0.0 });
        match decision.proposed.filter(|_| decision.is_served()) {
            Some((_, served)) if Some(served) == truth => report.right += 1,
            Some(_) => report.wrong += 1,
            None => report.missed += 1,
        }
        if decision.action != Action::Serve {
            let verdicts: Vec<Verdict> = decision
                .contenders
                .iter()
                .map(|found| if Some(*found) == truth { Verdict::Same } else { Verdict::Different })
                .collect();
            policy.learn(&decision, &verdicts);
        }
    }
    report
}
