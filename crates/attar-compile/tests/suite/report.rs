//! Reports add up to what was simulated, stay above their bounds, and are pages that any browser reads.

use std::{fs, path::PathBuf};

use crate::support::{Block, Builder, Random, WEIGHTS};
use attar_compile::{
    Element, Error, Kernel, Program,
    device::Can,
    program::{Destination, Epilogue, Linear, Role},
    report::{Holds, KernelKind, Limit, MovedReport, Options, Report, Table, to_html},
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
        };
        let target = target(random.within(3_000, 60_000) as u64);
        let [join, keep, recompute] = [0; 3].map(|_| random.next().is_multiple_of(2));
        let freedom = Freedom { join, keep, recompute };
        let Some((program, schedule, simulation)) = planned(2, &block, &target, freedom) else { continue };
        check(&Report::new(&program, &schedule, &simulation, &target, tokens(&block)), &simulation, &target);
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

#[test]
fn a_page_needs_nothing_else() {
    let target = target(2 << 20);
    let (program, schedule, simulation) = planned(3, &SMOL, &target, Freedom::ALL).unwrap();
    let apart = Freedom::NONE;
    let (_, unfused, unfused_simulation) = planned(3, &SMOL, &target, apart).unwrap();
    let other = Report::new(&program, &unfused, &unfused_simulation, &target, tokens(&SMOL));
    let report = Report::new(&program, &schedule, &simulation, &target, tokens(&SMOL)).against(&other);
    check(&report, &simulation, &target);
    let page = to_html(&report, &schedule, &simulation);
    well_formed(&page);
    for unwanted in ["http", "<script", "<link", "<img", "url(", "@import", "NaN", "inf\""] {
        assert!(!page.contains(unwanted), "{unwanted}");
    }
    assert_eq!(page.matches("<svg ").count(), 4);
    fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report.html"), &page).unwrap();
    let again = planned(3, &SMOL, &target, Freedom::ALL).unwrap();
    let report = Report::new(&again.0, &again.1, &again.2, &target, tokens(&SMOL)).against(&other);
    assert_eq!(page, to_html(&report, &again.1, &again.2));
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
    let page = to_html(&report, &schedule, &simulation);
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
