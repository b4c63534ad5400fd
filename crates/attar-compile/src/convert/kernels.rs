//! One kernel for each fused node, in the roles that the node knows of itself.

use attar_graph::{
    Node, Op,
    op::{self, Roles},
};

use super::{Body, Converter, INTEGERS, Made, Packed, STATIC};
use crate::{
    Data, Element, Result,
    fixed::{GATE_ENTRIES, GATE_FRACTION, LARGEST_GAIN, ROTARY_BITS, stored_gain, weight_bits},
    program::{Attention, Destination, Epilogue, HeadNorm, Kernel, Linear, Norm, Program, Range, Role, TensorId},
};

const PASSES: &str = "run all passes of `fuse`";

impl<'a> Converter<'a> {
    /// The kernel of a node; `output` is where the residual stream leaves the last block.
    pub(super) fn node(&mut self, node: &'a Node, output: attar_graph::ValueId) -> Result<()> {
        let Op::Fused(fused) = &node.op else {
            let why = format!("is a `{}` on its own, which no kernel computes", node.op.def().name);
            return Err(self.unsupported(node, why, INTEGERS));
        };
        let body = Body::of(node, fused);
        match fused.roles() {
            Some(Roles::Norm { add: None, norm }) => self.norm(&body, *norm, self.bind.rows),
            Some(Roles::Norm { add: Some(_), .. }) => {
                Err(self.unsupported(node, "adds before it norms", "only pre-norm decoders can be compiled for a device"))
            }
            Some(Roles::Qkv(projections)) => self.qkv(&body, projections),
            Some(Roles::Attention { attention }) => self.attention(&body, *attention),
            Some(Roles::Gated { gate, up, activation }) => self.gated(&body, [*gate, *up], *activation),
            Some(Roles::LinearAdd { linear, residual, .. }) => self.linear_add(&body, *linear, *residual, output),
            Some(Roles::LinearAct { .. }) => {
                let why = "is a linear layer with an activation and no gate";
                Err(self.unsupported(node, why, "only gated MLPs can be compiled for a device"))
            }
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

    /// The logits of the last row.
    pub(super) fn logits(&mut self, [norm, linear]: [&'a Node; 2]) -> Result<Made> {
        let fused = norm.op.fused().expect("`head` found a fused norm");
        let Some(Roles::Norm { norm: at, .. }) = fused.roles() else { unreachable!("`head` found a norm") };
        let rows = if self.bind.every_row { self.bind.rows } else { 1 };
        self.norm(&Body::of(norm, fused), *at, rows)?;
        let body = Body::unfused(linear, self.graph);
        let x = self.input(&body, linear.inputs[0])?;
        let name = self.graph.get(linear.output()).name.clone();
        let step = self.range(&name)? / 32767.0;
        let weight = self.stack(&body, &[linear], &name)?;
        let (narrow, input) = self.sums(x, weight);
        let columns = self.columns(&body, &[linear], &name, |_, _| input / step, |_| input, |_| 0)?;
        let width = self.program.get(weight).rows;
        let tensor = self.program.tensor(&name, [rows, width], Element::INT16, Role::Output);
        let out = vec![Destination { tensor, row: 0 }];
        self.push(linear, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue: Epilogue::Rescale, narrow }));
        Ok(Made { tensor, scale: step })
    }

    /// The static scale of the rounding that ends a body, and what it rounds to.
    pub(super) fn rounding(&self, body: &Body<'a>) -> Result<(f64, Element)> {
        let Some(rounding) = body.rounding() else {
            return Err(self.unsupported(body.node, "has a result that is not rounded to integers", INTEGERS));
        };
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

    /// The last `rows` rows, normed.
    fn norm(&mut self, body: &Body<'a>, norm: usize, rows: u64) -> Result<()> {
        let norm = body.at(norm);
        let Op::RmsNorm { epsilon } = norm.op else { unreachable!("`Roles::Norm` has an `rms_norm`") };
        let (x, (scale, element)) = (self.input(body, norm.inputs[0])?, self.rounding(body)?);
        let width = self.program.get(x.tensor).columns;
        let out = self.make(body.node, [rows, width], element, Role::Scratch, scale);
        let (gains, gain_shift) = self.gains(body, norm, scale)?;
        let epsilon = (width as f64 * epsilon / (x.scale * x.scale)).round() as u64;
        let row = self.program.get(x.tensor).rows - rows;
        self.push(body.node, Kernel::Norm(Norm { x: x.tensor, row, gains, out, epsilon, gain_shift }));
        Ok(())
    }

    /// The gains of a norm whose result is in steps of `scale`, and their fractional bits.
    fn gains(&mut self, body: &Body<'a>, norm: &Node, scale: f64) -> Result<(TensorId, u32)> {
        let stream = self.point_of(body, norm.inputs[0])?;
        let width = stream.exponents.len() as u64;
        let name = format!("{}.gains", self.graph.get(body.node.output()).name);
        let gains = self.program.tensor(name, [1, width], Element::INT32, Role::Constant);
        if self.shapes_only() {
            return Ok((gains, 16));
        }
        let (stored, shift) = stored_gains(&self.plain(body, norm.inputs[1])?, &stream.exponents, scale);
        self.numbers(gains, |_| Ok(Data::Numbers(stored)))?;
        Ok((gains, shift))
    }

    /// A norm of heads of `columns` columns, from steps of `before` to steps of `after`.
    fn head_norm(&self, body: &Body<'a>, norm: &Node, columns: u64, [before, after]: [f64; 2]) -> Result<HeadNorm> {
        let Op::RmsNorm { epsilon } = norm.op else { unreachable!("`Projection` has an `rms_norm`") };
        let epsilon = (columns as f64 * epsilon / (before * before)).round() as u64;
        let exponents = vec![0; columns as usize];
        if self.shapes_only() {
            return Ok(HeadNorm { gains: vec![0; columns as usize], epsilon, gain_shift: 16 });
        }
        let (gains, gain_shift) = stored_gains(&self.plain(body, norm.inputs[1])?, &exponents, after);
        Ok(HeadNorm { gains, epsilon, gain_shift })
    }

    /// Query, key and value projections with their rotary embedding: queries, and keys with values appended to the cache.
    fn qkv(&mut self, body: &Body<'a>, projections: &[op::Projection; 3]) -> Result<()> {
        let [query, key, value] = self.projections(body, projections)?;
        let x = self.input(body, query.linear.inputs[0])?;
        let name = self.graph.get(body.node.output()).name.clone();
        let linears = [query.linear, key.linear, value.linear];
        let weight = self.stack(body, &linears, &name)?;
        let (narrow, input) = self.sums(x, weight);
        let parts = [&query, &key, &value];
        let scales = parts.map(|part| part.range / 127.0);
        let ends = [query.columns, query.columns + key.columns, query.columns + key.columns + value.columns];
        let columns = self.columns(body, &linears, &name, |which, _| input / parts[which].made(), |_| input, |_| 0)?;
        let Some((rope, heads)) = query.rope else {
            let (why, hint) = ("has queries without a rotary embedding", "only rotary positions can be compiled for a device");
            return Err(self.unsupported(body.node, why, hint));
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
        let table = self.table(rope, head)?;
        let [q, state] = self.query_and_state(&name, [query.columns, key.columns + value.columns]);
        let out = vec![Destination { tensor: q, row: 0 }, Destination { tensor: state, row: self.bind.past }];
        let epilogue = Epilogue::Rotary { table, position: self.bind.past, head, rotated: ends[1], ranges };
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue, narrow }));
        let heads = [heads, key.columns / head, head];
        self.packed.insert(body.node.output(), Packed { query: q, state, scales, heads });
        Ok(())
    }

