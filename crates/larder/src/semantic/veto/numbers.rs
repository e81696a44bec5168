//! Quantities: digits and English number words, with their units, in one scale per dimension, so that two weeks are
//! 14 days and 5 kg are not 5 lb. What has digits and is no plain number (dates, times, versions, ranges) is compared
//! as it is written.

use super::words::{self, Word};

/// A number with what it counts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Quantity {
    value: Value,
    unit: Option<Unit>,
    /// The stem of the word that follows, and what it counts if that is no unit.
    of: Option<String>,
    /// "One" may be an article, so it counts only against another number.
    is_weak: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(f64),
    Written(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Unit {
    dimension: Dimension,
    scale: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dimension {
    Time,
    /// Calendar months have no fixed number of days.
    Months,
    Mass,
    Length,
    Volume,
    Data,
    Energy,
    Power,
    Percent,
    Celsius,
    Fahrenheit,
    Dollar,
    Pound,
    Euro,
    Yen,
    Rupee,
    Morning,
    Evening,
}

use Dimension::*;

/// Units by their lower-case names. "Pound" is a currency here: as a mass it is "lb", or "pounds" on both sides.
const UNITS: &[(&[&str], Dimension, f64)] = &[
    (&["ms", "millisecond", "milliseconds"], Time, 0.001),
    (&["s", "sec", "secs", "second", "seconds"], Time, 1.0),
    (&["min", "mins", "minute", "minutes"], Time, 60.0),
    (&["h", "hr", "hrs", "hour", "hours"], Time, 3600.0),
    (&["d", "day", "days"], Time, 86_400.0),
    (&["week", "weeks", "wk", "wks"], Time, 604_800.0),
    (&["month", "months"], Months, 1.0),
    (&["year", "years", "yr", "yrs"], Months, 12.0),
    (&["mg", "milligram", "milligrams"], Mass, 0.001),
    (&["g", "gram", "grams"], Mass, 1.0),
    (&["kg", "kgs", "kilo", "kilos", "kilogram", "kilograms"], Mass, 1000.0),
    (&["t", "tonne", "tonnes"], Mass, 1e6),
    (&["oz", "ounce", "ounces"], Mass, 28.349_523_125),
    (&["lb", "lbs"], Mass, 453.592_37),
    (&["mm", "millimetre", "millimetres", "millimeter", "millimeters"], Length, 0.001),
    (&["cm", "centimetre", "centimetres", "centimeter", "centimeters"], Length, 0.01),
    (&["m", "metre", "metres", "meter", "meters"], Length, 1.0),
    (&["km", "kms", "kilometre", "kilometres", "kilometer", "kilometers"], Length, 1000.0),
    (&["inch", "inches"], Length, 0.0254),
    (&["ft", "foot", "feet"], Length, 0.3048),
    (&["mile", "miles", "mi"], Length, 1609.344),
    (&["ml", "millilitre", "millilitres", "milliliter", "milliliters"], Volume, 0.001),
    (&["l", "litre", "litres", "liter", "liters"], Volume, 1.0),
    (&["kb", "kilobyte", "kilobytes"], Data, 1e3),
    (&["mb", "megabyte", "megabytes"], Data, 1e6),
    (&["gb", "gigabyte", "gigabytes", "gig", "gigs"], Data, 1e9),
    (&["tb", "terabyte", "terabytes"], Data, 1e12),
    (&["kwh"], Energy, 1.0),
    (&["mwh"], Energy, 1000.0),
    (&["w", "watt", "watts"], Power, 1.0),
    (&["kw", "kilowatt", "kilowatts"], Power, 1000.0),
    (&["%", "percent", "pct"], Percent, 1.0),
    (&["\u{b0}c", "celsius"], Celsius, 1.0),
    (&["\u{b0}f", "fahrenheit"], Fahrenheit, 1.0),
    (&["$", "usd", "dollar", "dollars", "bucks"], Dollar, 1.0),
    (&["\u{a3}", "gbp", "pound", "pounds", "quid"], Pound, 1.0),
    (&["\u{20ac}", "eur", "euro", "euros"], Euro, 1.0),
    (&["\u{a5}", "jpy", "yen"], Yen, 1.0),
    (&["\u{20b9}", "inr", "rupee", "rupees"], Rupee, 1.0),
    (&["am"], Morning, 1.0),
    (&["pm"], Evening, 1.0),
];

const SMALL: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: &[&str] = &["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// How two texts' quantities compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Each has one that the other lacks, or they count different things.
    pub(super) differ: bool,
    /// One has a quantity where the other has none.
    pub(super) lone: bool,
}

/// All quantities of a text, in order.
pub(super) fn of(words: &[Word]) -> Vec<Quantity> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < words.len() {
        match quantity_at(words, at) {
            Some((quantity, next)) => {
                found.push(quantity);
                at = next;
            }
            None => at += 1,
        }
    }
    found
}

/// Compares what two texts count.
pub(super) fn compare(one: &[Quantity], other: &[Quantity]) -> Numbers {
    // Texts with more numbers than this are tables: only the same numbers in the same order will do.
    const MATCHED_MAX: usize = 64;
    if one.len() > MATCHED_MAX || other.len() > MATCHED_MAX {
        return Numbers { differ: one != other, lone: false };
    }
    let mut left: Vec<&Quantity> = other.iter().collect();
    let mut unmatched: Vec<&Quantity> = Vec::new();
    for quantity in one {
        match left.iter().position(|found| quantity.equals(found)) {
            Some(at) => drop(left.remove(at)),
            None => unmatched.push(quantity),
        }
    }
    let lone = |quantities: &[&Quantity]| quantities.iter().any(|quantity| !quantity.is_weak);
    let both_lack = !unmatched.is_empty() && !left.is_empty();
    let differ = both_lack && (lone(&unmatched) || lone(&left));
    let swapped = one.iter().any(|quantity| {
        quantity.of.is_some()
            && other.iter().any(|found| found.of == quantity.of)
            && !other.iter().any(|found| found.of == quantity.of && found.equals(quantity))
    });
    Numbers { differ: differ || swapped, lone: !differ && (lone(&unmatched) || lone(&left)) }
}

impl Quantity {
    fn equals(&self, other: &Quantity) -> bool {
        let close = |one: f64, other: f64| (one - other).abs() <= 1e-9 * one.abs().max(other.abs());
        match (&self.value, &other.value) {
            (Value::Written(one), Value::Written(other)) => one == other,
            (Value::Number(one), Value::Number(two)) => match (self.unit, other.unit) {
                (Some(unit), Some(found)) => {
                    unit.dimension == found.dimension && close(one * unit.scale, two * found.scale)
                }
                // The other side may leave the unit out: 7 and 7 pm, 100 and $100.
                _ => close(*one, *two),
            },
            _ => false,
        }
    }
}

fn quantity_at(words: &[Word], at: usize) -> Option<(Quantity, usize)> {
    let word = &words[at];
    let (value, unit, mut next) = if word.lower.contains(|c: char| c.is_numeric()) {
        let (value, unit) = parse(&word.lower)?;
        (value, unit, at + 1)
    } else {
        let (value, next) = in_words(words, at)?;
        (Value::Number(value), None, next)
    };
    let is_weak = matches!(value, Value::Number(value) if value == 1.0) && word.lower == "one";
    let mut unit = unit.or_else(|| at.checked_sub(1).and_then(|before| currency(&words[before].lower)));
    if unit.is_none()
        && let Some(named) = words.get(next).and_then(|word| named_unit(&word.lower))
    {
        unit = Some(named);
        next += 1;
    }
    let of = words.get(next).filter(|word| word.is_content && !word.opens).map(|word| word.stem.clone());
    Some((Quantity { value, unit, of, is_weak }, next))
}

/// A word with digits: a number with its signs and unit, or what is compared as written. `None` for codes, which are
/// letters and digits mixed: they are names.
fn parse(word: &str) -> Option<(Value, Option<Unit>)> {
    let (prefix, rest) = match word.chars().next() {
        Some(c) if words::is_money(c) => (named_unit(&word[..c.len_utf8()]), &word[c.len_utf8()..]),
        _ => (None, word),
    };
    let (sign, rest) = match rest.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, rest),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ',' | ':' | '/' | '-'))
        .unwrap_or(rest.len());
    let (digits, suffix) = rest.split_at(end);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        // Digits of other scripts are compared as written.
        return word.chars().all(char::is_numeric).then(|| (Value::Written(word.to_owned()), None));
    }
    let unit = match suffix {
        "" | "st" | "nd" | "rd" | "th" => prefix,
        "k" => return Some((Value::Number(sign * number(digits)? * 1e3), prefix)),
        "bn" => return Some((Value::Number(sign * number(digits)? * 1e9), prefix)),
        unit => Some(named_unit(unit)?),
    };
    let digits = digits.strip_suffix(":00").unwrap_or(digits);
    match number(digits) {
        Some(value) => Some((Value::Number(sign * value), unit)),
        None => Some((Value::Written(digits.trim_start_matches('0').to_owned()), unit)),
    }
}

