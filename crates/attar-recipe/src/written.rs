//! Text that the float model writes itself, to look at its activations on (as in LLM-QAT, Liu et al. 2023): no data is needed.
//!
//! Beginnings of attar's own texts are continued by seeded sampling, as many together as a pass of the reference takes. What they become is a unit of work: a
//! run that was killed goes on behind the last that was finished, and a later run with the same model and settings writes nothing anew.

use attar_eval::{Generation, Reference, Runner, Sampling, Window};
use attar_graph::kernel::instruction_set;
use attar_model::Model;
use attar_tensor::Digest;

use crate::{Result, session::Session, walk::token_bytes};

/// Texts that are written together.
const TOGETHER: usize = 16;

/// What is drawn from: all but the least likely tokens, as likely as the model has them.
const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: None, top_p: Some(0.95), seed: 0 };

/// Continues beginnings of texts to windows of `length` tokens. The end of a text ends no window: another text may follow. Returns the blobs that hold them,
/// too.
pub(crate) fn written(
    model: &Model,
    beginnings: &[Vec<u32>],
    length: usize,
    seed: u64,
    session: &Session<'_>,
) -> Result<(Vec<Vec<u32>>, Vec<Digest>)> {
    let (reference, weights) = (Reference::new(model), weights_of(model)?);
    let title = "the model writes calibration text";
    session.observer.stage(title, (beginnings.len() * length) as u64);
    let (mut windows, mut used) = (Vec::new(), Vec::new());
    for (at, beginnings) in beginnings.chunks(TOGETHER).enumerate() {
        session.check_interrupt()?;
        let sampling = Sampling { seed: seed.wrapping_add(at as u64), ..SAMPLING };
        let settings = serde_json::to_vec(&sampling).expect("settings are JSON");
        let (tokens, size) = (token_bytes(beginnings), (length as u64).to_le_bytes());
        let parts = [b"written 1".as_slice(), instruction_set().as_bytes(), weights.as_bytes(), &settings, &tokens, &size];
        let before = (at * TOGETHER * length) as u64;
        let blob = session.unit(Digest::of_parts(parts), |to| {
            let all =
                continued(&reference, beginnings, length, &sampling, &|tokens| session.observer.advance(before + tokens, ""))?;
            let bytes: Vec<u8> = all.iter().flatten().flat_map(|token| token.to_le_bytes()).collect();
            to.write_all(&bytes).map_err(|e| attar_tensor::Error::from(e).into())
        })?;
        let path = session.store.open(&blob)?;
        let bytes = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
        let (tokens, _) = bytes.as_chunks::<4>();
        windows.extend(tokens.chunks(length).map(|window| window.iter().map(|token| u32::from_le_bytes(*token)).collect()));
        used.push(blob);
        session.observer.advance((windows.len() * length) as u64, "");
    }
    Ok((windows, used))
}

fn continued(
    reference: &Reference<'_>,
    beginnings: &[Vec<u32>],
    length: usize,
    sampling: &Sampling,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Vec<u32>>> {
    let shortest = beginnings.iter().map(Vec::len).min().unwrap_or(0);
    let how = Generation { limit: length.saturating_sub(shortest), stop: Vec::new(), sampling: Some(sampling.clone()) };
    let prompt = |tokens: &Vec<u32>| Window { scored: tokens.len() - 1..tokens.len(), tokens: tokens.clone() };
    let prompts: Vec<Window> = beginnings.iter().map(prompt).collect();
    let progress = |done: u64, _: u64| progress(done);
    let mut rows = reference.start(attar_eval::Asked::Answers(how), &prompts, &progress)?;
    let window = |(at, beginning): (usize, &Vec<u32>)| {
        let mut window = [beginning.clone(), rows.answer(at)?].concat();
        window.truncate(length);
        Ok(window)
    };
    beginnings.iter().enumerate().map(window).collect()
}

/// The digest of the graph and all weights.
fn weights_of(model: &Model) -> Result<Digest> {
    let mut parts = vec![Digest::of(model.graph.to_string().as_bytes())];
    for (_, _, expr) in model.graph.weights() {
        parts.push(expr.digest(&*model.source)?);
    }
    Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
}
