//! Everything but attention and what is looked up.

use attar_graph::{Node, Op, Origin};

use super::{Emission, Field, Grid};
use crate::{
    Result,
    litert::{
        build::stretched,
        schema::{
            ADD_16, FULLY_CONNECTED_8, GELU_8, Kind, LOGISTIC_16, MAXIMUM_16, MEAN_16, MUL_16, RSQRT_16, SLICE, SUB_16, TANH_16,
        },
    },
};

/// The grid of LiteRT's functions whose results lie between -1 and 1.
const UNIT: Grid = Grid { bits: 16, scale: 1.0 / 32768.0, zero: 0 };

/// The name of a result in 16 bits, which others follow if it is not what was asked for.
pub(super) fn named(name: &str, what: &str, grid: Grid) -> String {
    if grid.bits > 8 { name.to_owned() } else { format!("{name}/{what}") }
}

pub(super) fn linear(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let weight = e.stored(node, 1)?;
    let bias = if node.inputs.len() > 2 { e.stored(node, 2)? } else { -1 };
    let mut dims = e.dims(x);
    dims.pop();
    dims.push(e.dims(weight)[0]);
    // Operands and results of LiteRT's products have as many bits.
    let x = if grid.bits > 8 { e.wide(x) } else { x };
    let made = if e.grid(x).bits > 8 { grid.widened() } else { grid };
    let options = vec![(0, Field::I8(0)), (1, Field::I8(0)), (2, Field::Bool(true))];
    let wide = if made == grid { name.to_owned() } else { format!("{name}/wide") };
    let product = e.codes(wide, FULLY_CONNECTED_8, &[x, weight, bias], options, &dims, made);
    Ok(e.to(name, product, grid))
}

pub(super) fn quantize(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    // The op before has rounded to this grid already.
    Ok(if e.model.grids.get(&node.inputs[0]) == Some(&grid) { x } else { e.to(name, x, grid) })
}

pub(super) fn split_heads(e: &mut Emission<'_>, node: &Node, name: &str, _: Option<Grid>) -> Result<i32> {
    let Op::SplitHeads { heads } = node.op else { unreachable!("the table is right") };
    let (x, tokens) = (e.value(node, 0)?, e.call.tokens);
    let head = e.dims(x)[2] / heads;
    let split = e.reshape(format!("{name}/split"), x, &[1, tokens, heads, head]);
    Ok(e.transpose(name, split, &[0, 2, 1, 3]))
}

pub(super) fn merge_heads(e: &mut Emission<'_>, node: &Node, name: &str, _: Option<Grid>) -> Result<i32> {
    let (x, tokens) = (e.value(node, 0)?, e.call.tokens);
    let width = e.dims(x)[1] * e.dims(x)[3];
    let turned = e.transpose(format!("{name}/turned"), x, &[0, 2, 1, 3]);
    Ok(e.reshape(name, turned, &[1, tokens, width]))
}

pub(super) fn slice(e: &mut Emission<'_>, node: &Node, name: &str, _: Option<Grid>) -> Result<i32> {
    let Op::Slice { start, length } = node.op else { unreachable!("the table is right") };
    let x = e.value(node, 0)?;
    Ok(e.part(name, x, start, length))
}

/// LiteRT concatenates codes of one grid.
pub(super) fn concat(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let grid = e.wanted(node, grid)?;
    let mut parts = Vec::new();
    for at in 0..node.inputs.len() {
        let part = e.value(node, at)?;
        parts.push(e.to(format!("{name}/part.{at}"), part, grid));
    }
    Ok(e.join(name, &parts))
}

/// The first position: padding must be on the right.
pub(super) fn first_pool(e: &mut Emission<'_>, node: &Node, name: &str, _: Option<Grid>) -> Result<i32> {
    let x = e.value(node, 0)?;
    let (width, grid) = (e.dims(x)[2], e.grid(x));
    let (begin, size) = (e.ints(&[0; 3]), e.ints(&[1, 1, width]));
    let first = e.codes(format!("{name}/first"), SLICE, &[x, begin, size], vec![], &[1, 1, width], grid);
    Ok(e.reshape(name, first, &[1, width]))
}

