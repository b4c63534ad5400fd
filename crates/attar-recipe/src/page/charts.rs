//! Drawings of the page.

use attar_compile::report::markup::{Anchor, Drawing, color, fitted};

/// A drawing with what to say below it.
pub(super) struct Figure {
    pub(super) svg: String,
    pub(super) caption: String,
    /// Pixels that it is wide at least, or it scrolls, and at most.
    pub(super) widths: [u32; 2],
}

/// Axes of a drawing: from values to places.
struct Axes {
    /// Left, top, right, bottom.
    frame: [f64; 4],
    x: [f64; 2],
    y: [f64; 2],
}

impl Axes {
    fn new(frame: [f64; 4], x: impl Iterator<Item = f64>, y: impl Iterator<Item = f64>) -> Axes {
        Axes { frame, x: spread(x), y: spread(y) }
    }

    fn at(&self, x: f64, y: f64) -> [f64; 2] {
        let [left, top, right, bottom] = self.frame;
        let share = |v: f64, [low, high]: [f64; 2]| (v - low) / (high - low);
        [left + share(x, self.x) * (right - left), bottom - share(y, self.y) * (bottom - top)]
    }

    fn draw(&self, drawing: &mut Drawing, x: &str, y: &str) {
        let [left, top, right, bottom] = self.frame;
        for tick in ticks(self.x) {
            let [at, _] = self.at(tick, self.y[0]);
            drawing.line([at, top, at, bottom], "grid");
            drawing.label([at, bottom + 16.0], Anchor::Middle, "faint", &short(tick));
        }
        for tick in ticks(self.y) {
            let [_, at] = self.at(self.x[0], tick);
            drawing.line([left, at, right, at], "grid");
            drawing.label([left - 6.0, at + 4.0], Anchor::End, "faint", &short(tick));
        }
        drawing.label([(left + right) / 2.0, bottom + 34.0], Anchor::Middle, "faint", x);
        drawing.label([left - 40.0, top - 10.0], Anchor::Start, "faint", y);
    }
}

/// From the smallest to the largest, with some room.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let [low, high] =
        values.filter(|v| v.is_finite()).fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)]);
    if low > high {
        return [0.0, 1.0];
    }
    let room = if high > low { 0.08 * (high - low) } else { (0.05 * high.abs()).max(0.05) };
    [low - room, high + room]
}

/// Round numbers within a range.
fn ticks([low, high]: [f64; 2]) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last.min(first + 12)).map(|n| n as f64 * step).collect()
}

/// A number as an axis writes it.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" || text.is_empty() { "0".into() } else { text.into() }
}

/// A number with three digits that count.
fn rounded(value: f64) -> String {
    let before = if value.abs() < 1.0 { 0.0 } else { value.abs().log10().floor() };
    let digits = (2.0 - before).max(0.0) as usize + usize::from(value.abs() < 1.0);
    format!("{value:.digits$}")
}

/// A model with a size and a quality.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) name: String,
    /// Megabytes.
    pub(super) size: f64,
    pub(super) quality: f64,
    pub(super) error: Option<f64>,
}

