//! The roofline: multiply-accumulates in a second over multiply-accumulates for each byte, both on logarithmic axes.

use super::{
    CallReport, Report,
    markup::{Anchor, Drawing, fitted, width},
    table::{Group, groups},
    words,
};

const SIZE: [f64; 2] = [1000.0, 440.0];

/// Left, top, right, bottom.
const FRAME: [f64; 4] = [90.0, 24.0, 660.0, 390.0];

/// Radius of a point, and of a number's circle.
const POINT: f64 = 3.5;
const BADGE: f64 = 9.0;

/// A group of calls on the plane.
struct Dot {
    /// As in the table of calls.
    number: usize,
    name: String,
    /// Multiply-accumulates for each byte, and in a second.
    at: [f64; 2],
    calls: usize,
}

/// Decimal logarithms of both axes: from, to; whole ones but for the top.
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
        let y = range(&mut dots.iter().map(|dot| dot.at[1]).chain([report.roof.macs / 20.0, report.roof.macs * 2.0]));
        Plane { x: [x[0].log10().floor(), x[1].log10().ceil()], y: [y[0].log10().floor(), y[1].log10()] }
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
    let points: Vec<[f64; 2]> = dots.iter().map(|dot| plane.point(dot.at)).collect();
    let badges = badges(&points);
    for ([x, y], badge) in points.iter().zip(&badges) {
        drawing.line([*x, *y, badge[0], badge[1]], "edge");
    }
    for ((dot, point), badge) in dots.iter().zip(points).zip(badges) {
        draw(&mut drawing, point, badge, dot, report);
    }
    legend(&mut drawing, &dots);
    drawing.done()
}

/// Places for the numbers of points: near their own, on no other and on no point.
fn badges(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let mut taken: Vec<[f64; 2]> = Vec::new();
    for point in points {
        let away = |[x, y]: [f64; 2], from: &[[f64; 2]], least: f64| from.iter().all(|[a, b]| (a - x).hypot(b - y) >= least);
        let free = |place: &[f64; 2]| away(*place, &taken, 2.0 * BADGE + 1.0) && away(*place, points, BADGE + POINT + 2.0);
        let place = around(*point).into_iter().find(free).unwrap_or([point[0], point[1] + 2.0 * BADGE]);
        taken.push(place);
    }
    taken
}

/// Places inside the frame, nearest first: in rings, each from below on.
fn around([x, y]: [f64; 2]) -> Vec<[f64; 2]> {
    const RINGS: u32 = 12;
    const TURN: u32 = 16;
    let place = |at: u32| {
        let (distance, angle) = (8.0 + BADGE * f64::from(at / TURN + 1), f64::from(at % TURN) / f64::from(TURN));
        let (sine, cosine) = (std::f64::consts::TAU * angle).sin_cos();
        [x + distance * sine, y + distance * cosine]
    };
    let inside =
        |[x, y]: &[f64; 2]| (FRAME[0] + BADGE..FRAME[2] - BADGE).contains(x) && (FRAME[1] + BADGE..FRAME[3] - BADGE).contains(y);
    (0..RINGS * TURN).map(place).filter(inside).collect()
}

/// A dot and its number.
fn draw(drawing: &mut Drawing, [x, y]: [f64; 2], badge: [f64; 2], dot: &Dot, report: &Report) {
    let title = format!(
        "{}: {:.2} MAC/byte, {} predicted, {} of the roof above it",
        dot.name,
        dot.at[0],
        words::quantity(dot.at[1], "MAC/s"),
        words::percent(dot.at[1] / report.roof.macs.min(report.roof.bytes * dot.at[0])),
    );
    drawing.circle([x, y, POINT], "point", &title);
    drawing.circle([badge[0], badge[1], BADGE], "dot", &title);
    drawing.label([badge[0], badge[1] + 4.0], Anchor::Middle, "number", &dot.number.to_string());
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
    for decade in plane.y[0] as i32..=plane.y[1].floor() as i32 {
        let [_, y] = plane.point([1.0, 10f64.powi(decade)]);
        drawing.line([FRAME[0], y, FRAME[2], y], "grid");
        drawing.label([FRAME[0] - 6.0, y + 4.0], Anchor::End, "", &words::round(10f64.powi(decade), ""));
    }
    drawing.label([(FRAME[0] + FRAME[2]) / 2.0, FRAME[3] + 36.0], Anchor::Middle, "", "multiply-accumulates per byte of DRAM");
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
    let array = ["engine.clock", "engine.w8a8", "engine.w4a8", "engine.w16a16"];
    let text = format!("{} (array)", report.marked_by(words::round(macs, "MAC/s"), &array));
    // Left of the ridge nothing can lie above the slope.
    let corner = if ridge[0] - width(&text) > FRAME[0] { ridge } else { right };
    drawing.label([corner[0] - 8.0, corner[1] - 6.0], Anchor::End, "faint", &text);
    let text = format!("{} (DRAM reads)", report.marked_by(words::round(bytes, "B/s"), &["dram.read"]));
    let part = |at: usize| foot[at] + 0.75 * (ridge[at] - foot[at]);
    let middle = [part(0) - 8.0, part(1) - 6.0];
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
        drawing.label([FRAME[2] + 42.0, y], Anchor::Start, "", &fitted(&dot.name, SIZE[0] - FRAME[2] - 42.0).unwrap_or_default());
    }
    if dots.len() > LINES {
        let y = FRAME[1] + 12.0 + 17.0 * LINES as f64;
        drawing.label([FRAME[2] + 42.0, y], Anchor::Start, "faint", &format!("and {} more, see the table", dots.len() - LINES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_equal_points_stand_apart() {
        let points: Vec<[f64; 2]> = (0..12).map(|at| [640.0 + f64::from(at % 2), 30.0]).collect();
        let badges = badges(&points);
        for (at, [x, y]) in badges.iter().enumerate() {
            assert!(badges[..at].iter().all(|[a, b]| (a - x).hypot(b - y) >= 2.0 * BADGE), "{badges:?}");
            assert!(points.iter().all(|[a, b]| (a - x).hypot(b - y) >= BADGE + POINT), "{badges:?}");
            assert!(*x < FRAME[2] && *y > FRAME[1]);
        }
    }
}
