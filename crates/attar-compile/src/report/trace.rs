//! What queues do when, for other tools: the trace event format that Chrome and Perfetto read (Google, "Trace Event Format"), and a table
//! of calls as CSV. Every time in them is predicted.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    Result,
    plan::Plan,
    simulate::{CallTrace, Simulation, whole},
};

/// The tracks of a run: its calls, then the queues in the order of [`crate::simulate::Event::queue`].
const TRACKS: [&str; 5] = ["calls", "activation loads", "weight loads", "compute", "stores"];

/// The most events of a run that are written.
const EVENTS: usize = 1 << 22;

/// A name that a person reads: `b3.attention.query.int8` is `block 3 / attention / query`.
pub fn named(name: &str) -> String {
    let part = |part: &str| {
        let words: Vec<String> = part.split('.').filter(|word| *word != "int8" && *word != "int16").map(word).collect();
        words.join(" / ")
    };
    let parts: Vec<String> = name.split(" + ").map(part).collect();
    let (first, rest) = parts.split_first().expect("a name has a part");
    let block = first.split(" / ").next().filter(|word| word.starts_with("block ")).map(|block| format!("{block} / "));
    let rest = rest.iter().map(|part| block.as_ref().and_then(|block| part.strip_prefix(block.as_str())).unwrap_or(part));
    std::iter::once(first.as_str()).chain(rest).collect::<Vec<_>>().join(" + ")
}

/// `b3` is a block; other words lose their underscores.
fn word(word: &str) -> String {
    match word.strip_prefix('b').and_then(|rest| rest.parse::<u32>().ok()) {
        Some(number) => format!("block {number}"),
        None => word.replace('_', " "),
    }
}

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
            let args = json!({ "multiply-accumulates": call.macs, "stalled cycles": call.stalled, "read": call.read[0] + call.read[1],
                               "written": call.written });
            events.push(complete(&named(&call.name), 0, [call.start, call.end.max(call.start)], args));
        }
        for event in &simulation.events {
            let name = simulation.calls.get(event.call as usize).map_or_else(String::new, |call| named(&call.name));
            events.push(complete(&name, 1 + event.queue, [event.start, event.end], json!({})));
        }
    }
    Ok(json!({ "displayTimeUnit": "ns", "traceEvents": events }))
}

/// One line for each call of each run.
///
/// # Errors
/// A plan that cannot run.
pub fn calls(plans: &[Plan]) -> Result<String> {
    let mut text =
        "run,call,name,start,end,cycles,compute_cycles,stalled_cycles,array_utilisation,bound_by,macs,activation_bytes_read,\
                    weight_bytes_read,bytes_written,transfers,transfer_cycles,sram_bytes,array_macs_per_cycle\n"
            .to_owned();
    for plan in plans {
        let Simulation { calls, .. } = whole(plan, 0)?;
        for (at, call) in calls.iter().enumerate() {
            line(&mut text, plan, at, call);
        }
    }
    Ok(text)
}

fn line(text: &mut String, plan: &Plan, at: usize, call: &CallTrace) {
    let run = plan.title.split(':').next().unwrap_or_default();
    let (cycles, array) = (call.end.saturating_sub(call.start), plan.rates.tile.array.iter().product::<u64>());
    let utilisation = call.macs as f64 / (cycles.max(1) * array.max(1)) as f64;
    let rates = &plan.rates.tile;
    let transfer = (call.read[0] + call.read[1]) as f64 / rates.read + call.written as f64 / rates.write;
    let bound = if call.compute as f64 >= transfer { "compute" } else { "transfers" };
    let quoted = |word: &str| format!("\"{}\"", word.replace('"', "\"\""));
    let CallTrace { start, end, compute, stalled, macs, read, written, transfers, sram_bytes, .. } = call;
    let [activations, weights] = read;
    writeln!(
        text,
        "{},{at},{},{start},{end},{cycles},{compute},{stalled},{utilisation:.4},{bound},{macs},{activations},{weights},{written},\
         {transfers},{transfer:.0},{sram_bytes},{array}",
        quoted(run),
        quoted(&named(&call.name)),
    )
    .expect("strings grow");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_person_knows() {
        assert_eq!(named("b3.attention.query.int8"), "block 3 / attention / query");
        assert_eq!(named("b0.attention_in.int8 + b0.qkv"), "block 0 / attention in + qkv");
        assert_eq!(named("final_norm"), "final norm");
        assert_eq!(named("b1.x + b2.y"), "block 1 / x + block 2 / y");
    }
}
