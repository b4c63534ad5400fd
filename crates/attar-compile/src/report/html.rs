//! The HTML page: one self-contained file without scripts, readable in light and dark mode and on narrow screens.

use super::{
    Report, Table,
    axis::{Axis, STRIP, ZOOMS},
    bars::bars,
    escaped,
    known::{MARK, On, most_assumed},
    markup::{Anchor, Drawing},
    roofline::roofline,
    sram_map,
    timeline::{self, first_block},
    words,
};
use serde::{Deserialize, Serialize};

use crate::{
    schedule::Schedule,
    simulate::{Simulation, whole},
};

/// Colours that are safe for colour-blind readers (Okabe & Ito 2008), lighter in dark mode.
const STYLE: &str = "
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c1c1e; --faint: #62626a; --grid: #d4d4da; --frame: #f4f4f6;
  --activations: #0072b2; --weights: #d55e00; --compute: #00815f; --stores: #b0568a; --kept: #b27800; --sums: #7a5bb0; }
@media (prefers-color-scheme: dark) { :root { --page: #17181b; --ink: #e9e9ec; --faint: #a0a0aa; --grid: #3a3b41;
  --frame: #1f2024; --activations: #56a8e0; --weights: #f08a4b; --compute: #3fc49c; --stores: #e39bc4; --kept: #e6b340;
  --sums: #b99bea; } }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem; }
p { margin: 0.3rem 0; } .faint, .note, .head { color: var(--faint); } .note { max-width: 60rem; }
.head span:not(:last-child)::after { content: \" · \"; white-space: pre; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.6rem; margin: 1.2rem 0 0; }
.figures div { background: var(--frame); border-radius: 6px; padding: 0.6rem 0.8rem; }
.figures strong { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; } .figures span { color: var(--faint); font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--grid); padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap; }
th { vertical-align: bottom; color: var(--faint); font-weight: 600; white-space: normal; }
svg { width: 100%; min-width: 46rem; height: auto; display: block; font: 12px system-ui, sans-serif; overflow: hidden; }
svg text { fill: var(--ink); } svg text.faint { fill: var(--faint); }
svg text.inside, svg text.number { fill: var(--page); pointer-events: none; } svg text.number { font-size: 11px; }
rect.frame { fill: var(--frame); } rect.activations { fill: var(--activations); } rect.weights { fill: var(--weights); }
rect.compute { fill: var(--compute); } rect.stores { fill: var(--stores); } rect.kept { fill: var(--kept); }
rect.sums { fill: var(--sums); } rect.bytes { fill: var(--faint); } rect.block { fill: var(--grid); } rect.other { fill: var(--frame); }
rect.call { fill: transparent; }
circle.dot { fill: var(--activations); stroke: var(--page); }
circle.point { fill: var(--weights); stroke: var(--page); }
line.grid { stroke: var(--grid); } line.edge { stroke: var(--grid); } line.roof { stroke: var(--ink); stroke-width: 1.5; }
.keys { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; font-size: 13px; }
.key i { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em; border-radius: 2px; }
i.activations { background: var(--activations); } i.weights { background: var(--weights); } i.compute { background: var(--compute); }
i.stores { background: var(--stores); } i.kept { background: var(--kept); } i.sums { background: var(--sums); }
.zoom { color: var(--faint); font-size: 13px; margin-right: 0.5rem; }
input[name=zoom] { position: absolute; opacity: 0; }
input[name=zoom] + label { display: inline-block; padding: 0.1rem 0.7rem; border: 1px solid var(--grid); border-radius: 6px; font-size: 13px;
  cursor: pointer; }
input[name=zoom]:checked + label { background: var(--ink); color: var(--page); border-color: var(--ink); }
input[name=zoom]:focus-visible + label { outline: 2px solid var(--activations); outline-offset: 1px; }
.axis { display: flex; gap: 6px; margin-top: 0.6rem; } .axis .wide { flex: 1 1 0; min-width: 0; } .axis .names { min-width: 0; }
.strip rect:not(.frame):not(.call) { stroke: var(--page); stroke-width: 0.4; } .at { display: none; }
@media (max-width: 40rem) { body { margin: 1rem auto; font-size: 14px; } h1 { font-size: 1.25rem; } }
@media print { .wide { overflow-x: visible; } }
";

/// A picture of a plan, for a page that has the classes of this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The drawing.
    pub svg: String,
}

/// What a plan was made from, for the head of its page; empty where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Name of the model.
    pub model: String,
    /// Name of the recipe, or the command.
    pub recipe: String,
}

/// The most events of a run that a page looks at.
const EVENTS: usize = 1 << 20;

/// Left and right side of what pictures of fixed size show over time, and how wide they are.
const SIDES: [f64; 2] = [120.0, 990.0];
const WIDTH: f64 = 1000.0;

/// Below an axis of time.
const TICKS: f64 = 40.0;

/// The width of the names next to a strip, pixels.
const NAMES: f64 = 116.0;

