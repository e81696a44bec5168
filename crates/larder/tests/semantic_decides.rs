//! A semantic cache that trusts a similarity, or its own model, serves wrong answers for as long as nobody looks. In
//! worlds whose truth is known, the error stays within what was allowed, whatever the world does; and with the guard
//! switched off (audits that never come back) it does not.
#![cfg(feature = "semantic")]

use larder::semantic::decide::{
    Action, Candidate, ClusterId, CostAware, CostOptions, Decision, EntryId, Policy, Pooled, PooledOptions,
    Question, Reason, StateError, Threshold, ThresholdOptions, VCache, VCacheOptions, Verdict,
};
use larder::semantic::veto::{Comparison, Profile};
use proptest::prelude::*;

/// A world in which the nearest is right with a probability that rises with similarity.
struct World {
    rng: fastrand::Rng,
    /// Where right and wrong are equally likely.
    middle: f64,
    judge_noise: f64,
    /// What is nearest of all is wrong three times out of ten, which only those who were served can tell.
    is_turned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Audits {
    Judged,
    /// The negative control: nobody tells the policy what became of what it served.
    Lost,
}

#[derive(Debug, Default, PartialEq)]
struct Score {
    requests: u64,
    served: u64,
    wrong: u64,
}

impl Score {
    fn error_rate(&self) -> f64 {
        self.wrong as f64 / self.requests as f64
    }
}

impl World {
    fn new(seed: u64) -> World {
        World { rng: fastrand::Rng::with_seed(seed), middle: 0.8, judge_noise: 0.0, is_turned: false }
    }

