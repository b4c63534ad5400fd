//! The code of a body as a C function.

use std::fmt::Write as _;

use attar_compile::{
    plan::{Attend, Body, Compute, Extent, Finish, Place, Region, Slots, Span, Statement, View},
    program::Mask,
};

/// A function of that name.
pub(super) fn function(body: &Body, name: &str) -> String {
    let buffer = |(at, buffer): (usize, &attar_compile::plan::Buffer)| format!("{at} {}", super::words(&buffer.name));
    let buffers: Vec<String> = body.buffers.iter().enumerate().map(buffer).collect();
    let mut text = format!("/* {}. Buffers: {}. */\n", super::words(&body.name), buffers.join(", "));
    writeln!(text, "static void {name}(attar_run *run)\n{{").expect("strings grow");
    statements(&mut text, &body.code, 1);
    text += "}\n\n";
    text
}

fn statements(text: &mut String, code: &[Statement], depth: usize) {
    for statement in code {
        let indent = "    ".repeat(depth);
        match statement {
            Statement::Loop { variable, extent, tile, tiles: [first, end], body } => {
                let (from, to) = range(extent);
                let end = u32::try_from(*end).map_or("UINT32_MAX".into(), |end| end.to_string());
                writeln!(text, "{indent}ATTAR_FOR(v{variable}, {from}, {to}, {tile}, {first}, {end}) {{").expect("strings grow");
                statements(text, body, depth + 1);
                writeln!(text, "{indent}}}").expect("strings grow");
            }
            other => writeln!(text, "{indent}{};", line(other)).expect("strings grow"),
        }
    }
}

/// The first step of a loop, and one past its last.
fn range(extent: &Extent) -> (String, String) {
    match extent {
        Extent::Count(count) => ("0".into(), count.to_string()),
        Extent::Rows { rows } => (format!("v{rows}.start"), format!("v{rows}.start + v{rows}.length")),
        Extent::Keys { mask: Mask::Past, .. } | Extent::AllKeys { mask: Mask::Past, .. } => ("0".into(), "run->past".into()),
        Extent::Keys { rows, mask, .. } => {
            (first_key(&format!("v{rows}.start"), *mask), format!("run->past + v{rows}.start + v{rows}.length"))
        }
        Extent::AllKeys { rows, mask, .. } => (first_key("0", *mask), format!("run->past + {rows}")),
    }
}

/// The first key that a row of the run sees.
fn first_key(row: &str, mask: Mask) -> String {
    match mask {
        Mask::Window(window) => format!("attar_first_key(run->past + {row}, {window})"),
        Mask::Causal | Mask::Past => "0".into(),
    }
}

fn line(statement: &Statement) -> String {
    match statement {
        Statement::Loop { .. } => unreachable!("loops have lines of their own"),
        Statement::Load { buffer, operand, region } => format!("attar_load(run, {buffer}, {operand}, {})", boxed(region)),
        Statement::Wait { buffer, region } => format!("attar_wait(run, {buffer}, {})", boxed(region)),
        Statement::Release { buffer } => format!("attar_release(run, {buffer})"),
        Statement::Open { buffer, region } => format!("attar_open(run, {buffer}, {})", boxed(region)),
        Statement::Store { buffer, operands, region } => {
            let parts: Vec<String> = operands.iter().map(|(operand, first)| format!("{{{operand}, {first}}}")).collect();
            let count = parts.len();
            format!("attar_store(run, {buffer}, {}, (attar_part[]){{{}}}, {count})", boxed(region), parts.join(", "))
        }
        Statement::Compute(compute) => arithmetic(compute),
    }
}

