//! One form for texts that can't differ in meaning, so that the exact lookup finds more. It never decides that two
//! texts are alike: whatever might change the meaning stays as it is, and is left to the lookup by meaning.
//!
//! What is done: composed characters (NFC), wide forms of ASCII, curly quotes and typographic hyphens, invisible
//! characters, runs of white space, polite words at the edges, the case of a first word that is no name, the question
//! mark of what is a question by its first word. What is not, because it changes meanings: NFKC (x² is not x2, ½ is
//! not 1 2), the case of any other word (US, us; Polish, polish), exclamation marks, punctuation inside.

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Words that begin a question or a request in English and are never a name there.
const FIRST_WORDS: &[&str] = &[
    "am", "are", "can", "could", "did", "do", "does", "had", "has", "have", "how", "is", "should", "was",
    "were", "what", "what's", "when", "when's", "where", "where's", "which", "who", "who's", "whose", "why",
    "would",
];

/// Greetings, which end with a comma, an exclamation mark or a full stop.
const GREETINGS: &[&str] = &[
    "dear team",
    "good afternoon",
    "good evening",
    "good morning",
    "hello",
    "hello there",
    "hey",
    "hey there",
    "hi",
    "hi there",
    "hiya",
];

/// Thanks and requests at the end, after a comma or the end of a sentence.
const ENDINGS: &[&str] = &[
    "cheers",
    "many thanks",
    "please",
    "thank you",
    "thank you in advance",
    "thank you so much",
    "thank you very much",
    "thanks",
    "thanks a lot",
    "thanks in advance",
    "thanks so much",
];

/// Words of a text that may be about the words of a text, where nothing is a mere filler.
const ABOUT_WORDS: &[&str] = &[
    "answer",
    "correct",
    "define",
    "email",
    "explain",
    "grammar",
    "letter",
    "mean",
    "means",
    "message",
    "paraphrase",
    "phrase",
    "proofread",
    "pronounce",
    "quote",
    "rephrase",
    "reply",
    "respond",
    "rewrite",
    "rhyme",
    "say",
    "says",
    "sentence",
    "sentiment",
    "spell",
    "spelling",
    "subject",
    "summarise",
    "summarize",
    "synonym",
    "text",
    "tone",
    "translate",
    "translation",
    "word",
    "words",
    "write",
];

/// The normal form of a question. Normalising twice changes nothing.
///
/// Texts of any language pass; only the rules for fillers, first words and the question mark know English. Text whose
/// white space may matter (a code fence, or a line that begins with white space) keeps it, apart from both ends.
/// Costs a few passes over the text.
pub fn normalise(text: &str) -> String {
    let mut text = spaces(&characters(text));
    // One step may uncover work for another ("Hi, how … please?"), so until nothing changes. Each step shortens the
    // text or lowers its first letter: this ends.
    while let Some(next) = step(&text) {
        text = next;
    }
    text
}

/// Characters that look like another for the eye alone, and those that are not seen at all.
fn characters(text: &str) -> String {
    let folded: String = text
        .chars()
        .filter_map(|c| match c {
            // Soft hyphen, zero width space, word joiner, byte order mark. Joiners stay: they make emoji and Persian.
            '\u{AD}' | '\u{200B}' | '\u{2060}' | '\u{FEFF}' => None,
            '\u{FF01}'..='\u{FF5E}' => char::from_u32(c as u32 - 0xFEE0),
            '\u{2018}' | '\u{2019}' => Some('\''),
            '\u{201C}' | '\u{201D}' => Some('"'),
            '\u{2010}' | '\u{2011}' => Some('-'),
            _ => Some(c),
        })
        .collect();
    if is_nfc(&folded) { folded } else { folded.nfc().collect() }
}

fn spaces(text: &str) -> String {
    let text = text.trim();
    let is_laid_out = text.contains("```") || text.lines().skip(1).any(|line| line.starts_with([' ', '\t']));
    if is_laid_out { text.to_owned() } else { text.split_whitespace().collect::<Vec<_>>().join(" ") }
}

fn step(text: &str) -> Option<String> {
    if is_about_words(text) {
        return None;
    }
    let shorter =
        without_greeting(text).or_else(|| without_ending(text)).or_else(|| without_question_mark(text));
    shorter.map(str::to_owned).or_else(|| with_lower_first_word(text))
}

/// Whether a part of the text may be quoted, so that a filler in it is not one.
fn is_about_words(text: &str) -> bool {
    text.contains(['"', ':', '\n', '`', '«', '„'])
        || text.split(|c: char| !c.is_alphanumeric()).any(|word| is_one_of(ABOUT_WORDS, word))
        // An apostrophe that opens a quotation stands before a word, not in it.
        || text.split(' ').any(|word| word.starts_with('\''))
}

fn is_one_of(words: &[&str], word: &str) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// The text after a greeting, or after a "please" that begins a request.
fn without_greeting(text: &str) -> Option<&str> {
    if let Some((greeting, rest)) = text.split_once([',', '!', '.'])
        && is_one_of(GREETINGS, greeting)
        && rest.starts_with(' ')
    {
        return not_empty(rest.trim_start());
    }
    let (first, rest) = text.split_once(' ')?;
    let is_request = rest.starts_with(|c: char| c.is_lowercase()) && !rest.starts_with("please");
    if first.trim_end_matches(',').eq_ignore_ascii_case("please") && is_request {
        not_empty(rest)
    } else {
        None
    }
}

