//! What is printed: a table for people, or a JSON object per line.

use serde_json::{Map, Value, json};

/// One subject's result in one case.
pub struct Line {
    case: String,
    subject: String,
    values: Vec<(&'static str, f64)>,
    flags: Vec<String>,
}

impl Line {
    pub fn new(case: &str, subject: &str) -> Self {
        Line { case: case.to_owned(), subject: subject.to_owned(), values: Vec::new(), flags: Vec::new() }
    }

    pub fn value(mut self, name: &'static str, value: f64) -> Self {
        self.values.push((name, value));
        self
    }

    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

pub struct Report {
    pub json: bool,
}

impl Report {
    /// Prints the subjects of one case. With `measure`, each is also set in ratio to every other one.
    #[allow(clippy::print_stdout, reason = "the program's output")]
    pub fn group(&mut self, lines: &[Line], measure: &str) {
        if !self.json {
            println!("\n{}", lines.first().map_or("", |line| &line.case));
        }
        for line in lines {
            let own = line.get(measure);
            let ratios = lines.iter().filter(|other| other.subject != line.subject).filter_map(|other| {
                let ratio = own? / other.get(measure).filter(|value| *value > 0.0)?;
                Some((other.subject.clone(), json!((ratio * 1e4).round() / 1e4)))
            });
            if self.json {
                let mut object = Map::new();
                object.insert("case".into(), json!(line.case));
                object.insert("subject".into(), json!(line.subject));
                object.extend(
                    line.values
                        .iter()
                        .map(|(name, value)| ((*name).into(), json!((value * 1e4).round() / 1e4))),
                );
                object.insert("ratio_to".into(), Value::Object(ratios.collect()));
                if !line.flags.is_empty() {
                    object.insert("flags".into(), json!(line.flags));
                }
                println!("{}", Value::Object(object));
            } else {
                let values: Vec<_> =
                    line.values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                let to_first =
                    ratios.take(1).map(|(name, ratio)| format!("{ratio:.5} x {name}")).collect::<String>();
                println!(
                    "  {:<16} {:<58} {to_first} {}",
                    line.subject,
                    values.join("  "),
                    line.flags.join("; ")
                );
            }
        }
    }
}
