//! Lines over a logarithmic axis, as a self-contained SVG file (W3C SVG 1.1).

use std::fmt::Write;

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

/// The picture, and the frame in it: left, top, right, bottom.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 480.0;
const FRAME: [f64; 4] = [90.0, 50.0, 730.0, 410.0];

/// Told apart by people who see colours differently (Okabe & Ito 2008).
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

impl Plot {
    /// The file.
    pub(crate) fn svg(&self) -> String {
        let axes = Axes::of(self.lines.iter().flat_map(|line| &line.marks));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let [left, top, right, bottom] = FRAME;
        text(&mut svg, [(left + right) / 2.0, 28.0], "middle", &self.title);
        text(&mut svg, [(left + right) / 2.0, HEIGHT - 22.0], "middle", &self.x);
        let middle = (top + bottom) / 2.0;
        let _ = writeln!(
            svg,
            "<text transform=\"rotate(-90 24 {middle})\" x=\"24\" y=\"{middle}\" text-anchor=\"middle\">{}</text>",
            escaped(&self.y)
        );
        axes.draw(&mut svg);
        for (at, line) in self.lines.iter().enumerate() {
            draw(&mut svg, &axes, line, COLORS[at % COLORS.len()]);
            let y = top + 20.0 * (at + 1) as f64;
            let _ = writeln!(
                svg,
                "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{}\"/>",
                right - 12.0,
                y - 4.0,
                COLORS[at % COLORS.len()]
            );
            text(&mut svg, [right - 22.0, y], "end", &line.name);
        }
        svg + "</svg>\n"
    }
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(words));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn draw(svg: &mut String, axes: &Axes, line: &Line, color: &str) {
    let marks: Vec<&Mark> = line.marks.iter().filter(|mark| mark.y > 0.0).collect();
    let corners: Vec<String> = marks.iter().map(|mark| format!("{:.1},{:.1}", axes.x(mark.x), axes.y(mark.y))).collect();
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>", corners.join(" "));
    for mark in marks {
        let (x, y) = (axes.x(mark.x), axes.y(mark.y));
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
        if mark.error > 0.0 {
            let (low, high) = (axes.y((mark.y - mark.error).max(axes.low)), axes.y(mark.y + mark.error));
            let _ = writeln!(svg, "<path d=\"M{x:.1} {low:.1}V{high:.1}\" stroke=\"{color}\"/>");
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

    fn draw(&self, svg: &mut String) {
        let [left, top, right, bottom] = FRAME;
        for x in self.columns() {
            let at = self.x(x);
            let _ = writeln!(svg, "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#ddd\"/>");
            text(svg, [at, bottom + 20.0], "middle", &format!("{x}"));
        }
        for y in self.rows() {
            let at = self.y(y);
            let _ = writeln!(svg, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>");
            text(svg, [left - 8.0, at + 4.0], "end", &format!("{y}"));
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"black\"/>",
            right - left,
            bottom - top
        );
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
        assert_eq!(svg.matches("r=\"3\"").count(), 10);
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
