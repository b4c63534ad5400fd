//! Reports add up to what was simulated, stay above their bounds, and are pages that any browser reads.

use std::{fs, path::PathBuf};

use crate::support::{Block, Builder, Random, WEIGHTS};
use attar_compile::{
    Element, Error, Kernel, Plan, Program,
    device::{Can, Confidence, Device},
    program::{Destination, Epilogue, Linear, Role},
    report::{
        Comparison, Cost, Holds, KernelKind, Limit, MARK, MovedReport, Options, Origin, Report, RestsOn, Table, calls, to_html,
    },
    schedule::{Freedom, Goal, Schedule, Target, schedule},
    simulate::{Rates, Simulation, time},
};
use serde_json::Value;

/// Sums of joules in another order.
const ROUNDING: f64 = 1e-12;

const SMOL: Block = Block {
    rows: 128,
    past: 0,
    width: 576,
    inner: 1536,
    heads: 9,
    key_heads: 3,
    head: 64,
    window: None,
    weight: Element { bits: 136, per: 32 },
    normed_heads: false,
};

fn target(sram: u64) -> Target {
    let mut rates = Rates::generic();
    rates.dispatch = 100;
    rates.tile.cycle_pj = 3.0;
    Target { name: "test".into(), sram, align: 16, dram: 1 << 40, flash: 0, rates, can: Can::default() }
}

/// So many blocks, planned and timed.
fn planned(count: usize, block: &Block, target: &Target, freedom: Freedom) -> Option<(Program, Schedule, Simulation)> {
    let mut builder = Builder::new(7);
    builder.blocks(count, block);
    let (program, _) = builder.memory();
    let schedule = match schedule(&program, target, Goal::Dram, freedom, "prefill") {
        Ok(schedule) => schedule,
        Err(Error::DoesNotFit { .. }) => return None,
        Err(other) => panic!("{other}"),
    };
    let simulation = time(&schedule.plan, &target.rates).expect("a schedule runs");
    Some((program, schedule, simulation))
}

fn tokens(block: &Block) -> Options {
    Options { tokens: block.rows }
}

fn close(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= ROUNDING * wanted.abs()
}

/// Every sum of a report is that of its simulation, and no call beats its bound.
fn check(report: &Report, simulation: &Simulation, target: &Target) {
    let (totals, rates) = (&report.totals, &target.rates);
    assert_eq!(totals.bytes(), simulation.dram());
    assert_eq!(totals.macs, simulation.macs());
    assert_eq!(totals.predicted.cycles, simulation.cycles);
    assert!(close(totals.predicted.energy.total(), simulation.energy(rates)));
    assert!(close(totals.predicted.latency, simulation.latency(rates)));
    assert_eq!(report.kinds.iter().map(|k| k.bytes).sum::<u64>(), simulation.dram());
    assert_eq!(report.kinds.iter().map(|k| k.macs).sum::<u64>(), simulation.macs());
    assert_eq!(report.roles.iter().map(|r| r.read + r.written).sum::<u64>(), simulation.dram());
    let constants = |holds| matches!(holds, Holds::Weights | Holds::Constants);
    let weights: u64 = report.roles.iter().filter(|r| constants(r.holds)).map(|r| r.read).sum();
    assert_eq!(weights, simulation.calls.iter().map(|call| call.read[1]).sum::<u64>());
    let cycles: u64 = report.kinds.iter().map(|k| k.predicted.cycles).sum();
    assert_eq!(cycles + totals.predicted.dispatch, simulation.cycles);
    let joules: f64 = report.kinds.iter().map(|k| k.predicted.energy.total()).sum();
    let dispatch = totals.predicted.dispatch as f64 * rates.tile.cycle_pj * 1e-12;
    assert!(close(joules + dispatch, simulation.energy(rates)));
    for call in &report.calls {
        assert!(call.distance >= 1.0 && call.distance.is_finite(), "{call:?}");
        let sum = |of: fn(&MovedReport) -> u64| call.tensors.iter().map(of).sum::<u64>();
        assert_eq!([sum(|t| t.read), sum(|t| t.written)], [call.read, call.written], "{call:?}");
        for tensor in &call.tensors {
            let moved = tensor.read + tensor.written;
            assert!(moved >= tensor.least && (tensor.least > 0 || moved == 0), "{}: {tensor:?}", call.name);
        }
        assert!(call.predicted.utilisation <= 1.0, "{call:?}");
        assert!(call.predicted.compute + call.predicted.stalled <= call.predicted.cycles, "{call:?}");
    }
    assert!(totals.sram_peak <= target.sram);
}

