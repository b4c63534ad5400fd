//! The step `compile`: plans of the model for a device, proven on numbers. The model itself stays as it is.

use std::{cell::Cell, path::PathBuf, sync::Arc};

use attar_compile::{
    Compile, Compiled, Manifest, Phase, Plan, Planned, Progress, Proven,
    plan::Space,
    report::{pictures, to_html},
    schedule::chunk::{Candidate, Point},
};
use attar_tensor::{Digest, Source};

use super::{
    device::{self, check_prompt, refused},
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{
    ChunkReport, CompilationReport, Error, FrontReport, PhaseReport, ProofReport, extras::Content, json::json, model::Working,
    session::Session, settings::of, shape::facts, walk,
};

pub(super) static COMPILE: StepKind = StepKind {
    name: "compile",
    about: "Compile a model's blocks for a device, and prove the plan in simulation",
    schema: of::<Compile>,
    build: |section| Ok(Box::new(section.finish::<Compile>(&["kind".into()])?)),
    folder: Some("compiled"),
    is_verb: false,
    examples: &[],
    looks_inside: true,
    trains: false,
    needs_tokens: true,
    predicts: true,
};

/// How the names of a proof's plan and of its numbers end.
pub(super) const PROOF_PLAN: &str = ".proof.plan";
/// See [`PROOF_PLAN`].
pub(super) const PROOF_DATA: &str = ".proof.data";

/// The schedules of a graph of these facts.
struct Kept {
    facts: String,
    planned: Planned,
}

impl Step for Compile {
    fn kind(&self) -> &'static StepKind {
        &COMPILE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        device::files(&self.device)
    }

    fn needs_text(&self) -> bool {
        true
    }

    /// Everything but numbers is tried now: what does not fit is known before hours of work.
    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        check_prompt(self.seq, model)?;
        let planned = Compile::plan(self, &model.graph, &*model.source).map_err(refused)?;
        model.compiled = Some(planned.head);
        model.kept.keep(Kept { facts: facts(&model.graph), planned });
        walk::plan(model, 1);
        model.proves |= self.prove > 0;
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let windows = session.calibration.expect("it needs a text");
        let stage = Cell::new("");
        let watch = |progress: Progress<'_>| {
            if stage.replace(progress.stage) != progress.stage {
                let title = format!("{}: compile for {}, {}", model.title, self.device, progress.stage);
                session.observer.stage(&title, progress.total as u64);
            }
            session.observer.advance(progress.done as u64, progress.what);
            !session.observer.interrupted()
        };
        let kept = model.kept.get::<Kept>().filter(|kept| kept.facts == facts(&model.graph));
        let planned = kept.as_ref().map(|kept| &kept.planned);
        let other = other_text(self.quality, self.seq.get() as usize, model, session)?;
        let texts = [windows, &other];
        let compiled = Compile::run(self, &model.graph, &Arc::clone(&model.source), texts, planned, &watch).map_err(refused)?;
        let memories = memories(&compiled, &model.source, session)?;
        let blobs = memories.iter().map(|(_, digest)| *digest).collect();
        let stored = memories.iter().map(|(name, digest)| {
            let path = session.store.open(digest)?;
            Ok(((*name).to_owned(), Content::Blob { path, digest: *digest }))
        });
        let stored: Vec<(String, Content)> = stored.collect::<attar_tensor::Result<_>>()?;
        let images = memories.iter().map(|(name, digest)| ((*name).to_owned(), *digest)).collect();
        let manifest = Manifest { images, ..compiled.manifest.clone() };
        COMPILE.leave(
            model,
            files(&compiled, &manifest).into_iter().map(|(name, bytes)| (name, bytes.into())).chain(stored).collect(),
        );
        model.findings.push(report(&compiled));
        Ok(blobs)
    }
}

/// At least `wanted` tokens of the texts that ship with attar, in turn, in windows of `length`; none without a tokenizer.
fn other_text(wanted: usize, length: usize, model: &Working, session: &Session<'_>) -> Result<Vec<Vec<u32>>, StepError> {
    let wanted = wanted.div_ceil(length);
    if wanted == 0 {
        return Ok(Vec::new());
    }
    if let Some(why) = model.checkpoint.no_tokenizer() {
        session.observer.note(&format!("note: {why}, so the compiled integers are compared with nothing"));
        return Ok(Vec::new());
    }
    let tokenizer = model.checkpoint.tokenizer().map_err(Error::from)?;
    let texts = attar_eval::shipped_texts().map(|text| tokenizer.encode(text).map_err(Error::from));
    let texts = texts.collect::<Result<Vec<Vec<u32>>, Error>>()?;
    let longest = texts.iter().map(|text| text.len() / length).max().unwrap_or(0);
    let windows = (0..longest).flat_map(|round| texts.iter().filter_map(move |text| text.chunks_exact(length).nth(round)));
    Ok(windows.take(wanted).map(<[u32]>::to_vec).collect())
}

