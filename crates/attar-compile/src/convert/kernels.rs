//! One kernel for each fused node, in the roles that the node knows of itself.

use attar_graph::{
    Node, Op,
    op::{self, Roles},
};

use super::{Body, Converter, INTEGERS, Made, PASSES, Packed, Residual, STATIC, norms::stored_gains};
use crate::{
    Data, Element, Result,
    fixed::{GATE_ENTRIES, GATE_FRACTION, ROTARY_BITS, weight_bits},
    program::{Attention, Destination, Epilogue, HeadNorm, Kernel, Linear, Mask, Program, Range, Role, TensorId},
};

impl<'a> Converter<'a> {
    /// The kernel of a node.
    pub(super) fn node(&mut self, node: &'a Node) -> Result<()> {
        let Op::Fused(fused) = &node.op else { return self.alone(node) };
        let body = Body::of(node, fused);
        match fused.roles() {
            Some(Roles::Norm { add: None, norm }) => self.norm(&body, body.at(*norm), self.rows()),
            Some(Roles::Norm { add: Some(_), .. }) => {
                Err(self.unsupported(node, "adds before it norms", "run the pass `linear_add` of `fuse`, too"))
            }
            Some(Roles::Qkv(projections)) => self.qkv(&body, projections),
            Some(Roles::Attention { attention }) => self.attention(&body, *attention),
            Some(Roles::Gated { gate, up, activation }) => self.gated(&body, [*gate, *up], *activation),
            Some(Roles::LinearAdd { linear, residual, .. }) => self.linear_add(&body, *linear, *residual),
            Some(Roles::LinearAct { linear, activation }) => self.activated(&body, [*linear, *activation]),
            None => {
                let why = format!("is a fused `{}` of a form that no kernel computes", fused.kind().name());
                Err(self.unsupported(node, why, PASSES))
            }
        }
    }

    /// The last norm and the head, if they are all that follows the blocks and both are in integers.
    pub(super) fn head(&self, stream: attar_graph::ValueId) -> Option<[&'a Node; 2]> {
        let nodes = self.graph.nodes();
        let norm = nodes.iter().find(|node| node.inputs.contains(&stream) && node.op.fused().is_some())?;
        let linear = nodes.iter().find(|node| node.inputs.first() == Some(&norm.output()) && node.op == Op::Linear)?;
        let alone = nodes.iter().filter(|node| node.inputs.contains(&norm.output())).count() == 1;
        let last = nodes.iter().all(|node| !node.inputs.contains(&linear.output()));
        let fused = norm.op.fused()?;
        let is_norm = matches!(fused.roles(), Some(Roles::Norm { .. }));
        let (norm_body, linear_body) = (Body::of(norm, fused), Body::unfused(linear, self.graph));
        let integers = is_norm && self.rounding(&norm_body).is_ok() && self.scheme(&linear_body, linear).is_ok();
        (alone && last && integers).then_some([norm, linear])
    }