/// The columns of a table of calls: its numbers, row by row.
struct Columns {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    fn of(plan: &Plan) -> Columns {
        let text = calls(std::slice::from_ref(plan)).expect("it ran");
        let mut rows = text.lines().map(cells);
        Columns { head: rows.next().expect("a head"), rows: rows.collect() }
    }

    fn texts(&self, name: &str) -> Vec<&str> {
        let at = self.head.iter().position(|head| head == name).unwrap_or_else(|| panic!("no column {name}"));
        self.rows.iter().map(|row| row[at].as_str()).collect()
    }

    fn numbers(&self, name: &str) -> Vec<u64> {
        self.texts(name).iter().map(|cell| cell.parse().expect("a whole number")).collect()
    }

    /// The sums of some columns, row by row.
    fn sums(&self, names: &[&str]) -> Vec<u64> {
        let columns: Vec<Vec<u64>> = names.iter().map(|name| self.numbers(name)).collect();
        (0..self.rows.len()).map(|row| columns.iter().map(|column| column[row]).sum()).collect()
    }
}

/// The cells of a line, of which some are quoted.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().expect("there is one").push(c),
        }
    }
    cells
}

/// Cycles of calls are arithmetic and what it waits for; they and the critical path add up to the run.
fn check_csv(plan: &Plan, simulation: &Simulation, target: &Target) {
    let columns = Columns::of(plan);
    let cycles = columns.numbers("cycles");
    assert!(columns.rows.iter().all(|row| row.len() == columns.head.len()));
    assert_eq!(columns.sums(&["compute_cycles", "stalled_cycles"]), cycles);
    let on = ["stalled_on_activation_loads", "stalled_on_weight_loads", "stalled_on_stores"];
    assert_eq!(columns.sums(&on), columns.numbers("stalled_cycles"));
    assert_eq!(cycles.iter().sum::<u64>() + target.rates.dispatch, simulation.cycles);
    assert_eq!(columns.numbers("end")[..cycles.len() - 1], columns.numbers("start")[1..]);
    let critical = columns.numbers("critical_cycles");
    let parts = ["compute", "activation_loads", "weight_loads", "stores", "setup"].map(|part| format!("critical_{part}"));
    assert_eq!(columns.sums(&parts.each_ref().map(String::as_str)), critical);
    assert_eq!(critical.iter().sum::<u64>() + target.rates.dispatch, simulation.cycles);
    let compute = columns.numbers("compute_cycles");
    assert!(columns.numbers("critical_compute").iter().zip(compute).all(|(critical, compute)| *critical <= compute));
    let said: Vec<&str> = critical.iter().map(|cycles| if *cycles > 0 { "yes" } else { "no" }).collect();
    assert_eq!(columns.texts("on_critical_path"), said);
    let staged = columns.numbers("sram_staged");
    assert!(staged.iter().all(|bytes| *bytes > 0 && *bytes <= target.sram), "{staged:?}");
}

/// What lies on the path decides the time: on a device with slow DRAM it leads through loads of weights, on one with a slow array through
/// arithmetic.
#[test]
fn the_critical_path_leads_through_what_is_slow() {
    for (read, array, slow) in [(0.25, [4, 64, 64], "weight_loads"), (4096.0, [1, 4, 4], "compute")] {
        let mut target = target(256 << 10);
        (target.rates.tile.read, target.rates.tile.write, target.rates.tile.array) = (read, 4096.0, array);
        let block = Block { rows: 8, ..SMOL };
        let (_, schedule, simulation) = planned(2, &block, &target, Freedom::NONE).unwrap();
        check_csv(&schedule.plan, &simulation, &target);
        let columns = Columns::of(&schedule.plan);
        let sum = |name: &str| columns.numbers(name).iter().sum::<u64>();
        let on_path = sum(&format!("critical_{slow}"));
        assert!(on_path > simulation.cycles * 8 / 10, "{slow}: {on_path} of {}", simulation.cycles);
        let waits = ["weight_loads", "activation_loads", "stores"].map(|on| sum(&format!("stalled_on_{on}")));
        assert!(slow == "compute" || waits[0] > 4 * (waits[1] + waits[2]), "{waits:?}");
    }
}