/// Sizes to the right, qualities upwards; the best at each size are joined.
pub(super) fn pareto(points: &[Point], quality: &str, lower_is_better: bool) -> Figure {
    const SIZE: [f64; 2] = [720.0, 360.0];
    let ends = points.iter().flat_map(|p| [p.quality - p.error.unwrap_or(0.0), p.quality + p.error.unwrap_or(0.0)]);
    let axes = Axes::new([70.0, 30.0, 600.0, 310.0], points.iter().map(|p| p.size), ends);
    let mut drawing = Drawing::new(SIZE, &format!("size against {quality}"));
    axes.draw(&mut drawing, "size, MB", quality);
    let mut front: Vec<&Point> = points.iter().filter(|p| !points.iter().any(|other| beats(other, p, lower_is_better))).collect();
    front.sort_by(|a, b| a.size.total_cmp(&b.size));
    if front.len() > 1 {
        drawing.polyline(&front.iter().map(|p| axes.at(p.size, p.quality)).collect::<Vec<_>>(), "front");
    }
    let mut labels: Vec<[f64; 2]> = Vec::new();
    for (at, point) in points.iter().enumerate() {
        let [x, y] = axes.at(point.size, point.quality);
        let class = color(at);
        if let Some(error) = point.error.filter(|error| *error > 0.0) {
            let ([_, low], [_, high]) = (axes.at(point.size, point.quality - error), axes.at(point.size, point.quality + error));
            drawing.line([x, low, x, high], &class);
        }
        let title = format!("{}: {:.2} MB, {quality} {}", point.name, point.size, short(point.quality));
        drawing.circle([x, y, 5.0], &class, &title);
        let room = SIZE[0] - x - 12.0;
        if let Some(name) = fitted(&point.name, room.max(100.0)) {
            // Below others that would be hidden.
            let taken = |y: f64| labels.iter().any(|[left, foot]| (foot - y).abs() < 14.0 && (left - x).abs() < 120.0);
            let foot = (0..points.len()).map(|n| y - 6.0 + 14.0 * n as f64).find(|foot| !taken(*foot)).unwrap_or(y);
            labels.push([x, foot]);
            drawing.label([x + 8.0, foot], Anchor::Start, "", &name);
        }
    }
    let best = if lower_is_better { "lower is better" } else { "higher is better" };
    let caption =
        format!("Size against {quality} ({best}); bars are one standard error, the dashed line joins those that no other beats.");
    Figure { svg: drawing.done(), caption, widths: [460, 760] }
}

/// Whether one is no worse in both, and better in one.
fn beats(one: &Point, other: &Point, lower_is_better: bool) -> bool {
    let sign = if lower_is_better { 1.0 } else { -1.0 };
    let (a, b) = (sign * one.quality, sign * other.quality);
    one.size <= other.size && a <= b && (one.size < other.size || a < b)
}

/// A weight in a heat strip.
pub(super) struct Cell {
    pub(super) block: String,
    pub(super) matrix: String,
    /// Decibels; nothing was lost, if absent.
    pub(super) snr: Option<f64>,
    pub(super) encoding: String,
    pub(super) bits: f64,
}

/// Signal-to-noise ratios from which on a color holds, in decibels; what is below the last has the color of most damage.
const LEVELS: [f64; 7] = [45.0, 38.0, 32.0, 26.0, 21.0, 17.0, 13.0];