    /// The logits of the last row, or of all.
    pub(super) fn logits(&mut self, [norm, linear]: [&'a Node; 2]) -> Result<Made> {
        let fused = norm.op.fused().expect("`head` found a fused norm");
        let Some(Roles::Norm { norm: at, .. }) = fused.roles() else { unreachable!("`head` found a norm") };
        let rows = if self.bind.every_row { self.rows() } else { self.bind.batch };
        let norm_body = Body::of(norm, fused);
        self.norm(&norm_body, norm_body.at(*at), rows)?;
        let body = Body::unfused(linear, self.graph);
        let (product, step) = self.product(&body, linear)?;
        let width = self.program.get(product.weight).rows;
        let tensor = self.program.tensor(&self.graph.get(linear.output()).name, [rows, width], Element::INT16, Role::Output);
        self.push(linear, Kernel::Linear(Linear { out: vec![Destination { tensor, row: 0 }], ..product }));
        Ok(Made { tensor, scale: step })
    }

    /// A linear layer whose sums become int16 that hold the largest value seen, and the step of those; its output is still missing.
    pub(super) fn product(&mut self, body: &Body<'a>, linear: &Node) -> Result<(Linear, f64)> {
        let x = self.codes(body, linear.inputs[0])?;
        let name = self.graph.get(body.node.output()).name.clone();
        let step = self.range(body.name(linear.output()))? / 32767.0;
        let weight = self.stack(body, &[linear], &name)?;
        let (narrow, input) = self.sums(x, weight);
        let columns = self.columns(body, &[linear], &name, |_, _| input / step, |_| input, |_| 0)?;
        let linear = Linear { x: x.tensor, weight, columns, out: Vec::new(), epilogue: Epilogue::Rescale, narrow };
        Ok((linear, step))
    }

    /// The static scale of the rounding that ends a body, and what it rounds to.
    pub(super) fn rounding(&self, body: &Body<'a>) -> Result<(f64, Element)> {
        let Some(rounding) = body.rounding() else {
            return Err(self.unsupported(body.node, "has a result that is not rounded to integers", INTEGERS));
        };
        self.scale(body, rounding)
    }

    /// The static scale of a rounding, and what it rounds to.
    pub(super) fn scale(&self, body: &Body<'a>, rounding: &Node) -> Result<(f64, Element)> {
        let [_, scale] = rounding.inputs[..] else {
            return Err(self.unsupported(body.node, "rounds with scales per token or with a zero point", STATIC));
        };
        let element = match rounding.op {
            Op::Quantize { bits: 8 } => Element::INT8,
            Op::Quantize { bits: 16 } => Element::INT16,
            _ => return Err(self.unsupported(body.node, "rounds to neither int8 nor int16", STATIC)),
        };
        if self.shapes_only() {
            return Ok((1.0, element));
        }
        match self.plain(body, scale)?[..] {
            [scale] => Ok((f64::from(scale), element)),
            _ => Err(self.unsupported(body.node, "rounds with one scale per channel", STATIC)),
        }
    }

    /// A norm of heads of `columns` columns, from steps of `before` to steps of `after`.
    fn head_norm(&self, body: &Body<'a>, norm: &Node, columns: u64, [before, after]: [f64; 2]) -> Result<HeadNorm> {
        let Op::RmsNorm { epsilon } = norm.op else { unreachable!("`Projection` has an `rms_norm`") };
        let epsilon = (columns as f64 * epsilon / (before * before)).round() as u64;
        if self.shapes_only() {
            return Ok(HeadNorm { gains: vec![0; columns as usize], epsilon, gain_shift: 16 });
        }
        let [from, to] = [before, after].map(|step| Residual::even(step, columns as usize));
        let (gains, gain_shift) = stored_gains(&self.plain(body, norm.inputs[1])?, &from, &to);
        Ok(HeadNorm { gains, epsilon, gain_shift })
    }

    /// Query, key and value projections with their rotary embedding: queries, and keys with values appended to the cache.
    fn qkv(&mut self, body: &Body<'a>, projections: &[op::Projection; 3]) -> Result<()> {
        let [query, key, value] = self.projections(body, projections)?;
        let x = self.codes(body, query.linear.inputs[0])?;
        let name = self.graph.get(body.node.output()).name.clone();
        let linears = [query.linear, key.linear, value.linear];
        let weight = self.stack(body, &linears, &name)?;
        let (narrow, input) = self.sums(x, weight);
        let parts = [&query, &key, &value];
        let scales = parts.map(|part| part.range / 127.0);
        let ends = [query.columns, query.columns + key.columns, query.columns + key.columns + value.columns];
        let columns = self.columns(body, &linears, &name, |which, _| input / parts[which].made(), |_| input, |_| 0)?;
        let Some(heads) = self.heads(body.node) else {
            return Err(self.unsupported(body.node, "has queries that no attention reads", PASSES));
        };
        if query.norm.is_none() && key.norm.is_some() {
            let why = "norms the heads of keys and not those of queries";
            let hint = "only norms of queries, or of queries and keys, can be compiled for a device";
            return Err(self.unsupported(body.node, why, hint));
        }
        let head = query.columns / heads;
        let mut ranges = Vec::new();
        for (which, part) in parts.into_iter().enumerate() {
            let norm = part.norm.as_ref().map(|(norm, _)| self.head_norm(body, norm, head, [part.made(), part.turned()]));
            let rescale = self.rescale(body.node, part.turned() / scales[which])?;
            ranges.push(Range { end: ends[which], norm: norm.transpose()?, rescale });
        }
        let (table, rotated) = match query.rope {
            Some(rope) => (Some(self.table(rope, head)?), ends[1]),
            None => (None, 0),
        };
        let [q, state] = self.query_and_state(&name, [query.columns, key.columns + value.columns]);
        let first = self.bind.past * self.bind.batch;
        let out = vec![Destination { tensor: q, row: 0 }, Destination { tensor: state, row: first }];
        let epilogue = Epilogue::Rotary { table, position: first, head, rotated, ranges };
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue, narrow }));
        let heads = [heads, key.columns / head, head];
        self.packed.insert(body.node.output(), Packed { query: q, state, scales, heads });
        Ok(())
    }

    /// Tensors of so many columns for the queries of a run, and for all keys with values.
    fn query_and_state(&mut self, name: &str, [queries, states]: [u64; 2]) -> [TensorId; 2] {
        let (rows, positions) = (self.rows(), self.positions() * self.bind.batch);
        let query = self.program.tensor(format!("{name}.query"), [rows, queries], Element::INT8, Role::Scratch);
        let role = if self.encoder { Role::Scratch } else { Role::State };
        let state = self.program.tensor(format!("{name}.state"), [positions, states], Element::INT8, role);
        self.states.extend((!self.encoder).then_some(state));
        [query, state]
    }

    /// Heads of the queries that a node makes: as its block's attention has them.
    fn heads(&self, node: &Node) -> Option<u64> {
        self.graph.nodes_of(node.block).find_map(|other| {
            let fused = other.op.fused()?;
            let Some(Roles::Attention { attention }) = fused.roles() else { return None };
            let query = *fused.body().nodes()[*attention].inputs.first()?;
            fused.body().fact(query).dims.get(1)?.constant().map(|heads| heads as u64)
        })
    }

    fn projections(&self, body: &Body<'a>, roles: &[op::Projection; 3]) -> Result<[Projection<'a>; 3]> {
        let [query, key, value] = roles.each_ref().map(|role| self.projection(body, role));
        Ok([query?, key?, value?])
    }

    fn projection(&self, body: &Body<'a>, role: &op::Projection) -> Result<Projection<'a>> {
        let linear = body.at(role.linear);
        let columns = body.body.fact(linear.output()).width().unwrap_or(0) as u64;
        let wide = self.range(body.name(linear.output()))?;
        let Some(rope_at) = role.rope else {
            return Ok(Projection { linear, columns, range: wide, wide, norm: None, rope: None });
        };
        let range = self.range(body.name(body.at(rope_at).output()))?;
        let norm = match role.norm.map(|norm| body.at(norm)) {
            Some(norm) => Some((norm, self.range(body.name(norm.output()))?)),
            None => None,
        };
        let rope = if let Op::Rope(rope) = &body.at(rope_at).op { Some(rope) } else { None };
        Ok(Projection { linear, columns, range, wide, norm, rope })
    }

    /// Cosines and sines of all positions that a run sees.
    fn table(&mut self, rope: &attar_graph::op::Rope, head: u64) -> Result<TensorId> {
        let key = format!("{rope:?} {head}");
        if let Some(known) = self.tables.get(&key) {
            return Ok(*known);
        }
        let (rows, batch) = (self.positions(), self.bind.batch);
        // By its contents: each part of a model finds the same table.
        let name = format!("rotary.{}", &attar_tensor::Digest::of(key.as_bytes()).to_string()[..8]);
        let id = self.program.tensor(name, [rows * batch, head], Element::INT16, Role::Constant);
        self.tables.insert(key, id);
        let one = f64::from(1u32 << ROTARY_BITS) * f64::from(rope.magnitude());
        let frequencies = rope.frequencies_of(head as usize, rows as usize);
        self.numbers(id, |_| {
            let row = |position: u64| {
                let angle = |f: &f32| (position as f32 * f) as f64;
                let cosines: Vec<i32> = frequencies.iter().map(|f| (angle(f).cos() * one).round() as i32).collect();
                let sines: Vec<i32> = frequencies.iter().map(|f| (angle(f).sin() * one).round() as i32).collect();
                [cosines, sines].concat()
            };
            Ok(Data::Numbers((0..rows).flat_map(|position| row(position).repeat(batch as usize)).collect()))
        })?;
        Ok(id)
    }

    fn attention(&mut self, body: &Body<'a>, attention: usize) -> Result<()> {
        let Op::Attention(attention) = &body.at(attention).op else { unreachable!("the role is that of an attention") };
        let packed = body.node.inputs.iter().find_map(|id| self.packed.get(id).copied());
        let Some(Packed { query, state, scales, heads: [heads, key_heads, head] }) = packed else {
            return Err(self.unsupported(body.node, "reads queries, keys and values that are not packed", PASSES));
        };
        let (scale, element) = self.rounding(body)?;
        let logits = scales[0] * scales[1] * attention.scale * std::f64::consts::LOG2_E * 256.0;
        let (logits, rescale) = (self.rescale(body.node, logits)?, self.rescale(body.node, scales[2] / scale)?);
        let out = self.make(body.node, [self.rows(), heads * head], element, Role::Scratch, scale);
        let (past, mask) = match attention.window {
            _ if self.encoder => (self.bind.rows, Mask::Past),
            Some(window) => (self.bind.past, Mask::Window(window as u64)),
            None => (self.bind.past, Mask::Causal),
        };
        let weight_bits = weight_bits(self.positions());
        let kernel = Attention { query, state, out, heads, key_heads, head, past, mask, weight_bits, logits, rescale };
        self.push(body.node, Kernel::Attention(kernel));
        Ok(())
    }

    /// Gate and up with the activation between them.
    fn gated(&mut self, body: &Body<'a>, linears: [usize; 2], activation: usize) -> Result<()> {
        let Some(function) = activation_of(&body.at(activation).op) else {
            return Err(self.unsupported(body.node, "is gated by another op than an activation", PASSES));
        };
        let [gate, up] = linears.map(|at| body.at(at));
        let (x, (scale, element)) = (self.codes(body, gate.inputs[0])?, self.rounding(body)?);
        let name = self.graph.get(body.node.output()).name.clone();
        let steps = [self.range(body.name(gate.output()))? / 32767.0, self.range(body.name(up.output()))? / 32767.0];
        let weight = self.interleave(body, [gate, up], &name)?;
        let (narrow, input) = self.sums(x, weight);
        let columns = self.columns_of_pairs(body, [gate, up], &name, steps.map(|step| input / step), input)?;
        let (table, unit) = table_of(function, steps[0]);
        let rescale = self.rescale(body.node, unit * steps[1] / scale)?;
        let width = self.program.get(weight).rows / 2;
        let out = self.make(body.node, [self.rows(), width], element, Role::Scratch, scale);
        let (out, epilogue) = (vec![Destination { tensor: out, row: 0 }], Epilogue::Gated { table, rescale });
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue, narrow }));
        Ok(())
    }

    /// A linear layer and an activation.
    fn activated(&mut self, body: &Body<'a>, [linear, activation]: [usize; 2]) -> Result<()> {
        let [linear, activation] = [linear, activation].map(|at| body.at(at));
        let Some(function) = activation_of(&activation.op) else {
            return Err(self.unsupported(body.node, format!("ends with a `{}`", activation.op.def().name), PASSES));
        };
        let ((product, step), (scale, element)) = (self.product(body, linear)?, self.rounding(body)?);
        let (table, unit) = table_of(function, step);
        let rescale = self.rescale(body.node, unit / scale)?;
        let width = self.program.get(product.weight).rows;
        let out = self.make(body.node, [self.rows(), width], element, Role::Scratch, scale);
        let (out, epilogue) = (vec![Destination { tensor: out, row: 0 }], Epilogue::Activated { table, rescale });
        self.push(body.node, Kernel::Linear(Linear { out, epilogue, ..product }));
        Ok(())
    }

    /// A linear layer whose result is added to the residual stream.
    fn linear_add(&mut self, body: &Body<'a>, linear: usize, residual: attar_graph::ValueId) -> Result<()> {
        let linear = body.at(linear);
        let (from, to) = (self.point_of(body, residual)?, self.point(body.node.output())?);
        let (x, residual) = (self.codes(body, linear.inputs[0])?, self.input(body, residual)?);
        let name = self.graph.get(body.node.output()).name.clone();
        let weight = self.stack(body, &[linear], &name)?;
        let (narrow, input) = self.sums(x, weight);
        let factor = |_, row| input / to.channel(row);
        let coarser = |row: usize| to.exponents[row] - from.exponents[row];
        let columns = self.columns(body, &[linear], &name, factor, |_| input, coarser)?;
        let width = self.program.get(weight).rows;
        let out = self.make(body.node, [self.rows(), width], Element::INT16, self.role(body.node), to.step);
        let epilogue = Epilogue::Add { residual: residual.tensor };
        let out = vec![Destination { tensor: out, row: 0 }];
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue, narrow }));
        Ok(())
    }

    /// The role of what a node makes.
    pub(super) fn role(&self, node: &Node) -> Role {
        if self.output == Some(node.output()) { Role::Output } else { Role::Scratch }
    }

    /// Bits by which the sums of a product are narrowed, and the step that its inputs then have.
    pub(super) fn sums(&self, x: Made, weight: TensorId) -> (u8, f64) {
        let (element, weight) = (self.program.get(x.tensor).element, self.program.get(weight));
        let narrow = Program::narrow(element, weight.columns, weight.element);
        (narrow, x.scale * f64::from(1u32 << narrow))
    }
}

