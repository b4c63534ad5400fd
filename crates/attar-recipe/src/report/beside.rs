//! What attar's plan and a vendor's compiler predict of one device, side by side. Each compiles the model that it is given, and no device ran anything.

use attar_eval::{DEVICE, Outcome, PredictedCall};

use super::{
    compiled::{CompilationReport, PhaseReport, marked},
    evals::EvalReport,
    findings::Findings,
};
use crate::table::{Table, bytes};

const HEAD: &[&str] = &["device", "run", "predicted", "attar's plan", "vendor's compiler"];

/// What one side predicts of one run.
struct Side<'r> {
    device: &'r str,
    /// Whose prediction it is: the variant, and the vendor's compiler.
    of: String,
    call: PredictedCall,
    /// Whether times rest on assumed numbers of the device.
    assumed: bool,
}

/// Every run that both sides predict of a device, number by number. What only one of them predicts is in its own table.
pub(super) fn table(variants: &[(&str, &Findings)], evals: &[EvalReport]) -> Table {
    let (ours, theirs) = (planned(variants), compiled(evals));
    let pairs = theirs.iter().flat_map(|their| {
        let same = |our: &&Side<'_>| (our.device, &our.call.name) == (their.device, &their.call.name);
        ours.iter().filter(same).map(move |our| rows(our, their))
    });
    Table { head: HEAD, rows: pairs.flatten().collect() }
}

fn planned<'r>(variants: &[(&'r str, &'r Findings)]) -> Vec<Side<'r>> {
    let compilations = variants.iter().flat_map(|(name, findings)| findings.compilations.iter().map(move |one| (*name, one)));
    let runs = |(variant, compilation): (&'r str, &'r CompilationReport)| {
        ["prefill", "decode", "encode"].into_iter().filter_map(move |name| planned_run(variant, compilation, name))
    };
    compilations.flat_map(runs).collect()
}

/// A run of a plan of one sequence. That of a prompt may be in several chunks, `prefill-1` and so on.
fn planned_run<'r>(variant: &str, compilation: &'r CompilationReport, name: &str) -> Option<Side<'r>> {
    let phases = compilation.phases.iter().filter(|phase| phase.batch == 1 && phase.name.split('-').next() == Some(name));
    let phases: Vec<&PhaseReport> = phases.collect();
    let sum = |of: fn(&PhaseReport) -> u64| phases.iter().map(|phase| of(phase)).sum();
    let largest = |of: fn(&PhaseReport) -> u64| phases.iter().map(|phase| of(phase)).max().unwrap_or(0);
    let call = PredictedCall {
        name: name.into(),
        rows: sum(|phase| phase.rows),
        past: phases.first()?.past,
        cycles: sum(|phase| phase.cycles),
        latency: phases.iter().map(|phase| phase.latency).sum(),
        peak_sram: largest(|phase| phase.peak_sram),
        peak_dram: largest(|phase| phase.peak_dram),
        dram_bytes: sum(|phase| phase.dram_bytes),
    };
    let assumed = phases.iter().any(|phase| phase.assumed[0]);
    Some(Side { device: &compilation.device, of: variant.into(), call, assumed })
}

fn compiled(evals: &[EvalReport]) -> Vec<Side<'_>> {
    let mut sides = Vec::new();
    for eval in evals.iter().filter(|eval| eval.eval == DEVICE) {
        let (Outcome::Predicted(predicted), Some(device)) = (&eval.outcome, &eval.device) else { continue };
        let names = [eval.variant.as_deref(), Some(&eval.runner)];
        let of = names.into_iter().flatten().collect::<Vec<_>>().join(", ");
        sides.extend(predicted.calls.iter().map(|call| Side { device, of: of.clone(), call: call.clone(), assumed: false }));
    }
    sides
}

/// A row for each number of a run.
fn rows(ours: &Side<'_>, theirs: &Side<'_>) -> Vec<Vec<String>> {
    let row = |((what, our), (_, their))| vec![ours.device.into(), ours.call.name.clone(), String::from(what), our, their];
    ours.told().into_iter().zip(theirs.told()).map(row).collect()
}

