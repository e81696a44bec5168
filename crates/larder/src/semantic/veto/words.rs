//! A text as words: lower case, a light stem, and whether it carries content. Contractions are taken apart, so that a
//! "not" is a word wherever it hides.

use std::collections::HashMap;

/// One word of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// As written, without marks around it.
    pub(super) written: String,
    pub(super) lower: String,
    pub(super) stem: String,
    /// No article, pronoun, auxiliary, preposition or question word.
    pub(super) is_content: bool,
    /// Whether a sentence or clause begins here.
    pub(super) opens: bool,
}

/// English words that carry grammar rather than content.
const FUNCTION_WORDS: &[&str] = &[
    "a",
    "about",
    "above",
    "after",
    "again",
    "against",
    "all",
    "already",
    "also",
    "am",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "below",
    "between",
    "both",
    "but",
    "by",
    "can",
    "come",
    "could",
    "did",
    "do",
    "does",
    "doing",
    "done",
    "down",
    "during",
    "each",
    "either",
    "er",
    "etc",
    "ever",
    "for",
    "from",
    "get",
    "gets",
    "getting",
    "go",
    "going",
    "got",
    "had",
    "has",
    "have",
    "having",
    "he",
    "hello",
    "her",
    "here",
    "hers",
    "hey",
    "hi",
    "him",
    "his",
    "how",
    "i",
    "if",
    "in",
    "instead",
    "into",
    "is",
    "it",
    "its",
    "just",
    "let",
    "may",
    "me",
    "might",
    "mine",
    "must",
    "my",
    "myself",
    "neither",
    "never",
    "no",
    "none",
    "nor",
    "not",
    "now",
    "of",
    "off",
    "ok",
    "okay",
    "on",
    "once",
    "only",
    "or",
    "our",
    "ours",
    "out",
    "over",
    "own",
    "per",
    "please",
    "rather",
    "really",
    "same",
    "shall",
    "she",
    "should",
    "so",
    "some",
    "somehow",
    "something",
    "still",
    "such",
    "tell",
    "than",
    "thanks",
    "that",
    "the",
    "their",
    "theirs",
    "them",
    "then",
    "there",
    "these",
    "they",
    "thing",
    "this",
    "those",
    "through",
    "to",
    "too",
    "uh",
    "um",
    "under",
    "until",
    "up",
    "upon",
    "us",
    "very",
    "via",
    "want",
    "was",
    "way",
    "we",
    "were",
    "what",
    "whats",
    "when",
    "where",
    "whether",
    "which",
    "while",
    "who",
    "whom",
    "whose",
    "why",
    "will",
    "with",
    "without",
    "would",
    "yeah",
    "yes",
    "you",
    "your",
    "yours",
];

/// The words of a text, at most `words_max` of them, and what comes after those.
pub(super) fn split(text: &str, words_max: usize) -> (Vec<Word>, &str) {
    let mut words = Vec::new();
    let mut opens = true;
    for (start, end) in spans(text) {
        if words.len() >= words_max {
            return (words, &text[start..]);
        }
        let written = &text[start..end];
        push(&mut words, written, opens);
        opens = text[end..].trim_start_matches(['"', ')', '\'']).starts_with(['.', '!', '?', ':', ';', '\n'])
            && !text[end..].starts_with(|c: char| c.is_alphanumeric());
    }
    (words, "")
}

/// Where words begin and end: runs of letters and digits, with the marks that join them inside, and with signs that
/// belong to a number.
fn spans(text: &str) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let found = text[rest..].find(|c: char| c.is_alphanumeric() || is_money(c))?;
        let mut start = rest + found;
        let mut end = start;
        let chars = text[start..].char_indices();
        for (at, c) in chars {
            let joins = matches!(c, '\'' | '\u{2019}' | '_' | '@' | '+' | '.' | ',' | ':' | '/' | '-' | '#' | '&')
                && text[start + at + c.len_utf8()..].starts_with(char::is_alphanumeric)
                && at > 0
                // A comma or colon joins digits alone; a hyphen and a slash join the parts of codes.
                && joins_here(&text[..start + at], c, &text[start + at + c.len_utf8()..]);
            if c.is_alphanumeric() || joins || c == '%' || is_money(c) || c == '\u{B0}' {
                end = start + at + c.len_utf8();
            } else {
                break;
            }
        }
        rest = end;
        // A minus before a number, but not the hyphen of a range.
        let before = &text[..start];
        if before.ends_with('-')
            && (before.len() == 1 || before[..before.len() - 1].ends_with(' '))
            && text[start..].starts_with(|c: char| c.is_ascii_digit())
        {
            start -= 1;
        }
        Some((start, end))
    })
}

