//! JSON as other programs write it: behind a byte-order mark, and with the numbers `Infinity`, `-Infinity` and `NaN`, which
//! Python's library writes and reads. They become texts, so that whoever reads the key says what it wanted instead.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{Defect, Error, Result};

const FORMAT: &str = "JSON";

/// The value that `bytes`, the content of the file at `path`, are.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    let malformed = |defect| Error::Malformed { path: path.into(), format: FORMAT, defect };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(malformed(Defect::Json { line: 1, column: 1, problem: "UTF-16 text; UTF-8 is expected".into() }));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(malformed(Defect::Pointer));
    }
    serde_json::from_slice(bytes).or_else(|error| match python_numbers(bytes) {
        Some(text) => serde_json::from_slice(&text).map_err(|error| malformed(defect(&text, &error))),
        None => Err(malformed(defect(bytes, &error))),
    })
}

/// The value that the file at `path` holds.
pub fn read(path: &Path) -> Result<Value> {
    parse(path, &fs::read(path).map_err(Error::io("read", path))?)
}

/// The same text with Python's numbers as texts, if it has any.
fn python_numbers(bytes: &[u8]) -> Option<Vec<u8>> {
    const NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut text, mut at, mut within, mut changed) = (Vec::with_capacity(bytes.len()), 0, false, false);
    while at < bytes.len() {
        let found = NUMBERS.iter().find(|number| !within && bytes[at..].starts_with(number));
        if let Some(number) = found {
            text.push(b'"');
            text.extend_from_slice(number);
            text.push(b'"');
            (at, changed) = (at + number.len(), true);
            continue;
        }
        let escape = within && bytes[at] == b'\\' && at + 1 < bytes.len();
        if bytes[at] == b'"' {
            within = !within;
        }
        let end = at + if escape { 2 } else { 1 };
        text.extend_from_slice(&bytes[at..end]);
        at = end;
    }
    changed.then_some(text)
}

/// What is wrong, and where.
fn defect(text: &[u8], error: &serde_json::Error) -> Defect {
    let (line, column) = (error.line(), error.column());
    let rest = text.split(|byte| *byte == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let rest = &rest[column.saturating_sub(1).min(rest.len())..];
    let found: String = String::from_utf8_lossy(rest).chars().take(12).collect();
    let problem = match error.classify() {
        serde_json::error::Category::Eof => "the text ends before the value does".into(),
        _ if found.starts_with("//") || found.starts_with("/*") || found.starts_with('#') => {
            "a comment, which JSON has not".into()
        }
        _ if error.to_string().starts_with("recursion limit") => "values nested too deep".into(),
        _ => format!("unexpected `{}`", found.trim_end().escape_debug()),
    };
    Defect::Json { line, column, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &[u8]) -> std::result::Result<Value, String> {
        parse(Path::new("config.json"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_byte_order_mark_and_numbers_of_python_are_read() {
        assert_eq!(value(b"\xef\xbb\xbf{\"a\": 1}").unwrap()["a"], 1);
        let found = value(br#"{"a": Infinity, "b": [-Infinity, NaN], "c": "NaN \" NaN"}"#).unwrap();
        assert_eq!(found, serde_json::json!({"a": "Infinity", "b": ["-Infinity", "NaN"], "c": "NaN \" NaN"}));
    }

    #[test]
    fn what_is_no_json_is_said_with_its_place() {
        for (text, said) in [
            (&b"{\"a\": 1,\n // two\n \"b\": 2}"[..], "line 2, column 2: a comment"),
            (b"{\"a\": ", "line 1, column 6: the text ends before the value does"),
            (b"{\"a\": 1,}", "line 1, column 9: unexpected `}`"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ] {
            let message = value(text).unwrap_err();
            assert!(message.contains(said), "{message}");
        }
    }
}