fn arithmetic(compute: &Compute) -> String {
    match compute {
        Compute::Multiply { x, w, sums, first } => {
            let Place::Buffer(weights) = w.place else { unreachable!("weights are loaded into a buffer") };
            let first = first.map_or("1".into(), |variable| format!("v{variable}.index == 0"));
            format!("attar_multiply(run, {}, {weights}, {}, {}, {first})", view(x), boxed(&w.region), view(sums))
        }
        Compute::Finish { sums, columns, extra, out, narrow, finish } => {
            let extra = match (extra, finish) {
                (Some(extra), _) => format!(", {}", view(extra)),
                (None, Finish::Rotary { .. }) => ", (attar_view){0}".to_owned(),
                (None, _) => String::new(),
            };
            let (name, rest) = match finish {
                Finish::Rescale => ("rescale", String::new()),
                Finish::Add => ("add", String::new()),
                Finish::Activated { constant } => ("activated", format!(", &run->call->constants[{constant}]")),
                Finish::Rotary { head, rotated, constant, .. } => {
                    ("rotary", format!(", {head}, {rotated}, &run->call->constants[{constant}]"))
                }
                Finish::Gated { constant } => ("gated", format!(", &run->call->constants[{constant}]")),
            };
            format!("attar_finish_{name}({}, {narrow}, {}{extra}, {}{rest})", view(sums), view(columns), view(out))
        }
        Compute::Norm { x, gains, residual, out, constant } => {
            let [x, gains, out] = [x, gains, out].map(view);
            match residual.as_ref().map(view) {
                None => format!("attar_norm({x}, {gains}, {out}, &run->call->constants[{constant}])"),
                Some(residual) => {
                    format!("attar_norm_add({x}, {gains}, {residual}, {out}, &run->call->constants[{constant}])")
                }
            }
        }
        Compute::Attend { query, key, value, sums, softmax, attend: Attend { head, mask, weight_bits, constant, first, .. } } => {
            let start = span(&query.region.rows).0;
            let first = first.map_or("1".into(), |variable| format!("v{variable}.start <= {}", first_key(&start, *mask)));
            let views = [query, key, value, sums, softmax].map(view).join(", ");
            let window = match mask {
                Mask::Causal => "0".to_owned(),
                Mask::Window(window) => window.to_string(),
                Mask::Past => "ATTAR_PAST".to_owned(),
            };
            format!("attar_attend(run, {views}, {head}, {window}, {weight_bits}, {first}, &run->call->constants[{constant}])")
        }
        Compute::Attended { sums, softmax, out, head, constant } => {
            let views = [sums, softmax, out].map(view).join(", ");
            format!("attar_attended({views}, {head}, &run->call->constants[{constant}])")
        }
    }
}

fn view(view: &View) -> String {
    match view.place {
        Place::Buffer(buffer) => format!("attar_held(run, {buffer}, {})", boxed(&view.region)),
        Place::Operand(operand) => format!("attar_kept(run, {operand}, {})", boxed(&view.region)),
    }
}

fn boxed(region: &Region) -> String {
    let ((row, rows), (column, columns)) = (span(&region.rows), span(&region.columns));
    format!("(attar_box){{{row}, {rows}, {column}, {columns}}}")
}

/// Start and length.
fn span(span: &Span) -> (String, String) {
    match span {
        Span::Fixed { start, length } => (start.to_string(), length.to_string()),
        Span::Tile { variable, base, unit } => {
            let times =
                |what: &str| if *unit == 1 { format!("v{variable}.{what}") } else { format!("v{variable}.{what} * {unit}") };
            let start = if *base == 0 { times("start") } else { format!("{base} + {}", times("start")) };
            (start, times("length"))
        }
    }
}

/// The boxes that each buffer of a body holds at most at once, in its place behind as many tokens as it was planned for.
pub(super) fn held(body: &Body) -> Option<Vec<u64>> {
    let mut walk = Walk { tiles: [[0; 2]; 256], now: vec![0; body.buffers.len()], most: vec![0; body.buffers.len()], steps: 0 };
    walk.code(&body.code)?;
    let slots = body.buffers.iter().zip(walk.most).map(|(buffer, most)| match buffer.slots {
        Slots::Ring(slots) => slots,
        // Elsewhere a window may begin within a tile, which is one more.
        Slots::Packed => most + 1,
    });
    Some(slots.collect())
}

struct Walk {
    tiles: [[u64; 2]; 256],
    now: Vec<u64>,
    most: Vec<u64>,
    steps: u64,
}

impl Walk {
    /// None if it takes too long, or a buffer is missing.
    fn code(&mut self, code: &[Statement]) -> Option<()> {
        /// Steps of loops at most.
        const LONGEST: u64 = 1 << 26;
        for statement in code {
            match statement {
                Statement::Loop { variable, extent, tile, tiles: [first, end], body } => {
                    let (from, to) = self.range(extent);
                    let tile = (*tile).max(1);
                    for index in (*first).max(from / tile)..(*end).min(to.div_ceil(tile)) {
                        self.steps += 1;
                        if self.steps > LONGEST {
                            return None;
                        }
                        self.tiles[*variable as usize] = [index * tile, tile.min(to - index * tile)];
                        self.code(body)?;
                    }
                }
                Statement::Load { buffer, .. } | Statement::Open { buffer, .. } => {
                    let at = *buffer as usize;
                    *self.now.get_mut(at)? += 1;
                    self.most[at] = self.most[at].max(self.now[at]);
                }
                Statement::Release { buffer } => *self.now.get_mut(*buffer as usize)? = 0,
                Statement::Wait { .. } | Statement::Store { .. } | Statement::Compute(_) => {}
            }
        }
        Some(())
    }

    fn range(&self, extent: &Extent) -> (u64, u64) {
        match extent {
            Extent::Count(count) => (0, *count),
            Extent::Rows { rows } => {
                let [start, length] = self.tiles[*rows as usize];
                (start, start + length)
            }
            Extent::Keys { rows, past, mask } => {
                let [start, length] = self.tiles[*rows as usize];
                mask.keys(*past, start, length)
            }
            Extent::AllKeys { rows, past, mask } => mask.keys(*past, 0, *rows),
        }
    }
}
