//! What a sentence-transformers folder adds to an encoder: `modules.json` lists the steps that follow it, and the folder of
//! a step has its settings.

use std::{collections::BTreeSet, path::PathBuf};

use attar_tensor::Checkpoint;
use serde_json::{Value, json};

use crate::{
    Error, Result,
    config::{Pooling, check_unset},
    settings::{Asked, Settings, short},
};

const MODULES: &str = "modules.json";
/// The folder of the pooling that we write.
const POOLING: &str = "1_Pooling";
const TRANSFORMER: &str = "sentence_bert_config.json";

struct Module {
    /// Its folder; empty for the encoder.
    path: String,
    class: String,
}

/// How the folder pools, if it says so.
pub(crate) fn pooling(checkpoint: &Checkpoint) -> Result<Option<Pooling>> {
    let Some(modules) = modules(checkpoint)? else { return Ok(None) };
    let mut pooling = Pooling::default();
    for module in modules {
        match module.class.rsplit('.').next() {
            Some("Transformer") => {}
            Some("Pooling") => pooling.first_token = first_token(&settings(checkpoint, &module)?)?,
            Some("Normalize") => pooling.normalize = true,
            _ => {
                let wanted = "a `Transformer`, `Pooling` or `Normalize`";
                return Err(Error::Unsupported { key: format!("{MODULES}: type"), found: module.class, wanted });
            }
        }
    }
    Ok(Some(pooling))
}

/// The number of tokens that the folder truncates texts to, if it says so.
pub(crate) fn longest(checkpoint: &Checkpoint) -> Result<Option<usize>> {
    let Some(json) = checkpoint.json(TRANSFORMER)? else { return Ok(None) };
    let (path, asked) = (checkpoint.path.join(TRANSFORMER), Asked::default());
    let settings = Settings::new(&path, &json, &asked)?;
    // Text would be changed before the tokenizer sees it.
    check_unset(&settings, "do_lower_case")?;
    settings.size("max_seq_length")
}

/// The files that this module reads.
pub(crate) fn files(checkpoint: &Checkpoint) -> Result<Vec<PathBuf>> {
    let modules = modules(checkpoint)?;
    let settings = modules.iter().flatten().filter(|module| !module.path.is_empty()).map(Module::file);
    let names = settings.chain([MODULES.into(), TRANSFORMER.into()]);
    let found: Vec<Option<PathBuf>> = names.map(|name| Ok(checkpoint.side_file(&name)?)).collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

fn modules(checkpoint: &Checkpoint) -> Result<Option<Vec<Module>>> {
    let Some(json) = checkpoint.json(MODULES)? else { return Ok(None) };
    let path = checkpoint.path.join(MODULES);
    let wrong = |found: &Value| Error::Setting {
        path: path.clone(),
        key: "the file".into(),
        found: short(found),
        wanted: "a list of modules with `path` and `type`".into(),
    };
    let module = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| wrong(entry));
        Ok(Module { path: text("path")?, class: text("type")? })
    };
    json.as_array().ok_or_else(|| wrong(&json))?.iter().map(module).collect::<Result<_>>().map(Some)
}

impl Module {
    fn file(&self) -> String {
        format!("{}/config.json", self.path)
    }
}

fn settings(checkpoint: &Checkpoint, module: &Module) -> Result<Value> {
    Ok(checkpoint.json(&module.file())?.unwrap_or_default())
}

/// The files from which [`pooling`] reads `pooling` again: none, if it is what an encoder without them does.
pub(crate) fn written(pooling: Pooling, width: usize) -> Vec<(&'static str, Value)> {
    if !pooling.first_token && !pooling.normalize {
        return Vec::new();
    }
    let class = |name: &str| format!("sentence_transformers.models.{name}");
    let paths = [("", "Transformer"), (POOLING, "Pooling"), ("2_Normalize", "Normalize")];
    let used = if pooling.normalize { &paths[..] } else { &paths[..2] };
    let modules = used.iter().enumerate();
    let modules =
        modules.map(|(at, (path, name))| json!({ "idx": at, "name": at.to_string(), "path": path, "type": class(name) }));
    let settings = json!({
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling.first_token,
        "pooling_mode_mean_tokens": !pooling.first_token,
    });
    vec![(MODULES, modules.collect()), ("1_Pooling/config.json", settings)]
}

/// Whether the first token stands for the text; else the mean does, which is the default.
fn first_token(settings: &Value) -> Result<bool> {
    const MODE: &str = "pooling_mode";
    let spelled = match settings.get(MODE) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(modes)) => modes.iter().map(in_old_spelling).collect(),
        Some(mode) => vec![in_old_spelling(mode)],
    };
    let spelled = spelled.into_iter().map(|mode| format!("{MODE}_{mode}"));
    let flags = settings.as_object().into_iter().flatten().filter(|(_, value)| **value == Value::Bool(true));
    let flags = flags.map(|(key, _)| key.clone()).filter(|key| key.starts_with(MODE));
    let modes: BTreeSet<String> = spelled.chain(flags).collect();
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["pooling_mode_mean_tokens"] => Ok(false),
        ["pooling_mode_cls_token"] => Ok(true),
        other => Err(Error::Unsupported {
            key: MODE.into(),
            found: other.join(", "),
            wanted: "`pooling_mode_mean_tokens` or `pooling_mode_cls_token`",
        }),
    }
}

/// `cls` is written `cls_token` where each mode is a key of its own.
fn in_old_spelling(mode: &Value) -> String {
    match mode.as_str() {
        Some("cls") => "cls_token".into(),
        Some("mean") => "mean_tokens".into(),
        Some(other) => other.into(),
        None => mode.to_string(),
    }
}
