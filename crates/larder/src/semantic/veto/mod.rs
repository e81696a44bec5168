//! What an embedding does not see: "10 USD" beside "100 USD", "with" beside "without", NY to FL beside FL to NY. Such
//! pairs lie closer together than most that mean the same, so no similarity may outvote what is found here.
//!
//! A [`Profile`] holds what a text says in a way that can be compared, and is made once per text. Comparing two gives
//! [`Vetoes`], which forbid that one's answer serves the other, and features, which a policy weighs.
//!
//! **Languages.** Numbers in digits, codes, addresses, quotations and names apart from the start of a sentence are
//! found in any script that has capitals. Negation, antonyms, closed classes, directions and numbers in words are
//! English. Elsewhere nothing is found, which leaves the decision to similarity: absent, not wrong.

mod classes;
mod names;
mod negation;
mod numbers;
mod order;
mod words;

use names::Names;
use negation::Negations;
use numbers::Quantity;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault};
use words::Word;

/// How many words of a text are compared. The rest must be equal to the byte: see [`Vetoes::BEYOND`].
///
/// 1,000 words are four times the window of common sentence encoders, which don't see more either.
pub const WORDS_MAX: usize = 1000;

/// What a text says of numbers, negations, names and order.
#[derive(Clone, Debug)]
pub struct Profile {
    words: Vec<Word>,
    quantities: Vec<Quantity>,
    negations: Negations,
    names: Names,
    /// A hash of what comes after [`WORDS_MAX`] words.
    beyond: Option<u64>,
}

/// Why one question's answer must not serve another: a set.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Vetoes(u8);

impl Vetoes {
    /// Numbers, dates, versions or units that differ.
    pub const NUMBERS: Vetoes = Vetoes(1);
    /// One text denies what the other says.
    pub const NEGATION: Vetoes = Vetoes(2);
    /// Opposites, or two of a class of which only one can be: on, off; Monday, Friday.
    pub const ANTONYM: Vetoes = Vetoes(4);
    /// The same things the other way round: from A to B, from B to A.
    pub const ORDER: Vetoes = Vetoes(8);
    /// Codes, addresses or quotations that differ.
    pub const CODE: Vetoes = Vetoes(16);
    /// More than [`WORDS_MAX`] words, and the rest differs.
    pub const BEYOND: Vetoes = Vetoes(32);

    const NAMES: [(Vetoes, &'static str); 6] = [
        (Vetoes::NUMBERS, "numbers"),
        (Vetoes::NEGATION, "negation"),
        (Vetoes::ANTONYM, "antonym"),
        (Vetoes::ORDER, "order"),
        (Vetoes::CODE, "code"),
        (Vetoes::BEYOND, "beyond"),
    ];

    /// Whether nothing was found against the pair.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `others` are among these.
    pub fn contains(self, others: Vetoes) -> bool {
        self.0 & others.0 == others.0
    }

    /// The names of what was found, for explanations and metrics.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(veto, _)| self.contains(*veto)).map(|(_, name)| name)
    }

    fn when(self, found: bool) -> Vetoes {
        if found { self } else { Vetoes(0) }
    }
}

impl std::ops::BitOr for Vetoes {
    type Output = Vetoes;

    fn bitor(self, other: Vetoes) -> Vetoes {
        Vetoes(self.0 | other.0)
    }
}

impl fmt::Debug for Vetoes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// What comparing two texts found, apart from their similarity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// What forbids to serve.
    pub vetoes: Vetoes,
    /// Share of content words that both have, 0 to 1 (Dice); misspellings count as the same word.
    pub overlap: f32,
    /// A number stands in one text alone.
    pub has_lone_number: bool,
    /// One text has more negations than the other.
    pub has_lone_negation: bool,
    /// Each text has a name that the other lacks.
    pub has_other_names: bool,
    /// A name stands in one text alone, and no other in its place.
    pub has_lone_name: bool,
}

impl Comparison {
    /// Whether anything stands in one text that the other leaves open. Not wrong by itself, but not to be trusted
    /// before it has been learned what it means here.
    pub fn has_doubts(&self) -> bool {
        self.has_lone_number || self.has_lone_negation || self.has_other_names || self.has_lone_name
    }

