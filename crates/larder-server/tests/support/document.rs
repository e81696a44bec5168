//! The OpenAPI document, and whether an answer is one that it promises.

use super::Answer;
use serde_json::Value;
use std::sync::LazyLock;

pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../src/http/openapi.json")).unwrap());

/// What a `$ref` names, or the value itself.
pub fn resolve(value: &Value) -> &Value {
    match value["$ref"].as_str() {
        Some(pointer) => resolve(DOCUMENT.pointer(&pointer[1..]).unwrap_or_else(|| panic!("{pointer}"))),
        None => value,
    }
}

/// All operations: path, method, description.
pub fn operations() -> Vec<(&'static str, &'static str, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let of = |(path, item): (&'static String, &'static Value)| {
        let operations = item.as_object().unwrap().iter();
        operations.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    };
    paths.iter().flat_map(of).collect()
}

/// The operation of a request; a literal path wins over a template.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap();
    let matches = |template: &str| {
        let mut parts = path.splitn(template.split('/').count(), '/');
        template.split('/').all(|part| match parts.next() {
            Some(given) => {
                (part == "{key}" && !given.is_empty())
                    || (part.starts_with('{') && !given.is_empty() && !given.contains('/'))
                    || part == given
            }
            None => false,
        }) && parts.next().is_none()
    };
    let found = operations()
        .into_iter()
        .find(|(template, other, _)| matches(template) && (other.eq_ignore_ascii_case(method)));
    found.map(|(_, _, operation)| operation)
}

/// Asserts that the document promises this answer: status, media type, body and headers.
pub fn check(method: &str, path: &str, answer: &Answer) {
    let shown = || format!("{method} {path} gave {answer:?} {}", answer.text());
    let Some(operation) = operation(method, path) else {
        let get = operation("GET", path).is_some() && method == "HEAD";
        assert!(get || matches!(answer.status, 404 | 405 | 400 | 421 | 401), "{}", shown());
        return;
    };
    let promised = &operation["responses"][answer.status.to_string()];
    assert!(promised.is_object(), "this status is not in the document: {}", shown());
    let promised = resolve(promised);
    for (name, _) in &answer.headers {
        let is_ours = name.starts_with("larder-")
            || matches!(name.as_str(), "etag" | "age" | "cache-status" | "retry-after" | "x-request-id");
        let headers = promised["headers"].as_object();
        let is_listed =
            headers.is_some_and(|headers| headers.keys().any(|other| other.eq_ignore_ascii_case(name)));
        assert!(!is_ours || is_listed, "the header {name} is not in the document: {}", shown());
    }
    assert!(answer.header("x-request-id").is_some(), "{}", shown());
    if method == "HEAD" || matches!(answer.status, 202 | 204 | 304) && answer.body.is_empty() {
        return;
    }
    let content =
        promised["content"].as_object().unwrap_or_else(|| panic!("no body is promised: {}", shown()));
    let given = answer.header("content-type").unwrap_or_default().split(';').next().unwrap();
    let Some((_, media)) = content.iter().find(|(kind, _)| *kind == given || *kind == "*/*") else {
        panic!("the type {given} is not promised: {}", shown());
    };
    if given.ends_with("json") && !media["schema"].as_object().is_none_or(serde_json::Map::is_empty) {
        conforms(&answer.json(), &media["schema"]).unwrap_or_else(|why| panic!("{why}: {}", shown()));
    }
}

/// The part of JSON Schema that the document uses.
pub fn conforms(value: &Value, schema: &Value) -> Result<(), String> {
    let schema = resolve(schema);
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    };
    let is_typed = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
        _ => true,
    };
    if !is_typed {
        return Err(format!("{value} is no {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return Err(format!("{value} is none of {allowed:?}"));
    }
    if value.is_null() {
        return Ok(());
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return Err(format!("{name} is missing in {value}"));
        }
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(member) = value.get(name) {
            conforms(member, inner).map_err(|why| format!("{name}: {why}"))?;
        }
    }
    if schema["additionalProperties"] == false {
        for name in value.as_object().into_iter().flat_map(|object| object.keys()) {
            if schema["properties"].get(name).is_none() {
                return Err(format!("{name} is not allowed"));
            }
        }
    }
    for item in value.as_array().into_iter().flatten() {
        if schema["items"].is_object() {
            conforms(item, &schema["items"])?;
        }
    }
    Ok(())
}
