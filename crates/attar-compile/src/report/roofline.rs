//! The roofline: multiply-accumulates in a second over multiply-accumulates for each byte, both on logarithmic axes.

use super::{
    CallReport, Report,
    markup::{Anchor, Drawing, width},
    table::{Group, groups},
    words,
};

const SIZE: [f64; 2] = [1000.0, 440.0];

/// Left, top, right, bottom.
const FRAME: [f64; 4] = [90.0, 24.0, 660.0, 390.0];

/// A group of calls on the plane.
struct Dot {
    /// As in the table of calls.
    number: usize,
    name: String,
    /// Multiply-accumulates for each byte, and in a second.
    at: [f64; 2],
    calls: usize,
}

/// Decades of both axes: from, to.
struct Plane {
    x: [f64; 2],
    y: [f64; 2],
}

impl Plane {
    fn of(report: &Report, dots: &[Dot]) -> Plane {
        let ridge = report.roof.macs / report.roof.bytes;
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| [low.min(value), high.max(value)])
        };
        let x = range(&mut dots.iter().map(|dot| dot.at[0]).chain([ridge / 4.0, ridge * 4.0]));
        let y = range(&mut dots.iter().map(|dot| dot.at[1]).chain([report.roof.macs / 20.0, report.roof.macs * 1.3]));
        let decades = |[low, high]: [f64; 2]| [low.log10().floor(), high.log10().ceil()];
        Plane { x: decades(x), y: decades(y) }
    }

    fn point(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let part = |value: f64, [low, high]: [f64; 2]| ((value.log10() - low) / (high - low)).clamp(0.0, 1.0);
        [FRAME[0] + (FRAME[2] - FRAME[0]) * part(x, self.x), FRAME[3] - (FRAME[3] - FRAME[1]) * part(y, self.y)]
    }
}

/// Every call that multiplies and moves bytes; equal calls of equal blocks are one dot.
pub(super) fn roofline(report: &Report) -> String {
    let dots = dots(report);
    let plane = Plane::of(report, &dots);
    let mut drawing = Drawing::new(SIZE, "roofline");
    drawing.rect([FRAME[0], FRAME[1], FRAME[2] - FRAME[0], FRAME[3] - FRAME[1]], "frame", "");
    axes(&mut drawing, &plane);
    roof(&mut drawing, &plane, report);
    for dot in &dots {
        let [x, y] = plane.point(dot.at);
        let title = format!(
            "{}: {:.2} MAC/byte, {} predicted, {} of the roof above it",
            dot.name,
            dot.at[0],
            words::quantity(dot.at[1], "MAC/s"),
            words::percent(dot.at[1] / report.roof.macs.min(report.roof.bytes * dot.at[0])),
        );
        drawing.circle([x, y, 9.0], "dot", &title);
        drawing.label([x, y + 4.0], Anchor::Middle, "number", &dot.number.to_string());
    }
    legend(&mut drawing, &dots);
    drawing.done()
}

fn dots(report: &Report) -> Vec<Dot> {
    let dot = |(at, group): (usize, &Group)| {
        let calls = group.calls.iter().map(|at| &report.calls[*at]);
        let [macs, bytes, cycles] = [|c: &CallReport| c.macs, |c: &CallReport| c.bytes(), |c: &CallReport| c.predicted.cycles]
            .map(|of: fn(&CallReport) -> u64| calls.clone().map(of).sum::<u64>() as f64);
        let at_plane = [macs / bytes, macs / (cycles / report.roof.clock)];
        let shown = macs > 0.0 && bytes > 0.0 && cycles > 0.0;
        shown.then(|| Dot { number: at + 1, name: group.name.clone(), at: at_plane, calls: group.calls.len() })
    };
    groups(&report.calls).iter().enumerate().filter_map(dot).collect()
}

fn axes(drawing: &mut Drawing, plane: &Plane) {
    for decade in plane.x[0] as i32..=plane.x[1] as i32 {
        let [x, _] = plane.point([10f64.powi(decade), 1.0]);
        drawing.line([x, FRAME[1], x, FRAME[3]], "grid");
        drawing.label([x, FRAME[3] + 16.0], Anchor::Middle, "", &power(decade));
    }
    for decade in plane.y[0] as i32..=plane.y[1] as i32 {
        let [_, y] = plane.point([1.0, 10f64.powi(decade)]);
        drawing.line([FRAME[0], y, FRAME[2], y], "grid");
        drawing.label([FRAME[0] - 6.0, y + 4.0], Anchor::End, "", &words::quantity(10f64.powi(decade), "").replace(".000", ""));
    }
    drawing.label(
        [(FRAME[0] + FRAME[2]) / 2.0, FRAME[3] + 36.0],
        Anchor::Middle,
        "",
        "multiply-accumulates for each byte of DRAM",
    );
    drawing.label([FRAME[0] - 6.0, FRAME[1] - 10.0], Anchor::Middle, "", "predicted MAC/s");
}

/// `0.01`, `1`, `1000`.
fn power(decade: i32) -> String {
    match decade {
        0.. => format!("{:.0}", 10f64.powi(decade)),
        _ => format!("{:.*}", decade.unsigned_abs() as usize, 10f64.powi(decade)),
    }
}

/// The slope of memory up to the ridge, then the height of the array.
fn roof(drawing: &mut Drawing, plane: &Plane, report: &Report) {
    let (macs, bytes) = (report.roof.macs, report.roof.bytes);
    let ridge = plane.point([macs / bytes, macs]);
    let left = 10f64.powf(plane.x[0]).max(10f64.powf(plane.y[0]) / bytes);
    let foot = plane.point([left, left * bytes]);
    let right = plane.point([10f64.powf(plane.x[1]), macs]);
    drawing.line([foot[0], foot[1], ridge[0], ridge[1]], "roof");
    drawing.line([ridge[0], ridge[1], right[0], right[1]], "roof");
    let text = format!("{} (array)", words::quantity(macs, "MAC/s"));
    drawing.label([right[0] - 4.0, right[1] - 6.0], Anchor::End, "faint", &text);
    let text = format!("{} (DRAM reads)", words::quantity(bytes, "B/s"));
    let middle = [(foot[0] + ridge[0]) / 2.0 - 8.0, (foot[1] + ridge[1]) / 2.0 - 6.0];
    let (middle, anchor) = match middle[0] - width(&text) > FRAME[0] {
        true => (middle, Anchor::End),
        false => ([middle[0] + 20.0, middle[1] + 18.0], Anchor::Start),
    };
    drawing.label(middle, anchor, "faint", &text);
}

/// What the numbers mean, as many as there is room for.
fn legend(drawing: &mut Drawing, dots: &[Dot]) {
    const LINES: usize = 20;
    for (at, dot) in dots.iter().take(LINES).enumerate() {
        let y = FRAME[1] + 12.0 + 17.0 * at as f64;
        drawing.circle([FRAME[2] + 26.0, y - 4.0, 8.0], "dot", &format!("{} calls", dot.calls));
        drawing.label([FRAME[2] + 26.0, y], Anchor::Middle, "number", &dot.number.to_string());
        drawing.label([FRAME[2] + 42.0, y], Anchor::Start, "", &short(&dot.name, 46));
    }
    if dots.len() > LINES {
        let y = FRAME[1] + 12.0 + 17.0 * LINES as f64;
        drawing.label([FRAME[2] + 42.0, y], Anchor::Start, "faint", &format!("and {} more, as in the table", dots.len() - LINES));
    }
}

/// The first letters of a text that is too long.
fn short(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.into(),
    }
}
