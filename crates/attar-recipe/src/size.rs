//! What a model costs, whatever it computes: read off the graph.

use std::collections::HashSet;

use attar_graph::{Graph, Op};
use attar_tensor::TensorInfo;
use serde::{Deserialize, Serialize};

/// The size of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSize {
    /// Blocks.
    pub blocks: usize,
    /// Parameters; tied weights count once.
    pub parameters: u64,
    /// Bytes of the weights in their encodings; tied weights count once.
    pub bytes: u64,
    /// Multiply-accumulates for one token. Those of attention with its cache are left out: they grow with the context.
    pub macs: u64,
    /// Bytes that one token adds to the key-value cache, in 16 bits a number.
    pub kv_bytes: u64,
}

impl ModelSize {
    /// Of `graph`.
    pub(crate) fn of(graph: &Graph) -> ModelSize {
        let mut seen = HashSet::new();
        let (mut parameters, mut bits) = (0, 0);
        for (_, value, expr) in graph.weights() {
            if seen.insert((expr, value.fact.encoding.to_string())) {
                let info = TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding };
                parameters += info.elements() as u64;
                bits += info.true_bits();
            }
        }
        let rows = |weight| graph.fact(weight).constant_dims().map_or(0, |dims| dims.iter().product::<usize>() as u64);
        let macs = graph.nodes().iter().filter(|node| node.op == Op::Linear).map(|node| rows(node.inputs[1])).sum();
        let cached = graph.nodes().iter().filter(|node| matches!(node.op, Op::Cache { .. })).map(|node| {
            let dims = &graph.fact(node.output()).dims;
            let number = |at: usize| dims.get(at).and_then(attar_graph::Dim::constant).unwrap_or(0) as u64;
            2 * number(1) * number(3)
        });
        let blocks = graph.blocks().filter(|block| graph.block_name(*block).starts_with("blocks.")).count();
        ModelSize { blocks, parameters, bytes: bits / 8, macs, kv_bytes: cached.sum() }
    }
}
