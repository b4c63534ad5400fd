//! Rotation: QuaRot (Ashkboos et al. 2024), folded into the weights; with fixed matrices, where SpinQuant (Liu et al.
//! 2024) trains them.
//!
//! Multiplying activations by an orthogonal matrix and the weights on both sides by its inverse does not change the function,
//! but spreads outliers over all coordinates, so that rounding loses less. With activations as row vectors, the residual
//! stream `x` becomes `x R`: embedding tables and biases that write to it become `e R`, layers that read it `W R`, layers that
//! write to it `R^T W`. An RMSNorm without gain commutes with `R`, so gains are folded into the layers after the norm first. A
//! tied head gets a tensor of its own.
//!
//! The residual stream of a model with LayerNorm, or with norms between a layer and the addition to the stream (Gemma 3, BERT),
//! cannot rotate and is refused by the name of the node; values and MLP inputs can in every architecture.

use attar_graph::{Axis, Dim, Expr, Fact, Graph, Op, ValueId};
use attar_tensor::{Dtype, Encoding};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Rewrite,
    structure::{Layer, Residual, Values, downs},
};
use crate::{Error, Result};

/// Rotate activations and weights by orthogonal matrices so that quantization loses less; outputs stay the same.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Rotate the residual stream. Norm gains are folded into the layers that follow, and a tied head becomes a
    /// separate tensor.
    #[serde(default = "yes")]
    pub residual: bool,
    /// Rotate the values of every attention head.
    #[serde(default = "yes")]
    pub value: bool,
    /// Rotate the input of each MLP's down projection by an extra linear layer. Unlike the others, this rotation costs
    /// time at inference.
    #[serde(default)]
    pub mlp: bool,
    /// Number format of the rotated embedding and head. A bf16 table doubles in size as f32.
    #[serde(default = "f32")]
    pub tables: TableDtype,
    /// Seed for the random signs of the matrices.
    #[serde(default)]
    pub seed: u64,
}

fn yes() -> bool {
    true
}

fn f32() -> TableDtype {
    TableDtype::F32
}

/// Number format of rotated tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TableDtype {
    /// 16 bits, 11 of them significant.
    F16,
    /// 16 bits, 8 of them significant, the range of f32.
    Bf16,
    /// 32 bits.
    F32,
}

impl From<TableDtype> for Dtype {
    fn from(dtype: TableDtype) -> Dtype {
        match dtype {
            TableDtype::F16 => Dtype::F16,
            TableDtype::Bf16 => Dtype::BF16,
            TableDtype::F32 => Dtype::F32,
        }
    }
}

impl Default for Rotate {
    fn default() -> Rotate {
        Rotate { residual: true, value: true, mlp: false, tables: f32(), seed: 0 }
    }
}

impl Rotate {
    /// Raised when the same settings give other weights.
    pub const VERSION: u32 = 1;

    /// The rotated graph, which computes the same function. Reads no weight.
    pub fn rewrite(&self, graph: &Graph) -> Result<Rewrite> {
        if !(self.residual || self.value || self.mlp) {
            return Err(Error::NothingToRotate);
        }
        let mut rewrite = Rewrite::new(graph);
        if self.mlp {
            self.mlp(&mut rewrite)?;
        }
        if self.value {
            self.value(&mut rewrite)?;
        }
        if self.residual {
            self.residual(&mut rewrite)?;
        }
        rewrite.graph.verify()?;
        Ok(rewrite)
    }

    fn residual(&self, rewrite: &mut Rewrite) -> Result<()> {
        let residual = Residual::of(&rewrite.graph)?;
        let (width, seed, tables) = (residual.width, self.seed, Dtype::from(self.tables));
        let outputs = rewrite.graph.outputs().to_vec();
        for norm in &residual.norms {
            let gain = rewrite.expr(norm.gain).clone();
            for reader in &norm.readers {
                let dtype = if outputs.contains(&reader.output) { tables } else { Dtype::F32 };
                rewrite.change_to(dtype, reader.weight, |w| {
                    let w = if gain == Expr::Ones(width) { w } else { w.scaled(Axis::Columns, gain.clone()) };
                    w.rotated(Axis::Columns, width, seed)
                })?;
            }
            if gain != Expr::Ones(width) {
                rewrite.change(norm.gain, |_| Expr::Ones(width))?;
            }
        }
        for table in &residual.tables {
            rewrite.change_to(tables, *table, |e| e.rotated(Axis::Columns, width, seed))?;
        }
        residual.writers.iter().try_for_each(|writer| rotate_output(rewrite, writer, width, seed))
    }

    fn value(&self, rewrite: &mut Rewrite) -> Result<()> {
        let seed = self.seed.wrapping_add(1);
        for Values { value, output, head, .. } in Values::of(&rewrite.graph)? {
            rotate_output(rewrite, &value, head, seed)?;
            rewrite.change(output.weight, |w| w.rotated(Axis::Columns, head, seed))?;
        }
        Ok(())
    }

    fn mlp(&self, rewrite: &mut Rewrite) -> Result<()> {
        let seed = self.seed.wrapping_add(2);
        let downs = downs(&rewrite.graph)?;
        if downs.is_empty() {
            return Err(Error::NoMlp);
        }
        for down in &downs {
            let width = rewrite.graph.fact(down.input).width().unwrap_or(0);
            rewrite.change(down.weight, |w| w.rotated(Axis::Columns, width, seed))?;
        }
        let added = with_rotated_inputs(&rewrite.graph, &downs, seed)?;
        rewrite.replace_graph(added);
        Ok(())
    }
}

/// Rotates the output of `layer`, `size` neighbouring coordinates at a time: `R^T w` and `b R`.
fn rotate_output(rewrite: &mut Rewrite, layer: &Layer, size: usize, seed: u64) -> Result<()> {
    rewrite.change(layer.weight, |w| w.rotated(Axis::Rows, size, seed))?;
    layer.bias.map_or(Ok(()), |bias| rewrite.change(bias, |b| b.rotated(Axis::Columns, size, seed)))
}

/// The same graph with a linear layer of weight `R^T` before each of `layers`.
fn with_rotated_inputs(before: &Graph, layers: &[Layer], seed: u64) -> Result<Graph> {
    let rebuilt = before.rebuilt(&mut |graph, node, name, inputs| {
        let mut inputs = inputs.to_vec();
        if let Some(down) = layers.iter().find(|layer| layer.output == node.output()) {
            inputs[0] = rotated(graph, inputs[0], &before.get(down.weight).name, seed)?;
        }
        graph.node(name, node.op.clone(), &inputs)
    });
    Ok(rebuilt?)
}

/// `x R`, for the layer whose weight is called `reader`.
fn rotated(graph: &mut Graph, x: ValueId, reader: &str, seed: u64) -> attar_graph::Result<ValueId> {
    let width = graph.fact(x).width().unwrap_or(0);
    let mlp = reader.rsplit_once('.').map_or(reader, |(mlp, _)| mlp);
    let fact = Fact { dims: vec![Dim::Constant(width); 2], encoding: Encoding::Plain(Dtype::F32) };
    let matrix = Expr::Identity(width).rotated(Axis::Rows, width, seed);
    let weight = graph.weight(&format!("{mlp}_rotation"), fact, matrix)?;
    let name = format!("{}_rotated", graph.get(x).name);
    graph.node(&name, Op::Linear, &[x, weight])
}
