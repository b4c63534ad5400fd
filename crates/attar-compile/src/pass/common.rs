//! Common subexpressions: nodes of one block that do the same to the same values. Constants of one expression and encoding
//! are the same value here, though they keep their names.
//!
//! Only within a block, since a value that lives on between blocks costs memory, and loses the scales of its codes. A cache
//! is no function of what it reads, and what the graph returns has a name to keep.

use attar_graph::{Graph, Node, Op};

use super::{Changes, Pass, view::View};
use crate::{Error, Result};

pub(super) struct Common;

impl Pass for Common {
    fn name(&self) -> &'static str {
        "common"
    }

    fn about(&self) -> &'static str {
        "Compute the same of the same values once"
    }

    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)> {
        let (mut graph, mut changes) = (graph.clone(), Changes::new());
        loop {
            let before = changes.len();
            graph = once(&graph, &mut changes).map_err(|source| Error::Pass { pass: self.name(), source })?;
            if changes.len() == before {
                return Ok((graph, changes));
            }
        }
    }
}

/// Replaces every node that equals an earlier one; nodes after them may then be equal.
fn once(graph: &Graph, changes: &mut Changes) -> attar_graph::Result<Graph> {
    let view = View::new(graph);
    let mut seen: Vec<&Node> = Vec::new();
    graph.rewrite_blocks(&mut |copy, nodes| {
        seen.clear();
        for node in nodes {
            let at = view.maker(node.outputs[0]).expect("a node made it");
            let node = view.node(at);
            match seen.iter().find(|earlier| is_same(&view, earlier, node)) {
                Some(earlier) if !node.outputs.iter().any(|id| view.is_returned(*id)) => {
                    for (there, same) in node.outputs.iter().zip(&earlier.outputs) {
                        let value = copy.value(*same)?;
                        copy.put(*there, value);
                        changes.push(graph.get(*there).name.clone());
                    }
                }
                _ => {
                    copy.keep(node)?;
                    seen.push(node);
                }
            }
        }
        Ok(())
    })
}

fn is_same(view: &View<'_>, a: &Node, b: &Node) -> bool {
    let inputs = || a.inputs.iter().zip(&b.inputs).all(|(a, b)| view.same(*a, *b));
    !matches!(a.op, Op::Cache { .. } | Op::Fused(_)) && a.inputs.len() == b.inputs.len() && a.op == b.op && inputs()
}
