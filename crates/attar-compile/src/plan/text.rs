//! Plans as text, for people.

use std::fmt;

use super::{Attend, Body, Compute, Constant, Extent, Finish, Place, Plan, Region, Slots, Span, Statement, View};
use crate::{
    fixed::Rescale,
    program::{HeadNorm, Mask, Range},
    rates::{Elementwise, Rates},
};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {:?} for {:?}, {} bytes of sram, aligned to {}", self.title, self.device, self.sram, self.align)?;
        let Rates { clock, lanes, flash, dispatch, tile, wide, elementwise } = &self.rates;
        writeln!(f, "rates {clock} Hz, {lanes} lanes, {flash} bytes of flash, {dispatch} cycles to start")?;
        writeln!(
            f,
            "products {:?} of int8, {} of int16, {} cycles to fill",
            tile.array,
            wide.map_or("none".into(), |w| format!("{w:?}")),
            tile.fill
        )?;
        let [read, write, setup, burst] = [tile.read, tile.write, tile.setup, tile.burst as f64];
        let (outstanding, coded) = (tile.outstanding, tile.coded);
        write!(f, "transfers {read} bytes read, {write} written, {setup} cycles of setup, bursts of {burst}")?;
        writeln!(f, ", {outstanding} outstanding, {coded} bytes for one of int8 weights")?;
        let cycles = |each: Option<f64>| each.map_or("none".into(), |each| each.to_string());
        let Elementwise { product, score, norm, rescale, add, rotary, gate } = elementwise;
        let [product, score, norm, rescale] = [product, score, norm, rescale].map(|each| cycles(*each));
        let [add, rotary, gate] = [add, rotary, gate].map(|each| cycles(*each));
        write!(f, "elementwise {product} a product, {score} a score, {norm} a norm, {rescale} a rescaling")?;
        writeln!(f, ", {add} an addition, {rotary} a rotation, {gate} a gate")?;
        let [mac, sram, dram, cycle] = [tile.mac_pj, tile.sram_pj, tile.dram_pj, tile.cycle_pj];
        writeln!(f, "energies {mac} pJ a product, {sram} a byte of sram, {dram} of dram, {cycle} a cycle")?;
        for tensor in &self.tensors {
            write!(f, "tensor {:?} [{}, {}] {}", tensor.name, tensor.rows, tensor.columns, tensor.element)?;
            if let Some([rows, columns]) = tensor.tile {
                write!(f, " in tiles of [{rows}, {columns}]")?;
            }
            let space = format!("{:?}", tensor.space).to_lowercase();
            let role = format!("{:?}", tensor.role).to_lowercase();
            writeln!(f, " at {space} {} + {}, {role}", tensor.address, tensor.bytes())?;
        }
        for (index, body) in self.bodies.iter().enumerate() {
            writeln!(f, "body {index} {:?} ({} operands) {{", body.name, body.operands)?;
            for buffer in &body.buffers {
                let slots = match buffer.slots {
                    Slots::Ring(slots) => format!("in {slots} slots"),
                    Slots::Packed => "packed".into(),
                };
                writeln!(f, "  buffer {}: {} bytes of {} {slots}", buffer.name, buffer.bytes, buffer.element)?;
            }
            statements(f, body, &body.code, 1)?;
            writeln!(f, "}}")?;
        }
        for call in &self.calls {
            let operands: Vec<String> = call
                .operands
                .iter()
                .map(|o| {
                    let word = match o.position {
                        0 => "row".into(),
                        1 => "position".into(),
                        each => format!("row ({each} a position)"),
                    };
                    let beside = if o.beside == 1 { String::new() } else { format!(", {} rows side by side", o.beside) };
                    let from = match (o.row, o.position, o.beside) {
                        (0, 0, 1) => String::new(),
                        (row, ..) => format!(" from {word} {row}{beside}"),
                    };
                    named(&self.tensors, o.tensor, |tensor| &tensor.name) + &from
                })
                .collect();
            writeln!(f, "barrier{}", if call.fence_weights { "" } else { " except weight loads" })?;
            writeln!(f, "call {} {:?} ({}) at {:?}", call.body, call.name, operands.join(", "), call.offsets)?;
            for (index, constant) in call.constants.iter().enumerate() {
                writeln!(f, "  constant {index}: {constant}")?;
            }
        }
        Ok(())
    }
}

/// The name of an entry, in quotes. A plan is printed before it is proven: it may name what is not there.
fn named<T>(all: &[T], index: u32, name: impl Fn(&T) -> &String) -> String {
    all.get(index as usize).map_or_else(|| format!("#{index}, which is missing"), |entry| format!("{:?}", name(entry)))
}

