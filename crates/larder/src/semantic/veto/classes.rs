//! Words of which at most one can hold: opposites, and closed classes (weekdays, months, directions of a switch). The
//! lists are those of a school grammar: gradable and complementary opposites, reversives, converses (Lyons, Semantics,
//! 1977), and the classes whose members name different things of one kind. Synonyms must never meet here.

use super::Profile;
use super::words::{Shared, Word};

/// Opposites, by stem. Content words, whose place in the text does not matter.
const OPPOSITES: &[(&str, &str)] = &[
    ("accept", "declin"),
    ("accept", "refus"),
    ("accept", "reject"),
    ("add", "remov"),
    ("add", "subtract"),
    ("addition", "subtraction"),
    ("aliv", "dead"),
    ("allow", "ban"),
    ("allow", "block"),
    ("allow", "forbid"),
    ("allow", "prevent"),
    ("allow", "prohibit"),
    ("anticlockwis", "clockwis"),
    ("approv", "deny"),
    ("approv", "reject"),
    ("arriv", "depart"),
    ("arrival", "departur"),
    ("ascend", "descend"),
    ("asleep", "awak"),
    ("backward", "forward"),
    ("bad", "good"),
    ("begin", "end"),
    ("benefit", "disadvantag"),
    ("benefit", "downsid"),
    ("benefit", "drawback"),
    ("benefit", "risk"),
    ("best", "worst"),
    ("better", "wors"),
    ("big", "smal"),
    ("bigger", "smaller"),
    ("biggest", "smallest"),
    ("borrow", "lend"),
    ("borrower", "lender"),
    ("bottom", "top"),
    ("busines", "personal"),
    ("buy", "sel"),
    ("buyer", "seller"),
    ("cheap", "expensiv"),
    ("cheaper", "dearer"),
    ("cheapest", "dearest"),
    ("child", "parent"),
    ("clean", "dirty"),
    ("clos", "open"),
    ("cold", "hot"),
    ("colder", "hotter"),
    ("collaps", "expand"),
    ("cool", "warm"),
    ("cooler", "warmer"),
    ("creat", "delet"),
    ("credit", "debit"),
    ("dangerous", "saf"),
    ("decod", "encod"),
    ("decreas", "increas"),
    ("decrypt", "encrypt"),
    ("defeat", "victory"),
    ("demand", "supply"),
    ("deposit", "withdraw"),
    ("deposit", "withdrawal"),
    ("difficult", "easy"),
    ("disabl", "enabl"),
    ("discourag", "encourag"),
    ("divid", "multiply"),
    ("domestic", "international"),
    ("downgrad", "upgrad"),
    ("download", "upload"),
    ("dry", "wet"),
    ("earliest", "latest"),
    ("early", "late"),
    ("earn", "spend"),
    ("easy", "hard"),
    ("employee", "employer"),
    ("empty", "ful"),
    ("end", "start"),
    ("enter", "exit"),
    ("even", "odd"),
    ("exclud", "includ"),
    ("expand", "shrink"),
    ("export", "import"),
    ("exterior", "interior"),
    ("external", "internal"),
    ("fail", "pas"),
    ("fail", "succe"),
    ("failur", "succes"),
    ("fals", "true"),
    ("far", "near"),
    ("fast", "slow"),
    ("faster", "slower"),
    ("fastest", "slowest"),
    ("fat", "thin"),
    ("fewer", "mor"),
    ("fewest", "most"),
    ("finish", "start"),
    ("first", "last"),
    ("forget", "remember"),
    ("freez", "thaw"),
    ("furthest", "nearest"),
    ("gain", "los"),
    ("gain", "los"),
    ("grant", "revok"),
    ("hard", "soft"),
    ("hat", "lov"),
    ("heavier", "lighter"),
    ("heavy", "light"),
    ("hid", "reveal"),
    ("hid", "show"),
    ("high", "low"),
    ("higher", "lower"),
    ("highest", "lowest"),
    ("horizontal", "vertical"),
    ("improv", "worsen"),
    ("inbound", "outbound"),
    ("includ", "omit"),
    ("incom", "outgo"),
    ("increas", "lower"),
    ("increas", "reduc"),
    ("indoor", "outdoor"),
    ("indoors", "outdoors"),
    ("input", "output"),
    ("insid", "outsid"),
    ("join", "leav"),
    ("landlord", "tenant"),
    ("larg", "smal"),
    ("larger", "smaller"),
    ("largest", "smallest"),
    ("least", "most"),
    ("les", "mor"),
    ("long", "short"),
    ("longer", "shorter"),
    ("longest", "shortest"),
    ("los", "win"),
    ("loser", "winner"),
    ("los", "profit"),
    ("loud", "quiet"),
    ("lower", "rais"),
    ("lower", "upper"),
    ("major", "minor"),
    ("majority", "minority"),
    ("mandatory", "optional"),
    ("married", "single"),
    ("max", "min"),
    ("maximis", "minimis"),
    ("maximiz", "minimiz"),
    ("maximum", "minimum"),
    ("merg", "split"),
    ("minus", "plus"),
    ("narrow", "wid"),
    ("negativ", "positiv"),
    ("new", "old"),
    ("newest", "oldest"),
    ("offlin", "onlin"),
    ("old", "young"),
    ("older", "younger"),
    ("oldest", "youngest"),
    ("paus", "resum"),
    ("permanent", "temporary"),
    ("plural", "singular"),
    ("poor", "rich"),
    ("privat", "public"),
    ("pul", "push"),
    ("receiv", "send"),
    ("receiver", "sender"),
    ("recipient", "sender"),
    ("short", "tal"),
    ("shorter", "taller"),
    ("shortest", "tallest"),
    ("start", "stop"),
    ("strong", "weak"),
    ("stronger", "weaker"),
    ("student", "teacher"),
    ("sunris", "sunset"),
    ("thick", "thin"),
];

