//! Globs over key texts.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::{Chars, FromStr};

/// Longest pattern in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// A glob over key [texts](super::EntryKey::text).
///
/// `*` stands for any run of characters, empty or with `:` and `/` in it; `?` for one character; `[a-z_]`
/// for one of a set, `[!a-z]` or `[^a-z]` for one outside of it; `\` takes the next character literally,
/// in a set too. A `-` at either end of a set is itself. The whole text must match.
///
/// Matching costs at most length of pattern times length of text, without allocation.
///
/// ```
/// use larder::key::Pattern;
/// let pattern = Pattern::new("user:*:profile")?;
/// assert!(pattern.matches("user:17:profile"));
/// assert!(!pattern.matches("user:17:profile:old"));
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone)]
pub struct Pattern {
    glob: Box<str>,
    steps: Box<[Step]>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Char(char),
    AnyChar,
    AnyRun,
    Set { is_negated: bool, ranges: Box<[(char, char)]> },
}

impl Pattern {
    /// Parses a glob.
    ///
    /// # Errors
    /// [`ErrorKind::Key`] when a set is empty, not closed or has a range that runs backwards, or nothing
    /// follows a `\`; [`ErrorKind::TooLarge`] above [`PATTERN_BYTES_MAX`].
    pub fn new(glob: &str) -> Result<Self> {
        if glob.len() > PATTERN_BYTES_MAX {
            return Err(Error::new(ErrorKind::TooLarge, "pattern").key(glob).message(format!(
                "a pattern has {} bytes; at most {PATTERN_BYTES_MAX} are allowed",
                glob.len()
            )));
        }
        match parse(glob) {
            Ok(steps) => Ok(Pattern { glob: glob.into(), steps: steps.into() }),
            Err(why) => Err(Error::new(ErrorKind::Key, "pattern").key(glob).message(why)),
        }
    }

    /// The glob that it was parsed from.
    pub fn as_str(&self) -> &str {
        &self.glob
    }

    /// Whether it matches a key's text.
    pub fn matches(&self, text: &str) -> bool {
        let (mut step, mut rest) = (0, text.chars());
        // Where to go on when what follows the last `*` fails: that `*` takes one character more. Earlier
        // ones need no second try, since the last one can take whatever they would give up.
        let mut retry: Option<(usize, Chars<'_>)> = None;
        loop {
            let mut after = rest.clone();
            match (self.steps.get(step), after.next()) {
                (Some(Step::AnyRun), _) => {
                    step += 1;
                    retry = Some((step, rest.clone()));
                    continue;
                }
                (Some(one), Some(char)) if one.takes(char) => {
                    step += 1;
                    rest = after;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            let Some((after_run, run_end)) = &mut retry else { return false };
            if run_end.next().is_none() {
                return false;
            }
            (step, rest) = (*after_run, run_end.clone());
        }
    }
}

impl Step {
    fn takes(&self, char: char) -> bool {
        match self {
            Step::Char(own) => *own == char,
            Step::AnyChar => true,
            Step::AnyRun => false,
            Step::Set { is_negated, ranges } => {
                ranges.iter().any(|&(first, last)| (first..=last).contains(&char)) != *is_negated
            }
        }
    }
}

fn parse(glob: &str) -> Result<Vec<Step>, &'static str> {
    let mut steps = Vec::new();
    let mut rest = glob.chars();
    while let Some(char) = rest.next() {
        let step = match char {
            '*' => Step::AnyRun,
            '?' => Step::AnyChar,
            '[' => parse_set(&mut rest)?,
            '\\' => Step::Char(rest.next().ok_or("nothing follows the last \\")?),
            char => Step::Char(char),
        };
        if step != Step::AnyRun || steps.last() != Some(&Step::AnyRun) {
            steps.push(step);
        }
    }
    Ok(steps)
}

/// Parses a set, after its `[`.
fn parse_set(rest: &mut Chars<'_>) -> Result<Step, &'static str> {
    const NOT_CLOSED: &str = "a [ is not closed; write \\[ for the character";
    let is_negated = rest.as_str().starts_with(['!', '^']);
    if is_negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    loop {
        let first = match rest.next().ok_or(NOT_CLOSED)? {
            ']' if ranges.is_empty() => return Err("a set [] is empty"),
            ']' => return Ok(Step::Set { is_negated, ranges: ranges.into() }),
            '\\' => rest.next().ok_or(NOT_CLOSED)?,
            char => char,
        };
        let is_range = rest.as_str().starts_with('-') && !rest.as_str().starts_with("-]");
        let last = if is_range {
            rest.next();
            match rest.next().ok_or(NOT_CLOSED)? {
                '\\' => rest.next().ok_or(NOT_CLOSED)?,
                char => char,
            }
        } else {
            first
        };
        if last < first {
            return Err("a range in a set runs backwards");
        }
        ranges.push((first, last));
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(glob: &str) -> Result<Self> {
        Pattern::new(glob)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.glob == other.glob
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.glob)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.glob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    /// The definition, in exponential time.
    fn matches_slowly(steps: &[Step], text: &[char]) -> bool {
        match steps {
            [] => text.is_empty(),
            [Step::AnyRun, later @ ..] => (0..=text.len()).any(|taken| matches_slowly(later, &text[taken..])),
            [one, later @ ..] => {
                text.split_first().is_some_and(|(char, rest)| one.takes(*char) && matches_slowly(later, rest))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn agrees_with_the_definition(glob in r"([ab:é*?]|\[!?[ab](-c)?\]|\\\*){0,10}", text in "[abcé:*]{0,12}") {
            let pattern = Pattern::new(&glob).unwrap();
            let chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(pattern.matches(&text), matches_slowly(&pattern.steps, &chars), "{} {}", glob, text);
        }

        #[test]
        fn any_pattern_is_parsed_or_refused(glob in ".{0,40}", text in ".{0,40}") {
            if let Ok(pattern) = Pattern::new(&glob) {
                let _ = pattern.matches(&text);
                prop_assert_eq!(pattern.as_str(), &glob);
            }
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (glob, why) in [
            ("[a", "not closed"),
            ("[]", "empty"),
            ("[!]", "empty"),
            ("[z-a]", "backwards"),
            ("a\\", "follows"),
        ] {
            let error = Pattern::new(glob).unwrap_err();
            assert!(error.kind() == ErrorKind::Key && error.to_string().contains(why), "{glob}: {error}");
        }
        assert_eq!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)).unwrap_err().kind(), ErrorKind::TooLarge);
        assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX)).is_ok());
    }

    #[test]
    fn sets_runs_and_escapes() {
        for (glob, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("*", "a:b/c\n", true),
            ("?", "é", true),
            ("?", "", false),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("[a-]", "-", true),
            ("[-a]", "-", true),
            ("[\\]]", "]", true),
            ("[^a]", "b", true),
            ("[!a]", "a", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("user:[0-9]*", "user:7:x", true),
        ] {
            assert_eq!(Pattern::new(glob).unwrap().matches(text), expected, "{glob} on {text}");
        }
    }

    /// A backtracking matcher would take longer than the universe is old.
    #[test]
    fn many_runs_stay_fast() {
        let pattern = Pattern::new(&format!("{}b", "*a".repeat(500))).unwrap();
        let start = Instant::now();
        assert!(!pattern.matches(&"a".repeat(4096)));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
