//! Plans as text, for people.

use std::fmt;

use super::{Body, Compute, Extent, Finish, Place, Plan, Region, Slots, Span, Statement, View};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {:?} for {:?}, {} bytes of sram, aligned to {}", self.title, self.device, self.sram, self.align)?;
        for tensor in &self.tensors {
            write!(f, "tensor {:?} [{}, {}] {}", tensor.name, tensor.rows, tensor.columns, tensor.element)?;
            if let Some([rows, columns]) = tensor.tile {
                write!(f, " in tiles of [{rows}, {columns}]")?;
            }
            let space = format!("{:?}", tensor.space).to_lowercase();
            writeln!(f, " at {space} {} + {}", tensor.address, tensor.bytes())?;
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
                .map(|o| match (o.row, o.position) {
                    (0, false) => named(&self.tensors, o.tensor, |tensor| &tensor.name),
                    (row, position) => {
                        let word = if position { "position" } else { "row" };
                        format!("{} from {word} {row}", named(&self.tensors, o.tensor, |tensor| &tensor.name))
                    }
                })
                .collect();
            writeln!(f, "barrier{}", if call.fence_weights { "" } else { " except weight loads" })?;
            writeln!(f, "call {} {:?} ({}) at {:?}", call.body, call.name, operands.join(", "), call.offsets)?;
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
        Compute::Finish { sums, columns, extra, out, finish } => {
            let kind = match finish {
                Finish::Rescale => "rescale",
                Finish::Add => "add",
                Finish::Rotary { .. } => "rotary",
                Finish::Gated { .. } => "gated",
            };
            let extra = extra.as_ref().map_or(String::new(), |extra| format!(", {}", view(extra)));
            format!("{kind} {} <- {}, {}{extra}", view(out), view(sums), view(columns))
        }
        Compute::Norm { x, gains, out, .. } => format!("norm {} <- {}, {}", view(out), view(x), view(gains)),
        Compute::Attend { query, key, value, sums, softmax, .. } => {
            format!("attend {}, {} += {}, {}, {}", view(sums), view(softmax), view(query), view(key), view(value))
        }
        Compute::Attended { sums, softmax, out, .. } => format!("attended {} <- {}, {}", view(out), view(sums), view(softmax)),
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
            Extent::AllKeys { rows, past, window: None } => write!(f, "keys of {rows} rows after {past}"),
            Extent::AllKeys { rows, past, window: Some(window) } => {
                write!(f, "keys of {rows} rows after {past}, window {window}")
            }
            Extent::Keys { rows, past, window: None } => write!(f, "keys of v{rows} after {past}"),
            Extent::Keys { rows, past, window: Some(window) } => write!(f, "keys of v{rows} after {past}, window {window}"),
        }
    }
}
