//! The step `compile`: plans of the model for a device, proven on numbers. The model itself stays as it is.

use std::{cell::Cell, collections::BTreeSet, path::PathBuf, sync::Arc};

use attar_compile::{
    Compile, Compiled, Manifest, Phase, Plan, Planned, Progress, Proven,
    plan::Space,
    report::{Origin, Picture, assumed, most_assumed, pictures, to_html},
    schedule::chunk::{Candidate, Point},
};
use attar_graph::{Graph, Op, kernel::instruction_set};
use attar_tensor::{Digest, Source};
use serde::{Deserialize, Serialize};

use super::{
    device::{self, check_prompt, refused},
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{
    ChunkReport, CompilationReport, Error, FrontReport, PhaseReport, ProofReport,
    extras::Content,
    files::name_of,
    json::{TOOL, json},
    model::Working,
    session::Session,
    settings::of,
    shape::{facts, predicts_tokens},
    side, walk,
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
    needs_tokens: false,
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
        if self.head && !planned.head {
            model.notes.push(on_the_host(&model.graph).into());
        }
        model.compiled = Some(planned.head);
        model.kept.keep(Kept { facts: facts(&model.graph), planned });
        walk::plan(model, 1);
        model.proves |= self.prove != Some(0);
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let windows = session.calibration.expect("it needs a text");
        // Of an encoder's texts, on average 15 of 32 tokens are read.
        let wanted = if predicts_tokens(&model.graph) { self.quality } else { (self.quality * 32).div_ceil(15) };
        let other = other_text(wanted, self.seq.get() as usize, model, session)?;
        let texts = [windows, &other];
        let kept = model.kept.get::<Kept>().filter(|kept| kept.facts == facts(&model.graph));
        let planned = match kept {
            Some(kept) => kept.planned.clone(),
            None => {
                let stage = Cell::new("");
                let watch = |progress: Progress<'_>| tell(self, model, session, &stage, progress);
                self.plan_watched(&model.graph, &*model.source, &watch).map_err(refused)?
            }
        };
        let beside = beside(model)?;
        let key = key(self, model, &planned, texts, &beside)?;
        let unit = match Unit::kept(&key, session)? {
            Some(unit) => unit,
            None => {
                let (files, images, report) = compiled(self, model, &planned, texts, session)?;
                Unit::keep(&key, files.into_iter().chain(beside).collect(), images, report, session)?
            }
        };
        let blobs = unit.blobs.clone();
        let files = unit.files.iter().map(|(name, digest)| {
            let path = session.store.open(digest)?;
            if name.ends_with(IMAGE) {
                return Ok((name.clone(), Content::Blob { path, digest: *digest }));
            }
            let bytes = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
            Ok((name.clone(), bytes.into()))
        });
        COMPILE.leave(model, files.collect::<attar_tensor::Result<Vec<_>>>()?);
        model.findings.push(unit.report);
        Ok(blobs)
    }
}

/// What pages of plans say of where they come from.
fn origin(model: &Working) -> Origin {
    Origin { model: name_of(&model.checkpoint.path), recipe: model.recipe.clone() }
}

/// Why the head is none of the device's.
fn on_the_host(graph: &Graph) -> &'static str {
    match graph.nodes().iter().any(|node| matches!(node.op, Op::Softcap { .. })) {
        true => {
            "the last norm and the head stay on the host: the logits are capped, which no kernel computes; `device/kl` and the like cannot be measured"
        }
        false => {
            "the last norm and the head stay on the host, so `device/kl` and the like cannot be measured: `quantize` and `activations` (static) take them \
             with `lm_head` in `select`"
        }
    }
}

/// What of a compiled model is too large for memory ends so.
const IMAGE: &str = ".bin";

/// Moves whenever the same model, plans and texts give other files, or another report.
const VERSION: u32 = 2;

