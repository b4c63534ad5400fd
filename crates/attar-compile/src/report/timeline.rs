//! Who is busy when: a lane for each queue, boxes for what it does; above them the calls, and the blocks that they belong to.

use std::collections::HashSet;

use super::{
    CallReport,
    axis::Axis,
    markup::Drawing,
    names::{block, named, within_block},
    table::pattern,
    words,
};
use crate::simulate::{CallTrace, Event, Simulation};

/// Names and classes of the queues, in the order of [`Event::queue`].
pub(super) const LANES: [(&str, &str); 4] =
    [("activation loads", "activations"), ("weight loads", "weights"), ("compute", "compute"), ("stores", "stores")];

/// Heights: of the rows of blocks and of calls, and of a lane.
const ROW: f64 = 20.0;
const LANE: f64 = 40.0;

/// The first lane begins so far below the top; the whole is so high, without its axis.
pub(super) const LANES_AT: f64 = 2.0 * ROW;
pub(super) const HEIGHT: f64 = LANES_AT + LANE * LANES.len() as f64;

/// The most calls of a picture of fixed size.
const CALLS: usize = 48;

/// The most boxes of a drawing: things too near are drawn as one, nearer or less near so that no more are needed.
const BOXES: usize = 4_000;

/// How many calls there are before the second of equal blocks begins.
pub(super) fn first_block(calls: &[CallReport]) -> usize {
    let mut seen = HashSet::new();
    let end = calls.iter().position(|call| !seen.insert(pattern(&call.name)));
    end.unwrap_or(calls.len()).min(CALLS)
}

/// The middle of a lane, from the top.
pub(super) fn middle(lane: usize) -> f64 {
    LANES_AT + LANE * (lane as f64 + 0.5)
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

/// The first `calls` calls, from `top` down.
pub(super) fn timeline(drawing: &mut Drawing, axis: &Axis, simulation: &Simulation, calls: usize, clock: f64, top: f64) {
    let [left, right] = axis.sides;
    for at in 0..LANES.len() {
        drawing.rect([left, top + middle(at) - LANE / 2.0 + 3.0, right - left, LANE - 6.0], "frame", "");
    }
    axis.ticks(drawing, [top + LANES_AT, top + HEIGHT], clock);
    heads(drawing, axis, &simulation.calls[..calls.min(simulation.calls.len())], top);
    let shown: Vec<&Event> = simulation.events.iter().filter(|event| (event.call as usize) < calls).collect();
    let runs = axis.zooms().map(|zoom| runs(&shown, axis.near(zoom)));
    let Some(runs) = runs.reduce(|finer, runs| if finer.len() > BOXES { runs } else { finer }) else { return };
    for run in runs {
        let (x, y) = (axis.x(run.start), top + middle(run.queue) - LANE / 2.0 + 5.0);
        let (lane, class) = LANES[run.queue];
        let name = simulation.calls.get(run.call as usize).map_or_else(String::new, |call| named(&call.name));
        let pieces = if run.count == 1 { String::new() } else { format!(" in {} pieces, {} busy", run.count, run.busy) };
        let from = words::round(run.start as f64 / clock, "s");
        let title = format!("{name}, {lane}: {} cycles from {} on, at {from}{pieces}", run.end - run.start, run.start);
        drawing.rect([x, y, (axis.x(run.end) - x).max(0.003), LANE - 10.0], class, &title);
    }
}

/// Events of a queue and a call, joined where there are fewer than `near` cycles between them.
fn runs(events: &[&Event], near: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open: [Option<Run>; LANES.len()] = Default::default();
    for event in events.iter().filter(|event| event.queue < LANES.len()) {
        let last = &mut open[event.queue];
        if let Some(run) = last
            && run.call == event.call
            && event.start >= run.end
            && event.start - run.end <= near
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

/// Where blocks and calls begin, with their names where there is room for them.
fn heads(drawing: &mut Drawing, axis: &Axis, calls: &[CallTrace], top: f64) {
    let mut at = 0;
    let mut shaded = false;
    while at < calls.len() {
        let name = block(&calls[at].name);
        let same = calls[at..].iter().take_while(|call| name.is_some() && block(&call.name) == name).count().max(1);
        let (from, to) = (calls[at].start, calls[at + same - 1].end);
        let x = axis.x(from);
        shaded = !shaded;
        drawing.rect([x, top, axis.x(to) - x, ROW], if shaded { "block" } else { "block other" }, name.as_deref().unwrap_or(""));
        if let Some(name) = name {
            let number = name.rsplit(' ').next().unwrap_or_default().to_owned();
            axis.text(drawing, [from, to], top + ROW - 6.0, "", &[name, number]);
        }
        at += same;
    }
    for call in calls {
        let x = axis.x(call.start);
        drawing.line([x, top + ROW, x, top + HEIGHT], "edge");
        let (short, words) = (within_block(&call.name), named(&call.name));
        let last = short.rsplit(" / ").next().unwrap_or_default().to_owned();
        let title = format!("{words}: {} cycles, waits for {}", call.end.saturating_sub(call.start), super::waits_for(call));
        drawing.rect([x, top + ROW, axis.x(call.end) - x, ROW], "call", &title);
        axis.text(drawing, [call.start, call.end], top + 2.0 * ROW - 6.0, "", &[short, last]);
    }
}
