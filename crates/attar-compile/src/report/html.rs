//! The HTML page: one self-contained file without scripts, readable in light and dark mode.

use super::{
    Report, Table, bars::bars, escaped, roofline::roofline, sram_map::sram_map, timeline::first_block, timeline::timeline,
};
use crate::{schedule::Schedule, simulate::Simulation};

/// Colours that are safe for colour-blind readers (Okabe & Ito 2008), lighter in dark mode.
const STYLE: &str = "
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c1c1e; --faint: #62626a; --grid: #d4d4da; --frame: #f4f4f6;
  --activations: #0072b2; --weights: #d55e00; --compute: #00815f; --stores: #b0568a; --kept: #b27800; --sums: #7a5bb0; }
@media (prefers-color-scheme: dark) { :root { --page: #17181b; --ink: #e9e9ec; --faint: #a0a0aa; --grid: #3a3b41;
  --frame: #1f2024; --activations: #56a8e0; --weights: #f08a4b; --compute: #3fc49c; --stores: #e39bc4; --kept: #e6b340;
  --sums: #b99bea; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 0.4rem; }
p { margin: 0.3rem 0; } .faint, .note { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--grid); padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap; }
th { vertical-align: bottom; color: var(--faint); font-weight: 600; white-space: normal; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg text.faint { fill: var(--faint); }
svg text.inside, svg text.number { fill: var(--page); pointer-events: none; } svg text.number { font-size: 11px; }
rect.frame { fill: var(--frame); } rect.activations { fill: var(--activations); } rect.weights { fill: var(--weights); }
rect.compute { fill: var(--compute); } rect.stores { fill: var(--stores); } rect.kept { fill: var(--kept); }
rect.sums { fill: var(--sums); } rect.bytes { fill: var(--faint); }
.map rect { stroke: var(--page); stroke-width: 0.6; }
circle.dot { fill: var(--activations); stroke: var(--page); }
circle.point { fill: var(--weights); stroke: var(--page); }
line.grid { stroke: var(--grid); } line.edge { stroke: var(--faint); } line.roof { stroke: var(--ink); stroke-width: 1.5; }
.key { display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.3em 0 1em; }
.key.activations { background: var(--activations); } .key.weights { background: var(--weights); }
.key.compute { background: var(--compute); } .key.stores { background: var(--stores); } .key.kept { background: var(--kept); }
.key.sums { background: var(--sums); }
";

/// A picture of a plan, for a page that has the classes of this one.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// What it shows.
    pub title: &'static str,
    /// How to read it.
    pub caption: String,
    /// The drawing.
    pub svg: String,
}

/// The pictures of a report: roofline, timeline, on-chip memory, bytes and energy.
pub fn pictures(report: &Report, schedule: &Schedule, simulation: &Simulation) -> Vec<Picture> {
    let calls = first_block(&report.calls).min(simulation.calls.len());
    let first = first_calls(calls, report.calls.len());
    let picture = |title, caption: String, svg| Picture { title, caption, svg };
    vec![
        picture("Roofline", ROOFLINE.into(), roofline(report)),
        picture("Timeline", first.clone(), timeline(report, simulation, calls)),
        picture("On-chip memory", format!("{first} The line is the peak."), sram_map(report, &schedule.plan, calls)),
        picture("Bytes and energy", PREDICTED.into(), bars(report)),
    ]
}

fn first_calls(calls: usize, all: usize) -> String {
    match calls == all {
        true => "All calls.".to_string(),
        false => format!("The first {calls} of {all} calls, until blocks repeat."),
    }
}

/// An HTML page of a report, with the schedule and the simulation that it was made from.
pub fn to_html(report: &Report, schedule: &Schedule, simulation: &Simulation) -> String {
    let calls = first_block(&report.calls).min(simulation.calls.len());
    let title = escaped(&format!("{} on {}", report.title, report.device));
    let first = first_calls(calls, report.calls.len());
    let keys = |pairs: &[(&str, &str)]| -> String {
        pairs.iter().map(|(class, text)| format!("<span class=\"key {class}\"></span>{text}")).collect()
    };
    let map_keys = keys(&[
        ("activations", "activations and states being loaded"),
        ("weights", "weights and constants"),
        ("sums", "sums and results"),
        ("kept", "tensors kept between calls"),
    ]);
    let energy_keys = keys(&[("compute", "MAC"), ("sums", "SRAM"), ("weights", "DRAM"), ("kept", "static")]);
    let sections = [
        section("The run", &note(PREDICTED), &table(&report.totals_table())),
        section("Roofline", &note(ROOFLINE), &roofline(report)),
        section("Timeline", &note(&format!("{first} Hover over a box for its cycles.")), &timeline(report, simulation, calls)),
        section(
            "On-chip memory",
            &format!("{}<p>{map_keys}</p>\n", note(&format!("{first} The line is the peak. Hover over a box for its bytes."))),
            &format!("<div class=\"map\">\n{}</div>\n", sram_map(report, &schedule.plan, calls)),
        ),
        section("Bytes and energy", &format!("<p>{energy_keys}</p>\n"), &bars(report)),
        section("Shares", "", &table(&report.shares_table())),
        section("Calls", &note(CALLS), &table(&report.calls_table())),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p class=\"note\">{} tokens per run</p>\n{}</body>\n</html>\n",
        report.tokens,
        sections.concat(),
    )
}

const PREDICTED: &str = "Cycles, seconds and joules are predicted by a model of the device, not measured. Bytes, addresses and \
                         multiply-accumulates are counted from the plan.";
const ROOFLINE: &str = "The roof is the highest rate that a call can reach at its bytes moved; the dot is its predicted rate. \
                        Numbers refer to the table of calls; equal calls of equal blocks share a dot; calls without products are \
                        not shown.";
const CALLS: &str = "Equal calls of equal blocks share a row, with sums of counts, cycles and joules. The bound is a lower bound \
                     on the bytes that any schedule of the call moves.";

fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escaped(text))
}

/// A section: heading, introduction and content, the last two as markup.
fn section(head: &str, first: &str, shown: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n{first}{shown}</section>\n", escaped(head))
}

fn table(table: &Table) -> String {
    let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = line("th", &mut table.head.iter().copied());
    let rows: String = table.rows.iter().map(|row| line("td", &mut row.iter().map(String::as_str))).collect();
    format!("<div class=\"wide\"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n")
}