    /// How far apart the words are that the texts don't share: the distance of the texts (1 - similarity) for each
    /// share of their content words that differs.
    ///
    /// Shared words draw two texts together whatever the others say: "what does my home insurance cover" is as near to
    /// "what does my car insurance cover" as a good paraphrase. Sentence encoders average over words, so dividing by
    /// the differing share gives back about the distance of what differs: 0 the same, 1 unrelated. Texts of the same
    /// words have none, whatever their similarity.
    pub fn residual(&self, similarity: f32) -> f32 {
        // A twentieth: one word in twenty, below which rounding decides.
        if self.overlap >= 0.95 { 0.0 } else { ((1.0 - similarity) / (1.0 - self.overlap)).clamp(0.0, 2.0) }
    }
}

impl Profile {
    /// What `text` says. Never fails, on any text; costs a pass over it.
    pub fn of(text: &str) -> Profile {
        let (words, rest) = words::split(text, WORDS_MAX);
        Profile {
            quantities: numbers::of(&words),
            negations: Negations::of(&words),
            names: Names::of(text, &words),
            beyond: (!rest.is_empty())
                .then(|| BuildHasherDefault::<xxhash_rust::xxh3::Xxh3>::default().hash_one(rest)),
            words,
        }
    }

    /// Compares two texts; which is which does not matter.
    pub fn compare(&self, other: &Profile) -> Comparison {
        let shared = words::Shared::of(&self.words, &other.words);
        let numbers = numbers::compare(&self.quantities, &other.quantities);
        let names = self.names.compare(&other.names, &self.words, &other.words);
        let vetoes = Vetoes::NUMBERS.when(numbers.differ)
            | Vetoes::NEGATION.when(
                self.negations.deny(&other.words, &other.negations)
                    || other.negations.deny(&self.words, &self.negations)
                    || negation::is_prefixed(&shared),
            )
            | Vetoes::ANTONYM.when(classes::are_opposed(self, other, &shared))
            | Vetoes::ORDER.when(order::is_reversed(&self.words, &other.words))
            | Vetoes::CODE.when(names.codes_differ)
            | Vetoes::BEYOND.when(self.beyond != other.beyond);
        Comparison {
            vetoes,
            overlap: shared.overlap(),
            has_lone_number: numbers.lone,
            has_lone_negation: self.negations.count != other.negations.count,
            has_other_names: names.differ,
            has_lone_name: names.lone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vetoes(one: &str, other: &str) -> Vetoes {
        let (one, other) = (Profile::of(one), Profile::of(other));
        let found = one.compare(&other).vetoes;
        assert_eq!(found, other.compare(&one).vetoes, "which is which matters");
        found
    }

    #[test]
    fn traps_are_found() {
        let traps = [
            (Vetoes::ORDER, "flights from NY to FL", "flights from FL to NY"),
            (Vetoes::ORDER, "convert euros to dollars", "convert dollars to euros"),
            (Vetoes::ORDER, "is a cat bigger than a dog", "is a dog bigger than a cat"),
            (Vetoes::ORDER, "eat before running", "running before eating"),
            (Vetoes::NEGATION, "cocktails with alcohol", "cocktails without alcohol"),
            (Vetoes::NEGATION, "can I return it", "can\u{2019}t I return it"),
            (Vetoes::NEGATION, "is it legal to park here", "is it illegal to park here"),
            (Vetoes::NEGATION, "how do I lock my account", "how do I unlock my account"),
            (Vetoes::NEGATION, "which plants need water", "which plants never need water"),
            (Vetoes::ANTONYM, "how do I turn on the heating", "how do I turn off the heating"),
            (Vetoes::ANTONYM, "who buys gold", "who sells gold"),
            (Vetoes::ANTONYM, "are you open on Monday", "are you open on Sunday"),
            (Vetoes::ANTONYM, "weather in April", "weather in June"),
            (Vetoes::ANTONYM, "parcels over 10 kg", "parcels under 10 kg"),
            (Vetoes::NUMBERS, "send 10 USD", "send 100 USD"),
            (Vetoes::NUMBERS, "a 5kg parcel", "a 5 lb parcel"),
            (Vetoes::NUMBERS, "Python 3.11", "Python 3.12"),
            (Vetoes::NUMBERS, "what happened on 2024-05-01", "what happened on 2024-05-02"),
            (Vetoes::CODE, "status of order AB12-X", "status of order AC12-X"),
            (Vetoes::CODE, "mail a.b@example.com", "mail c.d@example.com"),
            (Vetoes::CODE, "what does read_line do", "what does read_file do"),
            (Vetoes::CODE, "what does \"carpe diem\" mean", "what does \"tempus fugit\" mean"),
        ];
        for (veto, one, other) in traps {
            assert!(vetoes(one, other).contains(veto), "{one} / {other}: {:?}", vetoes(one, other));
        }
    }

    #[test]
    fn what_means_the_same_is_not_vetoed() {
        let same = [
            ("How do I cancel my order?", "how can I cancel my order"),
            ("where is my parcel", "my parcel has not arrived, where is it"),
            ("return it after 14 days", "send it back after two weeks"),
            (
                "Is there a discount for students on train tickets?",
                "On train tickets, is there a discount for students?",
            ),
            ("NY vs FL for retirement", "FL vs NY for retirement"),
            ("flights from NY to FL", "flights to FL from NY"),
            ("who pays statutory sick pay", "who pays SSP"),
            ("it is not open on Sunday", "is it closed on Sunday"),
            ("check-in time", "check in time"),
            ("", ""),
        ];
        for (one, other) in same {
            assert!(vetoes(one, other).is_empty(), "{one} / {other}: {:?}", vetoes(one, other));
        }
    }

    #[test]
    fn names_are_doubts_and_no_vetoes() {
        let compare = |one: &str, other: &str| Profile::of(one).compare(&Profile::of(other));
        let swapped = compare("opening hours of the Camden branch", "opening hours of the Brixton branch");
        assert!(swapped.vetoes.is_empty() && swapped.has_other_names && swapped.has_doubts());
        assert!(compare("tell me about Paris", "tell me about the city").has_lone_name);
        assert!(!compare("WHERE IS MY ORDER", "where is my order").has_doubts());
    }

    #[test]
    fn the_rest_of_a_long_text_must_be_equal() {
        let long = |end: &str| format!("{} {end}", "word ".repeat(WORDS_MAX));
        assert!(vetoes(&long("to the left"), &long("to the right")).contains(Vetoes::BEYOND));
        assert!(vetoes(&long("same"), &long("same")).is_empty());
    }

    #[test]
    fn what_differs_is_far_apart_in_a_trap() {
        let residual = |one: &str, other: &str, similarity| {
            Profile::of(one).compare(&Profile::of(other)).residual(similarity)
        };
        assert!(residual("what does my home insurance cover", "what does my car insurance cover", 0.8) > 0.5);
        assert!(residual("find the nearest store", "find the nearest shop", 0.95) < 0.2);
        assert_eq!(residual("same words", "same words", 0.5), 0.0);
    }

    proptest! {
        #[test]
        fn any_two_texts_compare_the_same_both_ways(one in any::<String>(), other in any::<String>()) {
            let (one, other) = (Profile::of(&one), Profile::of(&other));
            prop_assert_eq!(one.compare(&other), other.compare(&one));
        }

        #[test]
        fn a_text_has_nothing_against_itself(text in "[\\PC\n]{0,80}") {
            let profile = Profile::of(&text);
            let compared = profile.compare(&profile);
            prop_assert!(compared.vetoes.is_empty() && !compared.has_doubts(), "{:?}", compared);
        }

        #[test]
        fn words_of_all_kinds_compare(one in "(from|to|not|un[a-z]{3}|[0-9]{1,18}[a-z%]?|\\$|\u{a3}[0-9,.]{0,6}|one|hundred|million|and|-5|9:15|[A-Z][a-z]+|\"|`| ){0,30}") {
            let profile = Profile::of(&one);
            prop_assert!(profile.compare(&profile).vetoes.is_empty());
        }
    }
}