/// The pictures of a report: roofline, timeline, on-chip memory, bytes and energy.
pub fn pictures(report: &Report, schedule: &Schedule, simulation: &Simulation) -> Vec<Picture> {
    let calls = first_block(&report.calls).min(simulation.calls.len());
    let first = first_calls(calls, report.calls.len());
    let picture = |title: &str, caption: String, svg| Picture { title: title.into(), caption, svg };
    let end = simulation.calls.iter().take(calls).map(|call| call.end).max().unwrap_or(1);
    let axis = Axis::fixed(end, SIDES);
    let mut lanes = Drawing::new([WIDTH, timeline::HEIGHT + TICKS], "timeline of queues");
    names_of_lanes(&mut lanes, SIDES[0] - 8.0, 0.0);
    timeline::timeline(&mut lanes, &axis, simulation, calls, report.roof.clock, 0.0);
    let mut map = Drawing::new([WIDTH, sram_map::HEIGHT + TICKS + 10.0], "on-chip memory over time");
    sram_map::heights(&mut map, report, &schedule.plan, SIDES[0] - 8.0, 6.0);
    sram_map::sram_map(&mut map, &axis, report, &schedule.plan, simulation, calls, 6.0);
    vec![
        picture("Roofline", ROOFLINE.into(), roofline(report)),
        picture("Timeline", format!("{first} {CYCLES}"), lanes.done()),
        picture("On-chip memory", format!("{first} {CYCLES} The line is the peak."), map.done()),
        picture("Bytes and energy", PREDICTED.into(), bars(report)),
    ]
}

fn first_calls(calls: usize, all: usize) -> String {
    match calls == all {
        true => "All calls.".to_string(),
        false => format!("The first {calls} of {all} calls, until blocks repeat; the plan's own page shows all."),
    }
}

fn names_of_lanes(drawing: &mut Drawing, x: f64, top: f64) {
    for (at, (name, _)) in timeline::LANES.iter().enumerate() {
        drawing.label([x, top + timeline::middle(at) + 4.0], Anchor::End, "", name);
    }
    drawing.label([x, top + timeline::HEIGHT + 17.0], Anchor::End, "faint", "time");
    drawing.label([x, top + timeline::HEIGHT + 32.0], Anchor::End, "faint", "cycles");
}

/// An HTML page of a report, with the schedule and the simulation that it was made from.
pub fn to_html(report: &Report, schedule: &Schedule, simulation: &Simulation, origin: &Origin) -> String {
    let head = head(report, origin);
    let keys = |pairs: &[(&str, &str)]| -> String {
        let key = |(class, text): &(&str, &str)| format!("<span class=\"key\"><i class=\"{class}\"></i>{text}</span>");
        format!("<p class=\"keys\">{}</p>\n", pairs.iter().map(key).collect::<String>())
    };
    let time_keys = keys(&[
        ("activations", "activations and states being loaded"),
        ("weights", "weights and constants"),
        ("compute", "arithmetic"),
        ("stores", "stores"),
        ("sums", "sums and results"),
        ("kept", "tensors kept between calls"),
    ]);
    let energy_keys = keys(&[("compute", "MAC"), ("sums", "SRAM"), ("weights", "DRAM"), ("kept", "static")]);
    // The simulation at hand may have forgotten what queues did in later calls.
    let whole = whole(&schedule.plan, EVENTS);
    let simulation = whole.as_ref().unwrap_or(simulation);
    let picture = |svg: String| format!("<div class=\"wide\">\n{svg}</div>\n");
    let sections = [
        format!("<section>\n{}{}</section>\n", figures(report), assumed(report)),
        section("Timeline and on-chip memory", &(note(OVER_TIME) + &time_keys), &over_time(report, schedule, simulation)),
        section("Roofline", &note(ROOFLINE), &picture(roofline(report))),
        section("Bytes and energy", &energy_keys, &picture(bars(report))),
        section("The run", &note(PREDICTED), &table(&report.totals_table())),
        numbers(report),
        section("Shares", "", &table(&report.shares_table())),
        section("Calls", &note(CALLS), &table(&report.calls_table())),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{}</title>\n\
         <style>{STYLE}{}</style>\n</head>\n<body>\n{}{}</body>\n</html>\n",
        escaped(&head.join(", ")),
        zoom_style(),
        heading(&head),
        sections.concat(),
    )
}

