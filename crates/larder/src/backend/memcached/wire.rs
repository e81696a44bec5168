//! Memcached's meta protocol, to the byte: commands out, replies in. Pure, and total on whatever comes.
//!
//! Each command carries an opaque number that its reply repeats, so that a reply that went astray is noticed.
//! Error replies are classified by their fixed words and never kept: they may quote what was sent.

use bytes::Bytes;
use std::io::Write;

/// Longest key that the server takes.
pub(super) const KEY_BYTES_MAX: usize = 250;
/// Longest line of a reply: a key, all flags, and some. Error replies may be longer than any other.
const LINE_BYTES_MAX: usize = 2048;

/// What the server is asked.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// Reads an item, with its value or only what it is. With `vivify` (seconds, 0 for ever) an absent one is
    /// put there empty, whose CAS number is then new.
    Get { key: Bytes, value: Payload, vivify: Option<u32> },
    /// Writes an item of two parts.
    Store { key: Bytes, head: Bytes, body: Bytes, exptime: i64, only_if: Condition },
    /// Removes an item.
    Delete { key: Bytes },
    /// Gives an item that holds a number a new CAS number, and leaves its value as it is.
    Bump { key: Bytes },
}

/// What of an item is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    Whole,
    Nothing,
}

/// When an item is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Always,
    Absent,
    /// Its CAS number is this one.
    Unchanged(u64),
}

impl Command {
    /// Appends the command.
    pub(super) fn encode(&self, opaque: u32, out: &mut Vec<u8>) {
        let number = |out: &mut Vec<u8>, flag: &str, number: i64| {
            write!(out, " {flag}{number}").expect("writing to memory can't fail");
        };
        match self {
            Command::Get { key, value, vivify } => {
                out.extend_from_slice(b"mg ");
                out.extend_from_slice(key);
                out.extend_from_slice(if *value == Payload::Whole { b" v c" } else { b" c" });
                if let Some(seconds) = vivify {
                    number(out, "N", i64::from(*seconds));
                }
            }
            Command::Store { key, head, body, exptime, only_if } => {
                out.extend_from_slice(b"ms ");
                out.extend_from_slice(key);
                number(out, "", (head.len() + body.len()) as i64);
                number(out, "T", *exptime);
                match only_if {
                    Condition::Always => {}
                    Condition::Absent => out.extend_from_slice(b" ME"),
                    Condition::Unchanged(cas) => {
                        write!(out, " C{cas}").expect("writing to memory can't fail");
                    }
                }
            }
            Command::Delete { key } => {
                out.extend_from_slice(b"md ");
                out.extend_from_slice(key);
            }
            Command::Bump { key } => {
                out.extend_from_slice(b"ma ");
                out.extend_from_slice(key);
                out.extend_from_slice(b" D0");
            }
        }
        number(out, "O", i64::from(opaque));
        out.extend_from_slice(b"\r\n");
        if let Command::Store { head, body, .. } = self {
            out.extend_from_slice(head);
            out.extend_from_slice(body);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Command::Store { head, body, .. } => KEY_BYTES_MAX + head.len() + body.len(),
            _ => 64,
        }
    }
}

/// What the server answers to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    /// Of the command that it answers. A refusal has none, and an absence need not.
    pub(super) opaque: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An item, its value if it was asked for; or simply "done", where nothing was.
    Done(Item),
    /// There is no such item.
    Absent,
    /// Not written, because it is there.
    Present,
    /// Not written, because it has another CAS number.
    Changed,
    Refused(Refusal),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) cas: u64,
    pub(super) value: Bytes,
}

/// Why a command was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    OutOfMemory,
    TooLarge,
    Unauthenticated,
    Busy,
    NoServer,
    /// The server didn't understand the command: what follows on this connection is anybody's guess.
    NotUnderstood,
    Unknown,
}

/// What was received is no reply of memcached's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense(pub(super) &'static str);

/// A reply at the start of `input` and how many bytes it takes; `None` if it is not all there yet.
///
/// # Errors
/// For what can't become a reply, a value of more than `value_bytes_max` included.
pub(super) fn parse(input: &[u8], value_bytes_max: usize) -> Result<Option<(Reply, usize)>, Nonsense> {
    let Some((line, taken)) = split_line(input)? else { return Ok(None) };
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let code = words.next().unwrap_or_default();
    let reply = |answer, opaque| Ok(Some((Reply { answer, opaque }, taken)));
    match code {
        b"HD" => {
            let (item, opaque) = parse_flags(words)?;
            reply(Answer::Done(item), opaque)
        }
        b"VA" => {
            let size: usize = number(words.next().unwrap_or_default())?;
            if size > value_bytes_max {
                return Err(Nonsense("a value larger than the server's items"));
            }
            let (item, opaque) = parse_flags(words)?;
            let Some(rest) = input.get(taken..taken + size + 2) else { return Ok(None) };
            let (value, end) = rest.split_at(size);
            if end != b"\r\n" {
                return Err(Nonsense("a value that doesn't end where it should"));
            }
            let value = Bytes::copy_from_slice(value);
            let answer = Answer::Done(Item { value, ..item });
            Ok(Some((Reply { answer, opaque }, taken + size + 2)))
        }
        b"EN" | b"NF" => reply(Answer::Absent, parse_flags(words)?.1),
        b"NS" => reply(Answer::Present, parse_flags(words)?.1),
        b"EX" => reply(Answer::Changed, parse_flags(words)?.1),
        b"ERROR" | b"CLIENT_ERROR" | b"SERVER_ERROR" | b"BUSY" => reply(Answer::Refused(refusal(line)), None),
        _ => Err(Nonsense("a reply that memcached doesn't give")),
    }
}

