//! What this prevents: a model of another kind, or a damaged one, that is run all the same and gives vectors that mean
//! nothing; and a file from elsewhere that ends the process.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::fs;
use std::path::{Path, PathBuf};

use larder_encoder::{Encoder, EncoderOptions, ErrorKind, InstallOptions, Kernels, install};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny")
}

const FILES: [&str; 7] = [
    "config.json",
    "vocab.txt",
    "model.safetensors",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
];

fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for name in FILES {
        fs::copy(tiny().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn what_would_give_other_vectors_is_refused_by_name() {
    use ErrorKind::*;
    let config = fs::read_to_string(tiny().join("config.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        config.replace(from, to)
    };
    let cases: Vec<(&str, String, ErrorKind, &str)> = vec![
        ("config.json", with("\"bert\"", "\"mpnet\""), Unsupported, "model_type"),
        ("config.json", with("\"gelu\"", "\"relu\""), Unsupported, "hidden_act"),
        ("config.json", with("\"hidden_size\": 48", "\"hidden_size\": 64"), Unsupported, "hidden_size"),
        ("config.json", with("\"hidden_size\": 48", "\"hidden_size\": 96"), Corrupt, "word_embeddings"),
        (
            "config.json",
            with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
            Corrupt,
            "encoder.layer.2",
        ),
        (
            "config.json",
            with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 99999999"),
            Unsupported,
            "num_hidden",
        ),
        ("config.json", "{".into(), Corrupt, "config.json"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n".into(), Corrupt, "[SEP]"),
        ("vocab.txt", "[UNK]\n[CLS]\n[SEP]\n".to_owned() + &"x\n".repeat(5000) + "y\n", Corrupt, "vocab.txt"),
        ("tokenizer.json", r#"{"model":{"type":"BPE","vocab":{}}}"#.into(), Unsupported, "BPE"),
        ("modules.json", r#"[{"type":"sentence_transformers.models.Dense"}]"#.into(), Unsupported, "Dense"),
        ("1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#.into(), Unsupported, "pooling"),
        ("sentence_bert_config.json", r#"{"max_seq_length": 1}"#.into(), Unsupported, "1 tokens"),
        ("model.safetensors", "short".into(), Corrupt, "model.safetensors"),
    ];
    for (file, content, kind, says) in cases {
        let dir = copy();
        fs::write(dir.path().join(file), content).unwrap();
        let error = Encoder::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), kind, "{file}: {error}");
        assert!(error.to_string().contains(says) && error.path().is_some(), "{file}: {error}");
    }
    for file in ["config.json", "vocab.txt", "model.safetensors"] {
        let dir = copy();
        fs::remove_file(dir.path().join(file)).unwrap();
        let error = Encoder::open(dir.path()).unwrap_err();
        assert_eq!((error.kind(), error.path()), (Io, Some(&*dir.path().join(file))), "{error}");
    }
}

#[test]
fn weights_cut_off_anywhere_are_an_error() {
    let whole = fs::read(tiny().join("model.safetensors")).unwrap();
    let dir = copy();
    for cut in (0..whole.len()).step_by(9_973).chain([8, 9, whole.len() - 1]) {
        fs::write(dir.path().join("model.safetensors"), &whole[..cut]).unwrap();
        assert!(Encoder::open(dir.path()).is_err(), "{cut} of {} bytes", whole.len());
    }
}

#[test]
fn kernels_that_are_not_there_are_refused() {
    for kernels in Kernels::ALL.into_iter().filter(|kernels| !kernels.is_available()) {
        let mut options = EncoderOptions::default();
        options.kernels = Some(kernels);
        assert_eq!(Encoder::open_with(&tiny(), &options).unwrap_err().kind(), ErrorKind::Config);
    }
}

/// A wheel with the tiny model, and `change` done to each file after its sum was taken.
fn wheel(dir: &Path, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> PathBuf {
    use base64::Engine;
    use sha2::Digest;
    use std::io::Write;
    let path = dir.join("tiny_model-1.0-py3-none-any.whl");
    let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    let mut record = String::new();
    for name in FILES {
        let bytes = fs::read(tiny().join(name)).unwrap();
        let sum = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(&bytes));
        record += &format!("tiny_model/model/{name},sha256={sum},{}\n", bytes.len());
        if let Some(bytes) = change(name, bytes) {
            archive.start_file(format!("tiny_model/model/{name}"), options).unwrap();
            archive.write_all(&bytes).unwrap();
        }
    }
    // What an archive wants elsewhere is not taken from it.
    archive.start_file("../../escaped", options).unwrap();
    archive.write_all(b"x").unwrap();
    archive.start_file("tiny_model-1.0.dist-info/RECORD", options).unwrap();
    archive.write_all(record.as_bytes()).unwrap();
    archive.finish().unwrap();
    path
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_wheel_and_a_folder_are_installed_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let wheel = wheel(dir.path(), |_, bytes| Some(bytes));
    let installed = install(&wheel, &models, &InstallOptions::default()).unwrap();
    assert_eq!(installed.path, models.join("tiny-model"));
    let (there, original) = (Encoder::open(&installed.path).unwrap(), Encoder::open(&tiny()).unwrap());
    assert_eq!((there.name(), there.version()), ("tiny-model", original.version()));
    assert_eq!(there.encode("a bill").unwrap(), original.encode("a bill").unwrap());

    // Once more is no error, and another model under that name is.
    assert_eq!(install(&wheel, &models, &InstallOptions::default()).unwrap(), installed);
    let mut options = InstallOptions::default();
    options.name = Some("tiny-model".into());
    let other = copy();
    fs::write(other.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 16}"#).unwrap();
    assert_eq!(install(other.path(), &models, &options).unwrap_err().kind(), ErrorKind::Config);
    options.name = Some("other".into());
    install(other.path(), &models, &options).unwrap();
    let mut names = entries(&models);
    names.sort();
    assert_eq!(names, ["other", "tiny-model"]);
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let refuse = |path: &Path, options: &InstallOptions, kind: ErrorKind| {
        let error = install(path, &models, options).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!models.exists() || entries(&models).is_empty(), "{error}: {:?}", entries(&models));
    };
    let none = InstallOptions::default();
    let changed = wheel(dir.path(), |name, mut bytes| {
        if name == "model.safetensors" {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        Some(bytes)
    });
    refuse(&changed, &none, ErrorKind::Checksum);
    refuse(
        &wheel(dir.path(), |name, bytes| (name != "model.safetensors").then_some(bytes)),
        &none,
        ErrorKind::Corrupt,
    );
    refuse(&wheel(dir.path(), |name, bytes| (name != "vocab.txt").then_some(bytes)), &none, ErrorKind::Io);
    let mut options = InstallOptions::default();
    options.sha256 = Some("00".repeat(32));
    refuse(&wheel(dir.path(), |_, bytes| Some(bytes)), &options, ErrorKind::Checksum);
    for name in ["", "..", "a/b", ".hidden", "a\0b"] {
        let mut options = InstallOptions::default();
        options.name = Some(name.into());
        refuse(&tiny(), &options, ErrorKind::Config);
    }
    let whole = fs::read(wheel(dir.path(), |_, bytes| Some(bytes))).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 7) {
        let path = dir.path().join("cut.whl");
        fs::write(&path, &whole[..cut]).unwrap();
        refuse(&path, &none, ErrorKind::Corrupt);
    }
    assert!(!dir.path().join("escaped").exists() && !dir.path().parent().unwrap().join("escaped").exists());
}
