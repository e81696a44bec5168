//! What names a thing: codes, addresses and quotations, which must be equal, and capitalised words, which tell that
//! two texts speak of different things only as far as they are written with care.

use super::words::{self, Word};

/// More of one kind than this are compared by their first ones.
const NAMES_MAX: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    codes: Vec<String>,
    quoted: Vec<String>,
    /// Stems of capitalised words that don't open a sentence, with what is written.
    capitals: Vec<(String, String)>,
}

/// How the names of two texts compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) codes_differ: bool,
    pub(super) differ: bool,
    pub(super) lone: bool,
}

impl Names {
    pub(super) fn of(text: &str, words: &[Word]) -> Names {
        let is_code = |word: &&Word| {
            let digits = word.lower.contains(|c: char| c.is_ascii_digit());
            let letters = word.lower.contains(char::is_alphabetic);
            let inner = word.written.contains(['@', '_'])
                || word.written.contains("://")
                || word.written.contains('.') && letters;
            inner || digits && letters && super::numbers::of(std::slice::from_ref(*word)).is_empty()
        };
        let content = words.iter().filter(|word| word.is_content);
        let capitals = content.clone().filter(|word| is_capital(word)).count();
        // In a title, or where one shouts, capitals say nothing.
        let says = capitals * 4 <= content.clone().count().max(1) * 3 || content.clone().count() < 2;
        let capitals = content.filter(|word| says && is_capital(word) && (!word.opens || is_acronym(word)));
        Names {
            codes: words.iter().filter(is_code).map(|word| word.lower.clone()).take(NAMES_MAX).collect(),
            quoted: quoted(text),
            capitals: capitals
                .map(|word| (word.stem.clone(), word.written.clone()))
                .take(NAMES_MAX)
                .collect(),
        }
    }

    pub(super) fn compare(&self, other: &Names, words: &[Word], others: &[Word]) -> Compared {
        let here = self.lacking(others);
        let there = other.lacking(words);
        let lacks = |one: &[String], other: &[String]| one.iter().any(|name| !other.contains(name));
        Compared {
            codes_differ: lacks(&self.codes, &other.codes) && lacks(&other.codes, &self.codes)
                || lacks(&self.quoted, &other.quoted) && lacks(&other.quoted, &self.quoted),
            differ: here && there,
            lone: here != there || self.codes.len() != other.codes.len(),
        }
    }

    /// Whether there is a name that those words don't have, nor spell out or abbreviate.
    fn lacking(&self, words: &[Word]) -> bool {
        self.capitals.iter().any(|(stem, written)| {
            let named = words.iter().any(|word| {
                word.stem == *stem
                    || word.lower.starts_with(stem.as_str())
                    || (word.stem.len() >= 3 && stem.starts_with(&word.stem))
            });
            !named && !is_spelled_out(written, words)
        })
    }
}

fn is_capital(word: &Word) -> bool {
    word.written.starts_with(char::is_uppercase)
}

fn is_acronym(word: &Word) -> bool {
    word.written.len() > 1 && word.written.chars().all(|c| c.is_uppercase() || c.is_ascii_digit())
}

/// Whether words in a row begin with the letters of an acronym: SSP, statutory sick pay.
fn is_spelled_out(acronym: &str, words: &[Word]) -> bool {
    let letters: Vec<char> = acronym.to_lowercase().chars().collect();
    (2..=6).contains(&letters.len())
        && acronym.chars().all(char::is_uppercase)
        && words
            .windows(letters.len())
            .any(|row| row.iter().zip(&letters).all(|(word, letter)| word.lower.starts_with(*letter)))
}

/// What stands in double quotes or backticks.
fn quoted(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['"', '`', '\u{201C}', '\u{AB}']).filter(|_| found.len() < NAMES_MAX) {
        let Some(mark) = rest[start..].chars().next() else { break };
        let closing = match mark {
            '\u{201C}' => '\u{201D}',
            '\u{AB}' => '\u{BB}',
            same => same,
        };
        let after = &rest[start + mark.len_utf8()..];
        let Some(end) = after.find(closing) else { break };
        let inside = words::split(&after[..end], super::WORDS_MAX).0;
        if !inside.is_empty() {
            found.push(inside.iter().map(|word| word.lower.as_str()).collect::<Vec<_>>().join(" "));
        }
        rest = &after[end + closing.len_utf8()..];
    }
    found
}