/// Blocks to the right, matrices downwards.
pub(super) fn heat(cells: &[Cell]) -> Figure {
    let mut blocks: Vec<&str> = Vec::new();
    let mut matrices: Vec<&str> = Vec::new();
    for cell in cells {
        if !blocks.contains(&cell.block.as_str()) {
            blocks.push(&cell.block);
        }
        if !matrices.contains(&cell.matrix.as_str()) {
            matrices.push(&cell.matrix);
        }
    }
    const LEFT: f64 = 150.0;
    let wide = (720.0 / blocks.len() as f64).clamp(9.0, 26.0);
    let high = 18.0;
    let size = [(LEFT + wide * blocks.len() as f64 + 20.0).max(660.0), 24.0 + high * matrices.len() as f64 + 40.0];
    let mut drawing = Drawing::new(size, "how well each weight is kept");
    for (row, matrix) in matrices.iter().enumerate() {
        let name = fitted(matrix, LEFT - 10.0).unwrap_or_default();
        drawing.label([LEFT - 8.0, 24.0 + high * row as f64 + 13.0], Anchor::End, "", &name);
    }
    let every = (blocks.len() as f64 * 22.0 / (wide * blocks.len() as f64)).ceil().max(1.0) as usize;
    for (column, block) in blocks.iter().enumerate().filter(|(column, _)| column % every == 0) {
        drawing.label([LEFT + wide * (column as f64 + 0.5), 16.0], Anchor::Middle, "faint", block);
    }
    for cell in cells {
        let place = |all: &[&str], one: &str| all.iter().position(|other| *other == one).unwrap_or(0) as f64;
        let (column, row) = (place(&blocks, &cell.block), place(&matrices, &cell.matrix));
        let level = cell.snr.map_or(0, |snr| LEVELS.iter().position(|from| snr >= *from).unwrap_or(LEVELS.len()));
        let kept = cell.snr.map_or("nothing lost".to_owned(), |snr| format!("{snr:.1} dB"));
        let title = format!("{} {}: {}, {:.2} bits, {kept}", cell.block, cell.matrix, cell.encoding, cell.bits);
        let rect = [LEFT + wide * column + 0.5, 24.0 + high * row + 0.5, wide - 1.0, high - 1.0];
        drawing.rect(rect, &format!("h{level}"), &title);
    }
    let foot = size[1] - 18.0;
    for level in 0..=LEVELS.len() {
        let x = LEFT + (62.0 * level as f64) + if level > 0 { 14.0 } else { 0.0 };
        let text = match level {
            0 => format!("≥ {} dB", LEVELS[0]),
            last if last == LEVELS.len() => format!("< {}", LEVELS[last - 1]),
            level => format!("≥ {}", LEVELS[level]),
        };
        drawing.rect([x, foot, 10.0, 10.0], &format!("h{level}"), "");
        drawing.label([x + 13.0, foot + 9.0], Anchor::Start, "faint", &text);
    }
    let caption =
        "Signal-to-noise ratio of each weight, by block and matrix: blue is kept well, red is not. Point at one for its format.";
    Figure { svg: drawing.done(), caption: caption.into(), widths: [(size[0] * 0.7) as u32, (size[0] * 1.2) as u32] }
}

/// Values of the same quantiles of several distributions.
pub(super) struct Curve {
    pub(super) name: String,
    /// Milliseconds, from the smallest to the largest, at equal shares.
    pub(super) values: Vec<f64>,
}

/// Shares of requests upwards, times to the right.
pub(super) fn distribution(curves: &[Curve], what: &str) -> Figure {
    let height = 300.0 + 18.0 * curves.len() as f64;
    let axes =
        Axes::new([60.0, 30.0, 690.0, 250.0], curves.iter().flat_map(|c| c.values.iter().copied()), [0.0, 1.0].into_iter());
    let mut drawing = Drawing::new([720.0, height], what);
    axes.draw(&mut drawing, &format!("{what}, ms"), "share of requests");
    for (at, curve) in curves.iter().enumerate() {
        let last = (curve.values.len().max(2) - 1) as f64;
        let points = curve.values.iter().enumerate().map(|(i, x)| axes.at(*x, i as f64 / last));
        drawing.polyline(&points.collect::<Vec<_>>(), &color(at));
        let y = 306.0 + 18.0 * at as f64;
        drawing.rect([60.0, y - 9.0, 12.0, 10.0], &color(at), "");
        drawing.label([78.0, y], Anchor::Start, "", &curve.name);
    }
    Figure {
        svg: drawing.done(),
        caption: format!("Distribution of {what}: a point says which share took no longer."),
        widths: [460, 760],
    }
}

/// Points of a line, by what it stands for.
pub(super) struct Course {
    pub(super) name: String,
    pub(super) points: Vec<[f64; 2]>,
}

