//! On-chip memory over time: which bytes belong to what, and when.

use super::{
    Report,
    axis::Axis,
    markup::{Anchor, Drawing},
    names::named,
    words,
};
use crate::{
    plan::{Plan, Statement},
    program::Role,
    simulate::Simulation,
};

/// How high it is, without its axis.
pub(super) const HEIGHT: f64 = 340.0;

/// A box: its cycles from, to; bytes from, to.
struct Piece {
    name: String,
    /// What it is used for.
    of: String,
    class: &'static str,
    cycles: [u64; 2],
    bytes: [u64; 2],
}

/// The first `calls` calls, addresses upwards, from `top` down.
pub(super) fn sram_map(
    drawing: &mut Drawing,
    axis: &Axis,
    report: &Report,
    plan: &Plan,
    simulation: &Simulation,
    calls: usize,
    top: f64,
) {
    let ([left, right], whole) = (axis.sides, whole(report, plan));
    let y = |byte: u64| top + HEIGHT * (1.0 - byte as f64 / whole as f64);
    drawing.rect([left, top, right - left, HEIGHT], "frame", "");
    for piece in pieces(report, plan, simulation, calls).iter().filter(|piece| piece.cycles[0] < axis.end) {
        let [left, right] = piece.cycles.map(|cycle| axis.x(cycle));
        let (upper, lower) = (y(piece.bytes[1]), y(piece.bytes[0]));
        let size = words::bytes(piece.bytes[1] - piece.bytes[0]);
        let [start, end] = piece.cycles.map(|cycle| words::round(cycle as f64 / report.roof.clock, "s"));
        let title = format!("{}: {size} at {}, {start} to {end}{}", piece.name, piece.bytes[0], piece.of);
        drawing.rect([left, upper, right - left, lower - upper], piece.class, &title);
        if lower - upper >= 13.0 {
            let short = piece.name.rsplit(" / ").next().unwrap_or_default().to_owned();
            axis.text(drawing, piece.cycles, (upper + lower) / 2.0 + 4.0, "inside", &[piece.name.clone(), short]);
        }
    }
    let peak = y(report.totals.sram_peak);
    drawing.line([left, peak, right, peak], "roof");
    axis.ticks(drawing, [top + HEIGHT, top + HEIGHT], report.roof.clock);
}

/// What the heights mean, ending at `x`.
pub(super) fn heights(drawing: &mut Drawing, report: &Report, plan: &Plan, x: f64, top: f64) {
    let whole = whole(report, plan);
    let peak = top + HEIGHT * (1.0 - report.totals.sram_peak as f64 / whole as f64);
    drawing.label([x, top + HEIGHT + 4.0], Anchor::End, "", "0 B");
    drawing.label([x, top + 10.0], Anchor::End, "", &words::bytes(whole));
    if peak - top > 22.0 && top + HEIGHT - peak > 14.0 {
        drawing.label([x, peak + 4.0], Anchor::End, "", &words::bytes(report.totals.sram_peak));
    }
}

/// The bytes that the height stands for.
fn whole(report: &Report, plan: &Plan) -> u64 {
    plan.sram.max(report.totals.sram_peak).max(1)
}

/// Buffers of every call, then tensors that are kept.
fn pieces(report: &Report, plan: &Plan, simulation: &Simulation, shown: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let traces = &simulation.calls;
    let first_load = first_weight_loads(simulation);
    for (at, (call, trace)) in plan.calls.iter().zip(traces).enumerate().take(shown) {
        let body = &plan.bodies[call.body as usize];
        let mut roles = vec![None; body.buffers.len()];
        loaded(&body.code, &mut |buffer, operand| {
            roles[buffer as usize] = Some(plan.tensors[call.operands[operand as usize].tensor as usize].role);
        });
        for ((buffer, offset), role) in body.buffers.iter().zip(&call.offsets).zip(roles) {
            let weights = matches!(role, Some(Role::Weight | Role::Constant));
            let class = if weights { "weights" } else { role.map_or("sums", |_| "activations") };
            // Weights that need not wait may be there before the call.
            let early = if weights { first_load[at].unwrap_or(trace.start).min(trace.start) } else { trace.start };
            let of = format!(", for {}", named(&call.name));
            let bytes = [*offset, offset + buffer.bytes];
            pieces.push(Piece { name: buffer.name.clone(), of, class, cycles: [early, trace.end], bytes });
        }
    }
    let kept = report.kept.iter().filter(|kept| kept.calls[0] < traces.len().min(shown)).map(|kept| Piece {
        name: named(&kept.name),
        of: ", kept".into(),
        class: "kept",
        cycles: [traces[kept.calls[0]].start, traces[kept.calls[1].min(traces.len() - 1)].end],
        bytes: [kept.address, kept.address + kept.bytes],
    });
    pieces.extend(kept);
    pieces
}

/// When the first weights of each call were loaded, as far as events were remembered.
fn first_weight_loads(simulation: &Simulation) -> Vec<Option<u64>> {
    let mut first: Vec<Option<u64>> = vec![None; simulation.calls.len()];
    for event in simulation.events.iter().filter(|event| event.queue == 1) {
        if let Some(first) = first.get_mut(event.call as usize) {
            *first = Some(first.map_or(event.start, |known| known.min(event.start)));
        }
    }
    first
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