/// The value of digits with thousands separators and one decimal mark.
fn number(digits: &str) -> Option<f64> {
    let mut plain = digits.to_owned();
    let groups: Vec<&str> = digits.split(',').collect();
    if groups.len() > 1 {
        let whole = groups[1..].iter().enumerate().all(|(at, group)| {
            let group = if at + 2 == groups.len() { group.split('.').next().unwrap_or(group) } else { group };
            group.len() == 3
        });
        plain = if whole { digits.replace(',', "") } else { digits.replacen(',', ".", 1) };
    }
    // Two points are a version, a long row of digits is a name: f64 would take neighbours for equal.
    if plain.chars().any(|c| !c.is_ascii_digit() && c != '.') || plain.len() > 15 {
        return None;
    }
    plain.parse().ok().filter(|value: &f64| value.is_finite())
}

fn named_unit(name: &str) -> Option<Unit> {
    UNITS
        .iter()
        .find(|(names, ..)| names.contains(&name))
        .map(|&(_, dimension, scale)| Unit { dimension, scale })
}

fn currency(name: &str) -> Option<Unit> {
    named_unit(name).filter(|unit| matches!(unit.dimension, Dollar | Pound | Euro | Yen | Rupee))
}

/// The value of the number words that begin at `at`, and where they end.
fn in_words(words: &[Word], at: usize) -> Option<(f64, usize)> {
    let (mut total, mut current, mut next) = (0.0, None::<f64>, at);
    while let Some(word) = words.get(next) {
        let word = word.lower.as_str();
        let small = SMALL.iter().position(|name| *name == word).map(|at| at as f64);
        let tens = TENS.iter().position(|name| *name == word).map(|at| (at + 2) as f64 * 10.0);
        current = match (small, tens, word, current) {
            (Some(small), None, _, None) => Some(small),
            // Twenty-one, but not "twenty twelve".
            (Some(small), None, _, Some(so_far))
                if small < 10.0 && so_far % 100.0 >= 20.0 && so_far % 10.0 == 0.0 =>
            {
                Some(so_far + small)
            }
            (Some(small), None, _, Some(so_far)) if so_far >= 100.0 && so_far % 100.0 == 0.0 => {
                Some(so_far + small)
            }
            (None, Some(tens), _, None) => Some(tens),
            (None, Some(tens), _, Some(so_far)) if so_far >= 100.0 && so_far % 100.0 == 0.0 => {
                Some(so_far + tens)
            }
            (None, None, "dozen", so_far) => Some(so_far.unwrap_or(1.0) * 12.0),
            (None, None, "hundred", Some(so_far)) if so_far < 100.0 => Some(so_far * 100.0),
            (None, None, "thousand" | "million" | "billion", Some(so_far)) => {
                total += so_far
                    * match word {
                        "thousand" => 1e3,
                        "million" => 1e6,
                        _ => 1e9,
                    };
                Some(0.0)
            }
            (None, None, "and", Some(so_far))
                if so_far >= 100.0 && next + 1 < words.len() && is_small(&words[next + 1].lower) =>
            {
                Some(so_far)
            }
            _ => break,
        };
        next += 1;
    }
    current.map(|current| (total + current, next))
}

