//! The gain of a norm goes into the weights that read it, as `scale_columns`, and is ones from then on.
//!
//! Only where every reader is a linear layer whose weight nothing else reads, is tied to no other and is plain: a weight in
//! codes is decided, and a value that is rounded in between is not the same without its gain. The products are f32, so they
//! take more room than a weight of 16 bits did. Outputs differ by the rounding of one product a weight.

use attar_graph::{Axis, Expr, Graph, Op, Origin, ValueId};
use attar_tensor::{Dtype, Encoding};

use super::{Changes, Pass, view::View};
use crate::Result;

pub(super) struct FoldNorms;

impl Pass for FoldNorms {
    fn name(&self) -> &'static str {
        "fold_norms"
    }

    fn about(&self) -> &'static str {
        "Fold gains of norms into the plain weights after them"
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)> {
        let (view, mut folded, mut changes) = (View::new(graph), graph.clone(), Changes::new());
        for at in view.all(|op| matches!(op, Op::RmsNorm { .. })) {
            let Some((gain, weights)) = foldable(&view, at) else { continue };
            let by = expr(graph, gain).clone();
            let width = graph.fact(gain).width().expect("a weight has known dimensions");
            folded.replace_weight(gain, Encoding::Plain(Dtype::F32), Expr::Ones(width));
            for weight in weights {
                let scaled = expr(graph, weight).clone().scaled(Axis::Columns, by.clone());
                folded.replace_weight(weight, Encoding::Plain(Dtype::F32), scaled);
            }
            changes.push(graph.get(gain).name.clone());
        }
        Ok((folded, changes))
    }
}

/// The gain of a norm and the weights that it can go into.
fn foldable(view: &View<'_>, at: usize) -> Option<(ValueId, Vec<ValueId>)> {
    let norm = view.node(at);
    let (gain, readers) = (norm.inputs[1], view.readers(norm.output()));
    let own = view.is_weight(gain) && view.readers(gain) == [at] && !matches!(expr(view.graph, gain), Expr::Ones(_));
    if !own || readers.is_empty() || view.is_returned(norm.output()) {
        return None;
    }
    let mut weights: Vec<ValueId> = Vec::new();
    for reader in readers {
        let linear = view.node(*reader);
        let weight = *linear.inputs.get(1)?;
        let reads = linear.op == Op::Linear
            && linear.inputs[0] == norm.output()
            && linear.inputs[1..].iter().all(|id| *id != norm.output());
        let plain = view.is_weight(weight) && matches!(view.graph.fact(weight).encoding, Encoding::Plain(_));
        let untied = || view.graph.weights().filter(|(.., other)| *other == expr(view.graph, weight)).count() == 1;
        (reads && plain && view.readers(weight) == [*reader] && untied()).then(|| weights.push(weight))?;
    }
    Some((gain, weights))
}

fn expr(graph: &Graph, id: ValueId) -> &Expr {
    match &graph.get(id).origin {
        Origin::Weight(expr) => expr,
        _ => unreachable!("`{}` was seen to be a weight", graph.get(id).name),
    }
}