/// What the page is about: model, run, device, recipe and version, as far as they are known.
fn head(report: &Report, origin: &Origin) -> Vec<String> {
    let of = |what: &str, name: &str| (!name.is_empty()).then(|| format!("{what}{name}"));
    [
        of("", &origin.model),
        of("", &report.title),
        of("on ", &report.device),
        of("by ", &origin.recipe),
        of("attar ", env!("CARGO_PKG_VERSION")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn heading(head: &[String]) -> String {
    let (first, rest) = head.split_first().expect("attar has a version");
    let rest: String = rest.iter().map(|text| format!("<span>{}</span>", escaped(text))).collect();
    format!("<header>\n<h1>{}</h1>\n<p class=\"head\">{rest}</p>\n</header>\n", escaped(first))
}

/// The figures that people ask for first.
fn figures(report: &Report) -> String {
    let totals = &report.totals;
    let predicted = &totals.predicted;
    let figures = [
        ("predicted latency", report.marked(words::quantity(predicted.latency, "s"), On::Seconds)),
        ("predicted tokens per second", report.marked(words::round(predicted.tokens_per_second.round(), ""), On::Seconds)),
        ("predicted energy per token", report.marked(words::quantity(predicted.energy_per_token, "J"), On::Joules)),
        ("predicted utilisation", report.marked(words::percent(predicted.utilisation), On::Cycles)),
        ("DRAM traffic", words::bytes(totals.bytes() - totals.flash)),
        ("peak SRAM", words::bytes(totals.sram_peak)),
    ];
    let figure = |(name, value): &(&str, String)| {
        format!("<div><strong>{}</strong><span>{}</span></div>\n", escaped(value), escaped(name))
    };
    format!("<div class=\"figures\">\n{}</div>\n", figures.iter().map(figure).collect::<String>())
}

/// What the mark means, and which numbers to look at.
fn assumed(report: &Report) -> String {
    let most = most_assumed(&report.predicted_from);
    most.map_or_else(String::new, |most| {
        note(&format!(
            "{MARK} rests on numbers of the device that nobody measured or published. {most} Times in pictures rest on the same numbers."
        ))
    })
}

/// The numbers that the predictions rest on; nothing if they are not known.
fn numbers(report: &Report) -> String {
    match report.predicted_from.is_empty() {
        true => String::new(),
        false => section("Numbers of the device", &note(NUMBERS), &table(&report.numbers_table())),
    }
}

/// Timeline and map above each other on the same axis, which buttons zoom.
fn over_time(report: &Report, schedule: &Schedule, simulation: &Simulation) -> String {
    const MAP: f64 = timeline::HEIGHT + TICKS + 20.0;
    const HEIGHT: f64 = MAP + sram_map::HEIGHT + TICKS;
    let mut names = Drawing::strip(HEIGHT, "names", "names of queues, and bytes");
    names_of_lanes(&mut names, 100.0, 0.0);
    sram_map::heights(&mut names, report, &schedule.plan, 100.0, MAP);
    let axis = Axis::strip(simulation.cycles);
    let mut strip = Drawing::strip(HEIGHT, "strip", "queues and on-chip memory over time");
    let calls = simulation.calls.len();
    timeline::timeline(&mut strip, &axis, simulation, calls, report.roof.clock, 0.0);
    sram_map::sram_map(&mut strip, &axis, report, &schedule.plan, simulation, calls, MAP);
    let button = |(at, zoom): (usize, &u32)| {
        let checked = if at == 0 { " checked=\"checked\"" } else { "" };
        format!("<input type=\"radio\" name=\"zoom\" id=\"zoom{zoom}\"{checked}/><label for=\"zoom{zoom}\">{zoom}×</label>\n")
    };
    let buttons: String = ZOOMS.iter().enumerate().map(button).collect();
    format!(
        "<span class=\"zoom\">Zoom</span>\n{buttons}<div class=\"axis\">\n{}<div class=\"wide\" tabindex=\"0\">\n{}</div>\n</div>\n",
        names.done(),
        strip.done(),
    )
}

/// The style of the buttons that zoom the axis, and of what is shown at each level.
fn zoom_style() -> String {
    let zoom = |zoom: &u32| {
        let width = STRIP * f64::from(*zoom);
        format!(
            "#zoom{zoom}:checked ~ .axis .strip {{ width: {}%; min-width: {width:.0}px; }}\n\
             #zoom{zoom}:checked ~ .axis .z{zoom} {{ display: inline; }}\n",
            100 * zoom,
        )
    };
    format!(".axis .names {{ flex: 0 0 {NAMES:.0}px; width: {NAMES:.0}px; }}\n{}", ZOOMS.iter().map(zoom).collect::<String>())
}

const PREDICTED: &str = "Cycles, seconds and joules are predicted by a model of the device, not measured. Bytes, addresses and \
                         multiply-accumulates are counted from the plan.";
const CYCLES: &str = "Times are predicted. Hover over a box for its cycles.";
const OVER_TIME: &str = "All calls of the run. Arithmetic and transfers are predicted; bytes and addresses are those of the plan, and the \
                         line is the peak. Stretch the axis with the buttons, scroll sideways, and hover over a box for what it is.";
const ROOFLINE: &str = "The roof is the highest rate that a call can reach at its bytes moved; the dot is its predicted rate. \
                        Numbers refer to the table of calls; equal calls of equal blocks share a dot; calls without products are \
                        not shown.";
const NUMBERS: &str = "What the predictions rest on, those that count most first. Twice as bad is a rate half as high, a delay or an energy \
                       twice as high, with the same plan; an array half as wide is twice as deep.";
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
