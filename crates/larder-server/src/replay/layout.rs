//! The formats of a trace: what a line means, and how the format is told from the first lines. Knows
//! nothing about files and never keeps a line.

use std::borrow::Cow;
use std::fmt;

/// Most blocks that one `.lis` line may ask for. Published traces stay below a thousand; without a bound one
/// short line could ask for 2^64 accesses.
pub(super) const LIS_COUNT_MAX: u64 = 1_000_000;

const TIME_NAMES: [&str; 3] = ["timestamp", "time", "ts"];
const KEY_NAMES: [&str; 5] = ["key", "id", "object", "object_id", "obj_id"];
const SIZE_NAMES: [&str; 5] = ["size", "bytes", "value_size", "object_size", "obj_size"];

/// The formats a user can force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Told from the first lines
    Auto,
    /// One key per line
    Keys,
    /// `timestamp key [size]`, by commas, tabs or spaces; a CSV header may name the columns
    Columns,
    /// ARC: `first count ignore number`, that is `count` accesses from block `first`
    Lis,
}

/// What each line of one trace means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Keys,
    Columns(Columns),
    Lis,
}

/// Where the columns are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) separator: Separator,
    pub(super) header: bool,
    count: usize,
    time: Option<usize>,
    key: usize,
    size: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Separator {
    Comma,
    Tab,
    Spaces,
}

/// What one line asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Record<'a> {
    Key {
        key: Cow<'a, [u8]>,
        /// As written, in the trace's own unit.
        time: Option<f64>,
        size: Option<u32>,
    },
    Blocks {
        first: u64,
        count: u64,
    },
}

/// Whether the line says nothing: blank, or a comment.
pub(super) fn is_void(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.is_empty() || line.starts_with(b"#")
}

impl Layout {
    /// Tells the layout from the first lines that are not void. With [`Format::Auto`] a format is taken when
    /// more than half of the lines fit it, so that a few malformed ones don't turn numbers into keys.
    pub(super) fn detect(format: Format, sample: &[Vec<u8>]) -> Self {
        match format {
            Format::Keys => Self::Keys,
            Format::Lis => Self::Lis,
            Format::Columns => Self::Columns(Columns::detect(sample)),
            Format::Auto => {
                let columns = Columns::detect(sample);
                let body = &sample[usize::from(columns.header)..];
                let most = |fits: &dyn Fn(&[u8]) -> bool| {
                    body.iter().filter(|line| fits(line)).count() * 2 > body.len()
                };
                if columns.header || most(&|line| columns.parse(line).is_ok()) {
                    Self::Columns(columns)
                } else if most(&|line| parse_lis(line).is_ok()) {
                    Self::Lis
                } else {
                    Self::Keys
                }
            }
        }
    }

    /// The columns that values' sizes and times come from, as far as there are any.
    pub(super) fn has_sizes(&self) -> bool {
        matches!(self, Self::Columns(Columns { size: Some(_), .. }))
    }

    pub(super) fn has_times(&self) -> bool {
        matches!(self, Self::Columns(Columns { time: Some(_), .. }))
    }

    pub(super) fn has_header(&self) -> bool {
        matches!(self, Self::Columns(Columns { header: true, .. }))
    }

    /// Reads one line that is not void.
    ///
    /// # Errors
    /// What is wrong with the line and what is allowed.
    pub(super) fn parse<'a>(&self, line: &'a [u8]) -> Result<Record<'a>, String> {
        match self {
            Self::Keys => Ok(Record::Key { key: Cow::Borrowed(line), time: None, size: None }),
            Self::Columns(columns) => columns.parse(line),
            Self::Lis => parse_lis(line),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys => write!(f, "one key per line"),
            Self::Lis => write!(f, "ARC .lis"),
            Self::Columns(columns) => {
                let mut names = vec!["…"; columns.count];
                names[columns.key] = "key";
                if let Some(time) = columns.time {
                    names[time] = "timestamp";
                }
                if let Some(size) = columns.size {
                    names[size] = "size";
                }
                let separator = match columns.separator {
                    Separator::Comma => "commas",
                    Separator::Tab => "tabs",
                    Separator::Spaces => "spaces",
                };
                write!(f, "columns {} by {separator}", names.join(" "))
            }
        }
    }
}

impl Columns {
    fn detect(sample: &[Vec<u8>]) -> Self {
        let most = |byte: u8| {
            let having = sample.iter().filter(|line| line.contains(&byte)).count();
            having * 2 > sample.len()
        };
        let separator = match () {
            () if most(b',') => Separator::Comma,
            () if most(b'\t') => Separator::Tab,
            () => Separator::Spaces,
        };
        let header = sample.first().and_then(|line| Self::from_header(separator, line));
        header.unwrap_or_else(|| {
            // Two or three columns, whichever more lines have.
            let threes =
                sample.iter().filter(|line| separator.split(line).is_ok_and(|f| f.len() == 3)).count();
            let twos = sample.iter().filter(|line| separator.split(line).is_ok_and(|f| f.len() == 2)).count();
            let size = (threes >= twos).then_some(2);
            Self {
                separator,
                header: false,
                count: 2 + usize::from(size.is_some()),
                time: Some(0),
                key: 1,
                size,
            }
        })
    }