/// One quantity over another, a line each.
pub(super) fn courses(courses: &[Course], [x, y]: [&str; 2], caption: String) -> Figure {
    let height = 300.0 + 18.0 * courses.len() as f64;
    let of = |axis: usize| courses.iter().flat_map(move |course| course.points.iter().map(move |point| point[axis]));
    let axes = Axes::new([70.0, 30.0, 690.0, 250.0], of(0), of(1));
    let mut drawing = Drawing::new([720.0, height], y);
    axes.draw(&mut drawing, x, y);
    for (at, course) in courses.iter().enumerate() {
        drawing.polyline(&course.points.iter().map(|[x, y]| axes.at(*x, *y)).collect::<Vec<_>>(), &color(at));
        for [x, y] in &course.points {
            let [left, top] = axes.at(*x, *y);
            drawing.circle([left, top, 3.0], &color(at), &format!("{}: {} at {}", course.name, short(*y), short(*x)));
        }
        let foot = 306.0 + 18.0 * at as f64;
        drawing.rect([60.0, foot - 9.0, 12.0, 10.0], &color(at), "");
        drawing.label([78.0, foot], Anchor::Start, "", &course.name);
    }
    Figure { svg: drawing.done(), caption, widths: [460, 760] }
}

/// Bars of one quantity.
pub(super) fn bars(values: &[(String, f64)], what: &str, caption: String) -> Figure {
    const LEFT: f64 = 230.0;
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let mut drawing = Drawing::new([720.0, 24.0 * values.len() as f64 + 10.0], what);
    for (at, (name, value)) in values.iter().enumerate() {
        let y = 8.0 + 24.0 * at as f64;
        drawing.label([LEFT - 8.0, y + 13.0], Anchor::End, "", &fitted(name, LEFT - 40.0).unwrap_or_default());
        drawing.rect([LEFT, y, 400.0 * value / most, 16.0], "bar", &format!("{name}: {} {what}", rounded(*value)));
        drawing.label([LEFT + 6.0 + 400.0 * value / most, y + 13.0], Anchor::Start, "faint", &rounded(*value));
    }
    Figure { svg: drawing.done(), caption, widths: [460, 760] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(size: f64, quality: f64) -> Point {
        Point { name: format!("{size} <&>"), size, quality, error: Some(0.1) }
    }

    #[test]
    fn drawings_are_well_formed_whatever_is_drawn() {
        let cells: Vec<Cell> = (0..30)
            .map(|n| Cell {
                block: format!("{n}"),
                matrix: "mlp.down".into(),
                snr: (n > 2).then_some(f64::from(n) * 2.0),
                encoding: "int4/g64".into(),
                bits: 4.25,
            })
            .collect();
        let curve = Curve { name: "a".into(), values: vec![1.0, 2.0, 4.0] };
        let figures = [
            pareto(&[point(1.0, 2.0), point(2.0, 1.0), point(3.0, 3.0)], "KL", true),
            pareto(&[point(1.0, 1.0)], "KL", true),
            pareto(&[Point { quality: f64::NAN, ..point(1.0, 1.0) }], "KL", true),
            heat(&cells),
            heat(&[]),
            distribution(&[curve, Curve { name: "none".into(), values: Vec::new() }], "time"),
            bars(&[("a".into(), 0.0)], "mJ", String::new()),
            courses(&[Course { name: "a".into(), points: vec![[1.0, 2.0], [2.0, 2.0]] }], ["x", "y"], String::new()),
        ];
        for Figure { svg, .. } in figures {
            assert_eq!(svg.matches('<').count(), svg.matches('>').count(), "{svg}");
            assert!(!svg.contains("inf") && svg.ends_with("</svg>\n"), "{svg}");
        }
    }

    #[test]
    fn what_is_beaten_is_not_on_the_front() {
        assert!(beats(&point(1.0, 1.0), &point(2.0, 1.0), true) && !beats(&point(1.0, 1.0), &point(1.0, 1.0), true));
        assert!(beats(&point(1.0, 3.0), &point(1.0, 2.0), false) && !beats(&point(1.0, 3.0), &point(0.5, 2.0), false));
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([53.6289, 1234.5, 0.012345, 1.5].map(rounded), ["53.6", "1234", "0.012", "1.50"]);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks([0.0, 10.0]), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!([0.5, 2.0, -0.00001, 1234.0].map(short), ["0.5", "2", "0", "1234"]);
    }
}
