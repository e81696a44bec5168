//! `larder semantic` as a user runs it. What this prevents: figures that are not of the data that was given, a trap that
//! is served or not counted, an error that does not say where to look, and a model that is not what it was said to be.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that can't go on stops")]

mod support;

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use support::run;
use tempfile::TempDir;

/// Twelve questions of three answers; one has a comma and a quote in it, one is there twice.
const STREAM: &str = "text,category\r
How do I reset my PIN?,pin\r
how do I reset my PIN,pin\r
How can I reset the PIN of my card?,pin\r
Please reset my PIN,pin\r
\"My card, the \"\"gold\"\" one, has not arrived\",arrival\r
My card has not arrived yet,arrival\r
My new card has not arrived,arrival\r
Why has my card not arrived?,arrival\r
What is the exchange rate?,rate\r
What is the exchange rate?,rate\r
What is your exchange rate today?,rate\r
Which exchange rate do you use?,rate\r
";

const LOOKUPS: &str = r#"[
  {"origin": "Where is my parcel?", "similar": "where is my parcel"},
  {"origin": "How do I bake bread?",
   "similar": "zzz"}
]"#;

/// Two that one answer may serve, five traps: of order, amount, negation, context, and one that only its words tell.
const PAIRS: &str = r#"{"category":"same","a":"How do I reset my PIN?","b":"how do I reset my PIN","same_answer":true}
{"category":"same","a":"How do I reset my card's PIN code?","b":"How can I reset my card's PIN code?","same_answer":true}

{"category":"order","a":"flights from New York to Florida","b":"flights from Florida to New York","same_answer":false}
{"category":"amount","a":"convert 10 USD to EUR","b":"convert 100 USD to EUR","same_answer":false}
{"category":"negation","a":"recipes with alcohol","b":"recipes without alcohol","same_answer":false}
{"category":"context","a":[{"role":"user","content":"My gym"},{"role":"user","content":"Cancel it"}],"b":[{"role":"user","content":"My flight"},{"role":"user","content":"Cancel it"}],"same_answer":false}
{"category":"words","a":"Where can I buy a red bicycle for my daughter?","b":"Where can I buy a red tricycle for my daughter?","same_answer":false}
"#;

fn data(name: &str, content: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(&run(&[&["semantic", "eval", "--json"], arguments].concat()))).unwrap()
}

/// Why a command failed, having printed nothing.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn all_three_forms_are_replayed_with_the_built_in_embedder() {
    let (_one, stream) = data("stream.csv", STREAM);
    let (_two, lookups) = data("lookups.json", LOOKUPS);
    let (_three, pairs) = data("pairs.jsonl", PAIRS);
    let files = [&*pairs, &*stream, &*lookups];

    let report = json(&[&files[..], &["--seeds", "3"]].concat());
    assert_eq!(report["embedder"]["name"], "larder-ngrams");
    assert_eq!(report["policy"], "pooled");
    let [stream, pairs, lookups] = &report["sections"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!(
        (&stream["kind"], &pairs["kind"], &lookups["kind"]),
        (&"stream".into(), &"pairs".into(), &"lookups".into())
    );
    let seeds = stream["seeds"].as_array().unwrap();
    assert_eq!(seeds.len(), 3);
    for seed in seeds {
        assert_eq!(seed["requests"], 12);
        assert!(seed["exact"].as_u64().unwrap() >= 2, "equal but for their form: {seed}");
    }
    assert!(stream["mean"]["hits"].as_f64().unwrap() >= 2.0 / 12.0, "{stream}");
    let (whole, of_pairs) = (&lookups["report"], &pairs["report"]);
    assert_eq!((&whole["right"], &whole["wrong"], &whole["missed"]), (&1.into(), &0.into(), &1.into()));
    assert_eq!(
        (&of_pairs["same"], &of_pairs["served"], &of_pairs["traps"]),
        (&2.into(), &2.into(), &5.into())
    );
    for kind in ["order", "amount", "negation", "context"] {
        assert_eq!(of_pairs["kinds"][kind], serde_json::json!([1, 0]), "{kind}");
    }
    assert_eq!(json(&[&files[..], &["--seeds", "3"]].concat()), report, "the same again");

    let table = stdout(&run(&[&["semantic", "eval", "--seeds", "2"], &files[..]].concat()));
    for says in [
        "embedded by larder-ngrams",
        "stream of 12 questions, policy pooled",
        "lookups.json, policy pooled: 1 right, 0 wrong, 1 missed",
        "pairs.jsonl, policy pooled: served 2 of 2",
        "of 5 traps",
        "negation                     0 of     1 served",
        "worst seed",
        "threshold  right  wrong",
        "against the threshold",
    ] {
        assert!(table.contains(says), "no {says:?} in\n{table}");
    }
}

/// The control of the traps: what is served is counted as one where the data says that it is one.
#[test]
fn a_trap_that_is_served_is_counted() {
    let (_folder, pairs) =
        data("pairs.jsonl", &PAIRS.replace("\"same_answer\":true", "\"same_answer\":false"));
    let report = json(&[&pairs]);
    let report = &report["sections"][0]["report"];
    assert_eq!((&report["traps"], &report["traps_served"]), (&7.into(), &2.into()));
    assert_eq!(report["kinds"]["same"], serde_json::json!([2, 2]));
}