fn statements(f: &mut fmt::Formatter<'_>, body: &Body, code: &[Statement], depth: usize) -> fmt::Result {
    let name = |buffer: &u32| body.buffers.get(*buffer as usize).map_or("missing-buffer", |buffer| buffer.name.as_str());
    for statement in code {
        write!(f, "{:indent$}", "", indent = 2 * depth)?;
        match statement {
            Statement::Loop { variable, extent, tile, tiles: [from, to], body: inner } => {
                writeln!(f, "for v{variable} in {extent} by {tile}, tiles {from}..{to} {{")?;
                statements(f, body, inner, depth + 1)?;
                writeln!(f, "{:indent$}}}", "", indent = 2 * depth)?;
            }
            Statement::Load { buffer, operand, region } => writeln!(f, "load {} <- operand {operand} {region}", name(buffer))?,
            Statement::Wait { buffer, region } => writeln!(f, "wait {} {region}", name(buffer))?,
            Statement::Release { buffer } => writeln!(f, "release {}", name(buffer))?,
            Statement::Open { buffer, region } => writeln!(f, "open {} {region}", name(buffer))?,
            Statement::Store { buffer, operands, region } => {
                let to: Vec<String> = operands.iter().map(|(o, column)| format!("operand {o} from column {column}")).collect();
                writeln!(f, "store {} {region} -> {}", name(buffer), to.join(", "))?;
            }
            Statement::Compute(compute) => {
                let view = |view: &View| match view.place {
                    Place::Buffer(buffer) => format!("{} {}", name(&buffer), view.region),
                    Place::Operand(operand) => format!("operand {operand} {}", view.region),
                };
                writeln!(f, "{}", compute_text(compute, &view))?;
            }
        }
    }
    Ok(())
}

fn compute_text(compute: &Compute, view: &dyn Fn(&View) -> String) -> String {
    match compute {
        Compute::Multiply { x, w, sums, first } => {
            let from = first.map_or(String::new(), |v| format!(", from zero at v{v}"));
            format!("multiply {} += {} x {}{from}", view(sums), view(x), view(w))
        }
        Compute::Finish { sums, columns, extra, out, narrow, finish } => {
            let kind = match finish {
                Finish::Rescale => "rescale".into(),
                Finish::Add => "add".into(),
                Finish::Rotary { head, normed, rotated, constant } => {
                    let normed = if *normed == 0 { String::new() } else { format!(" {normed} normed,") };
                    format!("rotary by constant {constant}, {rotated} columns in heads of {head},{normed}")
                }
                Finish::Activated { constant } => format!("activated by constant {constant}"),
                Finish::Gated { constant } => format!("gated by constant {constant}"),
            };
            let extra = extra.as_ref().map_or(String::new(), |extra| format!(", {}", view(extra)));
            let narrow = if *narrow == 0 { String::new() } else { format!(" >> {narrow}") };
            format!("{kind} {} <- {}{narrow}, {}{extra}", view(out), view(sums), view(columns))
        }
        Compute::Norm { x, gains, residual, out, constant } => {
            let residual = residual.as_ref().map_or(String::new(), |residual| format!(", {}", view(residual)));
            format!("norm by constant {constant} {} <- {}, {}{residual}", view(out), view(x), view(gains))
        }
        Compute::Attend { query, key, value, sums, softmax, attend } => {
            let Attend { head, past, mask, weight_bits, constant, first } = attend;
            let from = first.map_or(String::new(), |v| format!(", from zero at v{v}"));
            let how = format!("heads of {head} after {past}{mask}, weights of {weight_bits} bits");
            let [sums, softmax, query, key, value] = [sums, softmax, query, key, value].map(view);
            format!("attend by constant {constant}, {how}, {sums}, {softmax} += {query}, {key}, {value}{from}")
        }
        Compute::Attended { sums, softmax, out, head, constant } => {
            format!("attended by constant {constant}, heads of {head}, {} <- {}, {}", view(out), view(sums), view(softmax))
        }
    }
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |rescale: &Rescale| format!("* {} >> {}", rescale.multiplier, rescale.shift);
        match self {
            Constant::Norm { epsilon, gain_shift, centered } => {
                write!(f, "epsilon {epsilon}, gains >> {gain_shift}{}", if *centered { ", centered" } else { "" })
            }
            Constant::Rescale(rescale) => write!(f, "{}", by(rescale)),
            Constant::Ranges(ranges) => {
                let norm = |norm: &Option<HeadNorm>| match norm {
                    Some(HeadNorm { gains, epsilon, gain_shift }) => {
                        format!("normed with epsilon {epsilon}, gains {gains:?} >> {gain_shift}, ")
                    }
                    None => String::new(),
                };
                let range = |range: &Range| format!("up to {} {}{}", range.end, norm(&range.norm), by(&range.rescale));
                write!(f, "{}", ranges.iter().map(range).collect::<Vec<String>>().join(", "))
            }
            Constant::Gate { table, rescale } => write!(f, "{}, table {table:?}", by(rescale)),
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.columns)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Span::Fixed { start, length } => write!(f, "{start}..{}", start.saturating_add(*length)),
            Span::Tile { variable, base: 0, unit: 1 } => write!(f, "v{variable}"),
            Span::Tile { variable, base: 0, unit } => write!(f, "v{variable}*{unit}"),
            Span::Tile { variable, base, unit } => write!(f, "{base} + v{variable}*{unit}"),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Extent::Count(count) => write!(f, "{count}"),
            Extent::Rows { rows } => write!(f, "rows of v{rows}"),
            Extent::AllKeys { rows, past, mask } => write!(f, "keys of {rows} rows after {past}{mask}"),
            Extent::Keys { rows, past, mask } => write!(f, "keys of v{rows} after {past}{mask}"),
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mask::Causal => Ok(()),
            Mask::Window(window) => write!(f, ", window {window}"),
            Mask::Past => write!(f, ", and no others"),
        }
    }
}