fn joins_here(before: &str, mark: char, after: &str) -> bool {
    let digit_before = before.ends_with(|c: char| c.is_ascii_digit());
    let digit_after = after.starts_with(|c: char| c.is_ascii_digit());
    match mark {
        ',' | ':' => digit_before && digit_after,
        // A hyphen parts words, so that "check-in" has the same words as "check in"; dates and ranges stay whole.
        '-' | '/' => digit_before && digit_after,
        _ => true,
    }
}

pub(super) fn is_money(c: char) -> bool {
    matches!(c, '$' | '\u{A3}' | '\u{20AC}' | '\u{A5}' | '\u{20B9}')
}

fn push(words: &mut Vec<Word>, written: &str, opens: bool) {
    let lower = written.to_lowercase().replace('\u{2019}', "'");
    let (base, negated) = match lower.as_str() {
        "cannot" | "can't" | "cant" => ("can", true),
        "won't" | "wont" => ("will", true),
        "shan't" => ("shall", true),
        "dont" => ("do", true),
        "doesnt" => ("does", true),
        "didnt" => ("did", true),
        "isnt" => ("is", true),
        "wasnt" => ("was", true),
        "hasnt" => ("has", true),
        "havent" => ("have", true),
        "couldnt" => ("could", true),
        "wouldnt" => ("would", true),
        other => match other.strip_suffix("n't") {
            Some(base) => (base, true),
            // What's, I'm, they've: the pronoun is enough.
            None => (other.split('\'').next().unwrap_or(other), false),
        },
    };
    // What begins with an apostrophe's letter alone ("o'clock") stays whole.
    let base =
        if base.chars().count() < 2 && base != lower && !matches!(base, "i") { lower.as_str() } else { base };
    words.push(word(written, base, opens));
    if negated {
        words.push(word("not", "not", false));
    }
}

fn word(written: &str, lower: &str, opens: bool) -> Word {
    Word {
        written: written.to_owned(),
        lower: lower.to_owned(),
        stem: stem(lower),
        is_content: FUNCTION_WORDS.binary_search(&lower).is_err(),
        opens,
    }
}

/// A light stem: plural, -ing, -ed, a last e and one of two equal last letters are dropped. It joins inflections of a word, and no two words.
pub(super) fn stem(word: &str) -> String {
    if !word.is_ascii() || word.len() < 4 || word.contains(|c: char| c.is_ascii_digit()) {
        return word.to_owned();
    }
    let cut = |suffix: &str| {
        word.strip_suffix(suffix)
            .filter(|rest| rest.len() >= 3 && rest.contains(['a', 'e', 'i', 'o', 'u', 'y']))
    };
    let base = if let Some(rest) = cut("ies") {
        format!("{rest}y")
    } else if let Some(rest) = cut("ing").or_else(|| cut("ed")) {
        rest.to_owned()
    } else if let Some(rest) = cut("es").filter(|rest| rest.ends_with(['s', 'x', 'z', 'h'])) {
        rest.to_owned()
    } else if let Some(rest) = cut("s").filter(|rest| !rest.ends_with(['s', 'u', 'i'])) {
        rest.to_owned()
    } else {
        word.to_owned()
    };
    let base = base.strip_suffix('e').filter(|rest| rest.len() >= 3).unwrap_or(&base);
    // Transfer, transferring; cancel, cancelled; but call and calling too: always one of two.
    let mut last = base.chars().rev();
    let is_doubled = base.len() > 3 && last.next() == last.next();
    base[..base.len() - usize::from(is_doubled)].to_owned()
}

/// Content words of two texts, matched.
pub(super) struct Shared<'a> {
    pub(super) both: usize,
    pub(super) only_one: Vec<&'a Word>,
    pub(super) only_other: Vec<&'a Word>,
}

