//! What queues do when, for other tools: the trace event format that Chrome and Perfetto read (Google, "Trace Event Format"), and a table
//! of calls as CSV. Every time in them is predicted.

use serde_json::{Value, json};

use super::{
    known::{Influence, influences_of},
    named,
};
use crate::{
    Result,
    plan::Plan,
    simulate::{CallTrace, Simulation, whole},
};

/// The tracks of a run: its calls, then the queues in the order of [`crate::simulate::Event::queue`].
const TRACKS: [&str; 5] = ["calls", "activation loads", "weight loads", "compute", "stores"];

/// The most events of a run that are written.
const EVENTS: usize = 1 << 22;

/// The trace of runs, each a process of its own whose threads are the queues.
///
/// # Errors
/// A plan that cannot run.
pub fn trace(plans: &[Plan]) -> Result<Value> {
    let mut events = Vec::new();
    for (process, plan) in plans.iter().enumerate() {
        let simulation = whole(plan, EVENTS)?;
        let label = |what: &str, track: usize, name: &str| json!({ "name": what, "ph": "M", "pid": process, "tid": track, "args": { "name": name } });
        events.push(label("process_name", 0, &format!("{} on {} (predicted)", plan.title, plan.device)));
        events.extend(TRACKS.iter().enumerate().map(|(track, name)| label("thread_name", track, name)));
        let micros = |cycles: u64| 1e6 * cycles as f64 / plan.rates.clock;
        let complete = |name: &str, track: usize, [start, end]: [u64; 2], args: Value| {
            let (ts, dur) = (micros(start), micros(end - start));
            json!({ "name": name, "ph": "X", "pid": process, "tid": track, "ts": ts, "dur": dur, "args": args })
        };
        for call in &simulation.calls {
            let args = json!({ "multiply-accumulates": call.macs, "stalled cycles": call.waits.iter().sum::<u64>(),
                               "waits for": waits_for(call), "critical cycles": call.critical.cycles(),
                               "read": call.read[0] + call.read[1], "written": call.written });
            events.push(complete(&named(&call.name), 0, [call.start, call.end.max(call.start)], args));
        }
        for event in &simulation.events {
            let name = simulation.calls.get(event.call as usize).map_or_else(String::new, |call| named(&call.name));
            events.push(complete(&name, 1 + event.queue, [event.start, event.end], json!({})));
        }
    }
    Ok(json!({ "displayTimeUnit": "ns", "traceEvents": events }))
}

/// What the compute queue waits for, in the order of [`crate::simulate::Event::queue`].
const WAITS: [&str; 4] = ["activation loads", "weight loads", "nothing", "stores"];

/// What a call waits for longest: `weight loads`, or `nothing`.
pub fn waits_for(call: &CallTrace) -> &'static str {
    let longest = call.waits.iter().enumerate().rev().max_by_key(|(_, cycles)| **cycles);
    longest.filter(|(_, cycles)| **cycles > 0).map_or("nothing", |(queue, _)| WAITS[queue])
}