impl Side<'_> {
    fn told(&self) -> [(&'static str, String); 7] {
        let call = &self.call;
        [
            ("of", self.of.clone()),
            ("tokens, in the cache before", format!("{}, {}", call.rows, call.past)),
            ("cycles", marked(call.cycles.to_string(), self.assumed)),
            ("latency", marked(format!("{:.3} ms", 1e3 * call.latency), self.assumed)),
            ("peak SRAM", bytes(call.peak_sram)),
            ("peak DRAM and flash", bytes(call.peak_dram)),
            ("DRAM and flash traffic", bytes(call.dram_bytes)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use attar_eval::{DEFAULT_TASK, Prediction};

    use super::*;

    fn phase(name: &str, rows: u64, past: u64) -> PhaseReport {
        PhaseReport {
            name: name.into(),
            rows,
            batch: 1,
            past,
            kernels: 1,
            bodies: 1,
            macs: 1,
            dram_bytes: 40_000,
            cycles: 1000 * rows,
            latency: 1e-6 * rows as f64,
            energy: 1e-6,
            assumed: [name == "decode", false],
            peak_sram: 8000 * rows,
            peak_dram: 50_000,
            proof: None,
            pictures: Vec::new(),
        }
    }

    fn plan(device: &str) -> CompilationReport {
        let phases = vec![phase("prefill-1", 16, 0), phase("prefill-2", 8, 16), phase("decode", 1, 24), phase("verify", 4, 24)];
        let (device, chunks, front) = (device.into(), Vec::new(), Vec::new());
        CompilationReport {
            device,
            host_nodes: 0,
            chunks,
            front,
            phases,
            head: None,
            verify_head: None,
            rests_on: None,
            quality: None,
        }
    }

    fn by_vela(device: &str) -> EvalReport {
        let call = |name: &str, rows, past| PredictedCall {
            name: name.into(),
            rows,
            past,
            cycles: 7,
            latency: 7e-3,
            peak_sram: 7,
            peak_dram: 7000,
            dram_bytes: 7_000_000,
        };
        let calls = vec![call("prefill", 32, 128), call("decode", 1, 128)];
        EvalReport {
            eval: DEVICE.into(),
            task: DEFAULT_TASK.into(),
            variant: Some("integers".into()),
            runner: "vela".into(),
            mode: None,
            device: Some(device.into()),
            outcome: Outcome::Predicted(Prediction { calls, ..Prediction::default() }),
        }
    }

    /// The chunks of a prompt are one run; times on assumed numbers are marked.
    #[test]
    fn both_sides_are_told_number_by_number() {
        let planned = Findings { compilations: vec![plan("npu")], ..Findings::default() };
        let table = table(&[("plan", &planned), ("integers", &Findings::default())], &[by_vela("npu")]);
        let wanted = "\
| device | run | predicted | attar's plan | vendor's compiler |
| --- | --- | --- | --- | --- |
| npu | prefill | of | plan | integers, vela |
| npu | prefill | tokens, in the cache before | 24, 0 | 32, 128 |
| npu | prefill | cycles | 24000 | 7 |
| npu | prefill | latency | 0.024 ms | 7.000 ms |
| npu | prefill | peak SRAM | 128.0 kB | 7 B |
| npu | prefill | peak DRAM and flash | 50.0 kB | 7.0 kB |
| npu | prefill | DRAM and flash traffic | 80.0 kB | 7.0 MB |
| npu | decode | of | plan | integers, vela |
| npu | decode | tokens, in the cache before | 1, 24 | 1, 128 |
| npu | decode | cycles | 1000* | 7 |
| npu | decode | latency | 0.001 ms* | 7.000 ms |
| npu | decode | peak SRAM | 8.0 kB | 7 B |
| npu | decode | peak DRAM and flash | 50.0 kB | 7.0 kB |
| npu | decode | DRAM and flash traffic | 40.0 kB | 7.0 MB |
";
        assert_eq!(table.markdown(), wanted);
    }

    #[test]
    fn a_device_that_only_one_side_knows_is_left_out() {
        let planned = Findings { compilations: vec![plan("another")], ..Findings::default() };
        assert!(table(&[("", &planned)], &[by_vela("npu")]).rows.is_empty());
    }
}