    /// Tensors of so many columns for the queries of a run, and for all keys with values.
    fn query_and_state(&mut self, name: &str, [queries, states]: [u64; 2]) -> [TensorId; 2] {
        let (rows, positions) = (self.bind.rows, self.positions());
        let query = self.program.tensor(format!("{name}.query"), [rows, queries], Element::INT8, Role::Scratch);
        let state = self.program.tensor(format!("{name}.state"), [positions, states], Element::INT8, Role::State);
        self.states.push(state);
        [query, state]
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
        let rope = match (&body.at(rope_at).op, role.split.map(|split| &body.at(split).op)) {
            (Op::Rope(rope), Some(Op::SplitHeads { heads })) => Some((rope, *heads as u64)),
            _ => None,
        };
        Ok(Projection { linear, columns, range, wide, norm, rope })
    }

    /// Cosines and sines of all positions that a run sees.
    fn table(&mut self, rope: &attar_graph::op::Rope, head: u64) -> Result<TensorId> {
        let key = format!("{rope:?} {head}");
        if let Some(known) = self.tables.get(&key) {
            return Ok(*known);
        }
        let rows = self.positions();
        // By its contents: each part of a model finds the same table.
        let name = format!("rotary.{}", &attar_tensor::Digest::of(key.as_bytes()).to_string()[..8]);
        let id = self.program.tensor(name, [rows, head], Element::INT16, Role::Constant);
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
            Ok(Data::Numbers((0..rows).flat_map(row).collect()))
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
        let out = self.make(body.node, [self.bind.rows, heads * head], element, Role::Scratch, scale);
        let (past, window) = (self.bind.past, attention.window.map(|window| window as u64));
        let weight_bits = weight_bits(self.positions());
        let kernel = Attention { query, state, out, heads, key_heads, head, past, window, weight_bits, logits, rescale };
        self.push(body.node, Kernel::Attention(kernel));
        Ok(())
    }

