//! Low-rank adapters as nodes of the graph: `x W^T + (x A^T) B^T` in place of `x W^T` (LoRA, Hu et al. 2021).
//!
//! Codes do not change. To engines and targets, an adapter is two narrow linear layers.

use attar_graph::{Dim, Expr, Fact, Graph, Op, Origin, ValueId};
use attar_tensor::{Dtype, Encoding};

use crate::Result;

/// The canonical names of a weight's adapter: of `A` `[rank, in]` and of `B` `[out, rank]`.
pub fn adapter_names(weight: &str) -> [String; 2] {
    ["lora_a", "lora_b"].map(|factor| format!("{weight}.{factor}"))
}

/// The same graph with an adapter of rank `rank` added to every linear layer whose weight is one of `weights`. Factors are
/// f32 under their canonical names.
pub fn with_adapters(graph: &Graph, weights: &[&str], rank: usize) -> Result<Graph> {
    let adapted = graph.rebuilt(&mut |to, node, name, inputs| {
        let weight = inputs.get(1).map(|id| to.get(*id).name.clone()).filter(|name| weights.contains(&name.as_str()));
        match weight.filter(|_| node.op == Op::Linear) {
            Some(weight) => adapt(to, name, &weight, inputs, rank),
            None => to.node(name, node.op.clone(), inputs),
        }
    })?;
    adapted.verify()?;
    Ok(adapted)
}

fn adapt(graph: &mut Graph, name: &str, weight: &str, inputs: &[ValueId], rank: usize) -> attar_graph::Result<ValueId> {
    let dims = graph.fact(inputs[1]).constant_dims().unwrap_or_default();
    let [a, b] = adapter_names(weight);
    let a = factor(graph, &a, [rank, dims[1]])?;
    let b = factor(graph, &b, [dims[0], rank])?;
    let base = graph.node(&format!("{name}.base"), Op::Linear, inputs)?;
    let down = graph.node(&format!("{name}.lora_a"), Op::Linear, &[inputs[0], a])?;
    let up = graph.node(&format!("{name}.lora_b"), Op::Linear, &[down, b])?;
    graph.node(name, Op::Add, &[base, up])
}

/// The factor of that canonical name; reused if another layer with the same weight has added it.
fn factor(graph: &mut Graph, name: &str, dims: [usize; 2]) -> attar_graph::Result<ValueId> {
    if let Some(known) = graph.find(name).filter(|id| matches!(graph.get(*id).origin, Origin::Weight(_))) {
        return Ok(known);
    }
    let fact = Fact { dims: dims.map(Dim::Constant).to_vec(), encoding: Encoding::Plain(Dtype::F32) };
    graph.weight(name, fact, Expr::tensor(name))
}