fn is_small(word: &str) -> bool {
    SMALL.contains(&word) || TENS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(one: &str, other: &str) -> Numbers {
        let of = |text| of(&words::split(text, 1000).0);
        compare(&of(one), &of(other))
    }

    #[test]
    fn equal_quantities_are_equal_however_they_are_written() {
        for (one, other) in [
            ("return after 14 days", "return after two weeks"),
            ("move \u{a3}50", "move fifty pounds"),
            ("convert 100 USD", "how much is $100"),
            ("15% of 200", "fifteen percent of 200"),
            ("a table for 2 at 7pm", "a table for two at seven"),
            ("1,000 requests", "1000 requests"),
            ("one hundred and twenty-five cars", "125 cars"),
            ("2500 m", "2.5 km"),
            ("at 7:00pm", "at 7 pm"),
            ("a single egg", "one egg"),
            ("the 3rd of May", "3 May"),
            ("a dozen eggs", "12 eggs"),
            ("50k users", "50000 users"),
            ("a month", "one month"),
        ] {
            assert_eq!(compared(one, other), Numbers::default(), "{one} / {other}");
        }
    }

    #[test]
    fn other_quantities_differ() {
        for (one, other) in [
            ("10 USD", "100 USD"),
            ("5 kg", "5 lb"),
            ("5kg", "5 lb"),
            ("7am", "7pm"),
            ("order 48213", "order 48231"),
            ("version 1.2.3", "version 1.3.2"),
            ("on 2024-05-01", "on 2024-06-01"),
            ("at 9:15", "at 9:50"),
            ("one egg", "three eggs"),
            ("2025/26", "2021/22"),
            ("$50", "\u{20ac}50"),
            ("-5 degrees", "5 degrees"),
            ("2 adults and 3 kids", "3 adults and 2 kids"),
            ("card 4111111111111111", "card 4111111111111112"),
            ("twenty cars", "twenty-one cars"),
            ("\u{664}\u{662}", "\u{664}\u{663}"),
        ] {
            assert!(compared(one, other).differ, "{one} / {other}");
        }
    }

    #[test]
    fn a_number_on_one_side_is_a_doubt() {
        assert_eq!(
            compared("how much is delivery", "how much is delivery under \u{a3}50"),
            Numbers { differ: false, lone: true }
        );
    }
}
