//! The student that a step makes of the model: pruned from it, or of random weights in a smaller shape.

use std::{collections::BTreeMap, sync::Arc};

use attar_compress::{
    SplitMix64,
    learn::{Init, StudentShape},
    prune::{UnitSite, stored_as},
};
use attar_graph::{Expr, Graph, Op, ValueId};
use attar_tensor::{
    Digest, Dtype, Encoding, Overlay,
    safetensors::{Entry, Shards, Writer},
};

use super::{
    codes::refused,
    kind::{PlannedTensor, Step, StepError},
    prune,
};
use crate::{
    Error,
    model::{Float, Working},
    session::Session,
};

/// Windows of the training text that are looked at, where there is no text for calibration.
const SEEN: usize = 128;

/// The model is of the student's shape from now on; only shapes are planned.
pub(super) fn plan(student: &StudentShape, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
    match student.init {
        Init::Prune if student.prunings().is_empty() => {
            let error = Error::recipe("the student has no shape of its own");
            let error = error.hint("say what it has less of, `mlp` or `blocks` for example, or leave `student` out".to_owned());
            Err(StepError { key: Some("student".into()), error })
        }
        Init::Prune => {
            let own = (model.calibrated, model.tokens, model.window);
            if let (false, Some(text)) = (model.calibrated, &model.training) {
                let windows = text.most_windows().min(SEEN);
                (model.calibrated, model.tokens, model.window) = (true, (windows * text.length) as u64, text.length);
            }
            let mut planned = Vec::new();
            for step in student.prunings() {
                planned.extend(step.plan(model).map_err(in_student)?);
            }
            (model.calibrated, model.tokens, model.window) = own;
            Ok(planned)
        }
        Init::Random => {
            let graph = shaped(student, model)?;
            model.float.graph = graph.clone();
            model.graph = graph;
            Ok(Vec::new())
        }
    }
}

/// Makes it. Returns the blobs that it is in.
pub(super) fn make(student: &StudentShape, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
    match student.init {
        Init::Prune => {
            // Without a text for calibration, that of the training is looked at.
            let seen =
                session.training.filter(|_| session.calibration.is_none()).map(|text| &text.train[..text.train.len().min(SEEN)]);
            let session =
                seen.map_or_else(|| session.seeing(session.calibration.unwrap_or_default()), |seen| session.seeing(seen));
            let mut used = Vec::new();
            for step in student.prunings() {
                used.extend(step.run(model, &session).map_err(in_student)?);
            }
            Ok(used)
        }
        Init::Random => random(student, model, session),
    }
}

/// A mistake in the student's shape.
fn in_student(mistake: StepError) -> StepError {
    StepError { key: Some("student".into()), ..mistake }
}

/// The model's graph in the student's shape.
fn shaped(student: &StudentShape, model: &Working) -> Result<Graph, StepError> {
    let mut graph = model.graph.clone();
    for step in student.prunings() {
        graph = prune::smallest(&step, &graph, &*model.source).map_err(in_student)?;
    }
    Ok(graph)
}

/// Standard deviation of random weights, as GPT-2 has it: those that write to the residual stream are smaller, for their sum grows with the
/// blocks (Radford et al. 2019, section 2.3).
const DEVIATION: f64 = 0.02;

