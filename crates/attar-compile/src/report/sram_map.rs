//! On-chip memory over the calls: which bytes belong to what, and when.

use super::{
    Report,
    markup::{Anchor, Drawing, fitted, step, width},
    table::within_block,
    words,
};
use crate::{
    plan::{Plan, Statement},
    program::Role,
};

const WIDTH: f64 = 1000.0;

/// Left, top, right, bottom.
const FRAME: [f64; 4] = [90.0, 20.0, 990.0, 400.0];

/// A box: calls from, to (exclusive), bytes from, to.
struct Piece<'a> {
    name: &'a str,
    class: &'static str,
    calls: [usize; 2],
    bytes: [u64; 2],
}

/// The first `calls` calls to the right, addresses upwards.
pub(super) fn sram_map(report: &Report, plan: &Plan, calls: usize) -> String {
    let mut drawing = Drawing::new([WIDTH, FRAME[3] + 50.0], "on-chip memory over calls");
    let top = plan.sram.max(report.totals.sram_peak).max(1);
    let x = |call: usize| FRAME[0] + (FRAME[2] - FRAME[0]) * call.min(calls) as f64 / calls.max(1) as f64;
    let y = |byte: u64| FRAME[3] - (FRAME[3] - FRAME[1]) * byte as f64 / top as f64;
    drawing.rect([FRAME[0], FRAME[1], FRAME[2] - FRAME[0], FRAME[3] - FRAME[1]], "frame", "");
    for piece in pieces(report, plan).iter().filter(|piece| piece.calls[0] < calls) {
        let (left, right) = (x(piece.calls[0]), x(piece.calls[1]));
        let (upper, lower) = (y(piece.bytes[1]), y(piece.bytes[0]));
        let size = words::bytes(piece.bytes[1] - piece.bytes[0]);
        let [first, end] = piece.calls;
        let title = format!("{}: {size} at {}, in calls {} to {end}", piece.name, piece.bytes[0], first + 1);
        drawing.rect([left, upper, right - left, lower - upper], piece.class, &title);
        if lower - upper >= 13.0 && right - left > width(piece.name) + 4.0 {
            let middle = (upper + lower) / 2.0 + 4.0;
            drawing.label([(left + right) / 2.0, middle], Anchor::Middle, "inside", piece.name);
        }
    }
    let peak = y(report.totals.sram_peak);
    drawing.line([FRAME[0], peak, FRAME[2], peak], "roof");
    drawing.label([FRAME[0] - 6.0, FRAME[3] + 4.0], Anchor::End, "", "0 B");
    drawing.label([FRAME[0] - 6.0, FRAME[1] + 4.0], Anchor::End, "", &words::bytes(top));
    if peak - FRAME[1] > 14.0 && FRAME[3] - peak > 14.0 {
        drawing.label([FRAME[0] - 6.0, peak + 4.0], Anchor::End, "", &words::bytes(report.totals.sram_peak));
    }
    numbers(&mut drawing, calls, &x, report);
    drawing.done()
}

/// Below each call its number, and its name where there is room.
fn numbers(drawing: &mut Drawing, calls: usize, x: &dyn Fn(usize) -> f64, report: &Report) {
    let every = step(calls as u64, 24) as usize;
    for (at, call) in report.calls.iter().enumerate().take(calls) {
        let (left, right) = (x(at), x(at + 1));
        drawing.line([left, FRAME[3], left, FRAME[3] + 5.0], "edge");
        if at % every == 0 {
            drawing.label([(left + right) / 2.0, FRAME[3] + 16.0], Anchor::Middle, "", &(at + 1).to_string());
        }
        if let Some(text) = fitted(&within_block(&call.name), right - left - 4.0) {
            drawing.label([(left + right) / 2.0, FRAME[3] + 32.0], Anchor::Middle, "faint", &text);
        }
    }
}

/// Buffers of every call, then tensors that are kept.
fn pieces<'a>(report: &'a Report, plan: &'a Plan) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for (at, call) in plan.calls.iter().enumerate() {
        let body = &plan.bodies[call.body as usize];
        let mut roles = vec![None; body.buffers.len()];
        loaded(&body.code, &mut |buffer, operand| {
            roles[buffer as usize] = Some(plan.tensors[call.operands[operand as usize].tensor as usize].role);
        });
        for ((buffer, offset), role) in body.buffers.iter().zip(&call.offsets).zip(roles) {
            let weights = matches!(role, Some(Role::Weight | Role::Constant));
            let class = if weights { "weights" } else { role.map_or("sums", |_| "activations") };
            // Weights that need not wait are there from the call before on.
            let first = if weights && !call.fence_weights { at.saturating_sub(1) } else { at };
            let bytes = [*offset, offset + buffer.bytes];
            pieces.push(Piece { name: &buffer.name, class, calls: [first, at + 1], bytes });
        }
    }
    let kept = report.kept.iter().map(|kept| Piece {
        name: &kept.name,
        class: "kept",
        calls: [kept.calls[0], kept.calls[1] + 1],
        bytes: [kept.address, kept.address + kept.bytes],
    });
    pieces.extend(kept);
    pieces
}

/// Which operands fill which buffers.
fn loaded(code: &[Statement], found: &mut dyn FnMut(u32, u32)) {
    for statement in code {
        match statement {
            Statement::Loop { body, .. } => loaded(body, found),
            Statement::Load { buffer, operand, .. } => found(*buffer, *operand),
            _ => {}
        }
    }
}