    /// Gate and up with the activation between them.
    fn gated(&mut self, body: &Body<'a>, linears: [usize; 2], activation: usize) -> Result<()> {
        if !matches!(body.at(activation).op, Op::Swiglu) {
            return Err(self.unsupported(body.node, "is gated by another op than `swiglu`", PASSES));
        }
        let [gate, up] = linears.map(|at| body.at(at));
        let (x, (scale, element)) = (self.input(body, gate.inputs[0])?, self.rounding(body)?);
        let name = self.graph.get(body.node.output()).name.clone();
        let steps = [self.range(body.name(gate.output()))? / 32767.0, self.range(body.name(up.output()))? / 32767.0];
        let weight = self.interleave(body, [gate, up], &name)?;
        let (narrow, input) = self.sums(x, weight);
        let columns = self.columns_of_pairs(body, [gate, up], &name, steps.map(|step| input / step), input)?;
        let (table, unit) = silu_table(steps[0]);
        let rescale = self.rescale(body.node, unit * steps[1] / scale)?;
        let width = self.program.get(weight).rows / 2;
        let out = self.make(body.node, [self.bind.rows, width], element, Role::Scratch, scale);
        let (out, epilogue) = (vec![Destination { tensor: out, row: 0 }], Epilogue::Gated { table, rescale });
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue, narrow }));
        Ok(())
    }

    /// A linear layer whose result is added to the residual stream.
    fn linear_add(
        &mut self,
        body: &Body<'a>,
        linear: usize,
        residual: attar_graph::ValueId,
        output: attar_graph::ValueId,
    ) -> Result<()> {
        let linear = body.at(linear);
        let (from, to) = (self.point_of(body, residual)?, self.point(body.node.output())?);
        let (x, residual) = (self.input(body, linear.inputs[0])?, self.input(body, residual)?);
        let name = self.graph.get(body.node.output()).name.clone();
        let weight = self.stack(body, &[linear], &name)?;
        let (narrow, input) = self.sums(x, weight);
        let factor = |_, row| input / to.channel(row);
        let coarser = |row: usize| to.exponents[row] - from.exponents[row];
        let columns = self.columns(body, &[linear], &name, factor, |_| input, coarser)?;
        let role = if body.node.output() == output && !self.head { Role::Output } else { Role::Scratch };
        let width = self.program.get(weight).rows;
        let out = self.make(body.node, [self.bind.rows, width], Element::INT16, role, to.step);
        let epilogue = Epilogue::Add { residual: residual.tensor };
        let out = vec![Destination { tensor: out, row: 0 }];
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue, narrow }));
        Ok(())
    }

    /// Bits by which the sums of a product are narrowed, and the step that its inputs then have.
    fn sums(&self, x: Made, weight: TensorId) -> (u8, f64) {
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
    /// The rotary embedding, and the number of heads that it is split into.
    rope: Option<(&'g op::Rope, u64)>,
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

/// Gains of a norm whose result is in steps of `scale`, as they are stored, and their fractional bits: as many as the largest has
/// room for.
fn stored_gains(gains: &[f32], exponents: &[u8], scale: f64) -> (Vec<i32>, u32) {
    let root = (gains.len() as f64).sqrt() / scale;
    let largest = gains.iter().fold(1e-9f64, |most, g| most.max(f64::from(g.abs()) * root));
    let shift = (LARGEST_GAIN.log2().floor() - largest.log2().ceil()).clamp(0.0, 40.0) as u32;
    let unit = root * 2f64.powi(shift as i32);
    let stored = |(gain, exponent): (&f32, &u8)| stored_gain(f64::from(*gain) * unit, *exponent);
    (gains.iter().zip(exponents).map(stored).collect(), shift)
}

/// `silu` at the entries of a gate's table, where one step of a code is `step`, and what one step of the table is.
fn silu_table(step: f64) -> (Vec<i16>, f64) {
    let silu = |code: i32| {
        let x = f64::from(code) * step;
        x / (1.0 + (-x).exp())
    };
    let half = 1 << 15;
    let unit = silu(half).abs().max(0.3) / 32767.0;
    let entry = |at: usize| (silu(((at as i32) << GATE_FRACTION) - half) / unit).round() as i16;
    ((0..GATE_ENTRIES).map(entry).collect(), unit)
}