#[test]
fn sums_are_those_of_the_simulation() {
    let mut found = 0;
    for seed in 0..60 {
        let mut random = Random(seed);
        let weight = random.pick(&WEIGHTS);
        let per = u64::from(weight.per);
        let key_heads = random.within(1, 2) as u64;
        let block = Block {
            rows: random.within(1, 48) as u64,
            past: random.pick(&[0, 5, 40]),
            width: random.pick(&[16u64, 48, 80]).next_multiple_of(per),
            inner: random.pick(&[16u64, 96, 128]).next_multiple_of(per),
            heads: key_heads * random.within(1, 3) as u64,
            key_heads,
            head: random.pick(&[4u64, 8, 16]).next_multiple_of(per),
            window: random.pick(&[None, Some(7), Some(40)]),
            weight,
            normed_heads: seed.is_multiple_of(2),
        };
        let target = target(random.within(3_000, 60_000) as u64);
        let [join, keep, recompute] = [0; 3].map(|_| random.next().is_multiple_of(2));
        let freedom = Freedom { join, keep, recompute };
        let Some((program, schedule, simulation)) = planned(2, &block, &target, freedom) else { continue };
        check(&Report::new(&program, &schedule, &simulation, &target, tokens(&block)), &simulation, &target);
        check_csv(&schedule.plan, &simulation, &target);
        found += 1;
    }
    assert!(found > 30, "{found} of 60 fit");
}

/// On a small chip the bound is more than what must move once, and still below what moves.
#[test]
fn the_bound_of_a_product_knows_the_chip() {
    let block = Block { rows: 256, width: 256, inner: 512, heads: 4, key_heads: 2, weight: Element::INT8, ..SMOL };
    let bound = |sram| {
        let target = target(sram);
        let freedom = Freedom::NONE;
        let (program, schedule, simulation) = planned(1, &block, &target, freedom).unwrap();
        let report = Report::new(&program, &schedule, &simulation, &target, tokens(&block));
        check(&report, &simulation, &target);
        let gate = report.calls.iter().find(|call| call.name.ends_with("gate")).unwrap();
        assert_eq!((gate.kind, gate.shape), (KernelKind::Linear, [256, 256, 1024]));
        gate.least
    };
    // x once, weights once, outputs once, and 10 bytes for each column.
    let once = 256 * 256 + 256 * 1024 + 256 * 512 + 10 * 1024;
    assert_eq!(bound(1 << 20), once);
    assert!(bound(12 << 10) > once);
}

/// Where DRAM has no room for weights, and flash is slow, flash is what keeps products from being faster.
#[test]
fn weights_in_flash_are_told_apart() {
    let mut target = target(2 << 20);
    (target.dram, target.flash, target.rates.flash) = (600 << 10, 1 << 30, 0.5);
    let (program, schedule, simulation) = planned(1, &SMOL, &target, Freedom::ALL).unwrap();
    let report = Report::new(&program, &schedule, &simulation, &target, tokens(&SMOL));
    check(&report, &simulation, &target);
    let weights = report.roles.iter().find(|role| role.holds == Holds::Weights).unwrap();
    assert_eq!(report.totals.flash, weights.read);
    assert!(report.totals.dram_peak <= target.dram && report.totals.flash_peak > 0);
    for call in report.calls.iter().filter(|call| call.macs > 0) {
        let attention = call.kind == KernelKind::Attention;
        assert_eq!((call.flash > 0, call.predicted.limit == Limit::Flash), (!attention, !attention), "{call:?}");
    }
}

/// Tags in pairs, attributes in quotes, nothing that is not escaped.
fn well_formed(page: &str) {
    let mut open: Vec<String> = Vec::new();
    let mut rest = page.strip_prefix("<!doctype html>").expect("a page says that it is one");
    while let Some(at) = rest.find('<') {
        text(&rest[..at]);
        let end = rest[at..].find('>').expect("a tag ends") + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "of {} open tags", open.len());
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        assert!(!tag.contains('<'), "{tag}");
        text(tag);
        let name: String = tag.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        assert!(!name.is_empty(), "{tag}");
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    text(rest);
    assert_eq!(open, Vec::<String>::new());
}

