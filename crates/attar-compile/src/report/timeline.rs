//! Who is busy when: a lane for each queue, boxes for what it does.

use std::collections::HashSet;

use super::{
    CallReport, Report,
    markup::{Anchor, Drawing, step, width},
    table::{pattern, within_block},
    words,
};
use crate::simulate::{CallTrace, Event, Simulation};

/// Names and classes of the queues, in the order of [`Event::queue`].
const LANES: [(&str, &str); 4] =
    [("activation loads", "activations"), ("weight loads", "weights"), ("compute", "compute"), ("stores", "stores")];

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 990.0;
const TOP: f64 = 34.0;
const LANE: f64 = 40.0;
const BOTTOM: f64 = TOP + LANE * LANES.len() as f64;

/// Boxes nearer than this are drawn as one.
const NEAR: f64 = 0.5;

/// The most calls that are drawn.
const CALLS: usize = 48;

/// How many calls there are before the second of equal blocks begins.
pub(super) fn first_block(calls: &[CallReport]) -> usize {
    let mut seen = HashSet::new();
    let end = calls.iter().position(|call| !seen.insert(pattern(&call.name)));
    end.unwrap_or(calls.len()).min(CALLS)
}

/// Cycles to the right.
struct Scale {
    end: u64,
}

impl Scale {
    fn x(&self, cycle: u64) -> f64 {
        LEFT + (RIGHT - LEFT) * (cycle.min(self.end) as f64 / self.end as f64)
    }
}

/// Things that one queue does for one call, too near to be told apart.
struct Run {
    queue: usize,
    call: u32,
    start: u64,
    end: u64,
    busy: u64,
    count: u64,
}

/// The first `calls` calls.
pub(super) fn timeline(report: &Report, simulation: &Simulation, calls: usize) -> String {
    let shown: Vec<&Event> = simulation.events.iter().filter(|event| (event.call as usize) < calls).collect();
    let last = shown.iter().map(|event| event.end).max().unwrap_or(1);
    let scale = Scale { end: last.max(1) };
    let mut drawing = Drawing::new([WIDTH, BOTTOM + 50.0], "timeline of queues");
    for (at, (name, _)) in LANES.iter().enumerate() {
        let y = TOP + LANE * at as f64;
        drawing.rect([LEFT, y + 3.0, RIGHT - LEFT, LANE - 6.0], "frame", "");
        drawing.label([LEFT - 8.0, y + LANE / 2.0 + 4.0], Anchor::End, "", name);
    }
    axis(&mut drawing, &scale, report.roof.clock);
    heads(&mut drawing, &scale, &simulation.calls[..calls.min(simulation.calls.len())]);
    for run in runs(&shown, &scale) {
        let (x, y) = (scale.x(run.start), TOP + LANE * run.queue as f64 + 5.0);
        let (lane, class) = LANES[run.queue];
        let name = simulation.calls.get(run.call as usize).map_or("", |call| call.name.as_str());
        let pieces = if run.count == 1 { String::new() } else { format!(" in {} pieces, {} busy", run.count, run.busy) };
        let title = format!("{name}, {lane}: cycles {} to {}{pieces}", run.start, run.end);
        drawing.rect([x, y, (scale.x(run.end) - x).max(0.3), LANE - 10.0], class, &title);
    }
    drawing.done()
}

/// Events of a queue and a call, joined where no eye could part them.
fn runs(events: &[&Event], scale: &Scale) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open: [Option<Run>; LANES.len()] = Default::default();
    for event in events.iter().filter(|event| event.queue < LANES.len()) {
        let last = &mut open[event.queue];
        if let Some(run) = last
            && run.call == event.call
            && event.start >= run.end
            && scale.x(event.start) - scale.x(run.end) < NEAR
        {
            (run.end, run.busy, run.count) = (event.end, run.busy + event.end - event.start, run.count + 1);
            continue;
        }
        let Event { queue, call, start, end } = **event;
        runs.extend(last.replace(Run { queue, call, start, end, busy: end - start, count: 1 }));
    }
    runs.extend(open.into_iter().flatten());
    runs
}

fn axis(drawing: &mut Drawing, scale: &Scale, clock: f64) {
    let step = step(scale.end, 8);
    for cycle in (0..=scale.end).step_by(step as usize) {
        let x = scale.x(cycle);
        drawing.line([x, TOP, x, BOTTOM + 4.0], "grid");
        drawing.label([x, BOTTOM + 18.0], Anchor::Middle, "", &cycle.to_string());
        drawing.label([x, BOTTOM + 33.0], Anchor::Middle, "faint", &words::round(cycle as f64 / clock, "s"));
    }
    drawing.label([LEFT - 8.0, BOTTOM + 18.0], Anchor::End, "", "predicted cycles");
}

/// Where calls begin, with their names where there is room for them, else their numbers.
fn heads(drawing: &mut Drawing, scale: &Scale, calls: &[CallTrace]) {
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.start < scale.end) {
        let (x, end) = (scale.x(call.start), scale.x(call.end));
        drawing.line([x, TOP - 24.0, x, BOTTOM], "edge");
        let names = [format!("{} {}", at + 1, within_block(&call.name)), (at + 1).to_string()];
        if let Some(text) = names.iter().find(|text| width(text) + 6.0 <= end - x) {
            drawing.label([x + 3.0, TOP - 8.0], Anchor::Start, "", text);
        }
    }
}