/// What decides the files: the plans, all weights and constants, both texts, what lies beside, and whose floats they are compared with.
fn key(
    settings: &Compile,
    model: &Working,
    planned: &Planned,
    [windows, other]: [&[Vec<u32>]; 2],
    beside: &[(String, Vec<u8>)],
) -> Result<Digest, StepError> {
    let mut text = format!("{TOOL} compile {VERSION} {} {}\n{}", instruction_set(), Step::settings(settings), model.graph);
    text += &format!("\n{:?}", origin(model));
    let mut digests: Vec<Digest> = planned.plans().map(|plan| Digest::of(&plan.to_bytes())).collect();
    let mut seen = BTreeSet::new();
    for (_, _, expr) in model.graph.weights() {
        if seen.insert(expr.to_string()) {
            digests.push(expr.digest(&*model.source)?);
        }
    }
    let tokens = windows.iter().map(|window| (0, window)).chain(other.iter().map(|window| (1, window)));
    digests.extend(tokens.map(|(which, window)| {
        Digest::of_parts([&[which][..], &window.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>()])
    }));
    digests.extend(beside.iter().map(|(name, bytes)| Digest::of_parts([name.as_bytes(), bytes])));
    digests.iter().for_each(|digest| text += &format!("\n{digest}"));
    Ok(Digest::of(text.as_bytes()))
}

/// Everything that the step makes: the content of a unit. Each file is a unit of its own.
#[derive(Serialize, Deserialize)]
struct Unit {
    files: Vec<(String, Digest)>,
    report: CompilationReport,
    /// Of each phase: reports leave them out.
    pictures: Vec<Vec<Picture>>,
    /// Of the files, and of this.
    #[serde(skip)]
    blobs: Vec<Digest>,
}

impl Unit {
    fn part(key: &Digest, name: &str) -> Digest {
        Digest::of_parts([key.as_bytes().as_slice(), name.as_bytes()])
    }

    /// What is in the store, if it is whole.
    fn kept(key: &Digest, session: &Session<'_>) -> Result<Option<Unit>, StepError> {
        let Some(blob) = session.done(key)? else { return Ok(None) };
        let path = session.store.open(&blob)?;
        let text = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
        let Ok(mut unit) = serde_json::from_slice::<Unit>(&text) else { return Ok(None) };
        for (name, digest) in &unit.files {
            if session.done(&Unit::part(key, name))? != Some(*digest) {
                return Ok(None);
            }
        }
        for (phase, pictures) in unit.report.phases.iter_mut().zip(std::mem::take(&mut unit.pictures)) {
            phase.pictures = pictures;
        }
        unit.blobs = unit.files.iter().map(|(_, digest)| *digest).chain([blob]).collect();
        Ok(Some(unit))
    }