    fn from_header(separator: Separator, line: &[u8]) -> Option<Self> {
        let fields = separator.split(line).ok()?;
        let names: Vec<_> = fields.iter().map(|field| field.trim_ascii().to_ascii_lowercase()).collect();
        let find =
            |allowed: &[&str]| names.iter().position(|name| allowed.iter().any(|a| a.as_bytes() == name));
        let (time, key, size) = (find(&TIME_NAMES), find(&KEY_NAMES)?, find(&SIZE_NAMES));
        // A lone `key` is as likely a key.
        let header = Self { separator, header: true, count: names.len(), time, key, size };
        (time.is_some() || size.is_some()).then_some(header)
    }

    fn parse<'a>(&self, line: &'a [u8]) -> Result<Record<'a>, String> {
        let mut fields = self.separator.split(line)?;
        if fields.len() != self.count {
            return Err(format!("has {} columns, expected {}", fields.len(), self.count));
        }
        let time = self.time.map(|at| parse_time(&fields[at])).transpose()?;
        let size = self.size.map(|at| parse_size(&fields[at])).transpose()?;
        let key = fields.swap_remove(self.key);
        if key.is_empty() {
            return Err("has an empty key".to_owned());
        }
        Ok(Record::Key { key, time, size })
    }
}

impl Separator {
    fn split<'a>(self, line: &'a [u8]) -> Result<Vec<Cow<'a, [u8]>>, String> {
        match self {
            Self::Comma => split_csv(line),
            Self::Tab => Ok(line.split(|byte| *byte == b'\t').map(Cow::Borrowed).collect()),
            Self::Spaces => Ok(words(line).map(Cow::Borrowed).collect()),
        }
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Splits at commas; `"` quotes a field and `""` within it is a quote. A quoted field ends on its line.
fn split_csv(line: &[u8]) -> Result<Vec<Cow<'_, [u8]>>, String> {
    if !line.contains(&b'"') {
        return Ok(line.split(|byte| *byte == b',').map(Cow::Borrowed).collect());
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let end;
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let mut field = Vec::new();
            let mut at = 0;
            loop {
                match (quoted.get(at), quoted.get(at + 1)) {
                    (Some(b'"'), Some(b'"')) => {
                        field.push(b'"');
                        at += 2;
                    }
                    (Some(b'"'), None | Some(b',')) => break,
                    (Some(b'"'), Some(_)) => return Err("has text after a closing quote".to_owned()),
                    (Some(byte), _) => {
                        field.push(*byte);
                        at += 1;
                    }
                    (None, _) => return Err("has a quote that is not closed".to_owned()),
                }
            }
            fields.push(Cow::Owned(field));
            end = at + 2;
        } else {
            end = rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len());
            fields.push(Cow::Borrowed(&rest[..end]));
        }
        match rest.get(end) {
            Some(_) => rest = &rest[end + 1..],
            None => return Ok(fields),
        }
    }
}

fn parse_time(field: &[u8]) -> Result<f64, String> {
    let time = std::str::from_utf8(field.trim_ascii()).ok().and_then(|text| text.parse::<f64>().ok());
    time.filter(|time| time.is_finite() && *time >= 0.0)
        .ok_or_else(|| format!("timestamp is `{}`, expected a number from 0", shown(field)))
}

fn parse_size(field: &[u8]) -> Result<u32, String> {
    parse_number(field)
        .and_then(|size| u32::try_from(size).ok())
        .ok_or_else(|| format!("size is `{}`, expected bytes from 0 to {}", shown(field), u32::MAX))
}

fn parse_lis(line: &[u8]) -> Result<Record<'static>, String> {
    let mut fields = words(line);
    let (Some(first), Some(count), Some(_), Some(_), None) =
        (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(format!("has {} columns, expected `first count ignore number`", words(line).count()));
    };
    let start = parse_number(first)
        .ok_or_else(|| format!("first block is `{}`, expected a number below 2^64", shown(first)))?;
    let blocks = parse_number(count)
        .filter(|blocks| (1..=LIS_COUNT_MAX).contains(blocks))
        .ok_or_else(|| format!("count is `{}`, expected 1 to {LIS_COUNT_MAX}", shown(count)))?;
    if start.checked_add(blocks - 1).is_none() {
        return Err(format!("blocks {start} and {} more pass 2^64", blocks - 1));
    }
    Ok(Record::Blocks { first: start, count: blocks })
}

