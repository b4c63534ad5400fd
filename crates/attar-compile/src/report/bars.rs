//! Bars of bytes and joules, by kind of kernel and by what tensors hold.

use super::{
    Energy, Report,
    markup::{Anchor, Drawing},
    words,
};

const WIDTH: f64 = 1000.0;
const ROW: f64 = 24.0;

/// Left of the bars of bytes, left of those of joules, and the longest bar.
const BYTES: f64 = 170.0;
const JOULES: f64 = 600.0;
const LONGEST: f64 = 300.0;

/// A row: its name, bytes, joules by part.
struct Bar {
    name: String,
    bytes: u64,
    energy: Energy,
}

/// By kind of kernel; then, of DRAM alone, by what tensors hold.
pub(super) fn bars(report: &Report) -> String {
    let kinds = report.kinds.iter().map(|k| Bar {
        name: format!("{} ({} calls)", k.kind.name(), k.calls),
        bytes: k.bytes,
        energy: k.predicted.energy,
    });
    let roles = report.roles.iter().map(|r| Bar {
        name: r.holds.name().into(),
        bytes: r.read + r.written,
        energy: Energy { dram: r.predicted_joules, ..Energy::default() },
    });
    let (kinds, roles): (Vec<Bar>, Vec<Bar>) = (kinds.collect(), roles.collect());
    let height = ROW * (kinds.len() + roles.len()) as f64 + 60.0;
    let mut drawing = Drawing::new([WIDTH, height], "bytes and joules");
    let next = block(&mut drawing, "by kernel", &kinds, 20.0);
    block(&mut drawing, "by tensor (DRAM)", &roles, next + 20.0);
    drawing.done()
}

/// A head and rows from `top` on; returns where they end.
fn block(drawing: &mut Drawing, head: &str, bars: &[Bar], top: f64) -> f64 {
    drawing.label([BYTES - 8.0, top], Anchor::End, "faint", head);
    drawing.label([BYTES, top], Anchor::Start, "faint", "bytes");
    drawing.label([JOULES, top], Anchor::Start, "faint", "predicted joules");
    let most_bytes = bars.iter().map(|bar| bar.bytes).max().unwrap_or(0).max(1) as f64;
    let most_joules = bars.iter().map(|bar| bar.energy.total()).fold(0.0, f64::max);
    for (at, bar) in bars.iter().enumerate() {
        let y = top + 8.0 + ROW * at as f64;
        drawing.label([BYTES - 8.0, y + 14.0], Anchor::End, "", &bar.name);
        let length = LONGEST * bar.bytes as f64 / most_bytes;
        drawing.rect([BYTES, y, length, ROW - 6.0], "bytes", &format!("{}: {} B", bar.name, bar.bytes));
        drawing.label([BYTES + length + 6.0, y + 14.0], Anchor::Start, "", &words::bytes(bar.bytes));
        let end = parts(drawing, bar, [JOULES, y], most_joules);
        drawing.label([end + 6.0, y + 14.0], Anchor::Start, "", &words::quantity(bar.energy.total(), "J"));
    }
    top + 8.0 + ROW * bars.len() as f64
}

/// Joules by part, stacked; returns where they end.
fn parts(drawing: &mut Drawing, bar: &Bar, [mut x, y]: [f64; 2], most: f64) -> f64 {
    let Energy { mac, sram, dram, fixed } = bar.energy;
    for (name, class, joules) in
        [("MAC", "compute", mac), ("SRAM", "sums", sram), ("DRAM", "weights", dram), ("static", "kept", fixed)]
    {
        let length = LONGEST * super::ratio(joules, most);
        if length > 0.0 {
            let title = format!("{}, {name}: {} predicted", bar.name, words::quantity(joules, "J"));
            drawing.rect([x, y, length, ROW - 6.0], class, &title);
        }
        x += length;
    }
    x
}
