//! The step `quantize`: a unit is a tensor.

use std::{path::PathBuf, sync::Arc};

use attar_compress::{Assignment, MOST_CODED, Needs, Quantize, Seen, allocate::Budget};
use attar_tensor::{Blobs, Digest};

use super::{
    allocate, calibrated,
    codes::{Lossy, install, key, losses, place, quantize, refused},
    device,
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{AllocationReport, document::Section, model::Working, session::Session, settings::of, walk};

pub(super) static QUANTIZE: StepKind = StepKind {
    name: "quantize",
    about: "Quantize weights to 8 bits or fewer",
    schema: of::<Quantize>,
    build: |section| {
        check_format(&section)?;
        Ok(Box::new(section.finish::<Quantize>(&["kind".into()])?))
    },
    folder: None,
    is_verb: true,
    examples: &[
        "attar quantize model --grid int4 --group 64 --out int4",
        "attar quantize model --grid int4 --algorithm gptq --calibration text.txt --samples 16 --out gptq",
        "attar quantize model --bits 4.25 --out mixed",
        "attar quantize model --coded-bits 3 --device ethos-u55-256 --algorithm gptq --out coded",
        "attar quantize model --grid int8 --group row --select \"**\" --out int8",
    ],
    looks_inside: true,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

/// A format for all weights or a budget, not both and not neither. Defaults hide later what was written.
fn check_format(section: &Section<'_, '_>) -> Result<(), crate::Error> {
    let wrong = |key: &str, message: String, hint: &str| {
        let error = crate::Error::recipe(format!("{}: {message}", section.title)).hint(hint.to_owned());
        Err(if key.is_empty() { section.document.at(error, section.header()) } else { section.place(error, key) })
    };
    let given = |keys: &[&'static str]| keys.iter().copied().find(|key| section.has(key));
    match (given(BUDGETS), given(&["grid", "group", "tail", "asymmetric", "positive_scales", "scale_dtype"])) {
        (None, Some("grid")) => match given(&["choices", "sensitivity", "device"]) {
            Some(key) => wrong(
                key,
                format!("`{key}` says how a budget is spent, and there is none"),
                "give `bits`, `bytes` or `coded_bits` instead of `grid`",
            ),
            None => Ok(()),
        },
        (None, _) => {
            let hint = "`grid` gives all weights one format; `bits`, `bytes` or `coded_bits` a budget";
            wrong("", "`grid` is missing".into(), hint)
        }
        (Some(budget), Some(key)) => {
            let hint = match budget {
                CODED => {
                    "all weights become int8 with a scale for each row; an override with a `grid` fixes the format of some weights"
                }
                _ => "`choices` lists the schemes that a budget may use; an override with a `grid` fixes that of some weights",
            };
            wrong(key, format!("`{key}` and `{budget}` exclude each other"), hint)
        }
        (Some(budget), None) => match BUDGETS.iter().find(|other| **other != budget && section.has(other)) {
            Some(other) => wrong(other, format!("`{budget}` and `{other}` are two budgets"), "leave one of them out"),
            None => check_device(section, budget == CODED, wrong),
        },
    }
}

/// The settings that are budgets.
const BUDGETS: &[&str] = &["bits", "bytes", CODED];
const CODED: &str = "coded_bits";

/// What goes with a budget of coded bits, and only with that.
fn check_device(
    section: &Section<'_, '_>,
    coded: bool,
    wrong: impl Fn(&str, String, &str) -> Result<(), crate::Error>,
) -> Result<(), crate::Error> {
    match (coded, section.has("device")) {
        (true, false) => {
            wrong(CODED, "`device` is missing".into(), "the coder of weights is a device's: name one, such as `ethos-u55-256`")
        }
        (false, true) => wrong("device", format!("`device` is for a budget of `{CODED}`"), "leave it out, or give that budget"),
        (true, true) if section.has("choices") => wrong(
            "choices",
            format!("`choices` and `{CODED}` exclude each other"),
            "the choices are steps between int8 codes: leave it out",
        ),
        _ => Ok(()),
    }
}

impl Step for Quantize {
    fn kind(&self) -> &'static StepKind {
        &QUANTIZE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn needs_text(&self) -> bool {
        let algorithms = std::iter::once(self.algorithm).chain(self.overrides.iter().filter_map(|other| other.algorithm));
        let divergence = self.sensitivity.is_some_and(|asked| asked.is_divergence());
        divergence || algorithms.into_iter().any(|algorithm| algorithm.0.needs() != Needs::Nothing)
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        self.device.as_ref().map(|device| device::files(device)).unwrap_or_default()
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let options = self.options_with_zeros(&model.graph, &model.zeros).map_err(refused)?;
        calibrated::check(model, &options.concat())?;
        let assignments = match self.budget() {
            None => options.into_iter().flatten().collect(),
            Some(budget) => allocate::plan(self, budget, options, model)?,
        };
        let judged = self.budget().is_some() && model.calibrated;
        walk::plan(model, calibrated::sides(&assignments).max(u64::from(judged)));
        let to = |a: &Assignment| if self.grid.is_some() { a.scheme.to_string() } else { allocate::describe(self, a) };
        let planned = assignments.iter().map(|a| PlannedTensor {
            name: a.name.clone(),
            dims: a.dims.to_vec(),
            from: model.graph.fact(a.id).encoding.to_string(),
            to: to(a),
            bits_per_weight: a.scheme.bits_per_weight(a.dims),
            bytes: a.scheme.true_bits(a.dims).div_ceil(8),
            memory: a.algorithm.memory(a.dims)
                + if self.budget().is_some() { allocate::memory(a.dims) } else { 0 }
                + if a.algorithm.needs() == Needs::Drift { calibrated::drift_memory(model, a.dims[1]) } else { 0 },
        });
        let planned = planned.collect();
        assignments.iter().for_each(|a| place(&mut model.graph, a));
        Ok(planned)
    }

    fn with_bits(&self, bits: f64) -> Option<Arc<dyn Step>> {
        Some(Arc::new(match self.budget()? {
            Budget::Coded(_) => Quantize { coded_bits: Some(bits.min(MOST_CODED)), ..self.clone() },
            _ => Quantize { bits: Some(bits), bytes: None, ..self.clone() },
        }))
    }

    fn allocate(&self, model: &Working, session: &Session<'_>) -> Result<Option<(AllocationReport, Vec<Digest>)>, StepError> {
        let Some(budget) = self.budget() else { return Ok(None) };
        let spent = allocate::run(self, budget, model, session)?;
        Ok(Some((spent.report, spent.used)))
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let (assignments, mut used) = match self.budget() {
            None => (self.options_with_zeros(&model.graph, &model.zeros).map_err(refused)?.concat(), Vec::new()),
            Some(budget) => {
                let spent = allocate::run(self, budget, model, session)?;
                model.findings.push(spent.report);
                if let Some(coder) = allocate::coder(self)? {
                    model.coder = Some(coder);
                    model.coded.extend(spent.assignments.iter().flat_map(|a| a.names().map(str::to_owned)));
                }
                (spent.assignments, spent.used)
            }
        };
        if assignments.iter().any(|a| a.algorithm.needs() != Needs::Nothing) {
            used.extend(calibrated::run(&assignments, model, session)?);
            return Ok(used);
        }
        let total: usize = assignments.iter().map(|a| a.dims[0] * a.dims[1]).sum();
        session.observer.stage(&format!("{}: quantize", model.title), total as u64);
        let (mut blobs, mut lost) = (Blobs::default(), Vec::new());
        let mut done = 0;
        for assignment in &assignments {
            session.check_interrupt()?;
            let columns = assignment.dims[1];
            let before = done;
            let progress = |rows: usize| session.observer.advance((before + rows * columns) as u64, &assignment.name);
            let blob = session.unit(key(assignment, &*model.source)?, |to| {
                quantize(assignment, &*model.source, Seen::default(), to, &progress)
            })?;
            for name in assignment.names() {
                blobs.insert(name, session.store, &blob, assignment.scheme, assignment.dims)?;
            }
            let (found, kept) = losses(&Lossy::of(assignment, &*model.source, &blob), assignment.lost, session)?;
            lost.push((assignment.name.clone(), found));
            used.extend([blob, kept]);
            done += assignment.dims[0] * columns;
            progress(assignment.dims[0]);
        }
        install(model, &assignments, blobs, lost)?;
        Ok(used)
    }
}