/// The text of a column in a line.
type Cell = fn(&Line<'_>) -> String;

/// The columns of [`calls`], each with its value for a call. Of the cycles of a call, those of `compute_cycles` and `stalled_cycles`
/// are all, and those of `stalled_on_…` all that are stalled. The critical cycles of all calls and `before_first_load` are the cycles of
/// the run.
const COLUMNS: [(&str, Cell); 30] = [
    ("run", |line| quoted(line.plan.title.split(':').next().unwrap_or_default())),
    ("call", |line| line.at.to_string()),
    ("name", |line| quoted(&named(&line.call.name))),
    ("start", |line| line.call.start.to_string()),
    ("end", |line| line.call.end.to_string()),
    ("cycles", |line| line.cycles().to_string()),
    ("compute_cycles", |line| line.call.compute.to_string()),
    ("stalled_cycles", |line| line.call.waits.iter().sum::<u64>().to_string()),
    ("stalled_on_activation_loads", |line| line.call.waits[0].to_string()),
    ("stalled_on_weight_loads", |line| line.call.waits[1].to_string()),
    ("stalled_on_stores", |line| line.call.waits[3].to_string()),
    ("waits_for", |line| quoted(waits_for(line.call))),
    ("on_critical_path", |line| if line.call.critical.cycles() > 0 { "yes" } else { "no" }.into()),
    ("critical_cycles", |line| line.call.critical.cycles().to_string()),
    ("critical_compute", |line| line.call.critical.queues[2].to_string()),
    ("critical_activation_loads", |line| line.call.critical.queues[0].to_string()),
    ("critical_weight_loads", |line| line.call.critical.queues[1].to_string()),
    ("critical_stores", |line| line.call.critical.queues[3].to_string()),
    ("critical_setup", |line| line.call.critical.setup.to_string()),
    ("array_utilisation", |line| format!("{:.4}", line.call.macs as f64 / (line.cycles().max(1) * line.array().max(1)) as f64)),
    ("macs", |line| line.call.macs.to_string()),
    ("array_macs_per_cycle", |line| line.array().to_string()),
    ("activation_bytes_read", |line| line.call.read[0].to_string()),
    ("weight_bytes_read", |line| line.call.read[1].to_string()),
    ("bytes_written", |line| line.call.written.to_string()),
    ("transfers", |line| line.call.transfers.to_string()),
    ("transfer_cycles", |line| format!("{:.0}", line.transfer())),
    ("sram_bytes", |line| line.call.sram_bytes.to_string()),
    ("sram_staged", |line| line.staged().to_string()),
    ("cycles_rest_on_assumed", |line| quoted(&line.assumed())),
];

/// A call and what is known of it.
struct Line<'a> {
    plan: &'a Plan,
    at: usize,
    call: &'a CallTrace,
    /// Bytes of the tensors that stay on the chip during it.
    kept: u64,
    /// What the plan's predictions rest on, if that is known.
    influences: Option<&'a [Influence]>,
}

impl Line<'_> {
    fn cycles(&self) -> u64 {
        self.call.end.saturating_sub(self.call.start)
    }

    /// Multiply-accumulates per cycle.
    fn array(&self) -> u64 {
        self.plan.rates.tile.array.iter().product()
    }

    /// Cycles in which its bytes could move, one after another.
    fn transfer(&self) -> f64 {
        let (CallTrace { read, written, .. }, rates) = (self.call, &self.plan.rates);
        let flash = super::flash(self.plan, &self.plan.calls[self.at], self.call);
        let dram = read.iter().sum::<u64>() - flash;
        dram as f64 / rates.tile.read + *written as f64 / rates.tile.write + super::ratio(flash as f64, rates.flash)
    }

    /// Keys of the assumed numbers of the device that decide the call's cycles; `unknown` if the device is not known.
    fn assumed(&self) -> String {
        let Some(influences) = self.influences else { return "unknown".into() };
        let decides = |influence: &&Influence| {
            let worse = influence.worse.calls.get(self.at).map(|call| call.end.saturating_sub(call.start));
            influence.rests_on.is_assumed() && worse != Some(self.cycles())
        };
        influences.iter().filter(decides).map(|influence| influence.rests_on.key.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Bytes on the chip that are in use during the call: its buffers, and what is kept.
    fn staged(&self) -> u64 {
        let body = &self.plan.bodies[self.plan.calls[self.at].body as usize];
        body.buffers.iter().map(|buffer| buffer.bytes).sum::<u64>() + self.kept
    }
}

/// One line for each call of each run, below the names of the columns.
///
/// # Errors
/// A plan that cannot run.
pub fn calls(plans: &[Plan]) -> Result<String> {
    let mut text = COLUMNS.map(|(name, _)| name).join(",") + "\n";
    for plan in plans {
        let Simulation { calls, .. } = whole(plan, 0)?;
        let (kept, influences) = (kept_bytes(plan), influences_of(plan));
        for (at, (call, kept)) in calls.iter().zip(kept).enumerate() {
            let line = Line { plan, at, call, kept, influences: influences.as_deref() };
            text += &COLUMNS.map(|(_, value)| value(&line)).join(",");
            text.push('\n');
        }
    }
    Ok(text)
}

/// Bytes of the tensors that stay on the chip, during each call from the first to the last that uses them.
fn kept_bytes(plan: &Plan) -> Vec<u64> {
    let mut bytes = vec![0; plan.calls.len()];
    for kept in super::kept(plan) {
        bytes[kept.calls[0]..=kept.calls[1]].iter_mut().for_each(|sum| *sum += kept.bytes);
    }
    bytes
}

fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\"\""))
}
