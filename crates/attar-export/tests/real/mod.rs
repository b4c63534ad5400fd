//! A small real model with a tokenizer, and what the reference run makes of it.

use std::path::{Path, PathBuf};

use attar_export::{Content, Side};
use attar_graph::State;

use crate::tiny::Model;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m")
}

/// What the chat template makes of messages: names, what they say, and the name that answers.
const TEMPLATE: &str = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}\
    {% if add_generation_prompt %}KING:\n{% endif %}";

/// The small real checkpoint, with a chat template.
pub(crate) fn shakespeare() -> Model {
    let folder = folder();
    let attar_model::Model { graph, source, config, .. } = attar_model::Model::open(&folder).unwrap();
    let files = [
        ("tokenizer.json", Content::File(folder.join("tokenizer.json"))),
        ("chat_template.jinja", Content::Text(TEMPLATE.into())),
        ("generation_config.json", Content::Text("{\"eos_token_id\": [1023, 1022]}".into())),
    ];
    Model {
        graph,
        source,
        side: Side { context: config.context, config: config.json, files: files.into(), compiled: Default::default() },
    }
}

/// The likeliest token, over and over.
pub(crate) fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut said, mut feed, mut past, mut state) = (Vec::new(), prompt.to_vec(), 0, Some(State::default()));
    while said.len() < count {
        let (logits, after) = model.reference(&feed, past, state);
        let last = logits.last().unwrap();
        let next = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32;
        said.push(next);
        (past, state, feed) = (past + feed.len(), after, vec![next]);
    }
    said
}

/// The model's own tokenizer.
pub(crate) fn tokenizer() -> attar_model::Tokenizer {
    attar_model::Model::open(&folder()).unwrap().tokenizer().unwrap()
}

/// A text as that has it.
pub(crate) fn encoded(text: &str) -> Vec<u32> {
    tokenizer().encode(text).unwrap()
}
