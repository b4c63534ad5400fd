//! The tiny checkpoints of every architecture.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use attar_export::{Content, Side};
use attar_graph::{Expr, Graph, Inputs, Mode, Op, Run, SourceWeights, ValueId};
use attar_tensor::Encoding;

use crate::tiny::{self, Model, PRUNED};

/// The tiny checkpoints.
pub(crate) fn folders() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let entries = fs::read_dir(models).unwrap().flatten().map(|entry| entry.path());
    let mut tiny: Vec<PathBuf> = entries.filter(|path| name(path).starts_with("tiny-")).collect();
    tiny.sort();
    tiny
}

pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn open(folder: &Path) -> Model {
    let attar_model::Model { graph, source, config, .. } = attar_model::Model::open(folder).unwrap();
    // What runtimes that take texts ask for; tiny checkpoints have no tokenizer.
    let text = |text: &str| Content::Text(text.into());
    let files = [("tokenizer.json", text("{}")), ("generation_config.json", text("{\"eos_token_id\": 3}"))];
    Model {
        graph,
        source,
        side: Side { context: config.context, config: config.json, files: files.into(), compiled: Default::default() },
    }
}

/// The same graph over weights that are made up, those of linear layers in codes of a scheme. Tied ones stay as they are.
pub(crate) fn in_codes(model: &Model, folder: &Path, scheme: &str) -> Model {
    made_up(model, folder, &|_, _| scheme, false, "")
}

/// The same with tied ones in codes, too.
pub(crate) fn all_in_codes(model: &Model, folder: &Path, scheme: &str) -> Model {
    made_up(model, folder, &|_, _| scheme, true, "")
}

/// The scheme of a weight.
pub(crate) type SchemeOf = fn(&Graph, ValueId) -> &'static str;

/// The same with a scheme for each weight.
pub(crate) fn each_in_codes(model: &Model, folder: &Path, scheme: SchemeOf) -> Model {
    made_up(model, folder, &scheme, true, "")
}

/// The same with a row of zeros in each matrix, as pruning leaves them.
pub(crate) fn pruned_in_codes(model: &Model, folder: &Path, scheme: SchemeOf) -> Model {
    made_up(model, folder, &scheme, true, PRUNED)
}

fn made_up<'s>(
    model: &Model,
    folder: &Path,
    scheme: &dyn Fn(&Graph, ValueId) -> &'s str,
    with_tied: bool,
    ending: &str,
) -> Model {
    let mut graph = model.graph.clone();
    let reads = |position| move |node: &attar_graph::Node| node.inputs.get(position).copied();
    let linears = graph.nodes().iter().filter(|node| node.op == Op::Linear);
    let matrices: HashSet<ValueId> = linears.filter_map(reads(1)).collect();
    let tables: HashSet<ValueId> = graph.nodes().iter().filter(|node| node.op == Op::Embedding).filter_map(reads(1)).collect();
    let tied: HashSet<String> = tables.iter().filter_map(|id| stored(&graph, *id)).collect();
    let weights: Vec<(ValueId, String, Encoding)> =
        graph.weights().map(|(id, value, _)| (id, value.name.clone(), value.fact.encoding)).collect();
    for (id, name, plain) in weights {
        let is_tied = stored(&graph, id).is_some_and(|name| tied.contains(&name));
        let coded = if is_tied { with_tied } else { matrices.contains(&id) };
        let encoding = if coded { Encoding::Quantized(scheme(&model.graph, id).parse().unwrap()) } else { plain };
        let ending = if matrices.contains(&id) { ending } else { "" };
        let expr = if is_tied { Expr::tensor(stored(&graph, id).unwrap()) } else { Expr::tensor(name + ending) };
        graph.replace_weight(id, encoding, expr);
    }
    let source = tiny::source(&graph, &folder.join("weights.safetensors"));
    Model { graph, source, side: model.side.clone() }
}

/// The tensor that a weight is, if nothing is computed of it.
fn stored(graph: &Graph, id: ValueId) -> Option<String> {
    graph.weights().find(|(weight, ..)| *weight == id).and_then(|(.., expr)| match expr {
        Expr::Tensor(name) => Some(name.clone()),
        _ => None,
    })
}

/// What the reference run returns for a text: rows of logits, or one embedding.
pub(crate) fn reference(model: &Model, text: &[u32]) -> Vec<Vec<f32>> {
    let weights = SourceWeights(model.source.clone());
    let inputs = Inputs::tokens(&[text], 0).unwrap();
    let (outputs, _) = Run::new(&model.graph, &weights, Mode::Inference, vec![inputs]).finish(0).unwrap();
    match outputs[0].rank() {
        3 => outputs[0].squeeze(0).unwrap().to_vec2().unwrap(),
        _ => outputs[0].to_vec2().unwrap(),
    }
}
