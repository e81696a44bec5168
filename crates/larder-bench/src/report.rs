//! What is printed: a table for people, or a JSON object per line; and Markdown for a file.

use serde_json::{Map, Value, json};
use std::fmt::Write;

/// One subject's result in one case.
pub struct Line {
    case: String,
    subject: String,
    clock: Option<&'static str>,
    values: Vec<(&'static str, f64)>,
    flags: Vec<String>,
}

impl Line {
    pub fn new(case: &str, subject: &str) -> Self {
        Line {
            case: case.to_owned(),
            subject: subject.to_owned(),
            clock: None,
            values: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// Which time was measured.
    pub fn clock(mut self, clock: &'static str) -> Self {
        self.clock = Some(clock);
        self
    }

    pub fn value(mut self, name: &'static str, value: f64) -> Self {
        self.values.push((name, value));
        self
    }

    /// Says why the figure is to be read with care, or why there is none.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    pub fn value_of(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// Flags the subjects that hold more than they may: what they did was less work than the others'.
pub fn flag_over(lines: Vec<Line>, capacity: usize, held: &[(&str, usize)]) -> Vec<Line> {
    let over = |line: &Line| {
        let found = held.iter().find(|(subject, _)| *subject == line.subject);
        found.map(|(_, held)| *held).filter(|held| *held > capacity + capacity / 50)
    };
    let flagged = lines.into_iter().map(|line| match over(&line) {
        Some(held) => line.flag(format!("holds {held} entries, more than its capacity")),
        None => line,
    });
    flagged.collect()
}

/// Where results go.
pub struct Report {
    pub is_json: bool,
    /// Collected for a file, if one was asked for.
    pub markdown: Option<String>,
}

impl Report {
    /// Prints the subjects of one case. Each is set in ratio to every other one by `measure`.
    #[allow(clippy::print_stdout, reason = "the program's output")]
    pub fn group(&mut self, lines: &[Line], measure: &str) {
        let Some(first) = lines.first() else { return };
        if !self.is_json {
            println!("\n{}{}", first.case, clock(first));
        }
        for line in lines {
            match self.is_json {
                true => println!("{}", object(line, lines, measure)),
                false => println!("{}", row(line, first, measure)),
            }
        }
        if let Some(markdown) = &mut self.markdown {
            markdown.push_str(&table(lines, measure));
        }
    }
}

fn clock(line: &Line) -> String {
    line.clock.map_or_else(String::new, |clock| format!(" ({clock} time)"))
}

fn ratio(line: &Line, to: &Line, measure: &str) -> Option<f64> {
    let ratio = line.value_of(measure)? / to.value_of(measure).filter(|value| *value > 0.0)?;
    Some(rounded(ratio))
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn object(line: &Line, lines: &[Line], measure: &str) -> Value {
    let mut object = Map::new();
    object.insert("case".into(), json!(line.case));
    object.insert("subject".into(), json!(line.subject));
    if let Some(clock) = line.clock {
        object.insert("clock".into(), json!(clock));
    }
    object.extend(line.values.iter().map(|(name, value)| ((*name).into(), json!(rounded(*value)))));
    let others = lines.iter().filter(|other| other.subject != line.subject);
    let ratios =
        others.filter_map(|other| Some((other.subject.clone(), json!(ratio(line, other, measure)?))));
    object.insert("ratio_to".into(), Value::Object(ratios.collect()));
    if !line.flags.is_empty() {
        object.insert("flags".into(), json!(line.flags));
    }
    Value::Object(object)
}

fn row(line: &Line, first: &Line, measure: &str) -> String {
    let values: Vec<_> =
        line.values.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
    let mut row = format!("  {:<26} {:<52}", line.subject, values.join("  "));
    if line.subject != first.subject
        && let Some(ratio) = ratio(line, first, measure)
    {
        let _ = write!(row, " {} x {}", short(ratio), first.subject);
    }
    if !line.flags.is_empty() {
        let _ = write!(row, " [{}]", line.flags.join("; "));
    }
    row
}

fn table(lines: &[Line], measure: &str) -> String {
    let (Some(first), mut names) = (lines.first(), Vec::new()) else { return String::new() };
    for (name, _) in lines.iter().flat_map(|line| &line.values) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let title = format!("\n**{}**{}\n\n| |", first.case, clock(first));
    let mut text = names.iter().fold(title, |text, name| text + &format!(" {} |", name.replace('_', " ")));
    let _ = write!(text, " x {} |\n| --- |{}\n", first.subject, " ---: |".repeat(names.len() + 1));
    for line in lines {
        let flags: String = line.flags.iter().map(|flag| format!(" ({flag})")).collect();
        let _ = write!(text, "| {}{flags} |", line.subject);
        for value in names.iter().map(|name| line.value_of(name)).chain([ratio(line, first, measure)]) {
            let _ = write!(text, " {} |", value.map_or_else(String::new, short));
        }
        text.push('\n');
    }
    text
}

/// Four digits, as far as they say something.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