/// Blobs of what all plans find in DRAM and flash. They are read back, and hold what was proven.
fn memories(
    compiled: &Compiled,
    source: &Arc<dyn Source>,
    session: &Session<'_>,
) -> Result<Vec<(&'static str, Digest)>, StepError> {
    let mut found = Vec::new();
    for (name, space) in [("dram.bin", Space::Dram), ("flash.bin", Space::Flash)] {
        if compiled.memory.bytes(space) == 0 {
            continue;
        }
        session.observer.stage(&format!("write {name}"), 0);
        session.check_interrupt()?;
        let digest = session.store.put(|to| compiled.memory.write(&**source, space, to).map_err(Error::from))?;
        let path = session.store.open(&digest)?;
        let unread = |source| attar_tensor::Error::Io { action: "read", path: path.clone(), source };
        let mut file = std::fs::File::open(&path).map_err(unread)?;
        let proofs = compiled.phases.iter().filter_map(|phase| phase.proof.as_ref()).chain(&compiled.head);
        for proof in proofs {
            if let Some(tensor) = proof.missing_in(space, &mut file).map_err(unread)? {
                return Err(Error::input(format!("`{name}` does not hold `{tensor}` as it was proven: a bug of attar")).into());
            }
        }
        found.push((name, digest));
    }
    if let Some(embedding) = &compiled.embedding {
        session.observer.stage("write embedding.bin", 0);
        session.check_interrupt()?;
        let digest = session.store.put(|to| embedding.write(source, to).map_err(Error::from))?;
        found.push(("embedding.bin", digest));
    }
    Ok(found)
}

fn files(compiled: &Compiled, manifest: &Manifest) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("model.json".to_owned(), json(manifest))];
    for phase in &compiled.phases {
        files.push((format!("{}.plan", phase.name), phase.schedule.plan.to_bytes()));
        files.push((format!("{}.txt", phase.name), phase.schedule.plan.to_string().into_bytes()));
        if let Some(report) = &phase.report {
            let page = to_html(report, &phase.schedule, &phase.simulation);
            files.push((format!("{}.html", phase.name), page.into_bytes()));
            files.push((format!("{}.json", phase.name), json(report)));
        }
    }
    let proofs = compiled.phases.iter().map(|phase| (phase.name.as_str(), &phase.proof)).chain([("head", &compiled.head)]);
    for (name, proven) in proofs.filter_map(|(name, proof)| Some((name, proof.as_ref()?))) {
        files.push((format!("{name}{PROOF_PLAN}"), proven.schedule.plan.to_bytes()));
        files.push((format!("{name}{PROOF_DATA}"), proven.proof.to_bytes()));
    }
    files
}

fn report(compiled: &Compiled) -> CompilationReport {
    let phases = compiled.phases.iter().map(phase_report).collect();
    CompilationReport {
        device: compiled.device.clone(),
        host_nodes: compiled.phases.iter().map(|phase| phase.host.len()).min().unwrap_or(0),
        chunks: compiled.chunks.candidates.iter().map(chunk_report).collect(),
        front: compiled.front.iter().map(front_report).collect(),
        phases,
        head: compiled.head.as_ref().map(proof_report),
        quality: compiled.quality,
    }
}

fn phase_report(phase: &Phase) -> PhaseReport {
    let rates = &phase.schedule.plan.rates;
    PhaseReport {
        name: phase.name.clone(),
        rows: phase.rows,
        past: phase.past,
        kernels: phase.schedule.plan.calls.len(),
        bodies: phase.schedule.plan.bodies.len(),
        macs: phase.simulation.macs(),
        dram_bytes: phase.simulation.dram(),
        latency: phase.simulation.latency(rates),
        energy: phase.simulation.energy(rates),
        peak_sram: phase.simulation.sram_peak,
        peak_dram: peak_dram(&phase.schedule.plan),
        proof: phase.proof.as_ref().map(proof_report),
        pictures: phase.report.as_ref().map_or_else(Vec::new, |report| pictures(report, &phase.schedule, &phase.simulation)),
    }
}

fn proof_report(proven: &Proven) -> ProofReport {
    ProofReport {
        blocks: proven.blocks,
        macs: proven.simulation.macs(),
        dram_bytes: proven.simulation.dram(),
        snr_db: proven.snr_db,
    }
}

fn chunk_report(candidate: &Candidate) -> ChunkReport {
    ChunkReport {
        chunk: candidate.chunk,
        chunks: candidate.chunks,
        dram_bytes: candidate.dram,
        cycles: candidate.cycles,
        peak_sram: candidate.sram_peak,
        activations: candidate.activations,
        exact: candidate.exact,
    }
}

fn front_report(point: &Point) -> FrontReport {
    FrontReport { goal: point.goal, energy: point.candidate.energy, prompt: chunk_report(&point.candidate) }
}

fn peak_dram(plan: &Plan) -> u64 {
    let ends = plan.tensors.iter().filter(|tensor| tensor.space == Space::Dram).map(|tensor| tensor.address + tensor.bytes());
    ends.max().unwrap_or(0)
}