/// Ampersands begin what an escaped text has.
fn text(text: &str) {
    for at in text.match_indices('&').map(|(at, _)| at) {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].iter().any(|known| text[at..].starts_with(known));
        assert!(known, "{}", &text[at..]);
    }
}

/// The page of three blocks on a device that comes with attar.
fn page(blocks: usize) -> (Report, String) {
    let device = Device::named("generic-npu").expect("it is there");
    let target = Target::new(&device, 4).expect("it has int4");
    let (program, schedule, simulation) = planned(blocks, &SMOL, &target, Freedom::ALL).expect("it fits");
    let (_, unfused, unfused_simulation) = planned(blocks, &SMOL, &target, Freedom::NONE).expect("it fits");
    let other = Report::new(&program, &unfused, &unfused_simulation, &target, tokens(&SMOL));
    let report = Report::new(&program, &schedule, &simulation, &target, tokens(&SMOL)).against(&other);
    check(&report, &simulation, &target);
    let report = report.resting_on(&device, &schedule.plan);
    let origin = Origin { model: "SmolLM2-135M".into(), recipe: "smollm2.toml".into() };
    let page = to_html(&report, &schedule, &simulation, &origin);
    (report, page)
}

#[test]
fn a_page_needs_nothing_else() {
    let (_, found) = page(3);
    well_formed(&found);
    for unwanted in ["http", "<script", "<link", "<img", "url(", "@import", "NaN", "inf\""] {
        assert!(!found.contains(unwanted), "{unwanted}");
    }
    assert_eq!(found.matches("<svg ").count(), 4);
    fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report.html"), &found).unwrap();
    assert_eq!(found, page(3).1);
}

/// Model, run, device, recipe and version are in the title and above everything.
#[test]
fn a_page_says_what_it_is_of() {
    let (_, page) = page(1);
    let version = format!("attar {}", env!("CARGO_PKG_VERSION"));
    let title = format!("<title>SmolLM2-135M, prefill, on generic-npu, by smollm2.toml, {version}</title>");
    assert!(page.contains(&title), "{}", &page[..400]);
    assert!(page.contains("<h1>SmolLM2-135M</h1>"));
    for part in ["prefill", "on generic-npu", "by smollm2.toml", &version] {
        assert!(page.contains(&format!("<span>{part}</span>")), "{part}");
    }
}

/// Timeline and map have all blocks, by names and over time; nothing is called by its number.
#[test]
fn a_page_shows_all_blocks_over_time() {
    let (report, page) = page(3);
    let strip = page.split("class=\"strip\"").nth(1).and_then(|rest| rest.split("</svg>").next()).unwrap();
    for block in 0..3 {
        for part in ["attention", "norm again + MLP / gate"] {
            assert!(strip.contains(&format!("<title>block {block} / {part}")), "block {block} / {part}");
        }
        assert!(strip.contains(&format!(">block {block}</text>")), "block {block}");
    }
    // The map ends with the run: its last box is that of the last call.
    let end = format!("{:.3}", 1e3 * report.totals.predicted.latency);
    let end = format!(" to {} ms", end.trim_end_matches('0'));
    assert!(strip.contains(&end), "{end}");
    assert!(!page.contains("in calls "));
    for raw in [".int8", "blocks.0", "b0."] {
        assert!(!strip.contains(raw), "{raw} is no name for people");
    }
}

/// Wide things scroll in boxes of their own, buttons zoom what is over time, and colours follow the reader's choice.
#[test]
fn a_page_fits_narrow_screens_and_dark_rooms() {
    let (_, page) = page(1);
    assert!(page.contains("@media (prefers-color-scheme: dark)"));
    let open = |before: &str| before.matches("<div class=\"wide\"").count() > before.matches("</div>").count();
    for wide in ["<table>", "<svg viewBox"] {
        for (at, _) in page.match_indices(wide) {
            let section = &page[..at][page[..at].rfind("<section>").unwrap()..];
            assert!(open(section), "{wide} is in a box that scrolls");
        }
    }
    for zoom in [1, 4, 16, 64] {
        assert!(page.contains(&format!("id=\"zoom{zoom}\"")) && page.contains(&format!("#zoom{zoom}:checked")), "{zoom}");
    }
}