/// The line at the start, without its end, and how many bytes it takes.
pub(super) fn split_line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Nonsense> {
    let looked_at = &input[..input.len().min(LINE_BYTES_MAX)];
    match looked_at.iter().position(|byte| *byte == b'\n') {
        Some(end) => match looked_at[..end].strip_suffix(b"\r") {
            Some(line) => Ok(Some((line, end + 1))),
            None => Err(Nonsense("a line without its end")),
        },
        None if looked_at.len() == LINE_BYTES_MAX => Err(Nonsense("a line that doesn't end")),
        None => Ok(None),
    }
}

/// Why, from the text of an error reply.
pub(super) fn refusal(line: &[u8]) -> Refusal {
    let has = |words: &[u8]| line.windows(words.len()).any(|at| at.eq_ignore_ascii_case(words));
    if line.starts_with(b"CLIENT_ERROR") {
        return match has(b"unauthenticated") || has(b"authentication failure") {
            true => Refusal::Unauthenticated,
            false => Refusal::NotUnderstood,
        };
    }
    if line.starts_with(b"BUSY") || has(b"too many open connections") {
        return Refusal::Busy;
    }
    if !line.starts_with(b"SERVER_ERROR") {
        return Refusal::NotUnderstood;
    }
    if has(b"out of memory") {
        Refusal::OutOfMemory
    } else if has(b"too large") {
        Refusal::TooLarge
    } else if has(b"busy") {
        Refusal::Busy
    } else if has(b"backend") {
        Refusal::NoServer
    } else {
        Refusal::Unknown
    }
}

/// The flags that were asked for; others (`W`, `X`, `Z` of vivified items) say nothing here.
fn parse_flags<'a>(words: impl Iterator<Item = &'a [u8]>) -> Result<(Item, Option<u32>), Nonsense> {
    let (mut item, mut opaque) = (Item::default(), None);
    for word in words {
        match word.split_first() {
            Some((b'c', digits)) => item.cas = number(digits)?,
            Some((b'O', digits)) => opaque = Some(number(digits)?),
            _ => {}
        }
    }
    Ok((item, opaque))
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Result<T, Nonsense> {
    // A sign is no digit, though `parse` takes it.
    let digits =
        std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or(Nonsense("a number that is none"))
}

/// For the fuzzer: any bytes are refused or are replies that don't change with what follows them, and what is
/// cut off is never taken for a whole.
#[cfg(any(fuzzing, test))]
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "only the fuzzer is outside"))]
pub fn check_replies(input: &[u8]) {
    const VALUE_BYTES_MAX: usize = 4096;
    let mut rest = input;
    while let Ok(Some((reply, taken))) = parse(rest, VALUE_BYTES_MAX) {
        assert!(taken > 0 && taken <= rest.len());
        assert_eq!(parse(&rest[..taken], VALUE_BYTES_MAX), Ok(Some((reply, taken))));
        for cut in [taken / 2, taken - 1] {
            assert_eq!(parse(&rest[..cut], VALUE_BYTES_MAX), Ok(None), "{cut} of {taken}");
        }
        rest = &rest[taken..];
    }
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(input: &[u8]) -> Reply {
        let (reply, taken) = parse(input, 100).unwrap().unwrap();
        assert_eq!(taken, input.len());
        reply
    }

    #[test]
    fn replies_of_a_server() {
        let item = |cas, value: &'static [u8]| Answer::Done(Item { cas, value: Bytes::from_static(value) });
        let cases: [(&[u8], Answer, Option<u32>); 9] = [
            (b"VA 0 c1 f0 O1 W\r\n\r\n", item(1, b""), Some(1)),
            (b"VA 4 c18446744073709551615 f5 O6\r\na\r\nb\r\n", item(u64::MAX, b"a\r\nb"), Some(6)),
            (b"HD c1 f0 O3 Z\r\n", item(1, b""), Some(3)),
            (b"HD\r\n", item(0, b""), None),
            (b"EN\r\n", Answer::Absent, None),
            (b"NF O8\r\n", Answer::Absent, Some(8)),
            (b"NS O1\r\n", Answer::Present, Some(1)),
            (b"EX O1\r\n", Answer::Changed, Some(1)),
            (b"ERROR\r\n", Answer::Refused(Refusal::NotUnderstood), None),
        ];
        for (input, answer, opaque) in cases {
            assert_eq!(one(input), Reply { answer, opaque });
        }
    }

    #[test]
    fn what_no_server_says_is_refused() {
        let long = [b'x'; LINE_BYTES_MAX];
        let cases: [&[u8]; 10] = [
            b"\r\n",
            b"HD\n",
            b"VA\r\n",
            b"VA -1 c1\r\n",
            b"VA 101 c1\r\n",
            b"VA 1 c1\r\nabc",
            b"VA 18446744073709551616 c1\r\n",
            b"HD O-1\r\n",
            b"HD c+1\r\n",
            &long,
        ];
        for input in cases {
            assert!(parse(input, 100).is_err(), "{:?}", String::from_utf8_lossy(input));
        }
    }

    proptest! {
        #[test]
        fn any_bytes(input in prop::collection::vec(any::<u8>(), 0..200)) {
            check_replies(&input);
        }

        #[test]
        fn nearly_replies(input in "((VA|HD|EN|NF|NS|EX|SERVER_ERROR)( [cfOZ]?[0-9]{0,3}){0,4}\r\n.{0,4}(\r\n)?){0,6}") {
            check_replies(input.as_bytes());
        }
    }
}