/// A search among all of the data, not only among what was asked before, would serve the first question too.
#[test]
fn a_question_finds_only_what_was_asked_before_it() {
    for (questions, hits) in [(1, 0), (2, 1), (5, 4)] {
        let rows: String = (0..questions)
            .map(|at| {
                format!(
                    "{{\"text\":\"the card {} has not arrived\",\"intent\":\"x\"}}\n",
                    ["a", "the", "my", "our", "his"][at]
                )
            })
            .collect();
        let (_folder, stream) = data("stream.jsonl", &rows);
        let report = json(&[&stream, "--policy", "threshold", "--threshold", "0.2", "--seeds", "4"]);
        for seed in report["sections"][0]["seeds"].as_array().unwrap() {
            let served = seed["served"].as_u64().unwrap() + seed["exact"].as_u64().unwrap();
            assert_eq!((served, &seed["wrong"]), (hits, &0.into()), "{questions} questions: {seed}");
        }
    }
}

#[test]
fn errors_name_the_file_and_the_line() {
    let cases = [
        ("a.csv", "text,category\na,b\nc\n", "a.csv:3: 1 fields, where the header has 2"),
        ("a.csv", "text,category\n\"a,b\n", "a.csv:2: a quote"),
        ("a.csv", "", "a.csv: empty"),
        (
            "a.json",
            "[\n{\"origin\":\"a\",\"similar\":\"b\"},\n{\"origin\":\"a\"}]",
            "a.json:3: no text \"similar\"",
        ),
        ("a.json", "[\n{\"origin\":\"a\",\"similar\":\"b\"},\n{]", "a.json:3: no JSON array"),
        ("a.jsonl", "{\"text\":\"a\",\"label\":\"b\"}\n\n{\"text\":", "a.jsonl:3: no JSON object"),
        ("a.jsonl", "{\"a\":\"x\",\"b\":\"y\",\"same_answer\":\"maybe\"}", "a.jsonl:1: \"same_answer\""),
        ("a.jsonl", "{\"what\":1}", "a.jsonl:1: rows of no known form"),
    ];
    for (name, content, says) in cases {
        let (_folder, path) = data(name, content);
        // A good file before it changes nothing, and prints nothing.
        let (_other, good) = data("good.csv", STREAM);
        let refusal = refusal(&["semantic", "eval", &good, &path]);
        assert!(refusal.contains(says), "{content:?}: {refusal}");
    }
    let (_folder, good) = data("good.csv", STREAM);
    let (_other, vectors) =
        data("v.jsonl", "{\"text\":\"a\",\"vector\":[1,2]}\n{\"text\":\"b\",\"vector\":[1]}\n");
    let eval = |more: &[&str]| refusal(&[&["semantic", "eval", &good], more].concat());
    assert!(eval(&["--vectors", &vectors]).contains("v.jsonl:2: a vector of 1 numbers"));
    assert!(eval(&["--embedder", "/nowhere"]).contains("--embedder /nowhere is no folder"));
    let folder = Path::new(&good).parent().unwrap().to_str().unwrap();
    assert!(eval(&["--embedder", folder]).contains("config.json"));
    assert!(eval(&["--embedder", "ngrams", "--vectors", &vectors]).contains("cannot be used with"));
    assert!(refusal(&["semantic", "eval", "/nowhere.csv"]).contains("/nowhere.csv"));
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../larder-encoder/tests/golden/tiny")
}

#[test]
fn a_model_is_added_listed_and_embeds() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    let (source, models) = (tiny(), models.to_str().unwrap());
    let source = source.to_str().unwrap();
    let sum: String = Sha256::digest(fs::read(tiny().join("model.safetensors")).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let add = ["semantic", "model", "add", source, "--models", models];
    let list = ["semantic", "model", "list", "--models", models];

    let none = run(&list);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(1), 0));
    let wrong = "0".repeat(64);
    let refused = refusal(&[&add[..], &["--sha256", &wrong]].concat());
    assert!(
        refused.contains("model.safetensors") && refused.contains(&sum) && refused.contains(&wrong),
        "{refused}"
    );
    assert_eq!(run(&list).status.code(), Some(1), "what was refused is not there");

    let path = format!("{models}/tiny");
    let added = stdout(&run(&[&add[..], &["--sha256", &sum]].concat()));
    assert!(added.contains(&path) && added.contains(&sum) && added.contains("48"), "{added}");
    assert_eq!(stdout(&run(&add)), added, "the same again is left as it is");
    let listed: Value = serde_json::from_str(&stdout(&run(&[&list[..], &["--json"]].concat()))).unwrap();
    assert_eq!((&listed[0]["path"], &listed[0]["sha256"]), (&Value::from(&*path), &Value::from(&*sum)));
    assert_eq!(listed.as_array().unwrap().len(), 1);

    let (_other, pairs) = data("pairs.jsonl", PAIRS);
    let report = json(&[&pairs, "--embedder", &path]);
    assert_eq!(
        (&report["embedder"]["name"], &report["embedder"]["dimensions"]),
        (&"tiny".into(), &48.into())
    );
    assert_eq!(report["embedder"]["version"], listed[0]["version"]);

    // One that was damaged since is named, beside those that work.
    fs::create_dir(format!("{models}/broken")).unwrap();
    fs::write(format!("{models}/broken/model.safetensors"), "x").unwrap();
    let output = run(&list);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&sum));
    assert!(String::from_utf8_lossy(&output.stderr).contains("broken"));
}
