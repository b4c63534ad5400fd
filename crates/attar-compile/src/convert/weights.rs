//! Codes, scales and rescalings of weights, in the form that kernels read.

use attar_graph::{Node, Origin, Value};
use attar_tensor::{Encoding, Levels, QuantizedTensor, ScaleFormat, Scheme, ZeroPoint};

use super::{Body, Converter};
use crate::{
    Data, Element, Result,
    fixed::Rescale,
    program::{Column, Role, TensorId},
};

/// A weight in integers.
struct Matrix {
    /// `[rows, columns]`.
    codes: Vec<i8>,
    /// `[rows, groups]`; empty without groups.
    scales: Vec<i8>,
    /// The step of each row's sum.
    steps: Vec<f64>,
}

impl<'a> Converter<'a> {
    /// The weights of linear layers, stacked to one.
    pub(super) fn stack(&mut self, body: &Body<'a>, linears: &[&Node], name: &str) -> Result<TensorId> {
        let matrices = self.matrices(body, linears)?;
        let (element, [rows, columns]) = (self.element(body, linears)?, self.shape(body, linears)?);
        let id = self.program.tensor(format!("{name}.weight"), [rows, columns], element, Role::Weight);
        self.numbers(id, |_| {
            let codes = matrices.iter().flat_map(|m| m.codes.iter().copied()).collect();
            let scales = matrices.iter().flat_map(|m| m.scales.iter().copied()).collect();
            Ok(Data::Weight { codes, scales })
        })?;
        Ok(id)
    }

    /// The rows of two weights, interleaved.
    pub(super) fn interleave(&mut self, body: &Body<'a>, linears: [&Node; 2], name: &str) -> Result<TensorId> {
        let matrices = self.matrices(body, &linears)?;
        let (element, [rows, columns]) = (self.element(body, &linears)?, self.shape(body, &linears)?);
        let id = self.program.tensor(format!("{name}.weight"), [rows, columns], element, Role::Weight);
        self.numbers(id, |_| {
            let turn = |of: &dyn Fn(&Matrix) -> &[i8]| -> Vec<i8> {
                let [first, second] = [of(&matrices[0]), of(&matrices[1])];
                let width = (2 * first.len() / rows as usize).max(1);
                first.chunks(width).zip(second.chunks(width)).flat_map(|(a, b)| [a, b].concat()).collect()
            };
            Ok(Data::Weight { codes: turn(&|m| &m.codes), scales: turn(&|m| &m.scales) })
        })?;
        Ok(id)
    }

    /// Rescalings of stacked layers: layer `which` has sums in steps of its rows times `factor(which, row)`, and a bias in steps
    /// of its rows times `input(which)`; a residual gets `coarser(row)` of all rows.
    pub(super) fn columns(
        &mut self,
        body: &Body<'a>,
        linears: &[&Node],
        name: &str,
        factor: impl Fn(usize, usize) -> f64,
        input: impl Fn(usize) -> f64,
        coarser: impl Fn(usize) -> u8,
    ) -> Result<TensorId> {
        let count = self.shape(body, linears)?[0];
        let id = self.program.tensor(format!("{name}.columns"), [1, count], Column::ELEMENT, Role::Constant);
        self.numbers(id, |this| {
            let mut all = Vec::new();
            for (which, linear) in linears.iter().enumerate() {
                all.extend(this.columns_of(body, linear, &|row| factor(which, row), input(which))?);
            }
            all.iter_mut().enumerate().for_each(|(row, column)| column.coarser = coarser(row));
            Ok(Data::Columns(all))
        })?;
        Ok(id)
    }

    /// The same for two layers whose rows are interleaved.
    pub(super) fn columns_of_pairs(
        &mut self,
        body: &Body<'a>,
        linears: [&Node; 2],
        name: &str,
        factors: [f64; 2],
        input: f64,
    ) -> Result<TensorId> {
        let count = self.shape(body, &linears)?[0];
        let id = self.program.tensor(format!("{name}.columns"), [1, count], Column::ELEMENT, Role::Constant);
        self.numbers(id, |this| {
            let first = this.columns_of(body, linears[0], &|_| factors[0], input)?;
            let second = this.columns_of(body, linears[1], &|_| factors[1], input)?;
            Ok(Data::Columns(first.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect()))
        })?;
        Ok(id)
    }

    fn columns_of(&self, body: &Body<'a>, linear: &Node, factor: &dyn Fn(usize) -> f64, input: f64) -> Result<Vec<Column>> {
        let steps = self.matrix(body, linear)?.steps;
        let bias = match linear.inputs.get(2) {
            Some(bias) => self.plain(body, *bias)?,
            None => vec![0.0; steps.len()],
        };
        let column = |(row, (step, bias)): (usize, (&f64, f32))| -> Result<Column> {
            let nothing = Rescale { multiplier: 0, shift: 1 };
            let rescale = if *step == 0.0 { nothing } else { self.rescale(body.node, step * factor(row))? };
            let bias = if *step == 0.0 { 0.0 } else { f64::from(bias) / (step * input) };
            Ok(Column { rescale, bias: bias.round() as i32, coarser: 0 })
        };
        steps.iter().zip(bias).enumerate().map(column).collect()
    }

    fn matrices(&self, body: &Body<'a>, linears: &[&Node]) -> Result<Vec<Matrix>> {
        match self.bind.numbers {
            true => linears.iter().map(|linear| self.matrix(body, linear)).collect(),
            false => Ok(Vec::new()),
        }
    }

