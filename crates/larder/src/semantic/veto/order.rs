//! Direction: who gives and who takes, from where to where. Found where words that mark a direction have the same
//! words on opposite sides in both texts. "A vs B" and "A and B" mark none: either order asks the same.

use super::words::Word;

/// Words that put what is before them against what is after.
const MARKERS: &[&str] = &["after", "before", "from", "instead", "into", "over", "than", "to"];
/// How far a marker reaches on each side, in content words: a noun with its attributes and its verb.
const REACH: usize = 4;

/// What a direction leads from and to.
struct Direction<'a> {
    from: Vec<&'a str>,
    to: Vec<&'a str>,
}

/// Whether the other text leads from where this one leads to, and back.
pub(super) fn is_reversed(one: &[Word], other: &[Word]) -> bool {
    // "From A to B and from B to A" turns within itself, and is no other question for that.
    if one.iter().map(|word| &word.stem).eq(other.iter().map(|word| &word.stem)) {
        return false;
    }
    let other = directions(other);
    directions(one).iter().any(|here| {
        other.iter().any(|there| {
            // A word that stands on one side here and on the other there; "convert" before both currencies is neither.
            let turned = |side: &[&str], back: &[&str], own: &[&str], same: &[&str]| {
                side.iter().any(|word| own.contains(word) && !back.contains(word) && !same.contains(word))
            };
            turned(&here.from, &here.to, &there.to, &there.from)
                && turned(&here.to, &here.from, &there.from, &there.to)
        })
    })
}

/// The content words beside a marker, up to the next marker. Markers in a row are one: over to, back from.
fn side<'a>(words: impl Iterator<Item = &'a Word>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for word in words {
        if is_marker(word) && !found.is_empty() || found.len() == REACH {
            break;
        }
        if word.is_content && !is_marker(word) {
            found.push(word.stem.as_str());
        }
    }
    found
}

fn is_marker(word: &Word) -> bool {
    MARKERS.contains(&word.lower.as_str())
}

fn directions(words: &[Word]) -> Vec<Direction<'_>> {
    // A text with more of them than this is a story, in which single directions decide nothing.
    const DIRECTIONS_MAX: usize = 32;
    let mut found = Vec::new();
    for (at, marker) in words.iter().enumerate().filter(|(_, word)| is_marker(word)).take(DIRECTIONS_MAX) {
        // An infinitive's "to" ("how to pay") has no noun before it, and gives an empty side, which meets nothing.
        let before = side(words[..at].iter().rev());
        let after = side(words[at + 1..].iter());
        // "From A" alone: what is after it is the start.
        let (from, to) = if marker.lower == "from" { (after, before) } else { (before, after) };
        if !from.is_empty() && !to.is_empty() {
            found.push(Direction { from, to });
        }
    }
    found
}
