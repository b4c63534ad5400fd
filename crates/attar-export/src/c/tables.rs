//! `attar_model.c`: bodies, tensors, calls and constants of all plans.

use std::{collections::HashMap, fmt::Write as _};

use attar_compile::{
    fixed::Rescale,
    plan::{Constant, Placed, Slots, Space},
    program::{HeadNorm, Range, Role},
};

use super::{
    body,
    compiled::{Compiled, Run, refused},
    layout::Layout,
    words,
};
use crate::Result;

/// What one kernel needs at most.
pub(super) struct Held {
    pub(super) buffers: u64,
    pub(super) slots: u64,
    pub(super) depth: u64,
}

/// Over all plans.
pub(super) fn held(compiled: &Compiled) -> Result<Held> {
    let mut most = Held { buffers: 1, slots: 1, depth: 1 };
    for run in &compiled.runs {
        for body in &run.plan.bodies {
            let slots: u64 = boxes(body)?.iter().sum();
            most.buffers = most.buffers.max(body.buffers.len() as u64);
            most.slots = most.slots.max(slots);
        }
        let depths = run.plan.tensors.iter().filter_map(|tensor| tensor.tile).map(|[_, columns]| columns);
        most.depth = depths.fold(most.depth, u64::max);
    }
    Ok(most)
}

fn boxes(body: &attar_compile::plan::Body) -> Result<Vec<u64>> {
    body::held(body).ok_or_else(|| refused(format!("`{}` takes too many steps", body.name)))
}

/// Tables of gates, each once, by number.
#[derive(Default)]
struct Gates {
    known: HashMap<Vec<i16>, usize>,
    text: String,
}

impl Gates {
    fn name(&mut self, table: &[i16]) -> String {
        let next = self.known.len();
        let at = *self.known.entry(table.to_vec()).or_insert(next);
        if at == next {
            let lines: Vec<String> = table.chunks(16).map(|line| line.iter().map(|x| format!("{x}, ")).collect()).collect();
            write!(self.text, "static const int16_t gate_{at}[] = {{\n    {}\n}};\n\n", lines.join("\n    "))
                .expect("strings grow");
        }
        format!("gate_{at}")
    }
}

/// The file.
pub(super) fn model(compiled: &Compiled, layout: &Layout) -> Result<String> {
    let (mut text, mut gates, mut plans) = (String::new(), Gates::default(), String::new());
    for run in &compiled.runs {
        let name = identifier(&run.entry.name);
        write!(text, "/* {} */\n\n", words(&run.plan.title)).expect("strings grow");
        text += &bodies(run, &name)?;
        text += &tensors(run, &name, layout)?;
        text += &calls(run, &name, &mut gates);
        let [input, output] = [Role::Input, Role::Output].map(|role| run.tensor(role).expect("it was checked"));
        let (count, entry) = (run.plan.calls.len(), &run.entry);
        writeln!(
            plans,
            "    {{{name}_calls, {name}_tensors, {count}, {}, {}, {input}, {output}, {}, {}}},",
            entry.rows,
            entry.past,
            run.plan.align,
            entry.logits()
        )
        .expect("strings grow");
    }
    let head = "/* What the plans do, call by call. */\n#include \"attar_model.h\"\n\n";
    Ok(format!(
        "{head}{}{text}extern const attar_plan attar_plans[ATTAR_PLANS];\n\nconst attar_plan attar_plans[ATTAR_PLANS] = {{\n{plans}}};\n",
        gates.text
    ))
}

/// A name of a run as C can have it.
fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn bodies(run: &Run, name: &str) -> Result<String> {
    let mut text = String::new();
    for (at, body) in run.plan.bodies.iter().enumerate() {
        text += &body::function(body, &format!("{name}_body_{at}"));
        let boxes = boxes(body)?;
        let buffers = body.buffers.iter().zip(&boxes).map(|(buffer, held)| {
            let slots = if let Slots::Ring(slots) = buffer.slots { slots } else { 0 };
            format!("    {{{}, {slots}, {held}, {}, {}}},\n", buffer.bytes, buffer.element.bits, buffer.element.per)
        });
        let lines: String = buffers.collect();
        write!(text, "static const attar_buffer {name}_buffers_{at}[] = {{\n{lines}}};\n\n").expect("strings grow");
    }
    let each = run.plan.bodies.iter().enumerate();
    let all: String =
        each.map(|(at, body)| format!("    {{{name}_body_{at}, {name}_buffers_{at}, {}}},\n", body.buffers.len())).collect();
    write!(text, "static const attar_body {name}_bodies[] = {{\n{all}}};\n\n").expect("strings grow");
    Ok(text)
}

fn tensors(run: &Run, name: &str, layout: &Layout) -> Result<String> {
    let mut text = format!("static const attar_tensor {name}_tensors[] = {{\n");
    for tensor in &run.plan.tensors {
        let [rows, columns] = tensor.tile.unwrap_or([0, 0]);
        let Placed { element, .. } = tensor;
        let memory = match tensor.role {
            _ if tensor.space == Space::Sram => "ATTAR_SRAM",
            Role::Weight | Role::Constant => "ATTAR_WEIGHTS",
            _ => "ATTAR_DRAM",
        };
        writeln!(
            text,
            "    {{{}u, {}, {}, {rows}, {columns}, {}, {}, {memory}}}, /* {} */",
            layout.place(tensor)?,
            tensor.rows,
            tensor.columns,
            element.bits,
            element.per,
            words(&tensor.name)
        )
        .expect("strings grow");
    }
    text += "};\n\n";
    Ok(text)
}

