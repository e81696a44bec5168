//! The words of a text as BERT sees them: cleaned, CJK characters apart, accents stripped, lower case, split at white
//! space and punctuation. Character by character, as the reference (`tokenizers`, `BertNormalizer` and
//! `BertPreTokenizer`) does it, so that no more of a long text is looked at than is needed.

use std::ops::ControlFlow;

use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

/// What is done to a text before it is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Normalizer {
    pub(crate) clean_text: bool,
    pub(crate) handle_chinese_chars: bool,
    pub(crate) strip_accents: bool,
    pub(crate) lowercase: bool,
}

/// A word, or `None` for one of more than `chars_max` characters.
pub(crate) type Word<'a> = Option<&'a str>;

impl Normalizer {
    /// Calls `each` with every word of `text`, in order, until it breaks.
    pub(crate) fn words(
        self,
        text: &str,
        chars_max: usize,
        mut each: impl FnMut(Word<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let cleaned = text
            .chars()
            .filter(move |&c| !self.clean_text || !(c == '\0' || c == '\u{fffd}' || is_control(c)))
            .map(move |c| if self.clean_text && c.is_whitespace() { ' ' } else { c })
            .flat_map(move |c| Spaced::new(c, self.handle_chinese_chars && is_chinese(c)));
        if self.strip_accents {
            let stripped = cleaned.nfd().map(|(c, _)| c).filter(|c| !c.is_mark_nonspacing());
            self.split(stripped, chars_max, &mut each)
        } else {
            self.split(cleaned, chars_max, &mut each)
        }
    }

    fn split(
        self,
        chars: impl Iterator<Item = char>,
        chars_max: usize,
        each: &mut impl FnMut(Word<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut word = WordSoFar { text: String::new(), chars: 0, chars_max };
        for c in chars {
            if self.lowercase && !c.is_ascii() {
                for c in c.to_lowercase() {
                    word.take(c, each)?;
                }
            } else if self.lowercase {
                word.take(c.to_ascii_lowercase(), each)?;
            } else {
                word.take(c, each)?;
            }
        }
        word.end(each)
    }
}

struct WordSoFar {
    text: String,
    chars: usize,
    chars_max: usize,
}

impl WordSoFar {
    fn take(&mut self, c: char, each: &mut impl FnMut(Word<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        if c.is_whitespace() {
            return self.end(each);
        }
        if is_punctuation(c) {
            self.end(each)?;
            return each(Some(c.encode_utf8(&mut [0; 4])));
        }
        self.chars += 1;
        // What is over the limit becomes one unknown token, whatever it says.
        if self.chars <= self.chars_max {
            self.text.push(c);
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self, each: &mut impl FnMut(Word<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let flow = match self.chars {
            0 => ControlFlow::Continue(()),
            chars => each((chars <= self.chars_max).then_some(self.text.as_str())),
        };
        self.text.clear();
        self.chars = 0;
        flow
    }
}

/// One character, between two spaces if it is a word by itself.
struct Spaced {
    c: char,
    left: u8,
}

impl Spaced {
    fn new(c: char, alone: bool) -> Self {
        // A plain character is the middle one of the three.
        Spaced { c, left: if alone { 3 } else { 4 } }
    }
}

impl Iterator for Spaced {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let (c, left) = match self.left {
            0 => return None,
            4 => (self.c, 0),
            2 => (self.c, 1),
            left => (' ', left - 1),
        };
        self.left = left;
        Some(c)
    }
}

fn is_control(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
    }
    c.is_other()
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || !c.is_ascii() && c.is_punctuation()
}

fn is_chinese(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
            | 0x2B920..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: Normalizer =
        Normalizer { clean_text: true, handle_chinese_chars: true, strip_accents: true, lowercase: true };

    fn words(normalizer: Normalizer, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let _ = normalizer.words(text, 100, |word| {
            words.push(word.unwrap_or("<too long>").to_owned());
            ControlFlow::Continue(())
        });
        words
    }

    fn fnv(state: u64, bytes: &[u8]) -> u64 {
        bytes.iter().fold(state, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    }

    /// A hash per 1,024 characters, by the `tokenizers` package (`tools/golden.py`).
    #[test]
    fn texts_with_each_character_of_unicode_are_split_as_by_the_reference() {
        let golden = include_str!("../../tests/golden/words.txt");
        assert_eq!(golden.lines().count(), 0x11_0000 / 1024);
        for (block, expected) in golden.lines().enumerate() {
            let mut hash = 0xCBF2_9CE4_8422_2325;
            for (index, c) in
                (block as u32 * 1024..(block as u32 + 1) * 1024).filter_map(char::from_u32).enumerate()
            {
                let text = format!("{c} A{c}b É{c}{c} x\u{316}{c}\u{301}y");
                if index > 0 {
                    hash = fnv(hash, b"\x1e");
                }
                hash = fnv(hash, words(BERT, &text).join("\x1f").as_bytes());
            }
            assert_eq!(format!("{hash:016x}"), expected, "characters from U+{:X} on", block * 1024);
        }
    }

    #[test]
    fn each_step_can_be_off() {
        let text = "Ä\u{7}中文 b\u{a0}c";
        let with = |change: fn(&mut Normalizer)| {
            let mut normalizer = BERT;
            change(&mut normalizer);
            words(normalizer, text)
        };
        assert_eq!(words(BERT, text), ["a", "中", "文", "b", "c"]);
        assert_eq!(with(|n| n.clean_text = false), ["a\u{7}", "中", "文", "b", "c"]);
        assert_eq!(with(|n| n.handle_chinese_chars = false), ["a中文", "b", "c"]);
        assert_eq!(with(|n| n.strip_accents = false), ["ä", "中", "文", "b", "c"]);
        assert_eq!(with(|n| n.lowercase = false), ["A", "中", "文", "b", "c"]);
    }

    #[test]
    fn a_text_is_read_no_further_than_asked() {
        let text = "word ".repeat(10_000);
        let mut count = 0;
        let _ = BERT.words(&text, 100, |_| {
            count += 1;
            if count < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!(count, 10);
        assert_eq!(words(BERT, &"x".repeat(101)), ["<too long>"]);
        assert_eq!(words(BERT, &"x".repeat(100)).len(), 1);
    }
}