/// Classes of which two members in the same place exclude one another, by stem.
const CLASSES: &[&[&str]] = &[
    &[
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "today",
        "tomorrow",
        "weekday",
        "weekend",
        "yesterday",
    ],
    // May and March are words of other meanings, so they count as months only where they are names.
    &[
        "january",
        "february",
        "march",
        "april",
        "may",
        "jun",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ],
    &["spr", "spring", "summer", "autumn", "winter"],
    &["morn", "afternoon", "noon", "midnight"],
    &["daily", "weekly", "fortnightly", "monthly", "quarterly", "yearly", "hourly"],
    &["north", "south", "east", "west"],
    &["northern", "southern", "eastern", "western"],
    &["breakfast", "lunch", "dinner"],
    &["men", "women"],
    &["man", "woman"],
    &["male", "femal"],
    &["boy", "girl"],
    &["husband", "wif"],
    &["father", "mother"],
    &["dad", "mum"],
    &["son", "daughter"],
    &["brother", "sister"],
    &["uncl", "aunt"],
    &["king", "queen"],
    &["adult", "child", "children", "kid", "teenager", "baby", "infant"],
    &["red", "orang", "yellow", "green", "blu", "purpl", "black", "white", "pink", "brown"],
    &["undergraduat", "postgraduat"],
    &["solid", "liquid", "gas"],
    &["bronz", "silver", "gold", "platinum"],
    &["second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"],
    &["usd", "gbp", "eur", "jpy", "inr", "chf", "aud", "cad"],
    &["next", "last", "previous"],
];

/// Small words that are opposites where they stand beside the same word: turn on, turn off; under 50, over 50.
const PARTICLES: &[(&str, &str)] = &[
    ("on", "off"),
    ("in", "out"),
    ("up", "down"),
    ("over", "under"),
    ("above", "below"),
    ("before", "after"),
    ("with", "without"),
    ("full", "part"),
    ("more", "less"),
    ("more", "fewer"),
    ("most", "least"),
    ("for", "against"),
    ("to", "from"),
    ("all", "none"),
];

/// Whether one text has a word, and the other an opposite in its place.
pub(super) fn are_opposed(one: &Profile, other: &Profile, shared: &Shared<'_>) -> bool {
    // Each against each, so only where the texts are near enough for one word to decide.
    const COMPARED_MAX: usize = 48;
    if shared.only_one.len() > COMPARED_MAX || shared.only_other.len() > COMPARED_MAX {
        return false;
    }
    let words = shared.only_one.iter().any(|left| {
        shared.only_other.iter().any(|right| {
            let are = are_opposites(left, right) || are_of_one_class(left, right);
            // "Not open" is not the opposite of "closed".
            are && one.negations.denies(&left.stem) == other.negations.denies(&right.stem)
        })
    });
    words
        || PARTICLES.iter().any(|(left, right)| {
            faces(&one.words, &other.words, left, right) || faces(&other.words, &one.words, left, right)
        })
}

fn are_opposites(left: &Word, right: &Word) -> bool {
    let is = |known: &str, word: &Word| word.stem == known || word.lower == known;
    OPPOSITES
        .iter()
        .any(|(one, other)| is(one, left) && is(other, right) || is(one, right) && is(other, left))
}

fn are_of_one_class(left: &Word, right: &Word) -> bool {
    let is_name = |word: &Word| {
        !matches!(word.lower.as_str(), "may" | "march") || word.written.starts_with(char::is_uppercase)
    };
    CLASSES.iter().any(|class| {
        let place = |word: &Word| class.iter().position(|known| word.stem == *known || word.lower == *known).filter(|_| is_name(word));
        matches!((place(left), place(right)), (Some(left_at), Some(right_at)) if left_at != right_at && left.stem != right.stem && !is_kin(&left.lower, &right.lower))
    })
}

/// Words of a class that name the same thing.
fn is_kin(one: &str, other: &str) -> bool {
    const SAME: &[&[&str]] = &[
        &["child", "children", "kid", "kids"],
        &["baby", "infant"],
        &["teenager", "kid", "child", "children"],
        &["last", "previous"],
        &["jun", "june"],
        &["spr", "spring"],
        &["adult", "adults"],
    ];
    SAME.iter().any(|same| same.contains(&one) && same.contains(&other))
}

/// Whether `left` stands in one text and not in the other, `right` the other way round, both beside the same word.
fn faces(one: &[Word], other: &[Word], left: &str, right: &str) -> bool {
    let has = |words: &[Word], small: &str| words.iter().any(|word| word.lower == small);
    if !has(one, left) || has(one, right) || !has(other, right) || has(other, left) {
        return false;
    }
    let beside = |words: &[Word], small: &str| {
        let mut found = (Vec::new(), Vec::new());
        for at in (0..words.len()).filter(|at| words[*at].lower == small) {
            found.0.extend(at.checked_sub(1).map(|at| words[at].stem.clone()));
            found.1.extend(words.get(at + 1).map(|word| word.stem.clone()));
        }
        found
    };
    let (one, other) = (beside(one, left), beside(other, right));
    // What stands before binds a particle to its verb; an article after it says nothing.
    one.0.iter().any(|stem| other.0.contains(stem)) && one.1.iter().any(|stem| other.1.contains(stem))
        || one.0.iter().any(|stem| other.0.contains(stem) && stem.len() > 2)
}
