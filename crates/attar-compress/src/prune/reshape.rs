//! The smaller graph.

use std::collections::BTreeMap;

use attar_graph::{Axis, Dim, Expr, Fact, Graph, Op, Origin, Runs, ValueId};
use attar_tensor::{Dtype, Encoding};

use super::site::{Maker, UnitSite};
use crate::Result;

/// A site, and what stays of it.
pub struct Cut<'a> {
    /// The site.
    pub site: &'a UnitSite,
    /// The units that stay, in rising order: channels, or query heads.
    pub units: &'a [usize],
    /// The reader's new weight `[rows, columns]`, of all units: the columns of those that stay are taken.
    pub weight: Expr,
}

/// A constant of the smaller graph.
pub(super) struct Smaller {
    pub(super) dims: Vec<usize>,
    pub(super) encoding: Encoding,
    pub(super) expr: Expr,
}

/// `graph` without the units that leave. Weights are expressions over what they were: nothing is read.
///
/// # Errors
/// If the smaller graph does not verify: what reads a unit is not what [`UnitSite`] says.
pub fn reshaped(graph: &Graph, cuts: &[Cut<'_>]) -> Result<Graph> {
    let (mut weights, mut splits) = (BTreeMap::new(), BTreeMap::new());
    for cut in cuts {
        let columns = cut.site.columns(cut.units);
        let reader = graph.get(cut.site.reader.weight);
        let dims = vec![reader.fact.constant_dims().map_or(0, |dims| dims[0]), columns.len()];
        let dtype = stored_as(reader.fact.encoding);
        let expr = cut.weight.clone().selected(Axis::Columns, Runs::of(columns)).rounded(dtype);
        weights.insert(cut.site.reader.weight, Smaller { dims, encoding: Encoding::Plain(dtype), expr });
        for maker in &cut.site.makers {
            let units = maker.units(cut.units);
            splits.extend(maker.split.map(|split| (split, units.len())));
            weights.extend(maker.smaller(graph, &units));
        }
    }
    with_constants(graph, &weights, &splits)
}

/// `graph` with other constants, and other numbers of heads where an output is split into them.
pub(super) fn with_constants(
    graph: &Graph,
    weights: &BTreeMap<ValueId, Smaller>,
    splits: &BTreeMap<ValueId, usize>,
) -> Result<Graph> {
    let small = graph.rewrite(&mut |copy, node| {
        for id in &node.inputs {
            if let Some(Smaller { dims, encoding, expr }) = weights.get(id).filter(|_| !copy.has(*id)) {
                let fact = Fact { dims: dims.iter().map(|n| Dim::Constant(*n)).collect(), encoding: *encoding };
                let made = copy.graph().weight(&graph.get(*id).name, fact, expr.clone())?;
                copy.put(*id, made);
            }
        }
        let heads = node.outputs.first().and_then(|id| splits.get(id));
        match (heads, &node.op) {
            (Some(heads), Op::SplitHeads { .. }) => {
                let inputs = copy.values(&node.inputs)?;
                let made = copy.graph().node(&graph.get(node.output()).name, Op::SplitHeads { heads: *heads }, &inputs)?;
                copy.put(node.output(), made);
                Ok(())
            }
            _ => copy.keep(node),
        }
    })?;
    small.verify()?;
    Ok(small)
}

/// The number format of a new weight in the place of one in `encoding`: the same, if it is one.
pub fn stored_as(encoding: Encoding) -> Dtype {
    match encoding {
        Encoding::Plain(dtype) if dtype.is_float() => dtype,
        _ => Dtype::F32,
    }
}

impl Maker {
    /// Its own units that stay, given the site's.
    fn units(&self, kept: &[usize]) -> Vec<usize> {
        let mut units: Vec<usize> = kept.iter().map(|unit| unit / self.shared_by).collect();
        units.dedup();
        units
    }

    /// Its weight and its bias, of the rows that stay.
    fn smaller(&self, graph: &Graph, units: &[usize]) -> Vec<(ValueId, Smaller)> {
        let rows = Runs::new(units.iter().map(|unit| unit * self.rows..(unit + 1) * self.rows));
        let of = |id: ValueId, axis: Axis| {
            let value = graph.get(id);
            let Origin::Weight(expr) = &value.origin else {
                unreachable!("a layer's weight is a constant: checked when it was found")
            };
            let mut dims = value.fact.constant_dims().unwrap_or_default();
            dims[0] = rows.len();
            let encoding = match axis {
                Axis::Rows => value.fact.encoding,
                Axis::Columns => Encoding::Plain(stored_as(value.fact.encoding)),
            };
            (id, Smaller { dims, encoding, expr: expr.clone().selected(axis, rows.clone()) })
        };
        // A vector is a matrix of one row.
        std::iter::once(of(self.layer.weight, Axis::Rows)).chain(self.layer.bias.map(|bias| of(bias, Axis::Columns))).collect()
    }
}
