//! One vector per text.

use attar_graph::Node;

use super::{Emission, Field};
use crate::{
    Result,
    litert::schema::{DIV, MUL, SLICE, SUM},
};

/// The mean over the tokens that are not padding.
pub(super) fn mean_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let (x, real, tokens) = (e.value(node.inputs[0]), e.real(), e.call.tokens);
    let width = e.dims(x)[2];
    let column = e.reshape(format!("{name}/column"), real, &[1, tokens, 1]);
    let kept = e.binary(MUL, format!("{name}/kept"), x, column);
    let axis = e.ints(&[1]);
    let total = e.op(format!("{name}/sum"), SUM, &[kept, axis], vec![(0, Field::Bool(false))], &[1, width]);
    let count = e.reduce(SUM, format!("{name}/count"), real);
    Ok(e.binary(DIV, name, total, count))
}

/// The first position: padding must be on the right.
pub(super) fn first_pool(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let x = e.value(node.inputs[0]);
    let width = e.dims(x)[2];
    let (begin, size) = (e.ints(&[0; 3]), e.ints(&[1, 1, width]));
    let first = e.op(format!("{name}/first"), SLICE, &[x, begin, size], vec![], &[1, 1, width]);
    Ok(e.reshape(name, first, &[1, width]))
}
