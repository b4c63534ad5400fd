//! The axis of time that the timeline and the map of on-chip memory share: cycles to the right, on a picture of fixed size or on a
//! strip that a page can zoom. Texts know at which zoom levels they have room.

use super::{
    markup::{Anchor, Drawing, step, width},
    words,
};

/// Zoom levels of a strip; the page's style has a class `zN` for each.
pub(super) const ZOOMS: [u32; 4] = [1, 4, 16, 64];

/// Pixels that a strip has at least, at zoom level 1.
pub(super) const STRIP: f64 = 900.0;

/// Boxes nearer than this many pixels are drawn as one.
const NEAR: f64 = 0.5;

/// Cycles to the right.
pub(super) struct Axis {
    /// The last cycle that is shown.
    pub(super) end: u64,
    /// Of the drawing: where cycle 0 and the last one are.
    pub(super) sides: [f64; 2],
    /// Pixels for each unit of the drawing at zoom level 1.
    pixels: f64,
    /// Its zoom levels, ascending.
    zooms: &'static [u32],
}

impl Axis {
    /// On a picture whose units are pixels.
    pub(super) fn fixed(end: u64, sides: [f64; 2]) -> Axis {
        Axis { end: end.max(1), sides, pixels: 1.0, zooms: &ZOOMS[..1] }
    }

    /// On a strip.
    pub(super) fn strip(end: u64) -> Axis {
        Axis { end: end.max(1), sides: [0.0, 100.0], pixels: STRIP / 100.0, zooms: &ZOOMS }
    }

    pub(super) fn x(&self, cycle: u64) -> f64 {
        let [left, right] = self.sides;
        left + (right - left) * (cycle.min(self.end) as f64 / self.end as f64)
    }

    /// Cycles that no eye tells apart at a zoom level.
    pub(super) fn near(&self, zoom: u32) -> u64 {
        (NEAR / self.pixels / f64::from(zoom) / (self.sides[1] - self.sides[0]) * self.end as f64) as u64
    }

    /// The zoom levels, largest first.
    pub(super) fn zooms(&self) -> impl Iterator<Item = u32> {
        self.zooms.iter().rev().copied()
    }

    /// Classes of something that is shown at the zoom levels that `shown` is true for; none if there are no such.
    fn classes(&self, shown: impl Fn(u32) -> bool) -> Option<String> {
        let at: Vec<u32> = self.zooms.iter().copied().filter(|zoom| shown(*zoom)).collect();
        match at.len() {
            0 => None,
            all if all == self.zooms.len() => Some(String::new()),
            _ => Some(at.iter().fold(" at".to_owned(), |classes, zoom| format!("{classes} z{zoom}"))),
        }
    }

    /// The first of some texts that has room between two cycles, in the middle; at every zoom level the best.
    pub(super) fn text(&self, drawing: &mut Drawing, [from, to]: [u64; 2], y: f64, class: &str, texts: &[String]) {
        let (left, right) = (self.x(from), self.x(to));
        let room = |zoom: u32| (right - left) * self.pixels * f64::from(zoom) - 6.0;
        let best = |zoom: u32| texts.iter().position(|text| width(text) <= room(zoom));
        for (at, text) in texts.iter().enumerate() {
            if let Some(classes) = self.classes(|zoom| best(zoom) == Some(at)) {
                drawing.label([(left + right) / 2.0, y], Anchor::Middle, format!("{class}{classes}").trim(), text);
            }
        }
    }

    /// Lines down from `top` to `bottom` at round times, with the times and cycles below.
    pub(super) fn ticks(&self, drawing: &mut Drawing, [top, bottom]: [f64; 2], clock: f64) {
        let mut size = step(self.end, 6);
        let mut before = 0;
        for (at, zoom) in self.zooms.iter().enumerate() {
            let classes = self.classes(|shown| shown >= *zoom).unwrap_or_default();
            // The last ticks are left out where their texts would leave the drawing.
            for cycle in (0..=self.end).step_by(size as usize).filter(|cycle| before == 0 || cycle % before != 0) {
                let x = self.x(cycle);
                drawing.line([x, top, x, bottom + 4.0], format!("grid{classes}").trim());
                let anchor = if cycle == 0 && self.zooms.len() > 1 { Anchor::Start } else { Anchor::Middle };
                if cycle + size / 3 > self.end && self.zooms.len() > 1 {
                    continue;
                }
                drawing.label([x, bottom + 17.0], anchor, classes.trim(), &words::round(cycle as f64 / clock, "s"));
                drawing.label([x, bottom + 32.0], anchor, format!("faint{classes}").trim(), &grouped(cycle));
            }
            (before, size) = (size, size / 4);
            if before % 4 != 0 || at + 1 == self.zooms.len() {
                break;
            }
        }
    }
}

/// Digits in groups of three: `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let group =
        |(at, digit): (usize, char)| (at > 0 && (digits.len() - at).is_multiple_of(3)).then_some(',').into_iter().chain([digit]);
    digits.chars().enumerate().flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_read_in_groups() {
        assert_eq!([0, 999, 1000, 17_430_540].map(grouped), ["0", "999", "1,000", "17,430,540"]);
    }

    #[test]
    fn a_strip_has_room_for_longer_texts_at_higher_zoom_levels() {
        let axis = Axis::strip(1000);
        let mut drawing = Drawing::strip(10.0, "strip", "test");
        // 90 pixels, 360 at zoom level 4.
        axis.text(&mut drawing, [100, 200], 5.0, "", &["x".repeat(40), "short".into()]);
        let drawn = drawing.done();
        assert!(drawn.contains("class=\"at z1\">short</text>"), "{drawn}");
        assert!(drawn.contains(&format!("class=\"at z4 z16 z64\">{}</text>", "x".repeat(40))), "{drawn}");
    }
}
