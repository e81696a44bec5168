//! How many errors to expect, from how many were seen: bounds that hold at every time at once, so that a policy may
//! look after each audit and act on what it sees.

/// Bounds on the sum of the conditional probabilities of error (what was to be expected), after `errors` were seen.
///
/// For events with probabilities m1, m2, ... given what came before, θ^S exp(-(θ - 1) V), with S events and V the sum
/// of the m, is a supermartingale for every θ > 0. Its mixture over θ with a Gamma(1, 1) has a closed form, and exceeds
/// 1 / `alpha` at any time with probability at most `alpha` (Ville): V stays where it does not. Conjugate mixtures:
/// Howard, Ramdas, McAuliffe, Sekhon, Time-uniform Chernoff bounds via nonnegative supermartingales, 2020.
pub(super) fn expected(errors: f64, alpha: f64) -> (f64, f64) {
    let log_wealth =
        |expected: f64| ln_gamma(errors + 1.0) - (errors + 1.0) * (expected + 1.0).ln() + expected;
    let most = -alpha.clamp(1e-9, 1.0).ln();
    // Least at V = S, and rising to both sides.
    let search = |mut inside: f64, mut outside: f64| {
        for _ in 0..60 {
            let middle = 0.5 * (inside + outside);
            if log_wealth(middle) > most { outside = middle } else { inside = middle }
        }
        outside
    };
    // At this height V alone exceeds what the other terms take away, for any alpha above 1e-9.
    (if errors > 0.0 { search(errors, 0.0) } else { 0.0 }, search(errors, 4.0 * errors + 60.0))
}

/// Stirling's series, from 10 on, and the recurrence below.
fn ln_gamma(value: f64) -> f64 {
    if value < 10.0 {
        return ln_gamma(value + 1.0) - value.ln();
    }
    let half_ln_tau = 0.5 * std::f64::consts::TAU.ln();
    (value - 0.5) * value.ln() - value + half_ln_tau + 1.0 / (12.0 * value) - 1.0 / (360.0 * value.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_enclose_what_was_seen_and_tighten() {
        let mut last = f64::INFINITY;
        for errors in [1.0, 3.0, 10.0, 100.0, 1000.0] {
            let (low, high) = expected(errors, 0.05);
            assert!(low < errors && errors < high, "{errors}: {low} {high}");
            assert!(high / errors < last);
            last = high / errors;
        }
        assert_eq!(expected(0.0, 0.05).0, 0.0);
        assert!(expected(0.0, 0.05).1 < 8.0);
    }

    /// The failure this prevents: a bound for one time, looked at after every event, fails far more often than it says.
    #[test]
    fn bounds_hold_at_every_time_at_once() {
        let (alpha, runs) = (0.1, 400);
        let (mut missed, mut missed_by_normal) = (0, 0);
        for seed in 0..runs {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut errors, mut sum) = (0.0, 0.0);
            let (mut outside, mut outside_normal) = (false, false);
            for _ in 0..2000 {
                let probability = 0.1 * rng.f64();
                sum += probability;
                if rng.f64() < probability {
                    errors += 1.0;
                }
                let (low, high) = expected(errors, alpha);
                outside |= sum < low || sum > high;
                // The control: an interval of 90 % for one time, once there are enough errors for it.
                outside_normal |= errors >= 5.0 && (sum - errors).abs() > 1.645 * f64::sqrt(errors);
            }
            missed += u32::from(outside);
            missed_by_normal += u32::from(outside_normal);
        }
        assert!(f64::from(missed) <= alpha * runs as f64, "{missed} of {runs}");
        assert!(
            f64::from(missed_by_normal) > 3.0 * alpha * runs as f64,
            "the control holds: {missed_by_normal}"
        );
    }
}
