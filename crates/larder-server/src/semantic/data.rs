//! Labelled questions in the forms that public sets have: CSV with a header, a JSON array, JSON lines. What a file
//! holds is told by the names of its fields.

use crate::commands::Failure;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::path::Path;

/// Largest file that is read, in bytes. All of it is held in memory.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug)]
pub(super) enum Data {
    /// Questions with the label of their answer: `text` and `category`, `label` or `intent`.
    Stream(Vec<(String, String)>),
    /// All `origin`s are stored, all `similar`s looked up.
    Lookups(Vec<(String, String)>),
    /// Each pair by itself: `a`, `b`, `same_answer`. As lists of messages, the last one is the question, and what
    /// comes before must be equal.
    Pairs(Vec<LabelledPair>),
}

#[derive(Debug)]
pub(super) struct LabelledPair {
    pub(super) texts: (String, String),
    pub(super) contexts: (String, String),
    pub(super) is_same: bool,
    pub(super) kind: String,
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Data, Failure> {
    let failed = |problem: Problem| Failure::new(problem.of(path));
    let bytes = std::fs::metadata(path).map_err(|error| failed(Problem::of_all(error.to_string())))?.len();
    if bytes > FILE_BYTES_MAX {
        let what = format!("{bytes} bytes are more than the {FILE_BYTES_MAX} that are read: split the file");
        return Err(failed(Problem::of_all(what)));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(Problem::of_all(error.to_string())))?;
    let rows =
        rows(&text, path.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"))).map_err(failed)?;
    data(&rows).map_err(failed)
}

/// What is wrong with a file, and at which of its lines.
#[derive(Debug)]
struct Problem {
    line: Option<usize>,
    what: String,
}

impl Problem {
    fn at(line: usize, what: impl Into<String>) -> Problem {
        Problem { line: Some(line), what: what.into() }
    }

    fn of_all(what: impl Into<String>) -> Problem {
        Problem { line: None, what: what.into() }
    }

    fn of(&self, path: &Path) -> String {
        match self.line {
            Some(line) => format!("{}:{line}: {}", path.display(), self.what),
            None => format!("{}: {}", path.display(), self.what),
        }
    }
}

/// What is wrong with JSON, without the position, which only counts the lines that were parsed.
pub(super) fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_owned()
}

/// A row's fields, and the line it began at.
type Row = (usize, Map<String, Value>);

fn rows(text: &str, is_csv: bool) -> Result<Vec<Row>, Problem> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if is_csv {
        return csv(text);
    }
    if text.trim_start().starts_with('[') {
        return json_array(text);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let row = serde_json::from_str(line)
                .map_err(|error| Problem::at(at + 1, format!("no JSON object: {}", json_problem(&error))))?;
            Ok((at + 1, row))
        })
        .collect()
}

fn json_array(text: &str) -> Result<Vec<Row>, Problem> {
    let broken = |line: usize, error: &serde_json::Error| {
        Problem::at(line, format!("no JSON array of objects: {}", json_problem(error)))
    };
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| broken(error.line(), &error))?;
    let (mut line, mut seen) = (1, 0);
    items
        .into_iter()
        .map(|item| {
            // The items are borrowed from the text, in its order.
            let begin = item.get().as_ptr() as usize - text.as_ptr() as usize;
            line += text[seen..begin].matches('\n').count();
            seen = begin;
            let row = serde_json::from_str(item.get())
                .map_err(|error| broken(line + error.line().saturating_sub(1), &error))?;
            Ok((line, row))
        })
        .collect()
}

/// RFC 4180: fields in quotes may hold commas, line breaks and doubled quotes.
fn csv(text: &str) -> Result<Vec<Row>, Problem> {
    let mut records: Vec<(usize, Vec<String>)> = Vec::new();
    let (mut fields, mut field, mut line, mut begun) = (Vec::new(), String::new(), 1, 1);
    let mut chars = text.chars().peekable();
    let mut is_quoted = false;
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if is_quoted => is_quoted = false,
            '"' if field.is_empty() => is_quoted = true,
            ',' if !is_quoted => fields.push(std::mem::take(&mut field)),
            '\r' if !is_quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !is_quoted => {
                fields.push(std::mem::take(&mut field));
                records.push((begun, std::mem::take(&mut fields)));
                begun = line;
            }
            c => field.push(c),
        }
    }
    if is_quoted {
        return Err(Problem::at(begun, "a quote that opens in this record is never closed"));
    }
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push((begun, fields));
    }
    let mut records = records.into_iter().filter(|(_, fields)| fields.len() > 1 || !fields[0].is_empty());
    let (_, header) = records.next().ok_or_else(|| Problem::of_all("empty: a header is expected"))?;
    records
        .map(|(line, fields)| {
            if fields.len() != header.len() {
                let what = format!("{} fields, where the header has {}", fields.len(), header.len());
                return Err(Problem::at(line, what));
            }
            Ok((line, header.iter().cloned().zip(fields.into_iter().map(Value::String)).collect()))
        })
        .collect()
}

