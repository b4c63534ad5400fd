//! What travels with a model apart from graph and weights: its configuration and the files beside the checkpoint.

use std::{collections::BTreeMap, path::PathBuf};

use attar_export::{Content, SIDE_FILES, Side};
use attar_graph::Graph;
use attar_model::{Model, describe_in_part};

use crate::Result;

const TOKENIZER: &str = "tokenizer.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// What belongs to the model, whose graph is now `graph`: the configuration says its sizes. A tokenizer in a GGUF file or in a `tokenizer.model` becomes a
/// `tokenizer.json`, and the chat template of a GGUF file a file, too.
pub(crate) fn side(base: &Model, graph: &Graph) -> Result<Side> {
    let mut files: BTreeMap<_, _> = found(base)?.into_iter().map(|(name, path)| (name, Content::File(path))).collect();
    if !files.contains_key(TOKENIZER) && base.no_tokenizer().is_none() {
        files.insert(TOKENIZER, Content::Text(base.tokenizer()?.to_json()?));
    }
    if let Some(template) = base.chat_template() {
        files.insert(CHAT_TEMPLATE, Content::Text(template.to_owned()));
    }
    Ok(Side {
        config: describe_in_part(&base.config.json, graph),
        context: base.config.context,
        files,
        compiled: BTreeMap::new(),
    })
}

/// The files beside the checkpoint that travel with it.
pub(crate) fn paths(base: &Model) -> Result<Vec<PathBuf>> {
    Ok(found(base)?.into_iter().map(|(_, path)| path).collect())
}

fn found(base: &Model) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut found = Vec::new();
    for name in SIDE_FILES {
        found.extend(base.side_file(name)?.filter(|path| path.is_file()).map(|path| (name, path)));
    }
    Ok(found)
}