/// Digits only: `str::parse` would take a sign as well.
fn parse_number(field: &[u8]) -> Option<u64> {
    let field = field.trim_ascii();
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A piece of a trace as messages show it: 40 characters at most, nothing that a terminal acts on.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    let mut shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().count() > 40 {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(lines: &[&str]) -> Layout {
        let sample: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        Layout::detect(Format::Auto, &sample)
    }

    fn key<'a>(key: &'a str, time: Option<f64>, size: Option<u32>) -> Result<Record<'a>, String> {
        Ok(Record::Key { key: Cow::Borrowed(key.as_bytes()), time, size })
    }

    #[test]
    fn formats_are_told_apart() {
        for (lines, expected) in [
            (&["0", "1", "0"][..], "one key per line"),
            (&["user:1", "user 2", "b,c"], "one key per line"),
            (&["1 1 0 0", "5 64 0 1"], "ARC .lis"),
            (&["1 a 10", "2 b 20"], "columns timestamp key size by spaces"),
            (&["1.5 a", "2.5 b"], "columns timestamp key by spaces"),
            (&["1,a,10", "2,b,20"], "columns timestamp key size by commas"),
            (&["1\ta b\t10", "2\tc\t20"], "columns timestamp key size by tabs"),
            (&["Timestamp, Key, Size", "1,a,10"], "columns timestamp key size by commas"),
            (&["size,op,key", "10,get,a"], "columns size … key by commas"),
            // One bad line among good ones doesn't change the format.
            (&["1 1 0 0", "oops", "5 64 0 1"], "ARC .lis"),
            (&["1,a,10", "x,y", "3,b,20"], "columns timestamp key size by commas"),
            (&["key", "a", "b"], "one key per line"),
            (&[], "one key per line"),
        ] {
            assert_eq!(detect(lines).to_string(), expected, "{lines:?}");
        }
    }

    #[test]
    fn columns_by_name_and_position() {
        assert_eq!(detect(&["1 a 10"]).parse(b"2.5  b\t 7"), key("b", Some(2.5), Some(7)));
        let named = detect(&["size,op,key", "1,get,a"]);
        assert_eq!(named.parse(b"9,set,x y"), key("x y", None, Some(9)));
        assert_eq!(named.parse(b"9,\"s\",\"a,\"\"b\"\"\""), key("a,\"b\"", None, Some(9)));
    }

    #[test]
    fn malformed_lines_say_what_is_allowed() {
        let columns = detect(&["1,a,10"]);
        let lis = detect(&["1 1 0 0"]);
        for (layout, line, expected) in [
            (&columns, &b"1,a"[..], "has 2 columns, expected 3"),
            (&columns, b"1,,5", "has an empty key"),
            (&columns, b"x,a,5", "timestamp is `x`, expected a number from 0"),
            (&columns, b"nan,a,5", "timestamp is `nan`, expected a number from 0"),
            (&columns, b"-1,a,5", "timestamp is `-1`, expected a number from 0"),
            (&columns, b"1,a,-5", "size is `-5`, expected bytes from 0 to 4294967295"),
            (&columns, b"1,a,4294967296", "size is `4294967296`, expected bytes from 0 to 4294967295"),
            (&columns, b"1,a,", "size is ``, expected bytes from 0 to 4294967295"),
            (&columns, b"1,\"a,5", "has a quote that is not closed"),
            (&columns, b"1,\"a\"b,5", "has text after a closing quote"),
            (&columns, b"\x1b[2J\xff,a,5", "timestamp is `\\u{1b}[2J\u{fffd}`, expected a number from 0"),
            (&lis, b"1 2 3", "has 3 columns, expected `first count ignore number`"),
            (&lis, b"1 0 0 0", "count is `0`, expected 1 to 1000000"),
            (&lis, b"1 1000001 0 0", "count is `1000001`, expected 1 to 1000000"),
            (
                &lis,
                b"1 99999999999999999999999 0 0",
                "count is `99999999999999999999999`, expected 1 to 1000000",
            ),
            (&lis, b"+1 1 0 0", "first block is `+1`, expected a number below 2^64"),
            (&lis, b"18446744073709551615 2 0 0", "blocks 18446744073709551615 and 1 more pass 2^64"),
        ] {
            assert_eq!(layout.parse(line), Err(expected.to_owned()));
        }
        assert_eq!(
            lis.parse(b"18446744073709551615 1 0 0"),
            Ok(Record::Blocks { first: u64::MAX, count: 1 }),
            "the last block there is"
        );
    }

    #[test]
    fn void_lines() {
        for line in [&b""[..], b"  \t", b"# comment", b"  #x"] {
            assert!(is_void(line));
        }
        assert!(!is_void(b"a#b"));
    }
}