fn data(rows: &[Row]) -> Result<Data, Problem> {
    let (first_line, first) = rows.first().ok_or_else(|| Problem::of_all("no rows"))?;
    let has = |name: &str| first.contains_key(name);
    let text = |line: usize, row: &Map<String, Value>, name: &str| {
        row.get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| Problem::at(line, format!("no text {name:?}")))
    };
    let both = |one: &str, other: &str| -> Result<Vec<(String, String)>, Problem> {
        rows.iter().map(|(line, row)| Ok((text(*line, row, one)?, text(*line, row, other)?))).collect()
    };
    let label = ["category", "label", "intent"].into_iter().find(|name| has(name));
    match label {
        Some(label) if has("text") => both("text", label).map(Data::Stream),
        _ if has("origin") && has("similar") => both("origin", "similar").map(Data::Lookups),
        _ if has("a") && has("b") && has("same_answer") => {
            rows.iter().map(|(line, row)| pair(*line, row)).collect::<Result<_, _>>().map(Data::Pairs)
        }
        _ => Err(Problem::at(
            *first_line,
            "rows of no known form: text with category, label or intent; origin with similar; a with b and \
             same_answer",
        )),
    }
}

fn pair(line: usize, row: &Map<String, Value>) -> Result<LabelledPair, Problem> {
    let field = |name: &str| row.get(name).unwrap_or(&Value::Null);
    let is_same = match field("same_answer") {
        Value::Bool(is_same) => Some(*is_same),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let is_same = is_same.ok_or_else(|| Problem::at(line, "\"same_answer\" is neither true nor false"))?;
    let turns = |name: &str| {
        turns(field(name))
            .ok_or_else(|| Problem::at(line, format!("{name:?} is neither a text nor a list of messages")))
    };
    let ((context_a, a), (context_b, b)) = (turns("a")?, turns("b")?);
    let kind = ["category", "subtype"]
        .into_iter()
        .find_map(|name| row.get(name).and_then(Value::as_str))
        .unwrap_or("pair");
    Ok(LabelledPair { texts: (a, b), contexts: (context_a, context_b), is_same, kind: kind.to_owned() })
}

/// What comes before the last turn, and its text.
fn turns(value: &Value) -> Option<(String, String)> {
    match value {
        Value::String(text) => Some((String::new(), text.clone())),
        Value::Array(messages) => {
            let (last, before) = messages.split_last()?;
            let question = last.get("content")?.as_str()?.to_owned();
            Some((serde_json::to_string(before).ok()?, question))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields_hold_commas_breaks_and_quotes() {
        let rows = csv("text,category\r\n\"a, \"\"b\"\"\nc\",x\n\nd,y").unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].1["text"], "a, \"b\"\nc");
        assert_eq!((rows[1].0, rows[1].1["category"].as_str()), (5, Some("y")));
        assert!(csv("text,category\n\"a").unwrap_err().line == Some(2));
        assert!(csv("text,category\na").unwrap_err().line == Some(2));
    }

    #[test]
    fn what_a_file_holds_is_told_by_its_fields() {
        let read = |text: &str| rows(text, false).and_then(|rows| data(&rows));
        assert!(matches!(read(r#"[{"origin":"a","similar":"b"}]"#), Ok(Data::Lookups(_))));
        assert!(matches!(read(r#"{"text":"a","intent":"b"}"#), Ok(Data::Stream(_))));
        let turns = r#"{"a":[{"role":"user","content":"x"},{"content":"q"}],"b":"q","same_answer":false}"#;
        let Ok(Data::Pairs(pairs)) = read(turns) else { panic!("no pairs") };
        assert_eq!(pairs[0].texts, ("q".to_owned(), "q".to_owned()));
        assert_ne!(pairs[0].contexts.0, pairs[0].contexts.1);
        for (text, says) in [
            ("", "no rows"),
            ("{}", "no known form"),
            ("{\"a\":1", "f:1: no JSON object: EOF"),
            ("{\"a\":1,\"b\":\"x\",\"same_answer\":true}\n{}", "f:1: \"a\""),
            ("{\"a\":\"x\",\"b\":\"x\",\"same_answer\":true}\n\n{}", "f:3: \"same_answer\""),
            ("[\n{\"text\":\"a\",\"intent\":\"b\"},\n{\"text\":\n1}]", "f:3: no text \"text\""),
            ("[\n{\"text\":\"a\"}, {\n}\n, 7]", "f:4: no JSON array of objects"),
            ("[\n{\"text\":\"a\"},\n{]", "f:3: no JSON array of objects"),
            (r#"{"a":1,"b":"x","same_answer":true}"#, "\"a\""),
        ] {
            let problem = read(text).unwrap_err().of(Path::new("f"));
            assert!(problem.contains(says), "{text}: {problem}");
        }
    }
}
