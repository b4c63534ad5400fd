//! The shape of a model, as plans and memory estimates ask for it: read off the graph, whatever its weights and blocks are called.

use attar_graph::{BlockId, Expr, Graph, Node, Op, Origin, ValueId};

/// Numbers of a token in the widest value that one block hands to another: the residual stream.
pub(crate) fn residual_width(graph: &Graph) -> u64 {
    let computed = |id: &ValueId| matches!(graph.get(*id).origin, Origin::Node(_));
    let entering = graph.blocks().flat_map(|block| graph.live_into(block)).filter(computed);
    entering.map(|id| width(graph, id)).max().unwrap_or(0)
}

/// Numbers of a token in the widest value inside a block. The head is left out: it works on few positions at a time.
pub(crate) fn widest_inside(graph: &Graph) -> u64 {
    let inside = |block| graph.nodes_of(block).flat_map(|node| &node.outputs).map(|id| width(graph, *id)).max().unwrap_or(0);
    inner_blocks(graph).map(inside).max().unwrap_or(0)
}

/// Rows or columns of the linear layer that has most of them. The head is left out.
pub(crate) fn widest_linear(graph: &Graph) -> u64 {
    let head = head(graph).map(|node| node.output());
    let linear = graph.nodes().iter().filter(|node| node.op == Op::Linear && Some(node.output()) != head);
    linear.filter_map(|node| graph.fact(node.inputs[1]).constant_dims()?.into_iter().max()).max().unwrap_or(0) as u64
}

/// Numbers in the weights of the block that has most of them. The head is left out, and tables of which only rows are read.
pub(crate) fn largest_block(graph: &Graph) -> u64 {
    let weights = |block| {
        let whole = graph.nodes_of(block).filter(|node| node.op != Op::Embedding);
        let mut ids: Vec<ValueId> = whole.flat_map(|node| node.inputs.iter().copied()).collect();
        ids.sort();
        ids.dedup();
        ids.into_iter().map(|id| numbers(graph, id)).sum()
    };
    inner_blocks(graph).map(weights).max().unwrap_or(0)
}

/// Numbers in the weight of the head; 0 if there is none.
pub(crate) fn head_numbers(graph: &Graph) -> u64 {
    head(graph).map_or(0, |node| numbers(graph, node.inputs[1]))
}

/// Numbers of a token in the model's output: logits, or an embedding.
pub(crate) fn output_width(graph: &Graph) -> u64 {
    graph.outputs().first().map_or(0, |id| width(graph, *id))
}

/// How many tokens the model knows: rows of the largest table that is looked up in.
pub(crate) fn vocabulary(graph: &Graph) -> u64 {
    let tables = graph.nodes().iter().filter(|node| node.op == Op::Embedding);
    tables.filter_map(|node| graph.fact(node.inputs[1]).constant_dims()?.first().copied()).max().unwrap_or(0) as u64
}

/// Whether the model predicts tokens: it ends in a linear layer with a row for every token that it knows.
pub(crate) fn predicts_tokens(graph: &Graph) -> bool {
    let rows = head(graph).and_then(|node| graph.fact(node.inputs[1]).constant_dims()?.first().copied());
    rows.is_some_and(|rows| rows as u64 >= vocabulary(graph))
}

/// The linear layer that the output comes from, if nothing that is computed from two values lies between. An encoder whose output
/// is its last residual stream, normalized or pooled, has none.
pub(crate) fn head(graph: &Graph) -> Option<&Node> {
    let mut node = graph.maker(*graph.outputs().first()?)?;
    while node.op != Op::Linear {
        let mut computed = node.inputs.iter().filter(|id| !matches!(graph.get(**id).origin, Origin::Weight(_)));
        let (Some(only), None) = (computed.next(), computed.next()) else { return None };
        node = graph.maker(*only)?;
    }
    Some(node)
}

/// The graph in text form, without where its weights come from: what decides a plan that reads no numbers.
pub(crate) fn facts(graph: &Graph) -> String {
    let mut facts = graph.clone();
    let weights: Vec<_> = graph.weights().map(|(id, value, _)| (id, value.name.clone(), value.fact.encoding)).collect();
    weights.into_iter().for_each(|(id, name, encoding)| facts.replace_weight(id, encoding, Expr::tensor(name)));
    facts.to_string()
}

fn inner_blocks(graph: &Graph) -> impl Iterator<Item = BlockId> {
    let head = head(graph).map(|node| node.block);
    graph.blocks().filter(move |block| Some(*block) != head)
}

fn width(graph: &Graph, id: ValueId) -> u64 {
    graph.fact(id).width().unwrap_or(0) as u64
}

fn numbers(graph: &Graph, id: ValueId) -> u64 {
    match graph.get(id).origin {
        Origin::Weight(_) => graph.fact(id).constant_dims().map_or(0, |dims| dims.iter().product::<usize>() as u64),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(text: &str) -> Graph {
        Graph::parse(text).unwrap()
    }

    /// A decoder of one block: no name in it is one that our architectures use.
    const DECODER: &str = r#"graph decoder(words: [batch, seq] i64) {
  block entrance {
    s = embedding words, weight("table": [32, 8] f32)
  }
  block only {
    u = linear s, weight("wide": [24, 8] f32)
    a = silu u
    d = linear a, weight("narrow": [8, 24] f32)
    t = add s, d
  }
  block exit {
    n = rms_norm t, weight("gain": [8] f32) {epsilon = 0.00001}
    l = linear n, weight("rows": [32, 8] f32)
  }
  return l
}
"#;

    /// The same without a head: the output is the mean of the residual stream.
    const ENCODER: &str = r#"graph encoder(words: [batch, seq] i64) {
  block entrance {
    s = embedding words, weight("table": [32, 8] f32)
  }
  block only {
    u = linear s, weight("wide": [24, 8] f32)
    a = silu u
    d = linear a, weight("narrow": [8, 24] f32)
    t = add s, d
  }
  block exit {
    n = rms_norm t, weight("gain": [8] f32) {epsilon = 0.00001}
    p = mean_pool n
  }
  return p
}
"#;

    #[test]
    fn a_decoder_is_measured_whatever_its_weights_are_called() {
        let graph = graph(DECODER);
        assert_eq!(residual_width(&graph), 8);
        assert_eq!(widest_inside(&graph), 24);
        assert_eq!(widest_linear(&graph), 24);
        assert_eq!(largest_block(&graph), 2 * 8 * 24);
        assert_eq!(head_numbers(&graph), 32 * 8);
        assert_eq!(output_width(&graph), 32);
        assert!(predicts_tokens(&graph));
    }

    #[test]
    fn an_encoder_has_no_head_and_predicts_no_tokens() {
        let graph = graph(ENCODER);
        assert_eq!(residual_width(&graph), 8);
        assert_eq!(largest_block(&graph), 2 * 8 * 24);
        assert_eq!(head_numbers(&graph), 0);
        assert_eq!(output_width(&graph), 8);
        assert!(!predicts_tokens(&graph));
    }

    #[test]
    fn facts_do_not_say_where_weights_come_from() {
        let mut other = graph(DECODER);
        let (id, encoding) = other.weights().map(|(id, value, _)| (id, value.fact.encoding)).next().unwrap();
        other.replace_weight(id, encoding, Expr::tensor("elsewhere"));
        assert_ne!(other.to_string(), graph(DECODER).to_string());
        assert_eq!(facts(&other), facts(&graph(DECODER)));
    }
}