fn calls(run: &Run, name: &str, gates: &mut Gates) -> String {
    let (mut text, mut calls) = (String::new(), String::new());
    for (at, call) in run.plan.calls.iter().enumerate() {
        let operands: Vec<String> =
            call.operands.iter().map(|o| format!("{{{}, {}, {}, {}}}", o.tensor, o.row, o.position, o.beside)).collect();
        let offsets: Vec<String> = call.offsets.iter().map(|offset| format!("{offset}u")).collect();
        writeln!(text, "static const attar_operand {name}_operands_{at}[] = {{{}}};", operands.join(", ")).expect("strings grow");
        writeln!(text, "static const uint32_t {name}_offsets_{at}[] = {{{}}};", offsets.join(", ")).expect("strings grow");
        let mut constants = Vec::new();
        for (index, constant) in call.constants.iter().enumerate() {
            constants.push(match constant {
                Constant::Norm { epsilon, gain_shift, centered } => {
                    let centered = u8::from(*centered);
                    format!("{{.epsilon = {epsilon}u, .gain_shift = {gain_shift}, .centered = {centered}}}")
                }
                Constant::Rescale(by) => format!("{{.rescale = {}}}", rescale(by)),
                Constant::Gate { table, rescale: by } => {
                    format!("{{.rescale = {}, .gate = {}}}", rescale(by), gates.name(table))
                }
                Constant::Ranges(ranges) => {
                    let own = format!("{name}_ranges_{at}_{index}");
                    let mut all = Vec::new();
                    for (number, Range { end, norm, rescale: by }) in ranges.iter().enumerate() {
                        let normed = norm.as_ref().map(|norm| head_norm(&mut text, &format!("{own}_{number}"), norm));
                        all.push(format!("{{{end}, {}, {}}}", rescale(by), normed.as_deref().unwrap_or("0")));
                    }
                    writeln!(text, "static const attar_range {own}[] = {{{}}};", all.join(", ")).expect("strings grow");
                    format!("{{.ranges = {own}}}")
                }
            });
        }
        let mut own = "0".to_owned();
        if !constants.is_empty() {
            own = format!("{name}_constants_{at}");
            writeln!(text, "static const attar_constant {own}[] = {{{}}};", constants.join(", ")).expect("strings grow");
        }
        writeln!(
            calls,
            "    {{&{name}_bodies[{}], {name}_operands_{at}, {name}_offsets_{at}, {own}}}, /* {} */",
            call.body,
            words(&call.name)
        )
        .expect("strings grow");
    }
    format!("{text}\nstatic const attar_call {name}_calls[] = {{\n{calls}}};\n\n")
}

/// Writes the norm of a head, and returns its address.
fn head_norm(text: &mut String, name: &str, norm: &HeadNorm) -> String {
    let HeadNorm { gains, epsilon, gain_shift } = norm;
    let gains: Vec<String> = gains.iter().map(i32::to_string).collect();
    writeln!(text, "static const int32_t {name}_gains[] = {{{}}};", gains.join(", ")).expect("strings grow");
    writeln!(text, "static const attar_head_norm {name}_norm = {{{epsilon}u, {gain_shift}, {name}_gains}};")
        .expect("strings grow");
    format!("&{name}_norm")
}

fn rescale(by: &Rescale) -> String {
    format!("{{{}, {}}}", by.multiplier, by.shift)
}

/// The bytes of tokens, one after the other, and where each ends.
pub(super) fn tokens(texts: &[Vec<u8>], vocabulary: usize) -> String {
    let of = |token: usize| texts.get(token).map_or(&[][..], Vec::as_slice);
    let bytes: Vec<String> = (0..vocabulary).flat_map(|token| of(token).iter().map(u8::to_string)).collect();
    let ends = (0..vocabulary).scan(0, |end, token| {
        *end += of(token).len();
        Some(end.to_string())
    });
    let ends: Vec<String> = ends.collect();
    let lines = |numbers: &[String]| numbers.chunks(32).map(|line| line.join(",")).collect::<Vec<String>>().join(",\n");
    // An array of nothing is no C.
    let bytes = if bytes.is_empty() { "0".to_owned() } else { lines(&bytes) };
    format!(
        "/* What tokens stand for. */\n#include \"attar_model.h\"\n\nstatic const unsigned char bytes[] = {{\n{bytes}}};\n\n\
         static const uint32_t ends[ATTAR_VOCABULARY] = {{\n{}}};\n\n\
         const char *attar_text(uint32_t token, size_t *count)\n{{\n    uint32_t from = token == 0 || token >= ATTAR_VOCABULARY ? 0 : ends[token - 1];\n    \
         *count = token >= ATTAR_VOCABULARY ? 0 : ends[token] - from;\n    return (const char *)bytes + from;\n}}\n",
        lines(&ends)
    )
}