    fn keep(
        key: &Digest,
        files: Vec<(String, Vec<u8>)>,
        images: Vec<(&'static str, Digest)>,
        report: CompilationReport,
        session: &Session<'_>,
    ) -> Result<Unit, StepError> {
        let pictures = report.phases.iter().map(|phase| phase.pictures.clone()).collect();
        let mut unit = Unit { files: Vec::new(), report, pictures, blobs: Vec::new() };
        for (name, bytes) in files {
            let put =
                |to: &mut dyn std::io::Write| to.write_all(&bytes).map_err(|error| Error::from(attar_tensor::Error::from(error)));
            let digest = session.store.put(put)?;
            unit.files.push((name, digest));
        }
        unit.files.extend(images.into_iter().map(|(name, digest)| (name.to_owned(), digest)));
        session.check_inputs()?;
        for (name, digest) in &unit.files {
            session.store.record(Unit::part(key, name), *digest)?;
        }
        let text = json(&unit);
        let blob = session.unit(*key, |to| to.write_all(&text).map_err(|error| attar_tensor::Error::from(error).into()))?;
        unit.blobs = unit.files.iter().map(|(_, digest)| *digest).chain([blob]).collect();
        Ok(unit)
    }
}

/// Passes progress on; `false` to stop.
fn tell(settings: &Compile, model: &Working, session: &Session<'_>, stage: &Cell<&'static str>, progress: Progress<'_>) -> bool {
    if stage.replace(progress.stage) != progress.stage {
        let title = format!("{}: compile for {}, {}", model.title, settings.device, progress.stage);
        session.observer.stage(&title, progress.total as u64);
    }
    session.observer.advance(progress.done as u64, progress.what);
    !session.observer.interrupted()
}

type Made = (Vec<(String, Vec<u8>)>, Vec<(&'static str, Digest)>, CompilationReport);

/// Compiles: files in memory, blobs of images, and what is reported.
fn compiled(
    settings: &Compile,
    model: &Working,
    planned: &Planned,
    texts: [&[Vec<u32>]; 2],
    session: &Session<'_>,
) -> Result<Made, StepError> {
    let stage = Cell::new("");
    let watch = |progress: Progress<'_>| tell(settings, model, session, &stage, progress);
    let source = Arc::clone(&model.source);
    let compiled = Compile::run(settings, &model.graph, &source, texts, Some(planned), &watch).map_err(refused)?;
    let memories = memories(&compiled, &model.source, session)?;
    let images = memories.iter().map(|(name, digest)| ((*name).to_owned(), *digest)).collect();
    let manifest = Manifest { images, ..compiled.manifest.clone() };
    Ok((files(&compiled, &manifest, &origin(model)), memories, report(&compiled)))
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
        let proofs =
            compiled.phases.iter().filter_map(|phase| phase.proof.as_ref()).chain(compiled.heads.iter().map(|(_, head)| head));
        for proof in proofs {
            if let Some(tensor) = proof.missing_in(space, &mut file).map_err(unread)? {
                return Err(Error::input(format!("`{name}` does not hold `{tensor}` as it was proven: a bug of attar")).into());
            }
        }
        found.push((name, digest));
    }
    for (embedding, table) in
        compiled.embedding.iter().flat_map(|embedding| embedding.tables.iter().map(move |table| (embedding, table)))
    {
        let name = table.of.file();
        session.observer.stage(&format!("write {name}"), 0);
        session.check_interrupt()?;
        let digest = session.store.put(|to| embedding.write(table, source, to).map_err(Error::from))?;
        found.push((name, digest));
    }
    Ok(found)
}

/// The configuration and the tokenizer, with what else travels with a model: who runs the plans reads text.
fn beside(model: &Working) -> Result<Vec<(String, Vec<u8>)>, StepError> {
    let side = side::side(&model.checkpoint, &model.graph)?;
    let config = (!side.config.is_null()).then(|| (attar_export::CONFIG.to_owned(), json(&side.config)));
    let files = side.files.iter().map(|(name, content)| Ok(((*name).to_owned(), content.bytes()?)));
    Ok(config.into_iter().chain(files.collect::<attar_export::Result<Vec<_>>>().map_err(Error::from)?).collect())
}

fn files(compiled: &Compiled, manifest: &Manifest, origin: &Origin) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("model.json".to_owned(), json(manifest))];
    for phase in &compiled.phases {
        files.push((format!("{}.plan", phase.name), phase.schedule.plan.to_bytes()));
        files.push((format!("{}.txt", phase.name), phase.schedule.plan.to_string().into_bytes()));
        if let Some(report) = &phase.report {
            let page = to_html(report, &phase.schedule, &phase.simulation, origin);
            files.push((format!("{}.html", phase.name), page.into_bytes()));
            files.push((format!("{}.json", phase.name), json(report)));
        }
    }
    let proofs = compiled
        .phases
        .iter()
        .map(|phase| (phase.name.as_str(), &phase.proof))
        .filter_map(|(name, proof)| Some((name, proof.as_ref()?)));
    for (name, proven) in proofs.chain(compiled.heads.iter().map(|(name, head)| (*name, head))) {
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
        head: compiled.heads.first().map(|(_, head)| proof_report(head)),
        verify_head: compiled.heads.get(1).map(|(_, head)| proof_report(head)),
        rests_on: compiled.phases.first().and_then(|phase| most_assumed(&phase.report.as_ref()?.predicted_from)),
        quality: compiled.quality,
    }
}

fn phase_report(phase: &Phase) -> PhaseReport {
    let rates = &phase.schedule.plan.rates;
    PhaseReport {
        name: phase.name.clone(),
        rows: phase.rows,
        batch: phase.program.batch,
        past: phase.past,
        kernels: phase.schedule.plan.calls.len(),
        bodies: phase.schedule.plan.bodies.len(),
        macs: phase.simulation.macs(),
        dram_bytes: phase.simulation.dram(),
        cycles: phase.simulation.cycles,
        latency: phase.simulation.latency(rates),
        energy: phase.simulation.energy(rates),
        assumed: phase.report.as_ref().map_or([false; 2], |report| assumed(&report.predicted_from)),
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
