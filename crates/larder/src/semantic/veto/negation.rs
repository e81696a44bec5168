//! Negation: what a text denies, which is the content word after a "not", "never", "without", "stop". Two texts
//! oppose when one denies what the other says. A negation whose object the other text lacks is only a doubt, since
//! "it has not arrived" and "where is it" ask the same.

use super::words::{Shared, Word};

const NEGATORS: &[&str] = &[
    "avoid", "avoiding", "except", "neither", "never", "no", "non", "none", "nor", "not", "stop", "stopped",
    "stopping", "unable", "without",
];
/// Words through which a negation reaches the next one: not able to pay, don't want to pay.
const TRANSPARENT: &[&str] =
    &["able", "allow", "any", "going", "like", "longer", "more", "need", "permit", "possibl", "want", "wish"];
/// Prefixes that turn a word into its opposite.
const PREFIXES: &[&str] = &["anti", "de", "dis", "il", "im", "in", "ir", "mis", "non", "un"];

/// What a text denies.
#[derive(Clone, Debug, Default)]
pub(super) struct Negations {
    pub(super) count: usize,
    denied: Vec<String>,
}

impl Negations {
    pub(super) fn of(words: &[Word]) -> Negations {
        let mut found = Negations::default();
        for (at, _) in words.iter().enumerate().filter(|(_, word)| NEGATORS.contains(&word.lower.as_str())) {
            found.count += 1;
            // A clause of eight words is long; what comes later is not denied.
            let scope = words[at + 1..].iter().take(8).take_while(|word| !word.opens);
            for word in scope.filter(|word| word.is_content || TRANSPARENT.contains(&word.stem.as_str())) {
                found.denied.push(word.stem.clone());
                if !TRANSPARENT.contains(&word.stem.as_str()) {
                    break;
                }
            }
        }
        found
    }

    /// Whether this text denies what `others` say, and they don't deny it too.
    pub(super) fn deny(&self, others: &[Word], theirs: &Negations) -> bool {
        self.denied.iter().any(|stem| {
            !TRANSPARENT.contains(&stem.as_str())
                && !theirs.denied.contains(stem)
                && others.iter().any(|word| word.stem == *stem)
        })
    }

    pub(super) fn denies(&self, stem: &str) -> bool {
        self.denied.iter().any(|denied| denied == stem)
    }
}

/// Whether a word of one text is a word of the other with a negating prefix, or "less" for "ful".
pub(super) fn is_prefixed(shared: &Shared<'_>) -> bool {
    // Texts that differ in more words than this are not told apart by one prefix.
    const COMPARED_MAX: usize = 32;
    if shared.only_one.len() > COMPARED_MAX || shared.only_other.len() > COMPARED_MAX {
        return false;
    }
    let turned = |one: &Word, other: &Word| {
        let rest = PREFIXES
            .iter()
            .filter_map(|prefix| one.stem.strip_prefix(prefix))
            .any(|rest| rest.len() >= 3 && rest == other.stem);
        let full =
            one.lower.strip_suffix("less").is_some_and(|root| other.lower.strip_suffix("ful") == Some(root));
        rest || full
    };
    shared
        .only_one
        .iter()
        .any(|one| shared.only_other.iter().any(|other| turned(one, other) || turned(other, one)))
}
