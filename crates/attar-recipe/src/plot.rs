//! Lines over a logarithmic axis, as a self-contained SVG file (W3C SVG 1.1).

use attar_compile::report::markup::{Anchor, Drawing, color};

/// What is drawn.
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: String,
    /// Named with its unit; the axis is logarithmic.
    pub(crate) y: String,
    pub(crate) lines: Vec<Line>,
}

/// Points that belong together.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) marks: Vec<Mark>,
}

/// A point. What is not above zero has no place on a logarithmic axis and is left out.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Standard error of `y`.
    pub(crate) error: f64,
}

/// Size of the picture, and the frame in it: left, top, right, bottom.
const SIZE: [f64; 2] = [760.0, 480.0];
const FRAME: [f64; 4] = [90.0, 50.0, 730.0, 410.0];

impl Plot {
    /// The file.
    pub(crate) fn svg(&self) -> String {
        let axes = Axes::of(self.lines.iter().flat_map(|line| &line.marks));
        let mut drawing = Drawing::file(SIZE, &self.title);
        let [left, top, right, _] = FRAME;
        drawing.label([(left + right) / 2.0, 22.0], Anchor::Middle, "", &self.title);
        drawing.label([(left + right) / 2.0, SIZE[1] - 22.0], Anchor::Middle, "", &self.x);
        drawing.label([left - 40.0, top - 10.0], Anchor::Start, "", &self.y);
        axes.draw(&mut drawing);
        for (at, line) in self.lines.iter().enumerate() {
            draw(&mut drawing, &axes, line, &color(at));
            let y = top + 20.0 * (at + 1) as f64;
            drawing.circle([right - 12.0, y - 4.0, 4.0], &color(at), &line.name);
            drawing.label([right - 22.0, y], Anchor::End, "", &line.name);
        }
        drawing.done()
    }
}

fn draw(drawing: &mut Drawing, axes: &Axes, line: &Line, color: &str) {
    let marks: Vec<&Mark> = line.marks.iter().filter(|mark| mark.y > 0.0).collect();
    let stroke = format!("{color} line");
    drawing.polyline(&marks.iter().map(|mark| [axes.x(mark.x), axes.y(mark.y)]).collect::<Vec<_>>(), &stroke);
    for mark in marks {
        let (x, y) = (axes.x(mark.x), axes.y(mark.y));
        drawing.circle([x, y, 3.0], color, &format!("{}: {} at {}", line.name, mark.y, mark.x));
        if mark.error > 0.0 {
            let (low, high) = (axes.y((mark.y - mark.error).max(axes.low)), axes.y(mark.y + mark.error));
            drawing.line([x, low, x, high], &stroke);
        }
    }
}

/// The axes: from values to coordinates.
struct Axes {
    left: f64,
    right: f64,
    low: f64,
    high: f64,
}

impl Axes {
    fn of<'m>(marks: impl Iterator<Item = &'m Mark>) -> Axes {
        let none = Axes { left: f64::INFINITY, right: f64::NEG_INFINITY, low: f64::INFINITY, high: 0.0 };
        let all = marks.filter(|mark| mark.y > 0.0).fold(none, |axes, mark| Axes {
            left: axes.left.min(mark.x),
            right: axes.right.max(mark.x),
            low: axes.low.min(mark.y),
            high: axes.high.max(mark.y + mark.error),
        });
        if all.left > all.right {
            return Axes { left: 0.0, right: 1.0, low: 0.1, high: 1.0 };
        }
        let margin = (0.05 * (all.right - all.left)).max(0.05);
        Axes { left: all.left - margin, right: all.right + margin, low: all.low / 1.3, high: all.high * 1.3 }
    }

    fn x(&self, x: f64) -> f64 {
        FRAME[0] + (x - self.left) / (self.right - self.left) * (FRAME[2] - FRAME[0])
    }

    fn y(&self, y: f64) -> f64 {
        FRAME[3] - (y / self.low).ln() / (self.high / self.low).ln() * (FRAME[3] - FRAME[1])
    }

    fn draw(&self, drawing: &mut Drawing) {
        let [left, top, right, bottom] = FRAME;
        for x in self.columns() {
            let at = self.x(x);
            drawing.line([at, top, at, bottom], "grid");
            drawing.label([at, bottom + 20.0], Anchor::Middle, "", &format!("{x}"));
        }
        for y in self.rows() {
            let at = self.y(y);
            drawing.line([left, at, right, at], "grid");
            drawing.label([left - 8.0, at + 4.0], Anchor::End, "", &format!("{y}"));
        }
        drawing.rect([left, top, right - left, bottom - top], "frame", "");
    }

    /// Round numbers within the frame.
    fn columns(&self) -> Vec<f64> {
        let tens = (1..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        let step = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0]
            .into_iter()
            .chain(tens)
            .find(|step| (self.right - self.left) / step <= 10.0)
            .unwrap_or(1e9);
        let first = (self.left / step).ceil() as i64;
        let last = (self.right / step).floor() as i64;
        // Twentieths, so that they print as they are meant.
        (first..=last).map(|at| (at as f64 * step * 20.0).round() / 20.0).collect()
    }

    /// One, two and five times powers of ten within the frame.
    fn rows(&self) -> Vec<f64> {
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = powers.flat_map(|power| ["1", "2", "5"].map(|digit| format!("{digit}e{power}").parse().expect("a number")));
        all.filter(|y| (self.low..=self.high).contains(y)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_well_formed_and_shows_every_point() {
        let marks = |factor: f64| (1..6).map(|x| Mark { x: f64::from(x), y: factor / f64::from(x * x), error: 0.01 }).collect();
        let lines = vec![Line { name: "a < b & c".into(), marks: marks(1.0) }, Line { name: "d".into(), marks: marks(0.5) }];
        let svg = Plot { title: "t".into(), x: "x".into(), y: "y".into(), lines }.svg();
        assert_eq!(svg.matches("r=\"3.00\"").count(), 10);
        assert!(svg.contains("a &lt; b &amp; c") && !svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn losses_of_zero_have_no_place() {
        let line = Line { name: "flat".into(), marks: vec![Mark { x: 3.0, y: 0.0, error: 0.0 }] };
        let svg = Plot { title: "t".into(), x: "x".into(), y: "y".into(), lines: vec![line] }.svg();
        assert!(svg.contains("points=\"\"") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