/// Query, key or value.
struct Projection<'g> {
    linear: &'g Node,
    columns: u64,
    /// The largest magnitude of what attention reads, and of what the linear layer makes.
    range: f64,
    wide: f64,
    /// The norm of each head, and the largest magnitude of what it makes.
    norm: Option<(&'g Node, f64)>,
    /// The rotary embedding.
    rope: Option<&'g op::Rope>,
}

impl Projection<'_> {
    /// The int16 step of what the linear layer makes. Without a norm, it is also that of what is rotated.
    fn made(&self) -> f64 {
        if self.norm.is_some() { self.wide / 32767.0 } else { self.turned() }
    }

    /// The int16 step of what is rotated: before and after.
    fn turned(&self) -> f64 {
        self.range.max(self.norm.map_or(self.wide, |(_, normed)| normed)) / 32767.0
    }
}

/// The function of an activation.
fn activation_of(op: &Op) -> Option<fn(f64) -> f64> {
    Some(match op {
        Op::Silu | Op::Swiglu => |x| x / (1.0 + (-x).exp()),
        Op::Gelu => |x| 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
        Op::GeluTanh => |x| {
            let root = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
            0.5 * x * (1.0 + (root * (x + 0.044_715 * x * x * x)).tanh())
        },
        _ => return None,
    })
}

/// An activation at the entries of its table, where one step of a code is `step`, and what one step of the table is.
fn table_of(function: fn(f64) -> f64, step: f64) -> (Vec<i16>, f64) {
    let value = |code: i32| function(f64::from(code) * step);
    let half = 1 << 15;
    let unit = value(half).abs().max(0.3) / 32767.0;
    let entry = |at: usize| (value(((at as i32) << GATE_FRACTION) - half) / unit).round() as i16;
    ((0..GATE_ENTRIES).map(entry).collect(), unit)
}
