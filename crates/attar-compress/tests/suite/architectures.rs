//! Runs over every tiny model x every quantizer, unasked: all block matrices are quantized through the inputs that the model
//! shows them, and the outputs stay near.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, io::Write, ops::Range, path::Path, sync::Arc};

use attar_compress::{Assignment, Drift, Hessian, Needs, QUANTIZERS, Quantize, Quantizer, Result, Seen, WeightRows};
use attar_graph::{Graph, Inputs, Mode, Op, Run, SourceWeights, Stream, ValueId};
use attar_model::{ARCHITECTURES, Model};
use attar_tensor::{BlobWriter, Blobs, Encoding, Overlay, Source};

/// Largest error of the outputs that int8 with a scale per row explains, relative to their energy. Random weights are less
/// forgiving than trained ones; a wrong order of rows or columns gives about 1.
const RELATIVE: f64 = 0.02;

/// Tokens without a meaning.
const TOKENS: u32 = 24;

struct Rows<'a>(&'a Assignment, &'a dyn Source);

impl WeightRows for Rows<'_> {
    fn dims(&self) -> [usize; 2] {
        self.0.dims
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        Ok(self.0.expr.read(self.1, rows, out)?)
    }

    fn name(&self) -> &str {
        &self.0.name
    }
}

fn models() -> Vec<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut folders: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.retain(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tiny-")));
    folders.iter().map(|folder| Model::open(folder).unwrap()).collect()
}

fn inputs() -> Inputs {
    let tokens: Vec<u32> = (0..TOKENS).map(|i| (i * 7 + 3) % 50).collect();
    Inputs::tokens(&[&tokens], 0).unwrap()
}

fn output(graph: &Graph, source: &Arc<dyn Source>) -> Vec<f32> {
    let weights = SourceWeights(source.clone());
    let (outputs, _) = Run::new(graph, &weights, Mode::Inference, vec![inputs()]).finish(0).unwrap();
    outputs[0].flatten_all().unwrap().to_vec1().unwrap()
}

/// Second moments, and a drift of nothing, of the inputs of every selected layer.
fn observe(model: &Model, assignments: &[Assignment]) -> BTreeMap<ValueId, (Hessian, Drift)> {
    let weights = SourceWeights(model.source.clone());
    let mut stream = Stream::new(&model.graph, vec![inputs()]);
    let mut seen = BTreeMap::new();
    for node in model.graph.nodes().iter().filter(|node| node.op == Op::Linear) {
        let Some(assignment) = assignments.iter().find(|a| a.is_of(node.inputs[1])) else { continue };
        while stream.block() != node.block {
            stream.leave(&weights).unwrap();
        }
        let columns = assignment.dims[1];
        let mut moments = (Hessian::new(columns), Drift::new(columns));
        stream
            .reach(&weights, node.inputs[0], &mut |_, x| {
                moments.0.add(x)?;
                Ok(moments.1.add(x, x)?)
            })
            .unwrap();
        seen.insert(assignment.id, moments);
    }
    seen
}

/// The model with every block matrix in codes.
fn quantized(model: &Model, quantizer: &dyn Quantizer, folder: &Path) -> (Graph, Arc<dyn Source>, usize) {
    let settings = format!("algorithm = \"{}\"\ngrid = \"int8\"\ngroup = \"row\"", quantizer.name());
    let assignments = toml::from_str::<Quantize>(&settings).unwrap().assign(&model.graph).unwrap();
    let moments = if quantizer.needs() == Needs::Nothing { BTreeMap::new() } else { observe(model, &assignments) };
    let (mut graph, mut blobs) = (model.graph.clone(), Blobs::default());
    for (number, assignment) in assignments.iter().enumerate() {
        let mut bytes = Vec::new();
        let writer = BlobWriter::new(&mut bytes, assignment.scheme, assignment.dims).unwrap();
        let own = moments.get(&assignment.id);
        let seen = Seen { hessian: own.map(|(hessian, _)| hessian), drift: own.map(|(_, drift)| drift) };
        let rows = Rows(assignment, &*model.source);
        quantizer.quantize(&rows, seen, assignment.scheme, assignment.search, writer, &|_| {}).unwrap();
        let path = folder.join(number.to_string());
        fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let name = format!("codes/{}", assignment.name);
        blobs.insert_file(&name, path, assignment.scheme, assignment.dims);
        for id in assignment.ids() {
            graph.replace_weight(id, Encoding::Quantized(assignment.scheme), attar_graph::Expr::tensor(&name));
        }
    }
    (graph, Arc::new(Overlay::new(Arc::new(blobs), model.source.clone())), assignments.len())
}

#[test]
fn every_quantizer_quantizes_every_architecture() {
    let mut covered = Vec::new();
    for model in models() {
        let wanted = output(&model.graph, &model.source);
        let energy: f64 = wanted.iter().map(|x| f64::from(*x).powi(2)).sum();
        for quantizer in QUANTIZERS {
            let folder = tempfile::tempdir().unwrap();
            let (graph, source, count) = quantized(&model, *quantizer, folder.path());
            graph.verify_weights(&*source).unwrap();
            let what = format!("{}, {}", graph.name(), quantizer.name());
            assert!(count >= 6 * 2, "{what}: {count} matrices in two blocks");
            let error: f64 =
                output(&graph, &source).iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            assert!(error > 0.0 && error <= RELATIVE * energy, "{what}: {:.5} of the outputs' energy", error / energy);
        }
        covered.push(model.graph.name().to_owned());
    }
    for architecture in ARCHITECTURES {
        let known = architecture.names.iter().any(|name| covered.iter().any(|covered| covered == name));
        assert!(known, "no tiny checkpoint of {:?}: {covered:?}", architecture.names);
    }
}
