//! Any glob is parsed or refused, and matches like a table of all prefixes says.

#![no_main]

use larder::key::Pattern;
use libfuzzer_sys::fuzz_target;

/// Whether a glob without sets matches, by dynamic programming: `reach[n]` says whether what was read of
/// the glob matches the first `n` characters.
fn matches_by_table(glob: &str, text: &[char]) -> bool {
    let mut reach = vec![false; text.len() + 1];
    reach[0] = true;
    let mut glob = glob.chars();
    while let Some(char) = glob.next() {
        if char == '*' {
            for at in 0..text.len() {
                reach[at + 1] |= reach[at];
            }
            continue;
        }
        let wanted = match char {
            '?' => None,
            '\\' => glob.next(),
            char => Some(char),
        };
        for at in (0..text.len()).rev() {
            reach[at + 1] = reach[at] && wanted.is_none_or(|wanted| wanted == text[at]);
        }
        reach[0] = false;
    }
    reach[text.len()]
}

fuzz_target!(|input: (&str, &str)| {
    let (glob, text) = input;
    let Ok(pattern) = Pattern::new(glob) else { return };
    let matches = pattern.matches(text);
    if !glob.contains('[') {
        let chars: Vec<char> = text.chars().collect();
        assert_eq!(matches, matches_by_table(glob, &chars), "{glob:?} on {text:?}");
    }
});