/// The mean over tokens that are not padding: callers say by how much each counts, `tokens / real tokens` or 0.
pub(super) fn mean_pool(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid, tokens) = (e.value(node, 0)?, e.wanted(node, grid)?, e.call.tokens);
    let (x, counts) = (e.wide(x), e.counts());
    let width = e.dims(x)[2];
    let kept = e.product(format!("{name}/kept"), x, counts, Grid::wide(e.grid(x).scale * tokens as f32));
    let axis = e.ints(&[1]);
    let wide = named(name, "mean", grid);
    let mean = e.codes(wide, MEAN_16, &[kept, axis], vec![(0, Field::Bool(false))], &[1, width], grid.widened());
    Ok(e.to(name, mean, grid))
}

pub(super) fn center(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let x = e.wide(x);
    let mean = e.mean(format!("{name}/center"), x, e.grid(x));
    let centered = e.pair(SUB_16, named(name, "centered", grid), x, mean, grid.widened());
    Ok(e.to(name, centered, grid))
}

pub(super) fn mean_square(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let x = e.wide(x);
    let squares = e.product(format!("{name}/squares"), x, x, Grid::wide(e.grid(x).reach().powi(2) / 32767.0));
    let mean = e.mean(named(name, "mean", grid), squares, grid.widened());
    Ok(e.to(name, mean, grid))
}

pub(super) fn rsqrt(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let Op::Rsqrt { epsilon } = node.op else { unreachable!("the table is right") };
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let (mut x, epsilon) = (e.wide(x), epsilon as f32);
    let step = e.grid(x).scale;
    // Less than half a step is no step.
    if epsilon >= step / 2.0 {
        let number = e.number(epsilon);
        x = e.pair(ADD_16, format!("{name}/sum"), x, number, Grid::wide(step + epsilon / 32767.0));
    }
    let inverse = e.inverse_root(&format!("{name}/inverse"), x, grid.widened());
    Ok(e.to(name, inverse, grid))
}

pub(super) fn swiglu(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (gate, up, grid) = (e.value(node, 0)?, e.value(node, 1)?, e.wanted(node, grid)?);
    let (silu, up) = (e.silu(name, gate), e.wide(up));
    let product = e.product(named(name, "product", grid), silu, up, grid.widened());
    Ok(e.to(name, product, grid))
}

pub(super) fn silu(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let silu = e.silu(name, x);
    Ok(e.to(name, silu, grid))
}

pub(super) fn gelu(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    e.gelu(node, name, grid, false)
}

pub(super) fn gelu_tanh(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    e.gelu(node, name, grid, true)
}

pub(super) fn tanh(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let x = e.wide(x);
    let bounded = e.function(TANH_16, format!("{name}/unit"), x);
    Ok(e.to(name, bounded, grid))
}

pub(super) fn scale(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let Op::Scale { by } = node.op else { unreachable!("the table is right") };
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let (x, by) = (e.wide(x), e.number(by as f32));
    let scaled = e.product(named(name, "scaled", grid), x, by, grid.widened());
    Ok(e.to(name, scaled, grid))
}

/// `cap * tanh(x / cap)`.
pub(super) fn softcap(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let Op::Softcap { cap } = node.op else { unreachable!("the table is right") };
    let (x, grid, cap) = (e.value(node, 0)?, e.wanted(node, grid)?, cap as f32);
    let by = e.factors.get(&x).copied().unwrap_or(1.0) / cap;
    let (x, number) = (e.wide(x), e.number(by));
    let ratio = e.product(format!("{name}/ratio"), x, number, Grid::wide(e.grid(x).scale * by));
    let bounded = e.function(TANH_16, format!("{name}/unit"), ratio);
    let cap = e.number(cap);
    let scaled = e.product(named(name, "scaled", grid), bounded, cap, grid.widened());
    Ok(e.to(name, scaled, grid))
}

pub(super) fn mul(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    e.of_two(MUL_16, node, name, grid)
}

pub(super) fn add(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    e.of_two(ADD_16, node, name, grid)
}

