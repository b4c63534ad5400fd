//! Texts in files of JSON objects, one a line (JSONL).

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use attar_model::{ChatTemplate, Encoder, Tokenizer};
use serde_json::Value;

use crate::{Error, Result};

/// The tokens of what `text` makes of the value `key` of every line of a file, as one text.
pub(crate) fn tokens(path: &Path, key: &str, text: TextOf<'_>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut encoder = Encoder::of(tokenizer);
    each(opened(path)?, path, key, text, &mut |text| Ok(encoder.push(text)?))?;
    Ok(encoder.finish()?)
}

/// The same, every line by itself.
pub(crate) fn documents(path: &Path, key: &str, text: TextOf<'_>, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    documents_of(opened(path)?, path, key, text, tokenizer)
}

/// The same of lines that are called `path`.
pub(crate) fn documents_of(
    lines: impl BufRead,
    path: &Path,
    key: &str,
    text: TextOf<'_>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>> {
    let mut all = Vec::new();
    each(lines, path, key, text, &mut |text| {
        let mut encoder = Encoder::of(tokenizer);
        encoder.push(text)?;
        all.push(encoder.finish()?);
        Ok(())
    })?;
    Ok(all)
}

fn opened(path: &Path) -> Result<BufReader<File>> {
    let unread = |source| attar_tensor::Error::Io { action: "read", path: path.into(), source };
    Ok(BufReader::new(File::open(path).map_err(unread)?))
}

/// Passes on what `text` makes of the value `key` of every line.
fn each(lines: impl BufRead, path: &Path, key: &str, text: TextOf<'_>, take: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let unread = |source| attar_tensor::Error::Io { action: "read", path: path.into(), source };
    for (at, line) in lines.lines().enumerate() {
        let line = line.map_err(unread)?;
        if line.trim().is_empty() {
            continue;
        }
        let refused = |problem: String| Error::Line { path: path.into(), line: at + 1, problem };
        let object: serde_json::Map<String, Value> =
            serde_json::from_str(&line).map_err(|e| refused(format!("no JSON object: {e}")))?;
        let value = object.get(key).ok_or_else(|| {
            let known: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
            refused(format!("no `{key}` among {}", known.join(", ")))
        })?;
        take(&text(value).map_err(|problem| refused(format!("`{key}` {problem}")))?)?;
    }
    Ok(())
}

/// What a value of a line says, or what is wrong with it.
pub(crate) type TextOf<'t> = &'t dyn Fn(&Value) -> std::result::Result<String, String>;

pub(crate) fn text_of(value: &Value) -> std::result::Result<String, String> {
    value.as_str().map(|text| format!("{text}\n\n")).ok_or_else(|| "is no text".into())
}

pub(crate) fn dialogue_of(value: &Value, chat: &ChatTemplate) -> std::result::Result<String, String> {
    let messages = value.as_array().filter(|messages| !messages.is_empty()).ok_or("is no list of messages")?;
    for (at, message) in messages.iter().enumerate() {
        if !message["role"].is_string() {
            return Err(format!("has no `role` in its message {}", at + 1));
        }
    }
    chat.render(value).map_err(|problem| format!("is refused by the model's chat template: {problem}"))
}
