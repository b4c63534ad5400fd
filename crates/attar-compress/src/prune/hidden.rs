//! Channels of the residual stream leave, the same in all blocks: columns of the embedding and of what reads the stream, rows of what writes to
//! it, gains of norms.
//!
//! An RMSNorm of fewer channels divides by another root mean square, so its gain is scaled by what they differ on average. What follows the norm,
//! and what writes to the stream, can then be fitted.

use std::collections::BTreeMap;

use attar_graph::{Axis, BlockId, Expr, Graph, Origin, Runs, ValueId};
use attar_tensor::Encoding;

use super::{
    reshape::{Smaller, stored_as, with_constants},
    site::Stream,
};
use crate::{
    Error, Result,
    transform::{
        Layer,
        structure::{Residual, maker},
    },
};

/// The residual stream of a model, and all that reads and writes it.
pub struct Hidden {
    residual: Residual,
    /// In running order.
    places: Vec<(BlockId, Place)>,
}

/// What touches the residual stream.
#[derive(Clone, Debug)]
pub enum Place {
    /// A norm.
    Norm {
        /// Its gain.
        gain: ValueId,
        /// What it normalizes.
        input: ValueId,
    },
    /// The layers that read a norm.
    Readers(Vec<Layer>),
    /// A layer whose output is added to the stream.
    Writer {
        /// The layer.
        layer: Layer,
        /// The stream around it.
        stream: Stream,
    },
}

impl Hidden {
    /// The stream of `graph`.
    ///
    /// # Errors
    /// If something else than RMSNorms, sums and tables of embeddings touches it.
    pub fn of(graph: &Graph) -> Result<Hidden> {
        let residual = Residual::of(graph).map_err(|error| match error {
            Error::Structure { value, problem } => Error::NoChannels { value, problem },
            other => other,
        })?;
        let mut places = Vec::new();
        for norm in &residual.norms {
            let node = maker(graph, norm.readers[0].input)?;
            places.push((node.block, Place::Norm { gain: norm.gain, input: node.inputs[0] }));
            places.push((node.block, Place::Readers(norm.readers.clone())));
        }
        for layer in &residual.writers {
            let stream = Stream::around(graph, layer).ok_or(Error::NoSublayers)?;
            places.push((maker(graph, layer.output)?.block, Place::Writer { layer: *layer, stream }));
        }
        places.sort_by_key(|(_, place)| place.order(graph));
        Ok(Hidden { residual, places })
    }

    /// Channels of the stream.
    pub fn width(&self) -> usize {
        self.residual.width
    }

    /// What touches the stream, in running order, with its block.
    pub fn places(&self) -> &[(BlockId, Place)] {
        &self.places
    }

    /// Whether so many channels can stay.
    ///
    /// # Errors
    /// If the model has fewer, or none would be left.
    pub fn check(&self, stay: usize) -> Result<()> {
        let width = self.width();
        match stay {
            0 => Err(Error::Setting { key: "hidden", found: stay, wanted: format!("1 to {width} can stay") }),
            stay if stay > width => Err(Error::Setting {
                key: "hidden",
                found: stay,
                wanted: format!("the stream has {width}: 1 to {width} can stay"),
            }),
            _ => Ok(()),
        }
    }

    /// `graph` with these channels alone, in rising order. `new` are constants of the smaller graph, in its shapes.
    ///
    /// # Errors
    /// If the smaller graph does not verify.
    pub fn narrowed(&self, graph: &Graph, channels: &[usize], new: &BTreeMap<ValueId, Expr>) -> Result<Graph> {
        let runs = Runs::of(channels.to_vec());
        let mut constants = BTreeMap::new();
        let mut cut = |id: ValueId, axis: Axis| {
            let value = graph.get(id);
            let Origin::Weight(expr) = &value.origin else { unreachable!("checked when the stream was found") };
            let mut dims = value.fact.constant_dims().unwrap_or_default();
            let cut_at = if axis == Axis::Rows { 0 } else { dims.len() - 1 };
            dims[cut_at] = channels.len();
            let plain = Encoding::Plain(stored_as(value.fact.encoding));
            // Rows are whole in their encoding; columns of blocks of numbers are not.
            let encoding = if axis == Axis::Rows && !new.contains_key(&id) { value.fact.encoding } else { plain };
            let selected = || expr.clone().selected(axis, runs.clone());
            let expr = new.get(&id).map_or_else(selected, |expr| expr.clone().rounded(stored_as(value.fact.encoding)));
            constants.insert(id, Smaller { dims, encoding, expr });
        };
        self.residual.tables.iter().for_each(|table| cut(*table, Axis::Columns));
        for (_, place) in &self.places {
            match place {
                Place::Norm { gain, .. } => cut(*gain, Axis::Columns),
                Place::Readers(layers) => layers.iter().for_each(|layer| cut(layer.weight, Axis::Columns)),
                Place::Writer { layer, .. } => {
                    cut(layer.weight, Axis::Rows);
                    layer.bias.iter().for_each(|bias| cut(*bias, Axis::Columns));
                }
            }
        }
        with_constants(graph, &constants, &BTreeMap::new())
    }
}

impl Place {
    /// Where it runs: the place of its first node.
    fn order(&self, graph: &Graph) -> Option<usize> {
        graph.nodes().iter().position(|node| match self {
            Place::Norm { gain, .. } => node.inputs.contains(gain),
            Place::Readers(layers) => layers.iter().any(|layer| node.outputs.contains(&layer.output)),
            Place::Writer { layer, .. } => node.outputs.contains(&layer.output),
        })
    }
}
