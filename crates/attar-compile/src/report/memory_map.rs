//! A memory plan as a picture: time to the right, bytes upwards, a self-contained SVG file (W3C SVG 1.1).

use super::markup::{Anchor, Drawing, color};
use crate::memory::{Buffer, Entries, Placement};

/// Size of the picture, and the frame inside it: left, top, right, bottom.
const SIZE: [f64; 2] = [960.0, 540.0];
const FRAME: [f64; 4] = [110.0, 40.0, 930.0, 490.0];

/// Draws every buffer as a box; hovering over it shows its id, size, lifetime and offset. `bytes` is the size of the memory:
/// the picture is as high as that or the placement, whichever is larger.
pub fn memory_map(entries: &Entries, placement: &Placement, bytes: u64) -> String {
    let scale = Scale::of(entries, placement.height.max(bytes));
    let [left, top, right, bottom] = FRAME;
    let mut drawing = Drawing::file(SIZE, "buffers over time");
    drawing.rect([left, top, right - left, bottom - top], "plane", "");
    for (i, ((id, buffer), &offset)) in entries.ids.iter().zip(&entries.buffers).zip(&placement.offsets).enumerate() {
        draw(&mut drawing, &scale, id, buffer, offset, &color(i));
    }
    let mut label = |at: [f64; 2], anchor: Anchor, text: String| drawing.label(at, anchor, "", &text);
    label([left, bottom + 20.0], Anchor::Start, scale.start.to_string());
    label([right, bottom + 20.0], Anchor::End, scale.end.to_string());
    label([(left + right) / 2.0, bottom + 36.0], Anchor::Middle, "time".into());
    label([left - 8.0, bottom], Anchor::End, "0 B".into());
    label([left - 8.0, top + 4.0], Anchor::End, format!("{} B", scale.top));
    label([left, top - 12.0], Anchor::Start, format!("{} buffers, height {} B", entries.ids.len(), placement.height));
    drawing.done()
}

struct Scale {
    start: u64,
    end: u64,
    top: u64,
}

impl Scale {
    fn of(entries: &Entries, top: u64) -> Scale {
        let start = entries.buffers.iter().map(|buffer| buffer.lower).min().unwrap_or(0);
        let end = entries.buffers.iter().map(|buffer| buffer.upper).max().unwrap_or(start + 1);
        Scale { start, end, top: top.max(1) }
    }

    fn x(&self, time: u64) -> f64 {
        FRAME[0] + (FRAME[2] - FRAME[0]) * (time - self.start) as f64 / (self.end - self.start) as f64
    }

    fn y(&self, byte: u64) -> f64 {
        FRAME[3] - (FRAME[3] - FRAME[1]) * byte as f64 / self.top as f64
    }
}

fn draw(drawing: &mut Drawing, scale: &Scale, id: &str, buffer: &Buffer, offset: u64, color: &str) {
    let Buffer { lower, upper, size, .. } = *buffer;
    let (x, y) = (scale.x(lower), scale.y(offset + size));
    let (width, height) = (scale.x(upper) - x, scale.y(offset) - y);
    let title = format!("{id}: {size} B at {offset}, lives in {lower}..{upper}");
    drawing.rect([x, y, width, height], &format!("{color} box"), &title);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_a_box_where_it_lies() {
        let entries = Entries { ids: vec!["a<b".into(), "c".into()], buffers: vec![Buffer::new(0, 4, 1), Buffer::new(2, 8, 3)] };
        let svg = memory_map(&entries, &Placement { offsets: vec![0, 1], height: 4 }, 8);
        assert_eq!(svg.matches("<title>").count(), 2);
        assert!(svg.contains("<title>a&lt;b: 1 B at 0, lives in 0..4</title>"), "{svg}");
        // c: from a quarter of the width, from an eighth of the height to a half.
        assert!(svg.contains("<rect x=\"315.00\" y=\"265.00\" width=\"615.00\" height=\"168.75\""), "{svg}");
    }
}