    fn run(&mut self, policy: &mut dyn Policy, requests: u64, audits: Audits) -> Score {
        let mut score = Score { requests, ..Score::default() };
        for _ in 0..requests {
            let similarity = 0.5 + 0.5 * self.rng.f64();
            let is_right = self.rng.f64() < 1.0 / (1.0 + (-30.0 * (similarity - self.middle)).exp());
            let is_right = is_right && !(self.is_turned && similarity > 0.9 && self.rng.f64() < 0.3);
            let near = |entry: u64, similarity: f64| Candidate {
                entry: EntryId(entry),
                cluster: ClusterId(entry),
                similarity: similarity as f32,
                comparison: Comparison::default(),
            };
            let first = self.rng.u64(0..50);
            let candidates = [near(first, similarity), near(first + 50, similarity - 0.2 * self.rng.f64())];
            let decision = policy.decide(&Question { candidates: &candidates, tokens: 1.0, seconds: 0.0 });
            let proposed = decision.proposed.map(|(entry, _)| entry);
            let truth = proposed == Some(EntryId(first)) && is_right;
            score.served += u64::from(decision.is_served());
            score.wrong += u64::from(decision.is_served() && !truth);
            let lost = decision.action == Action::ServeAndAudit && audits == Audits::Lost;
            if decision.action != Action::Serve && !lost {
                let says_same = truth != (self.rng.f64() < self.judge_noise);
                policy.learn(&decision, &[if says_same { Verdict::Same } else { Verdict::Different }]);
            }
        }
        score
    }
}

fn pooled(error_rate_max: f64, seed: u64) -> Pooled {
    // Without the first threshold, so that all that is served is served within the bound.
    let cold = ThresholdOptions { similarity_min: 1.0, ..ThresholdOptions::default() };
    Pooled::new(PooledOptions { error_rate_max, seed, cold, ..PooledOptions::default() })
}

const REQUESTS: u64 = 1500;

#[test]
fn error_stays_within_the_bound_and_something_is_served() {
    for allowed in [0.01, 0.03] {
        let scores: Vec<Score> = (0..4)
            .map(|seed| World::new(seed).run(&mut pooled(allowed, seed), REQUESTS, Audits::Judged))
            .collect();
        let mean = scores.iter().map(Score::error_rate).sum::<f64>() / scores.len() as f64;
        assert!(mean <= allowed, "{mean} of {allowed} allowed");
        for score in &scores {
            // 15 errors are allowed of 1,500 questions at .01: two deviations more is chance.
            assert!(score.error_rate() <= 1.5 * allowed, "{score:?} of {allowed} allowed");
            assert!(score.served > REQUESTS / 20, "{score:?}");
        }
    }
}

/// The failure this prevents: what was near enough yesterday means something else today.
#[test]
fn a_world_that_turns_is_found_out_by_audits_alone() {
    let turned = |audits| {
        let scores: Vec<f64> = (0..2)
            .map(|seed| {
                let (mut world, mut policy) = (World::new(seed), pooled(0.02, seed));
                world.run(&mut policy, REQUESTS, Audits::Judged);
                world.is_turned = true;
                world.run(&mut policy, REQUESTS, audits);
                world.run(&mut policy, REQUESTS, audits).error_rate()
            })
            .collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    let (guarded, unguarded) = (turned(Audits::Judged), turned(Audits::Lost));
    assert!(
        unguarded > 0.02 && guarded < 0.75 * unguarded,
        "the control holds: {unguarded} without audits, {guarded} with"
    );
}

#[test]
fn a_judge_who_errs_does_not_raise_the_error() {
    for known in [0.0, 0.05] {
        let mut errors = 0.0;
        for seed in 0..2 {
            let mut world = World { judge_noise: 0.05, ..World::new(seed) };
            let cold = ThresholdOptions { similarity_min: 1.0, ..ThresholdOptions::default() };
            let mut policy =
                Pooled::new(PooledOptions { judge_noise: known, seed, cold, ..PooledOptions::default() });
            errors += world.run(&mut policy, REQUESTS, Audits::Judged).error_rate() / 2.0;
        }
        assert!(errors <= 0.02, "{errors} with a noise of {known} known");
    }
}

#[test]
fn the_reported_interval_encloses_the_truth() {
    for seed in 0..4 {
        let mut policy = pooled(0.03, seed);
        let score = World::new(seed).run(&mut policy, REQUESTS, Audits::Judged);
        let estimate = policy.estimate();
        let (low, high) = estimate.interval.expect("audited");
        assert!(low <= score.error_rate() && score.error_rate() <= high, "{score:?} {estimate:?}");
        assert_eq!((estimate.requests, estimate.served), (score.requests, score.served));
    }
}

#[test]
fn vcache_keeps_its_bound() {
    let mut errors = 0.0;
    for seed in 0..2 {
        let mut policy = VCache::new(VCacheOptions { error_rate_max: 0.05, seed });
        let score = World::new(seed).run(&mut policy, 4 * REQUESTS, Audits::Judged);
        assert!(score.served > 0, "{score:?}");
        errors += score.error_rate() / 2.0;
    }
    assert!(errors <= 0.05, "{errors}");
}

#[test]
fn the_same_seed_decides_the_same_also_after_a_restart() {
    let policies: [fn() -> Box<dyn Policy>; 4] = [
        || Box::new(Threshold::new(ThresholdOptions::default())),
        || Box::new(CostAware::new(CostOptions::new(10.0, 1.0, 0.0))),
        || Box::new(VCache::new(VCacheOptions::default())),
        || Box::new(pooled(0.05, 7)),
    ];
    for new in policies {
        let (mut one, mut other) = (new(), new());
        let mut world = World::new(1);
        world.run(&mut *one, 600, Audits::Judged);
        World::new(1).run(&mut *other, 600, Audits::Judged);
        let saved = one.save();
        assert!(saved == other.save(), "{} depends on more than its seed", one.name());
        let mut restarted = new();
        restarted.load(&saved).unwrap();
        assert!(restarted.save() == saved, "{} does not come back as it was", one.name());
        let mut same = World { rng: world.rng.clone(), ..World::new(0) };
        assert_eq!(
            world.run(&mut *one, 300, Audits::Judged),
            same.run(&mut *restarted, 300, Audits::Judged),
            "{}",
            one.name()
        );
        for bytes in [&b""[..], b"\n", b"larder-policy", &saved[..saved.len() - 2], b"\xff\n{}"] {
            assert!(matches!(restarted.load(bytes), Err(StateError::Damaged(_))), "{}", one.name());
        }
        let later = format!("larder-policy {} 99\n{{}}", one.name());
        assert_eq!(restarted.load(later.as_bytes()), Err(StateError::OtherVersion(99)));
        assert!(matches!(restarted.load(b"larder-policy other 1\n{}"), Err(StateError::OtherPolicy { .. })));
    }
}

#[test]
fn what_is_vetoed_is_never_proposed_however_near() {
    let question = Profile::of("Convert 10 USD to GBP");
    let trap = Profile::of("Convert 100 USD to GBP");
    let candidate = Candidate {
        entry: EntryId(1),
        cluster: ClusterId(1),
        similarity: 1.0,
        comparison: question.compare(&trap),
    };
    let policies: [Box<dyn Policy>; 4] = [
        Box::new(Threshold::new(ThresholdOptions {
            similarity_min: -1.0,
            asks_in_doubt: false,
            residual_max: 2.0,
        })),
        Box::new(CostAware::new(CostOptions::new(0.0, 1.0, 0.0))),
        Box::new(VCache::new(VCacheOptions { error_rate_max: 1.0, seed: 0 })),
        Box::new(Pooled::new(PooledOptions { error_rate_max: 1.0, ..PooledOptions::default() })),
    ];
    for mut policy in policies {
        let decision = policy.decide(&Question { candidates: &[candidate], tokens: f64::MAX, seconds: 0.0 });
        assert_eq!((decision.action, decision.proposed), (Action::Ask, None), "{}", policy.name());
        assert!(matches!(decision.reason, Reason::Vetoed(_)));
        // The control: without the veto it would be served.
        let unvetoed = Candidate { comparison: Comparison::default(), ..candidate };
        let control = policy.decide(&Question { candidates: &[unvetoed], tokens: f64::MAX, seconds: 0.0 });
        assert!(control.is_served() || policy.name() == "vcache", "{}", policy.name());
    }
}

#[test]
fn a_saving_that_is_no_number_serves_nothing() {
    let candidate = Candidate {
        entry: EntryId(1),
        cluster: ClusterId(1),
        similarity: 0.99,
        comparison: Comparison::default(),
    };
    let mut policy = CostAware::new(CostOptions::new(1.0, f64::NAN, 0.0));
    let ask = |policy: &mut CostAware| {
        policy.decide(&Question { candidates: &[candidate], tokens: 1.0, seconds: 0.0 }).reason
    };
    assert_eq!(ask(&mut policy), Reason::NotWorthIt);
    assert_eq!(ask(&mut CostAware::new(CostOptions::new(1.0, 1.0, 0.0))), Reason::AboveThreshold);
}

/// A candidate as a broken index might give it.
fn any_candidate() -> impl Strategy<Value = Candidate> {
    (any::<u64>(), 0_u64..4, any::<f32>(), any::<[bool; 4]>(), 0.0_f32..=1.0).prop_map(
        |(entry, cluster, similarity, flags, overlap)| Candidate {
            entry: EntryId(entry),
            cluster: ClusterId(cluster),
            similarity,
            comparison: Comparison {
                overlap,
                has_lone_number: flags[0],
                has_lone_negation: flags[1],
                has_other_names: flags[2],
                has_lone_name: flags[3],
                ..Comparison::default()
            },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_similarity_and_no_verdict_breaks_a_policy(
        questions in prop::collection::vec((prop::collection::vec(any_candidate(), 0..6), prop::collection::vec(any::<bool>(), 0..5)), 1..120),
    ) {
        let policies: [Box<dyn Policy>; 4] = [
            Box::new(Threshold::new(ThresholdOptions::default())),
            Box::new(CostAware::new(CostOptions::new(1.0, 1.0, 1.0))),
            Box::new(VCache::new(VCacheOptions::default())),
            Box::new(Pooled::new(PooledOptions::default())),
        ];
        for mut policy in policies {
            for (candidates, verdicts) in &questions {
                let decision: Decision = policy.decide(&Question { candidates, tokens: 1.0, seconds: 1.0 });
                prop_assert!((0.0..=1.0).contains(&decision.probability));
                prop_assert!(!decision.is_served() || decision.proposed.is_some());
                let verdicts: Vec<Verdict> = verdicts.iter().map(|same| if *same { Verdict::Same } else { Verdict::Different }).collect();
                policy.learn(&decision, &verdicts);
            }
            policy.complain(ClusterId(1));
            policy.forget(ClusterId(1));
            let saved = policy.save();
            policy.load(&saved).unwrap();
        }
    }
}
