//! The step `simulate`: plans are proven again, from the bytes of their files.

use std::path::{Path, PathBuf};

use attar_compile::{Plan, plan::Proof, simulate::Simulation};
use attar_tensor::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    compile::{COMPILE, PROOF_DATA, PROOF_PLAN},
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{
    Error, SimulationReport,
    extras::Folder,
    files::{data_beside, prove_plan, read_plan, read_proof},
    model::Working,
    session::Session,
    settings::of,
};

/// Prove plans in simulation: every memory access is ordered, every result equals the reference bit for bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Simulate {
    /// Plan files, each with its `.data` file next to it; if there are none, every proof of the `compile` steps before.
    plans: Vec<PathBuf>,
}

pub(super) static SIMULATE: StepKind = StepKind {
    name: "simulate",
    about: "Prove plans on simulated memories, bit for bit",
    schema: of::<Simulate>,
    build: |section| Ok(Box::new(section.finish::<Simulate>(&["kind".into()])?)),
    folder: None,
    is_verb: false,
    examples: &[],
    looks_inside: false,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

impl Step for Simulate {
    fn kind(&self) -> &'static StepKind {
        &SIMULATE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let of = |(at, plan): (usize, &PathBuf)| [Some(plan.clone()), data_beside(plan)].map(|file| Some((key(at), file?)));
        self.plans.iter().enumerate().flat_map(of).flatten().collect()
    }

    /// Checks that there is something to prove and that it can be read.
    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        for (at, plan) in self.plans.iter().enumerate() {
            read(plan).map_err(|error| StepError { key: Some(key(at)), error })?;
        }
        if self.plans.is_empty() && !model.proves {
            let error = Error::recipe("no `compile` step before it makes a proof, and it names no `plans`");
            let hint = "put `compile` with `prove = 1` or more before it, or name plan files in `plans`".to_owned();
            return Err(StepError { key: Some("kind".into()), error: error.hint(hint) });
        }
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        session.observer.stage(&format!("{}: simulate", model.title), 0);
        let mut proven = Vec::new();
        for (at, path) in self.plans.iter().enumerate() {
            session.check_interrupt()?;
            let prove = || proof(&path.display().to_string(), read(path)?);
            proven.push(prove().map_err(|error| StepError { key: Some(key(at)), error })?);
        }
        if self.plans.is_empty() {
            for (name, plan, data) in model.folders.iter().flat_map(proofs) {
                session.check_interrupt()?;
                let plan = Plan::from_bytes(plan).and_then(|plan| Ok((plan, Proof::from_bytes(data)?)));
                proven.push(proof(&name, plan?)?);
            }
        }
        model.findings.extend(proven);
        Ok(Vec::new())
    }
}

/// The place of a plan in the recipe.
fn key(at: usize) -> String {
    format!("plans[{at}]")
}

fn read(path: &Path) -> crate::Result<(Plan, Proof)> {
    let plan = read_plan(path)?;
    let data = data_beside(path).ok_or_else(|| {
        let hint = "`compile` writes it as `NAME.proof.data`, the numbers of `NAME.proof.plan`".to_owned();
        Error::input(format!("`{}` has no `.data` file to be proven on", path.display())).hint(hint)
    })?;
    Ok((plan, read_proof(&data)?))
}

/// The proofs in a folder: their names, plans and numbers, as they will be written.
fn proofs(folder: &Folder) -> Vec<(String, &[u8], &[u8])> {
    let compiled = folder.files.iter().filter(|_| folder.kind == COMPILE.name);
    let proofs = compiled.filter_map(|(name, _)| {
        let plan = folder.file(name)?;
        let data = folder.file(&format!("{}{PROOF_DATA}", name.strip_suffix(PROOF_PLAN)?))?;
        Some((format!("{}/{name}", folder.name), plan, data))
    });
    proofs.collect()
}

fn proof(name: &str, (plan, proof): (Plan, Proof)) -> crate::Result<SimulationReport> {
    let simulation = prove_plan(name, &plan, &proof)?;
    Ok(report(name, &plan, &simulation))
}

fn report(name: &str, plan: &Plan, simulation: &Simulation) -> SimulationReport {
    SimulationReport {
        plan: name.into(),
        device: plan.device.clone(),
        title: plan.title.clone(),
        proven: true,
        macs: simulation.macs(),
        dram_bytes: simulation.dram(),
        peak_sram: simulation.sram_peak,
        cycles: simulation.cycles,
        latency: simulation.latency(&plan.rates),
        energy: simulation.energy(&plan.rates),
    }
}
