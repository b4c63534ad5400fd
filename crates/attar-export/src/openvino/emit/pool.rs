//! One vector per text.

use attar_graph::Node;

use super::{Element, Emission, Out};
use crate::Result;

/// The mean over the tokens that are not padding.
pub(super) fn mean_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let (x, given, positions) = (e.value(node.inputs[0]), e.inputs["attention_mask"], e.ints(&[1]));
    let real = e.convert(format!("{name}/real"), given, Element::F32);
    let column = e.unsqueeze(format!("{name}/column"), real, &[-1]);
    let kept = e.binary("Multiply", format!("{name}/kept"), x, column);
    let sum = |e: &mut Emission<'_>, what: &str, of, keep: bool| {
        e.layer(format!("{name}/{what}"), ("ReduceSum", 1), vec![("keep_dims", keep.to_string())], &[of, positions])
    };
    let (total, count) = (sum(e, "sum", kept, false), sum(e, "count", real, true));
    Ok(e.binary("Divide", name, total, count))
}

/// The first position: padding must be on the right.
pub(super) fn first_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let (x, first) = (e.value(node.inputs[0]), e.int(0));
    Ok(e.gather(name, x, first, 1))
}