/// The numbers of `generic-npu` that nobody published are named, and figures that rest on them are marked.
#[test]
fn figures_on_assumed_numbers_are_marked() {
    let device = Device::named("generic-npu").unwrap();
    let (report, page) = page(1);
    let assumed: Vec<&str> = report.predicted_from.iter().filter(|rests| rests.is_assumed()).map(|rests| &*rests.key).collect();
    let known = |key: &str| device.numbers().find(|(known, ..)| *known == key).unwrap().2.confidence;
    assert!(!assumed.is_empty() && assumed.iter().all(|key| known(key) == Confidence::Assumed), "{assumed:?}");
    let cell = |table: &Table, name: &str| table.rows.iter().find(|row| row[0] == name).unwrap()[1].clone();
    let totals = report.totals_table();
    assert!(cell(&totals, "predicted latency").ends_with(MARK));
    assert!(!cell(&totals, "DRAM bytes").ends_with(MARK), "bytes are counted");
    assert!(page.contains("numbers of the device that these predictions rest on are assumed"));
    let sum = report.predicted_from.iter().map(|rests| rests.latency.abs()).sum::<f64>();
    assert!(sum > 0.5, "some number counts: {sum}");
    // Nothing is marked where every number is known.
    let known = report.predicted_from.iter().cloned().map(|rests| RestsOn { confidence: "measured", ..rests }).collect();
    let known = Report { predicted_from: known, ..report };
    let tables = [known.totals_table(), known.shares_table(), known.calls_table(), known.numbers_table()];
    assert!(tables.iter().flat_map(|table| table.rows.iter().flatten()).all(|cell| !cell.ends_with(MARK)));
}

/// What a number counts is what the run takes when it is twice as bad.
#[test]
fn numbers_that_decide_a_run_count_most() {
    let (mut device, block) = (Device::named("generic-npu").unwrap(), Block { rows: 1, past: 64, ..SMOL });
    for (set, value) in [("dram.bandwidth", "1GB/s"), ("overhead.dispatch", "0 us"), ("overhead.power", "0 W")] {
        device.set(set, value).unwrap();
    }
    let target = Target::new(&device, 4).unwrap();
    let (program, schedule, simulation) = planned(1, &block, &target, Freedom::ALL).unwrap();
    let report = Report::new(&program, &schedule, &simulation, &target, tokens(&block)).resting_on(&device, &schedule.plan);
    let first = report.predicted_from.iter().max_by(|a, b| a.latency.total_cmp(&b.latency)).unwrap();
    assert_eq!(first.key, "dram.read", "one token at a time waits for weights: {:?}", report.predicted_from);
    assert!(first.latency > 0.9 && first.latency <= 1.0, "{}", first.latency);
    let lines = Columns::of(&schedule.plan);
    assert!(lines.texts("cycles_rest_on_assumed").iter().all(|keys| *keys == "unknown"), "no device of attar has these rates");
}

/// A product whose names, and whose device and title, are markup.
#[test]
fn names_are_escaped() {
    let name = "<b>&\"'";
    let mut builder = Builder::new(1);
    let x = builder.numbers("x", [16, 32], Element::INT8, Role::Input);
    let middle = builder.scratch(name, [16, 32], Element::INT8);
    let out = builder.program.tensor("out", [16, 32], Element::INT8, Role::Output);
    for (x, out) in [(x, middle), (middle, out)] {
        let [weight, columns] = builder.weight(name, [32, 32], Element::INT8, 90.0);
        let out = vec![Destination { tensor: out, row: 0 }];
        let linear = Linear { x, weight, columns, out, epilogue: Epilogue::Rescale, narrow: 0 };
        builder.program.kernel(name, Kernel::Linear(linear));
    }
    let target = Target { name: name.into(), ..target(8 << 10) };
    let schedule = schedule(&builder.program, &target, Goal::Dram, Freedom::ALL, name).unwrap();
    let simulation = time(&schedule.plan, &target.rates).unwrap();
    let report = Report::new(&builder.program, &schedule, &simulation, &target, Options { tokens: 16 });
    assert_eq!(report.kept.iter().map(|kept| kept.name.as_str()).collect::<Vec<_>>(), [name]);
    let page = to_html(&report, &schedule, &simulation, &Origin::default());
    well_formed(&page);
    assert!(page.contains("&lt;b&gt;&amp;&quot;&#39;: 512 B at "), "a kept tensor is on the map");
    assert!(!page.contains("<b>") && !page.contains(name));
}

