//! The passes on whole models, as the decoder prints them, with their activations in integers.

use std::{fs, path::Path};

use attar_compile::pass::Fuse;
use attar_graph::{Expr, Graph};

use super::numbers::assert_same;

/// Every graph of `testdata/ir`, as it is and with each block matrix and what it reads in integers.
fn graphs() -> Vec<(String, Graph)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/ir");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let texts = paths.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()));
    texts.flat_map(|(name, text)| [(format!("{name} in integers"), in_integers(&text)), (name, text)]).map(parsed).collect()
}

/// Each weight is a stored tensor of its own.
fn parsed((name, text): (String, String)) -> (String, Graph) {
    let mut graph = Graph::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
    let weights: Vec<_> = graph.weights().map(|(id, value, _)| (id, value.fact.encoding, value.name.clone())).collect();
    for (id, encoding, name) in weights {
        graph.replace_weight(id, encoding, Expr::tensor(name));
    }
    (name, graph)
}

/// What linear layers of blocks read is rounded once for all of them; their weights are codes.
fn in_integers(text: &str) -> String {
    let mut rounded = std::collections::BTreeSet::new();
    let mut all = String::new();
    let mut block = "";
    for line in text.lines() {
        block = line.strip_prefix("  block ").unwrap_or(block);
        match line.split_once(" = linear ").filter(|_| block.starts_with("blocks.")) {
            Some((name, operands)) => {
                let (x, weight) = operands.split_once(", ").unwrap();
                if rounded.insert(x.to_owned()) {
                    all += &format!("    {x}.int8 = quantize {x} {{bits = 8}}\n");
                }
                let weight = weight.replacen("] bf16", "] int4/g8", 1).replacen("] f32", "] int4/g8", 1);
                all += &format!("{name} = linear {x}.int8, {weight}\n");
            }
            None => all += &format!("{line}\n"),
        }
    }
    all
}

fn sorted(graph: &Graph) -> Vec<String> {
    let mut lines: Vec<String> = graph.to_string().lines().map(Into::into).collect();
    lines.sort();
    lines
}

/// Nothing but the order of independent nodes changes on the way there and back.
#[test]
fn what_is_fused_comes_apart_into_what_it_was() {
    for (name, graph) in graphs() {
        let (fused, _) = Fuse::default().run(&graph).unwrap();
        assert!(fused.nodes().len() < graph.nodes().len(), "{name}");
        let apart = fused.legalize(&|op| op.fused().is_none()).unwrap();
        apart.verify().unwrap();
        assert_eq!(sorted(&apart), sorted(&graph), "{name}");
        assert_same(&graph, &fused, None);
    }
}

/// Of the Llama family, and of Qwen3: there is a fused op for each part of its blocks.
#[test]
fn a_block_in_integers_is_seven_nodes() {
    let of_llama = |graph: &Graph| ["llama", "mistral", "qwen2", "qwen3"].contains(&graph.name());
    for (name, graph) in graphs().into_iter().filter(|(name, graph)| name.ends_with("integers") && of_llama(graph)) {
        let (fused, _) = Fuse::default().run(&graph).unwrap();
        let blocks = fused.blocks().filter(|block| fused.block_name(*block).starts_with("blocks."));
        for block in blocks {
            assert_eq!(fused.nodes_of(block).count(), 7, "{name}\n{fused}");
        }
        assert_same(&graph, &fused, None);
    }
}