fn random(student: &StudentShape, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
    let mut graph = shaped(student, model)?;
    let text = graph.to_string();
    let key = Digest::of_parts([b"random student 1".as_slice(), text.as_bytes(), &student.seed.to_le_bytes()]);
    let mut groups: BTreeMap<String, Vec<ValueId>> = BTreeMap::new();
    let mut first_of: Vec<(Expr, String)> = Vec::new();
    for (id, value, expr) in graph.weights() {
        // What is tied stays tied.
        let name = match first_of.iter().find(|(other, _)| other == expr) {
            Some((_, first)) => first.clone(),
            None => {
                first_of.push((expr.clone(), value.name.clone()));
                value.name.clone()
            }
        };
        groups.entry(name).or_default().push(id);
    }
    let gains: Vec<ValueId> = graph.nodes().iter().filter(|node| is_norm(&node.op)).map(|node| node.inputs[1]).collect();
    let sites = UnitSite::of(&graph).map_err(refused)?;
    let smaller = DEVIATION / (sites.len().max(1) as f64).sqrt();
    let stored = |name: &str| format!("{name}/{}", key.short());
    let of = |ids: &[ValueId]| {
        let fact = graph.fact(ids[0]);
        (fact.constant_dims().unwrap_or_default(), stored_as(fact.encoding))
    };
    let entry = |(name, ids): (&String, &Vec<ValueId>)| {
        let (dims, dtype) = of(ids);
        Entry { name: stored(name), dtype, dims }
    };
    let entries: Vec<Entry> = groups.iter().map(entry).collect();
    let numbers = |name: &str, ids: &[ValueId], dims: &[usize]| -> Vec<f32> {
        let count = dims.iter().product();
        match dims.len() {
            _ if gains.contains(&ids[0]) => vec![1.0; count],
            0 | 1 => vec![0.0; count],
            _ => {
                let writes = sites.iter().any(|site| ids.contains(&site.reader.weight));
                normal(count, if writes { smaller } else { DEVIATION }, student.seed, name)
            }
        }
    };
    let write = |to: &mut dyn std::io::Write| -> std::io::Result<()> {
        let mut writer = Writer::new(to, &entries, &BTreeMap::new())?;
        for (name, ids) in &groups {
            let (dims, dtype) = of(ids);
            let mut bytes = Vec::new();
            dtype.encode(&numbers(name, ids, &dims), &mut bytes);
            writer.append(&bytes)?;
        }
        writer.finish();
        Ok(())
    };
    let blob = session.unit(key, |to| write(to).map_err(|e| Error::from(attar_tensor::Error::from(e))))?;
    let placed: Vec<(ValueId, Dtype, Expr)> = groups
        .iter()
        .flat_map(|(name, ids)| ids.iter().map(|id| (*id, of(ids).1, Expr::tensor(stored(name)))).collect::<Vec<_>>())
        .collect();
    for (id, dtype, expr) in placed {
        graph.replace_weight(id, Encoding::Plain(dtype), expr);
    }
    let top = Shards::open(&[session.store.open(&blob)?], &BTreeMap::new())?;
    model.source = Arc::new(Overlay::new(Arc::new(top), model.source.clone()));
    model.graph = graph;
    model.float = Float { graph: model.graph.clone(), source: model.source.clone() };
    Ok(vec![blob])
}

fn is_norm(op: &Op) -> bool {
    matches!(op, Op::RmsNorm { .. } | Op::LayerNorm { .. })
}

/// Normal numbers by Box and Muller, from SplitMix64 with a seed of its own for every tensor.
fn normal(count: usize, deviation: f64, seed: u64, name: &str) -> Vec<f32> {
    let digest = Digest::of_parts([name.as_bytes(), &seed.to_le_bytes()]);
    let mut random = SplitMix64::new(u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest is longer")));
    // In (0, 1].
    let mut uniform = || ((random.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        numbers.extend([radius * angle.cos(), radius * angle.sin()].map(|x| (deviation * x) as f32));
    }
    numbers.truncate(count);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_normal_and_their_own_for_every_tensor() {
        let numbers = normal(20_001, 2.0, 7, "a");
        let mean = |f: &dyn Fn(f64) -> f64| numbers.iter().map(|x| f(f64::from(*x))).sum::<f64>() / numbers.len() as f64;
        assert_eq!(numbers.len(), 20_001);
        assert!(mean(&|x| x).abs() < 0.05 && (mean(&|x| x * x) - 4.0).abs() < 0.15, "{} {}", mean(&|x| x), mean(&|x| x * x));
        assert!((mean(&|x| f64::from(u8::from(x.abs() < 2.0))) - 0.683).abs() < 0.02, "two thirds within a deviation");
        assert_ne!(numbers[..5], normal(5, 2.0, 7, "b"));
        assert_ne!(numbers[..5], normal(5, 2.0, 8, "a"));
    }
}