/// Whatever is not counted from the plan stands below a key that says so.
#[test]
fn data_marks_what_is_predicted() {
    fn walk(at: &str, value: &Value, predicted: bool) {
        match value {
            Value::Object(all) => {
                for (key, value) in all {
                    let predicted = predicted || key.starts_with("predicted");
                    let modelled = ["cycles", "latency", "energy", "joules", "utilisation", "second", "stalled", "limit"];
                    assert!(predicted || !modelled.iter().any(|word| key.contains(word)), "{at}.{key} is not marked");
                    walk(&format!("{at}.{key}"), value, predicted);
                }
            }
            Value::Array(all) => all.iter().for_each(|value| walk(at, value, predicted)),
            Value::Null => panic!("{at} is no number"),
            _ => {}
        }
    }
    let target = target(2 << 20);
    let (program, schedule, simulation) = planned(1, &SMOL, &target, Freedom::ALL).unwrap();
    let report = Report::new(&program, &schedule, &simulation, &target, tokens(&SMOL));
    walk("report", &serde_json::to_value(&report).unwrap(), false);
}

/// One plan joins kernels that the other runs apart: every operation is in both, and all of them are all that is done.
#[test]
fn operations_of_two_plans_are_matched_by_name() {
    let target = target(2 << 20);
    let (_, joined, joined_times) = planned(3, &SMOL, &target, Freedom::ALL).unwrap();
    let (_, apart, apart_times) = planned(3, &SMOL, &target, Freedom::NONE).unwrap();
    let comparison = Comparison::new([&joined.plan, &apart.plan], Default::default()).unwrap();
    for (side, simulation) in [&joined_times, &apart_times].into_iter().enumerate() {
        let costs: Vec<Cost> =
            comparison.operations.iter().map(|both| [both.first, both.second][side].expect("both have it")).collect();
        let sum = |of: fn(&Cost) -> u64| costs.iter().map(of).sum::<u64>();
        assert_eq!(sum(|cost| cost.predicted_cycles) + target.rates.dispatch, simulation.cycles);
        assert_eq!([sum(|cost| cost.bytes), sum(|cost| cost.macs)], [simulation.dram(), simulation.macs()]);
        assert_eq!(sum(|cost| cost.calls), simulation.calls.len() as u64);
        assert_eq!(comparison.plans[side].predicted.cycles, simulation.cycles);
    }
    let calls = |cost: Option<Cost>| cost.map(|cost| cost.calls);
    assert!(comparison.operations.iter().any(|both| calls(both.first) < calls(both.second)), "something is joined");
    let table = comparison.table();
    assert!(table.rows.iter().any(|row| row[0].starts_with("blocks 0 to 2 / ") && row[4].ends_with('%')), "{table}");
    let of_self = Comparison::new([&apart.plan, &apart.plan], Default::default()).unwrap();
    assert!(of_self.figures().rows.iter().all(|row| row[3] == "same"), "{}", of_self.figures());
    assert!(of_self.table().rows.iter().all(|row| row[4] == "same" && row[7] == "same"), "{}", of_self.table());
}

/// Cells below each other.
fn drawn(table: &Table) -> String {
    let head: Vec<String> = table.head.iter().map(|head| head.to_string()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(&table.rows).collect();
    assert!(lines.iter().all(|line| line.len() == head.len()));
    let widths: Vec<usize> =
        (0..head.len()).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |cells: &&Vec<String>| {
        let cells: String = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        format!("{}\n", cells.trim_end())
    };
    lines.iter().map(line).collect()
}

#[test]
fn tables_are_as_blessed() {
    let block = Block { rows: 32, width: 64, inner: 192, heads: 4, key_heads: 2, head: 16, weight: Element::INT4, ..SMOL };
    let target = target(24 << 10);
    let (program, schedule, simulation) = planned(4, &block, &target, Freedom::ALL).unwrap();
    let apart = Freedom::NONE;
    let (_, unfused, unfused_simulation) = planned(4, &block, &target, apart).unwrap();
    let other = Report::new(&program, &unfused, &unfused_simulation, &target, tokens(&block));
    let report = Report::new(&program, &schedule, &simulation, &target, tokens(&block)).against(&other);
    let tables = [report.totals_table(), report.shares_table(), report.calls_table()];
    let found = tables.iter().map(drawn).collect::<Vec<_>>().join("\n");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/report/tables.txt");
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "wanted\n{wanted}found\n{found}");
}