    /// Rows of all layers together, and their common number of columns.
    fn shape(&self, body: &Body<'a>, linears: &[&Node]) -> Result<[u64; 2]> {
        let mut shape = [0, 0];
        for linear in linears {
            let dims = body.body.fact(linear.inputs[1]).constant_dims().unwrap_or_default();
            shape = [shape[0] + dims[0] as u64, dims[1] as u64];
        }
        Ok(shape)
    }

    pub(super) fn scheme(&self, body: &Body<'a>, linear: &Node) -> Result<Scheme> {
        match body.body.fact(linear.inputs[1]).encoding {
            Encoding::Quantized(scheme) => self.integers(body, linear, scheme),
            other => {
                let why = format!("reads `{}`, whose numbers are {other}", body.name(linear.inputs[1]));
                Err(self.unsupported(body.node, why, super::INTEGERS))
            }
        }
    }

    /// A scheme whose codes and scales are integers.
    fn integers(&self, body: &Body<'a>, linear: &Node, scheme: Scheme) -> Result<Scheme> {
        let columns = body.body.fact(linear.inputs[1]).width().unwrap_or(0);
        let integer_scales = matches!(scheme.scale, ScaleFormat::Int8 | ScaleFormat::Int6 | ScaleFormat::Int4);
        let (why, hint) = if scheme.grid.levels() != Levels::Even {
            ("whose levels are not integers", "use an integer `grid`")
        } else if scheme.zero != ZeroPoint::Symmetric {
            ("which has zero points", "use symmetric weights")
        } else if scheme.groups(columns) > 1 && !integer_scales {
            ("whose groups have scales that are not integers", "use `scale_dtype = \"int6\"` or `\"int8\"`, or one scale per row")
        } else {
            return Ok(scheme);
        };
        Err(self.unsupported(body.node, format!("reads `{}` in {scheme}, {why}", body.name(linear.inputs[1])), hint))
    }

    /// How the codes of all layers are stored: in the smallest width of the device that holds the widest.
    fn element(&self, body: &Body<'a>, linears: &[&Node]) -> Result<Element> {
        let (mut bits, mut group) = (0, None);
        for linear in linears {
            let scheme = self.scheme(body, linear)?;
            let columns = body.body.fact(linear.inputs[1]).width().unwrap_or(0);
            bits = bits.max(scheme.grid.bits());
            let mine = if scheme.groups(columns) > 1 { scheme.group(columns) as u32 } else { 0 };
            if *group.get_or_insert(mine) != mine {
                return Err(self.unsupported(
                    body.node,
                    "reads weights in groups of different sizes",
                    "use one `group` for them",
                ));
            }
        }
        let width = self.widths.iter().copied().filter(|width| *width >= bits && *width <= 8).min();
        let Some(width) = width else {
            let why = format!("has weights of {bits} bits; the device multiplies {:?}", self.widths);
            return Err(self.unsupported(body.node, why, "choose a `grid` of the device's widths"));
        };
        Ok(match group.unwrap_or(0) {
            0 => Element { bits: width, per: 1 },
            group => Element { bits: width * group + 8, per: group },
        })
    }

    fn matrix(&self, body: &Body<'a>, linear: &Node) -> Result<Matrix> {
        let scheme = self.scheme(body, linear)?;
        let outer = body.outer(linear.inputs[1]).map(|outer| self.graph.get(outer));
        let Some(Value { origin: Origin::Weight(expr), .. }) = outer else {
            return Err(self.unsupported(body.node, "multiplies by a value that is not a weight", super::INTEGERS));
        };
        let [rows, columns] = expr.info(self.source)?.matrix();
        let tensor = expr.read_quantized(self.source, 0..rows)?;
        let groups = scheme.groups(columns);
        let (scales, steps) = if groups > 1 { group_scales(&tensor, groups) } else { row_scales(&tensor) };
        let mut codes = Vec::with_capacity(rows * columns);
        let (mut bytes, mut values) = (vec![0; columns], vec![0.0f32; columns]);
        for row in 0..rows {
            tensor.codes_of(row, &mut bytes);
            let fit = attar_tensor::Fit { scale: 1.0, ..tensor.fit(row, 0) };
            scheme.grid.decode(&bytes, fit, &mut values);
            codes.extend(values.iter().map(|value| value.clamp(-128.0, 127.0) as i8));
        }
        Ok(Matrix { codes, scales, steps })
    }
}

/// Integer scales of groups, and the step of each row.
fn group_scales(tensor: &QuantizedTensor, groups: usize) -> (Vec<i8>, Vec<f64>) {
    let rows = tensor.dims[0];
    let code = |row: usize, group: usize| {
        let (scale, over) = (tensor.fit(row, group).scale, tensor.super_of(row));
        if over == 0.0 { 0 } else { (scale / over).round() as i8 }
    };
    let scales = (0..rows).flat_map(|row| (0..groups).map(move |group| code(row, group))).collect();
    (scales, (0..rows).map(|row| f64::from(tensor.super_of(row))).collect())
}

/// One scale per row or per tensor.
fn row_scales(tensor: &QuantizedTensor) -> (Vec<i8>, Vec<f64>) {
    (Vec::new(), (0..tensor.dims[0]).map(|row| f64::from(tensor.fit(row, 0).scale)).collect())
}
