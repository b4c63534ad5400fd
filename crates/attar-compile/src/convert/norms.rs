//! Norms: before a product, where the residual stream is a norm's result (post-norm encoders), and of what a layer adds to the stream.

use attar_graph::{Graph, Node, Op, ValueId};

use super::{Body, Converter, INTEGERS, Made, PASSES, Residual};
use crate::{
    Data, Element, Result,
    fixed::{BIAS_BITS, LARGEST_GAIN, stored_gain},
    program::{Destination, Kernel, Linear, Norm, Role, TensorId},
};

/// Where the result of a norm goes.
struct Normed {
    out: TensorId,
    /// The steps of its channels.
    steps: Residual,
    /// Added to it: the tensor, and the bits by which each of its channels is shifted down.
    residual: Option<(TensorId, Vec<i32>)>,
}

/// Whether a node norms whole rows.
fn is_norm(node: &Node) -> bool {
    matches!(node.op, Op::RmsNorm { .. } | Op::LayerNorm { .. })
}

/// The norm that makes a value, if that is all that its node does.
pub(super) fn made_by_norm(graph: &Graph, id: ValueId) -> Option<&Node> {
    graph.maker(id).filter(|node| is_norm(node))
}

impl<'a> Converter<'a> {
    /// The kernel of a node that no pass fused with others.
    pub(super) fn alone(&mut self, node: &'a Node) -> Result<()> {
        let body = Body::unfused(node, self.graph);
        let first = node.inputs.first().copied();
        let norm = first.and_then(|id| made_by_norm(self.graph, id));
        match &node.op {
            Op::LayerNorm { .. } if self.steps.contains_key(&node.output()) => self.stream_norm(&body),
            Op::Quantize { .. } if norm.is_some_and(|norm| self.steps.contains_key(&norm.output())) => {
                self.norm(&body, norm.expect("there is one"), self.rows())
            }
            Op::Linear if self.added_norm(node).is_some() => self.wide_linear(&body),
            // Computed where its result is added.
            Op::RmsNorm { .. } if self.sum_of(node).is_some() => Ok(()),
            Op::Add => self.norm_add(&body),
            _ => {
                let why = format!("is a `{}` on its own, which no kernel computes", node.op.def().name);
                Err(self.unsupported(node, why, INTEGERS))
            }
        }
    }

