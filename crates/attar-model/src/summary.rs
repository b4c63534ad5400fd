//! What was read of a checkpoint, as data: to be compared by eye with what the model's card says.

use std::{collections::BTreeMap, path::PathBuf};

use attar_graph::{
    Graph, Op,
    op::{Rope, Scaling},
};
use attar_tensor::Digest;
use serde::Serialize;

use crate::{Model, Result};

/// What was read of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `LlamaForCausalLM`, …
    pub architecture: String,
    /// Numbers in its weights; tied ones count once.
    pub parameters: u64,
    /// How another tool quantized the weights, which are then decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantized: Option<String>,
    /// Blocks.
    pub blocks: usize,
    /// Whether the head is the embedding; absent without a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
    /// Rotary positions, each kind once, with the number of blocks that have it.
    pub rope: Vec<String>,
    /// How many positions a query sees, each kind once, with the number of blocks that have it.
    pub window: Vec<String>,
    /// Norms, each kind once, with their number.
    pub norms: Vec<String>,
    /// Weights that have a bias, those of all blocks as one.
    pub biases: Vec<String>,
    /// End-of-text tokens.
    pub end: Vec<u32>,
    /// Why there is no tokenizer, if there is none that can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_tokenizer: Option<String>,
    /// Stored tensors that the graph does not need, each with the reason.
    pub harmless: Vec<String>,
    /// Stored tensors that `ignore` leaves out.
    pub ignored: Vec<String>,
    /// Files and tensors beside the model that are not read.
    pub left_out: Vec<String>,
    /// Every file that its meaning depends on.
    pub files: Vec<ReadFile>,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReadFile {
    /// Its name, from the folder of the model.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(skip)]
    path: PathBuf,
}

impl Summary {
    /// The same with the digest of every file, for which each is read to its end.
    pub fn with_digests(mut self) -> Result<Summary> {
        for file in &mut self.files {
            file.digest = Some(Digest::of_file(&file.path)?);
        }
        Ok(self)
    }
}

impl Model {
    /// What was read, without digests.
    pub fn summary(&self) -> Result<Summary> {
        let graph = &self.graph;
        let mut harmless: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        self.unused.harmless.iter().for_each(|(tensor, reason)| harmless.entry(reason).or_default().push(tensor));
        let harmless = harmless.into_iter().map(|(reason, tensors)| format!("{}: {reason}", some(&tensors)));
        Ok(Summary {
            architecture: self.config.architecture.clone(),
            parameters: self.parameters(),
            quantized: self.quantized.as_ref().map(ToString::to_string),
            blocks: graph.blocks().filter(|block| graph.block_name(*block).starts_with("blocks.")).count(),
            tied: tied(graph),
            rope: kinds(graph, |op| if let Op::Rope(rope) = op { Some(rope_text(rope)) } else { None }, true),
            window: kinds(graph, |op| if let Op::Attention(op) = op { Some(window_text(op.window)) } else { None }, false),
            norms: kinds(graph, norm_text, false),
            biases: biases(graph),
            end: self.config.eos.clone(),
            no_tokenizer: self.no_tokenizer(),
            harmless: harmless.collect(),
            ignored: self.unused.ignored.clone(),
            left_out: self.left_out.clone(),
            files: self.read_files()?,
        })
    }

    fn read_files(&self) -> Result<Vec<ReadFile>> {
        let folder = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
        let file = |path: &PathBuf| {
            let name = folder.and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(path).display().to_string();
            let bytes = std::fs::metadata(path).map_err(|source| crate::Error::Io { path: path.clone(), source })?.len();
            Ok(ReadFile { name, bytes, digest: None, path: path.clone() })
        };
        self.files.iter().map(file).collect()
    }
}

/// The first of some names, and how many more there are.
fn some(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [first, rest @ ..] => format!("`{first}` and {} more", rest.len()),
    }
}

fn tied(graph: &Graph) -> Option<bool> {
    let expr = |name: &str| graph.weights().find(|(_, value, _)| value.name == name).map(|(.., expr)| expr);
    expr("lm_head").map(|head| Some(head) == expr("embedding"))
}

/// Every text that `describe` gives for a node, once, with how often. Keys are counted with their queries if `paired`.
fn kinds(graph: &Graph, describe: impl Fn(&Op) -> Option<String>, paired: bool) -> Vec<String> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let matching = graph.nodes().iter().filter(|node| !paired || !graph.get(node.outputs[0]).name.contains("key_"));
    for text in matching.filter_map(|node| describe(&node.op)) {
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => found.push((text, 1)),
        }
    }
    found.into_iter().map(|(text, count)| format!("{text} ({count})")).collect()
}

fn rope_text(rope: &Rope) -> String {
    let scaling = match &rope.scaling {
        Scaling::Default => "plain".into(),
        Scaling::Linear { factor } => format!("linear, factor {factor}"),
        Scaling::Llama3 { factor, low, high, original } => {
            format!("llama3, factor {factor}, from {low} to {high}, original context {original}")
        }
        Scaling::Factors(factors) => format!("by {} stored factors", factors.len()),
        Scaling::LongRope { short, original, attention, .. } => {
            format!("longrope with {} factors, original context {original}, attention factor {attention:.4}", short.len())
        }
        Scaling::Yarn { factor, original, fast, slow, attention, truncate } => {
            let cut = if *truncate { "" } else { ", not truncated" };
            format!(
                "yarn, factor {factor}, original context {original}, betas {fast} and {slow}, attention factor {attention:.4}{cut}"
            )
        }
    };
    format!("theta {}, {scaling}", rope.theta)
}

fn window_text(window: Option<usize>) -> String {
    window.map_or("all positions".into(), |window| format!("the last {window} positions"))
}

fn norm_text(op: &Op) -> Option<String> {
    match op {
        Op::RmsNorm { epsilon } => Some(format!("RMS norm, epsilon {epsilon}")),
        Op::LayerNorm { epsilon } => Some(format!("layer norm, epsilon {epsilon}")),
        _ => None,
    }
}

/// Weights with a bias; the number of a block is `*`.
fn biases(graph: &Graph) -> Vec<String> {
    let starred = |name: &str| {
        let parts: Vec<&str> =
            name.split('.').map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part }).collect();
        parts.join(".")
    };
    let mut found: Vec<String> =
        graph.weights().filter_map(|(_, value, _)| value.name.strip_suffix(".bias").map(starred)).collect();
    found.sort();
    found.dedup();
    found
}
