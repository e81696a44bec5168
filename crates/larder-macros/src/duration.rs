//! Durations as the attribute's arguments write them.

use std::time::Duration;

const ALLOWED: &str = "a duration is written \"90s\", \"5m\", \"1h30m\", \"250ms\", \"2d\" or \"never\"";

/// Units with their milliseconds; `ms` before `m`.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads "1h30m" and the like; "never" is [`Duration::MAX`].
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    if text == "never" {
        return Ok(Duration::MAX);
    }
    let refused = |why: &str| Err(format!("\"{text}\" {why}; {ALLOWED}"));
    let mut rest = text.trim();
    if rest.is_empty() {
        return refused("is no duration");
    }
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        if number.is_empty() {
            return refused("is no duration");
        }
        let Some((unit, unit_ms)) = UNITS.into_iter().find(|(unit, _)| tail.starts_with(unit)) else {
            return refused("has a number without a unit");
        };
        let part_ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
        let Some(sum_ms) = part_ms.and_then(|part_ms| total_ms.checked_add(part_ms)) else {
            return refused("is too long");
        };
        total_ms = sum_ms;
        rest = tail[unit.len()..].trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_and_refusals_say_what_is_allowed() {
        for (text, ms) in
            [("5m", 300_000), ("250ms", 250), ("1h30m", 5_400_000), ("2d", 172_800_000), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse("1h 30m"), parse("90m"));
        assert_eq!(parse("never"), Ok(Duration::MAX));
        for text in ["", "5", "m", "-5s", "5 m s", "1.5s", "99999999999999999999s", "5y", "soon"] {
            assert!(parse(text).unwrap_err().contains("a duration is written"), "{text}");
        }
    }
}