    /// The norm of the result of a linear layer, if that is added to the stream.
    fn added_norm(&self, linear: &Node) -> Option<&'a Node> {
        let norm = self.only_reader(linear).filter(|node| matches!(node.op, Op::RmsNorm { .. }))?;
        self.sum_of(norm).map(|_| norm)
    }

    /// The sum of a norm's result and the stream, if nothing else reads it.
    fn sum_of(&self, norm: &Node) -> Option<&'a Node> {
        self.only_reader(norm).filter(|node| node.op == Op::Add && self.steps.contains_key(&node.output()))
    }

    fn only_reader(&self, node: &Node) -> Option<&'a Node> {
        let mut readers = self.graph.nodes().iter().filter(|other| other.inputs.contains(&node.output()));
        readers.next().filter(|_| readers.next().is_none())
    }

    /// The last `rows` rows, normed and rounded to codes: those of a fused node, or of a `quantize` on its own.
    pub(super) fn norm(&mut self, body: &Body<'a>, norm: &'a Node, rows: u64) -> Result<()> {
        let (scale, element) = match body.node.op {
            Op::Quantize { .. } => self.scale(body, body.node)?,
            _ => self.rounding(body)?,
        };
        let width = self.width(body.node.output())?;
        let out = self.make(body.node, [rows, width], element, Role::Scratch, scale);
        let steps = Residual::even(scale, width as usize);
        self.push_norm(body, norm, rows, Normed { out, steps, residual: None })
    }

    /// A norm whose result is the residual stream.
    fn stream_norm(&mut self, body: &Body<'a>) -> Result<()> {
        let (steps, rows) = (self.point(body.node.output())?, self.rows());
        let shape = [rows, steps.exponents.len() as u64];
        let out = self.make(body.node, shape, Element::INT16, self.role(body.node), steps.step);
        self.push_norm(body, body.node, rows, Normed { out, steps, residual: None })
    }

    /// The norm that ends an encoder: of every row, in one step for all channels.
    pub(super) fn last_norm(&mut self, node: &'a Node) -> Result<Made> {
        let body = Body::unfused(node, self.graph);
        let (width, rows) = (self.width(node.output())?, self.rows());
        let steps = Residual::even(self.range(&self.graph.get(node.output()).name)? / 32767.0, width as usize);
        let out = self.make(node, [rows, width], Element::INT16, Role::Output, steps.step);
        let made = Made { tensor: out, scale: steps.step };
        self.push_norm(&body, node, rows, Normed { out, steps, residual: None })?;
        Ok(made)
    }

    /// A linear layer whose result is normed in int16.
    fn wide_linear(&mut self, body: &Body<'a>) -> Result<()> {
        let (linear, step) = self.product(body, body.node)?;
        let width = self.program.get(linear.weight).rows;
        let tensor = self.make(body.node, [self.rows(), width], Element::INT16, Role::Scratch, step);
        self.push(body.node, Kernel::Linear(Linear { out: vec![Destination { tensor, row: 0 }], ..linear }));
        Ok(())
    }

    /// The sum of the stream and a norm of what a layer made.
    fn norm_add(&mut self, body: &Body<'a>) -> Result<()> {
        let node = body.node;
        let norm = node.inputs.iter().find_map(|id| made_by_norm(self.graph, *id).filter(|norm| self.sum_of(norm) == Some(node)));
        let Some(norm) = norm else {
            return Err(self.unsupported(node, "adds what is no linear layer's result, nor a norm of one", PASSES));
        };
        let carried = *node.inputs.iter().find(|id| **id != norm.output()).unwrap_or(&norm.output());
        let (from, steps) = (self.point(carried)?, self.point(node.output())?);
        let residual = self.input(body, carried)?;
        let shifts = from.exponents.iter().zip(&steps.exponents).map(|(from, to)| i32::from(to - from)).collect();
        let shape = [self.rows(), steps.exponents.len() as u64];
        let out = self.make(node, shape, Element::INT16, self.role(node), steps.step);
        self.push_norm(body, norm, self.rows(), Normed { out, steps, residual: Some((residual.tensor, shifts)) })
    }

    /// The kernel of a norm with its constants, named after the node that `body` is of.
    fn push_norm(&mut self, body: &Body<'a>, norm: &'a Node, rows: u64, to: Normed) -> Result<()> {
        let (centered, epsilon) = match norm.op {
            Op::RmsNorm { epsilon } => (false, epsilon),
            Op::LayerNorm { epsilon } => (true, epsilon),
            _ => unreachable!("it is a norm"),
        };
        // An unfused `quantize` reads a norm that is a node of its own.
        let unfused = Body::unfused(norm, self.graph);
        let inner = if body.node.op.fused().is_some() { body } else { &unfused };
        let x = self.input(inner, norm.inputs[0])?;
        let from = match inner.outer(norm.inputs[0]).and_then(|id| self.steps.get(&id)) {
            Some(steps) => steps.clone(),
            None => Residual::even(x.scale, self.program.get(x.tensor).columns as usize),
        };
        let Normed { out, steps, residual } = to;
        let width = steps.exponents.len() as u64;
        let constants = 1 + u64::from(centered) + u64::from(residual.is_some());
        let name = format!("{}.gains", self.graph.get(body.node.output()).name);
        let gains = self.program.tensor(name, [constants, width], Element::INT32, Role::Constant);
        let mut gain_shift = 16;
        if !self.shapes_only() {
            let (mut numbers, shift) = stored_gains(&self.plain(inner, norm.inputs[1])?, &from, &steps);
            gain_shift = shift;
            if centered {
                let biases = self.plain(inner, norm.inputs[2])?;
                numbers.extend(biases.iter().enumerate().map(|(at, bias)| stored_bias(f64::from(*bias) / steps.channel(at))));
            }
            numbers.extend(residual.iter().flat_map(|(_, shifts)| shifts));
            self.numbers(gains, |_| Ok(Data::Numbers(numbers)))?;
        }
        let epsilon = (width as f64 * epsilon / (x.scale * x.scale)).round() as u64;
        let row = self.program.get(x.tensor).rows - rows;
        let residual = residual.map(|(tensor, _)| tensor);
        self.push(body.node, Kernel::Norm(Norm { x: x.tensor, row, gains, out, epsilon, gain_shift, centered, residual }));
        Ok(())
    }

    /// What a product reads: codes of one step, and not the residual stream, whose channels have their own.
    pub(super) fn codes(&self, body: &Body<'_>, id: ValueId) -> Result<Made> {
        if body.outer(id).is_some_and(|outer| self.steps.contains_key(&outer)) {
            return Err(self.unsupported(body.node, format!("reads `{}`, which is not in integers", body.name(id)), INTEGERS));
        }
        self.input(body, id)
    }
}

/// Gains of a norm between these steps, as they are stored, and their fractional bits: as many as the largest has room for.
pub(super) fn stored_gains(gains: &[f32], from: &Residual, to: &Residual) -> (Vec<i32>, u32) {
    let root = (gains.len() as f64).sqrt();
    let wanted: Vec<f64> = gains.iter().enumerate().map(|(at, gain)| f64::from(*gain) * (root / to.channel(at))).collect();
    let largest = wanted.iter().fold(1e-9f64, |most, gain| most.max(gain.abs()));
    let shift = (LARGEST_GAIN.log2().floor() - largest.log2().ceil()).clamp(0.0, 40.0) as u32;
    let unit = 2f64.powi(shift as i32);
    let stored = |(gain, exponent): (&f64, &u8)| stored_gain(gain * unit, *exponent);
    (wanted.iter().zip(&from.exponents).map(stored).collect(), shift)
}

/// A bias of so many steps, as it is stored.
fn stored_bias(bias: f64) -> i32 {
    (bias * f64::from(1u32 << BIAS_BITS)).round() as i32
}