impl Emission<'_> {
    /// An operator on two values in 16 bits that stretches dimensions of 1.
    pub(super) fn pair(&mut self, kind: Kind, name: impl Into<String>, a: i32, b: i32, grid: Grid) -> i32 {
        let dims = stretched(&self.dims(a), &self.dims(b));
        // Scales are no powers of two.
        let options = if kind == MUL_16 { vec![(0, Field::I8(0))] } else { vec![(0, Field::I8(0)), (1, Field::Bool(false))] };
        self.codes(name, kind, &[a, b], options, &dims, grid)
    }

    pub(super) fn product(&mut self, name: impl Into<String>, a: i32, b: i32, grid: Grid) -> i32 {
        self.pair(MUL_16, name, a, b, grid)
    }

    /// The mean over the last dimension, which stays as 1.
    fn mean(&mut self, name: impl Into<String>, x: i32, grid: Grid) -> i32 {
        let mut dims = self.dims(x);
        let axis = self.ints(&[dims.len() - 1]);
        dims.pop();
        dims.push(1);
        self.codes(name, MEAN_16, &[x, axis], vec![(0, Field::Bool(true))], &dims, grid)
    }

    /// `1 / sqrt(x)` of what is not negative. LiteRT and NPUs join values of a table by straight lines, which are far from the curve where `x` is small.
    /// So there are up to three ranges, the lower ones in finer steps: where `x` is beyond a range, its root is that of the nearest end, which is taken
    /// away. Ranges whose roots are all beyond the grid are left out. The grid is a little wider than what is asked for: lines to a value that a table cannot
    /// hold would be too low.
    fn inverse_root(&mut self, name: &str, x: i32, grid: Grid) -> i32 {
        const FINER: f32 = 8.0;
        let grid = Grid::wide(1.25 * grid.scale);
        const END: i16 = (32768.0 / FINER) as i16;
        let (dims, from) = (self.dims(x), self.grid(x));
        let mut sum = None;
        for range in 0..3 {
            let step = Grid::wide(from.scale / FINER.powi(range));
            let part = self.to(format!("{name}/range.{range}"), x, step);
            let below = ((1.0 / (step.scale * f32::from(END)).sqrt()) / grid.scale).round();
            let last = range == 2 || below >= 32767.0;
            let part = if last {
                part
            } else {
                let end = self.constant_codes(&format!("{name}/end.{range}"), &[1], &[END], step.scale);
                self.codes(format!("{name}/above.{range}"), MAXIMUM_16, &[part, end], vec![], &dims, step)
            };
            let named = |what: &str| if last { name.to_owned() } else { format!("{name}/{what}.{range}") };
            match sum {
                None => sum = Some(self.codes(named("root"), RSQRT_16, &[part], vec![], &dims, grid)),
                Some(above) => {
                    let root = self.codes(format!("{name}/root.{range}"), RSQRT_16, &[part], vec![], &dims, grid);
                    sum = Some(self.pair(ADD_16, named("sum"), above, root, grid));
                }
            }
            if last {
                break;
            }
            let end = self.constant_codes(&format!("{name}/root_of_end.{range}"), &[1], &[below as i16], grid.scale);
            sum = sum.map(|sum| self.pair(SUB_16, format!("{name}/rest.{range}"), sum, end, grid));
        }
        sum.expect("there is a first range")
    }

    /// A function of LiteRT's whose results are at most 1.
    fn function(&mut self, kind: Kind, name: impl Into<String>, x: i32) -> i32 {
        let dims = self.dims(x);
        self.codes(name, kind, &[x], vec![], &dims, UNIT)
    }

    fn of_two(&mut self, kind: Kind, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
        let (a, grid) = (self.value(node, 0)?, self.wanted(node, grid)?);
        let b = match self.model.graph.get(node.inputs[1]).origin {
            Origin::Weight(_) => self.stored(node, 1)?,
            _ => self.value(node, 1)?,
        };
        let (a, b) = (self.wide(a), self.wide(b));
        let made = self.pair(kind, named(name, "wide", grid), a, b, grid.widened());
        Ok(self.to(name, made, grid))
    }

    fn silu(&mut self, name: &str, gate: i32) -> i32 {
        let gate = self.wide(gate);
        let open = self.function(LOGISTIC_16, format!("{name}/open"), gate);
        self.product(format!("{name}/silu"), gate, open, self.grid(gate))
    }

    /// By a table of int8 codes.
    fn gelu(&mut self, node: &Node, name: &str, grid: Option<Grid>, approximate: bool) -> Result<i32> {
        let (x, grid) = (self.value(node, 0)?, self.wanted(node, grid)?);
        if self.grid(x).bits > 8 {
            return Err(self.refuse(node, "in 16 bits", "GELU of 8 bits: set `bits = 8` in the step `activations`"));
        }
        let byte = if grid.bits > 8 { Grid { bits: 8, scale: grid.reach() / 127.0, zero: 0 } } else { grid };
        let dims = self.dims(x);
        let named = if byte == grid { name.to_owned() } else { format!("{name}/byte") };
        let made = self.codes(named, GELU_8, &[x], vec![(0, Field::Bool(approximate))], &dims, byte);
        Ok(self.to(name, made, grid))
    }
}
