//! Text of pages, which is escaped, and drawings (W3C SVG 1.1): on a page, or as files of their own.

use std::fmt::Write;

/// Text that no markup can hide in.
pub fn escaped(text: &str) -> String {
    let legal = text.chars().filter(|c| !c.is_control());
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        other => other.to_string(),
    };
    legal.map(escape).collect()
}

/// Where text stands at its point.
#[derive(Clone, Copy)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        ["start", "middle", "end"][self as usize]
    }
}

/// Colours that lines and boxes have in turn, told apart by people who see colours differently (Okabe & Ito 2008).
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// The class of the colour number `at`.
pub fn color(at: usize) -> String {
    format!("s{}", at % COLORS.len())
}

/// The style of a drawing that is a file: `line` is what a colour strokes, `box` what it fills.
fn style() -> String {
    let colors = COLORS.iter().enumerate().map(|(at, color)| format!(".s{at}{{fill:{color};stroke:{color}}}"));
    ["svg{font:13px sans-serif;background:#fff}", ".grid{stroke:#ddd}", ".frame{fill:none;stroke:#000}", ".plane{fill:#eee}"]
        .map(String::from)
        .into_iter()
        .chain(colors)
        .chain([".line{fill:none;stroke-width:1.5}", ".box{stroke:#fff;stroke-width:.4}"].map(String::from))
        .collect()
}

/// A drawing. Coordinates go right and down; classes are those of the page's style, or of a file's own; texts are escaped here.
pub struct Drawing {
    text: String,
    /// The unit of coordinates to the right: none, or `%`.
    unit: &'static str,
}

impl Drawing {
    /// A file of its own.
    pub fn file([width, height]: [f64; 2], label: &str) -> Drawing {
        let (label, style) = (escaped(label), style());
        let space = "xmlns=\"http://www.w3.org/2000/svg\"";
        let mut drawing = Drawing { text: String::new(), unit: "" };
        drawing.add(format_args!("<svg {space} viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{label}\">"));
        drawing.add(format_args!("<style>{style}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"));
        drawing
    }

    /// On a page, of this size, with what it shows in a few words.
    pub fn new([width, height]: [f64; 2], label: &str) -> Drawing {
        let label = escaped(label);
        let text = format!("<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{label}\">\n");
        Drawing { text, unit: "" }
    }

    /// On a page, so many pixels high and as wide as its place: coordinates to the right are in percent of that, and texts have
    /// the size of the page's.
    pub fn strip(height: f64, class: &str, label: &str) -> Drawing {
        let label = escaped(label);
        let text = format!("<svg class=\"{class}\" style=\"height: {height:.0}px\" role=\"img\" aria-label=\"{label}\">\n");
        Drawing { text, unit: "%" }
    }

    /// A coordinate to the right. Percents are of up to 60,000 pixels.
    fn across(&self, x: f64) -> String {
        if self.unit.is_empty() {
            return format!("{x:.2}");
        }
        let number = format!("{x:.4}");
        format!("{}%", number.trim_end_matches('0').trim_end_matches('.'))
    }

    fn add(&mut self, line: std::fmt::Arguments) {
        self.text.write_fmt(line).expect("text takes everything");
        self.text.push('\n');
    }

    /// A box: left, top, width, height; with a text for whoever points at it.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], class: &str, title: &str) {
        let (x, width) = (self.across(x), self.across(width));
        let place = format!("x=\"{x}\" y=\"{y:.2}\" width=\"{width}\" height=\"{height:.2}\" class=\"{class}\"");
        match title {
            "" => self.add(format_args!("<rect {place}/>")),
            title => self.add(format_args!("<rect {place}><title>{}</title></rect>", escaped(title))),
        }
    }

    /// From, to.
    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], class: &str) {
        let (x1, x2) = (self.across(x1), self.across(x2));
        self.add(format_args!("<line x1=\"{x1}\" y1=\"{y1:.2}\" x2=\"{x2}\" y2=\"{y2:.2}\" class=\"{class}\"/>"));
    }

    /// Middle and radius, with a text for whoever points at it.
    pub fn circle(&mut self, [x, y, radius]: [f64; 3], class: &str, title: &str) {
        let title = escaped(title);
        let place = format!("cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius:.2}\" class=\"{class}\"");
        self.add(format_args!("<circle {place}><title>{title}</title></circle>"));
    }

    /// On a line of text whose foot is at `y`.
    pub fn label(&mut self, [x, y]: [f64; 2], anchor: Anchor, class: &str, text: &str) {
        let (anchor, text, x) = (anchor.name(), escaped(text), self.across(x));
        self.add(format_args!("<text x=\"{x}\" y=\"{y:.2}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"));
    }

    /// Points, joined.
    pub fn polyline(&mut self, points: &[[f64; 2]], class: &str) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!("<polyline points=\"{}\" class=\"{class}\"/>", points.join(" ")));
    }

    /// The drawing, whole.
    pub fn done(self) -> String {
        self.text + "</svg>\n"
    }
}

/// About how wide a text is at the size of labels.
pub fn width(text: &str) -> f64 {
    6.3 * text.chars().count() as f64
}

/// As much of a text as there is room for; nothing where that says nothing.
pub fn fitted(text: &str, room: f64) -> Option<String> {
    const LEAST: usize = 8;
    if width(text) <= room {
        return Some(text.into());
    }
    let most = (room / width("x")).max(0.0) as usize;
    (most >= LEAST).then(|| text.chars().take(most - 1).chain(['…']).collect())
}

/// A step of 1, 2 or 5 times a power of ten that cuts `whole` into at most `most` pieces.
pub fn step(whole: u64, most: u64) -> u64 {
    let mut power = 1u64;
    loop {
        for factor in [1, 2, 5] {
            let step = power.saturating_mul(factor);
            if step == u64::MAX || whole / step <= most {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("<b>&\"'\u{7}"), "&lt;b&gt;&amp;&quot;&#39;");
    }

    #[test]
    fn texts_are_cut_to_their_room() {
        let found = [100.0, 63.0, 60.0, 40.0].map(|room| fitted("ten lettrs", room));
        assert_eq!(found.map(Option::unwrap_or_default), ["ten lettrs", "ten lettrs", "ten lett…", ""]);
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0, 7, 8, 19, 1000, 123_456].map(|whole| step(whole, 8)), [1, 1, 1, 5, 200, 20_000]);
        assert_eq!(step(u64::MAX, 1), 10_000_000_000_000_000_000);
    }
}