impl<'a> Shared<'a> {
    pub(super) fn of(one: &'a [Word], other: &'a [Word]) -> Shared<'a> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for word in content(other) {
            *counts.entry(&word.stem).or_default() += 1;
        }
        let mut both = 0;
        let mut only_one = Vec::new();
        for word in content(one) {
            match counts.get_mut(word.stem.as_str()).filter(|count| **count > 0) {
                Some(count) => {
                    *count -= 1;
                    both += 1;
                }
                None => only_one.push(word),
            }
        }
        let mut only_other: Vec<&Word> = Vec::new();
        for word in content(other).rev() {
            if let Some(count) = counts.get_mut(word.stem.as_str()).filter(|count| **count > 0) {
                *count -= 1;
                only_other.push(word);
            }
        }
        only_other.reverse();
        let mut shared = Shared { both, only_one, only_other };
        shared.match_misspelled();
        shared
    }

    /// Share of words that both have (Dice). Texts without any content word share all.
    pub(super) fn overlap(&self) -> f32 {
        let all = 2 * self.both + self.only_one.len() + self.only_other.len();
        if all == 0 { 1.0 } else { 2.0 * self.both as f32 / all as f32 }
    }

    fn match_misspelled(&mut self) {
        // Each against each: texts that differ in more words than this don't differ by a slip.
        const COMPARED_MAX: usize = 16;
        if self.only_one.len() > COMPARED_MAX || self.only_other.len() > COMPARED_MAX {
            return;
        }
        let other = &mut self.only_other;
        let mut both = 0;
        self.only_one.retain(|word| {
            match other.iter().position(|found| is_slip(&word.lower, &found.lower)) {
                Some(at) => {
                    other.remove(at);
                    both += 1;
                    false
                }
                None => true,
            }
        });
        self.both += both;
    }
}

fn content(words: &[Word]) -> impl DoubleEndedIterator<Item = &Word> {
    words.iter().filter(|word| word.is_content)
}

/// Whether one word is a misspelling of the other: one slip inside (two in a long word), with the same first and last
/// letter. Employer and employee, Austria and Australia, Mary and Mark are none.
fn is_slip(one: &str, other: &str) -> bool {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let shorter = one.len().min(other.len());
    if shorter < 5 || one.len().max(other.len()) > 24 || one.iter().chain(&other).any(|c| !c.is_alphabetic())
    {
        return false;
    }
    let slips_max = if shorter >= 9 { 2 } else { 1 };
    one[0] == other[0] && one[one.len() - 1] == other[other.len() - 1] && distance(&one, &other) <= slips_max
}

/// Edits and swaps of neighbours that lead from one word to the other (Damerau, optimal string alignment).
fn distance(one: &[char], other: &[char]) -> usize {
    let width = other.len() + 1;
    let mut rows = vec![0; (one.len() + 1) * width];
    for (at, cell) in rows[..width].iter_mut().enumerate() {
        *cell = at;
    }
    for i in 1..=one.len() {
        rows[i * width] = i;
        for j in 1..=other.len() {
            let mut best = (rows[(i - 1) * width + j] + 1).min(rows[i * width + j - 1] + 1);
            best = best.min(rows[(i - 1) * width + j - 1] + usize::from(one[i - 1] != other[j - 1]));
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                best = best.min(rows[(i - 2) * width + j - 2] + 1);
            }
            rows[i * width + j] = best;
        }
    }
    rows[rows.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_for_the_search() {
        assert!(FUNCTION_WORDS.is_sorted());
    }

    #[test]
    fn contractions_hide_no_negation() {
        let lower = |text| split(text, 100).0.into_iter().map(|word| word.lower).collect::<Vec<_>>();
        assert_eq!(
            lower("I can\u{2019}t, won't and didn't"),
            ["i", "can", "not", "will", "not", "and", "did", "not"]
        );
        assert_eq!(
            lower("what's check-in at 9:15 for $1,000.50?"),
            ["what", "check", "in", "at", "9:15", "for", "$1,000.50"]
        );
        assert_eq!(lower("mail a.b@c.de from -5\u{b0}C"), ["mail", "a.b@c.de", "from", "-5\u{b0}c"]);
    }

    #[test]
    fn slips_are_no_other_words() {
        for (one, other) in [
            ("change", "chnage"),
            ("address", "adress"),
            ("allowance", "allowence"),
            ("vegetarian", "vegitarian"),
        ] {
            assert!(is_slip(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("austria", "australia"),
            ("employer", "employee"),
            ("mary", "mark"),
            ("lock", "clock"),
            ("48213", "48231"),
            ("import", "export"),
        ] {
            assert!(!is_slip(one, other), "{one} {other}");
        }
    }

    #[test]
    fn inflections_share_a_stem() {
        for (one, other) in [
            ("cancel", "cancelled"),
            ("transfer", "transferring"),
            ("charge", "charges"),
            ("city", "cities"),
            ("call", "calling"),
            ("box", "boxes"),
            ("make", "making"),
        ] {
            assert_eq!(stem(one), stem(other), "{one} {other}");
        }
    }
}