fn without_ending(text: &str) -> Option<&str> {
    let bare = text.trim_end_matches(['.', '!', '?', ' ']);
    // What stays keeps the mark that ended its sentence, unless it is a comma.
    let at = bare.rfind([',', '.', '!', '?'])?;
    let ending = bare[at + 1..].strip_prefix(' ')?;
    if !is_one_of(ENDINGS, ending) {
        return None;
    }
    let kept = bare[..=at].trim_end_matches([',', ' ']);
    // "…, please?" is a question still.
    if text.ends_with('?') && !kept.ends_with('?') && !begins_as_question(kept) {
        None
    } else {
        not_empty(kept)
    }
}

/// The text without its question marks, where the first word says already that it is a question.
fn without_question_mark(text: &str) -> Option<&str> {
    let bare = text.trim_end_matches(['?', ' ']);
    if bare.len() == text.len() || !begins_as_question(bare) || bare.ends_with(['!', '.']) {
        None
    } else {
        not_empty(bare)
    }
}

fn begins_as_question(text: &str) -> bool {
    let mut words = text.split(' ');
    let is_question = words.next().is_some_and(|first| is_one_of(FIRST_WORDS, first));
    // "What a day" is no question.
    is_question && !words.next().is_none_or(|second| is_one_of(&["a", "an"], second))
}

fn with_lower_first_word(text: &str) -> Option<String> {
    let first = text.split(' ').next()?;
    let mut letters = first.chars();
    let is_capitalised =
        letters.next().is_some_and(|c| c.is_ascii_uppercase()) && letters.all(|c| !c.is_uppercase());
    if !is_capitalised || !begins_as_question(text) {
        return None;
    }
    Some(format!("{}{}", first.to_ascii_lowercase(), &text[first.len()..]))
}

fn not_empty(text: &str) -> Option<&str> {
    text.contains(char::is_alphanumeric).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_means_the_same_becomes_the_same() {
        let same = [
            &[
                "How do I pay?",
                "how do I pay",
                "  How  do I\u{a0}pay ?",
                "Hi, how do I pay?",
                "Hello! How do I pay? Thanks!",
            ][..],
            &["How do I pay, please?", "How do I pay? Thank you."],
            &[
                "cancel my order",
                "please cancel my order",
                "Please, cancel my order",
                "Hi! please cancel my order, thanks",
            ],
            &["What\u{2019}s new?", "what's new"],
            &["caf\u{e9}", "cafe\u{301}", "ca\u{ad}fe\u{301}"],
            &["\u{ff21}\u{ff22}\u{ff23}\u{3000}\u{ff11}", "ABC 1"],
        ];
        for texts in same {
            for text in texts {
                assert_eq!(normalise(text), normalise(texts[0]), "{text:?} and {:?}", texts[0]);
            }
        }
    }

    #[test]
    fn what_may_differ_stays_apart() {
        let apart = [
            ("x\u{b2}", "x2"),
            ("1\u{bd} cups", "11/2 cups"),
            ("2\u{2075}", "25"),
            ("help us", "help US"),
            ("Polish", "polish"),
            ("Rust", "rust"),
            ("5 mW", "5 MW"),
            ("he is here?", "he is here."),
            ("How nice!", "How nice?"),
            ("Stop!", "Stop"),
            ("how to say thanks", "how to say"),
            ("translate hello, thanks", "translate hello"),
            ("Hello, world in French: hello, please", "world in French: hello, please"),
            ("Please Please Me", "Please Me"),
            ("please please me", "please me"),
            ("thanks", ""),
            ("Hello world", "world"),
            ("if x:\n  y()", "if x: y()"),
            ("a\u{200d}b", "ab"),
            ("3 - 2", "3 \u{2013} 2"),
            ("What a day?", "What a day"),
            ("spell it with ' please'", "spell it with 'please'"),
            ("re-sign", "resign"),
        ];
        for (one, other) in apart {
            assert_ne!(normalise(one), normalise(other), "{one:?} and {other:?}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in any::<String>()) {
            let once = normalise(&text);
            prop_assert_eq!(normalise(&once), once);
        }

        #[test]
        fn fillers_around_any_words_leave_a_normal_form(
            before in "(Hi|hello|Hey there|please|good morning|)[,!.]? ?",
            words in "[Hh]ow[ a-zA-Z0-9'?!.,:]{0,20}",
            after in "[,.!?]* ?(thanks|please|many thanks|cheers|)[.!? ]*",
        ) {
            let once = normalise(&format!("{before}{words}{after}"));
            prop_assert_eq!(normalise(&once), once);
        }

        /// Nothing but edges, marks, spaces and the first letter changes.
        #[test]
        fn letters_and_digits_inside_stay(text in "[a-zA-Z0-9 .,']{0,40}") {
            let kept: String = normalise(&text).to_lowercase().split_whitespace().collect();
            let whole: String = text.to_lowercase().split_whitespace().collect();
            prop_assert!(whole.contains(&kept), "{:?} is not in {:?}", kept, whole);
        }

        #[test]
        fn numbers_never_change(text in "\\PC*") {
            let digits = |text: &str| text.nfc().filter(|c| c.is_numeric()).collect::<String>();
            let folded: String = text.chars().map(|c| match c {
                '\u{FF10}'..='\u{FF19}' => char::from_u32(c as u32 - 0xFEE0).unwrap(),
                other => other,
            }).collect();
            prop_assert_eq!(digits(&normalise(&text)), digits(&folded));
        }
    }
}
