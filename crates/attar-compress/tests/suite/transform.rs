//! Runs over every transformation x every tiny model x both orders of rotary rows, unasked: the logits stay those of the
//! transformers library.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use attar_compress::{Choice, Error, Rewrite, Rotate, SMOOTHERS, Seeing, Site, Smooth, SmoothScales};
use attar_graph::{Expr, Graph, Inputs, Mode, Run, SourceWeights, Stream};
use attar_model::Model;
use attar_tensor::{
    Digest, Dtype, Overlay, QuantizedTensor, Source, TensorInfo,
    safetensors::{Entry, Shards, Writer},
};

/// Largest difference over the largest logit: f32 arithmetic in another order, on weights that were rounded to f32 again.
const RELATIVE: f32 = 2e-4;

/// A model under way.
#[derive(Clone)]
struct Subject {
    name: String,
    graph: Graph,
    source: Arc<dyn Source>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

fn folders() -> Vec<PathBuf> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut all: Vec<PathBuf> = fs::read_dir(tiny).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    match std::env::var_os("ATTAR_SHARED").map(|shared| PathBuf::from(shared).join("models/stories260k")) {
        Some(stories) if stories.exists() => all.push(stories),
        _ => skip("stories260k is absent"),
    }
    all
}

/// Not captured by the harness, so that a run can count it.
fn skip(reason: &str) {
    let mut to = std::io::stderr();
    writeln!(to, "skipped: {reason}").unwrap();
}

/// Architectures whose residual stream is a sum of layers' outputs that norms without a mean read.
const WITH_PLAIN_STREAM: &[&str] = &["llama", "mistral", "qwen2", "qwen3", "phi3"];

/// Every model with a plain residual stream, as it is stored and, where no tensors are fused, as a GGUF file would store it.
fn subjects() -> Vec<Subject> {
    let (plain, _): (Vec<Subject>, Vec<Subject>) = every_model().into_iter().partition(Subject::has_plain_stream);
    plain.into_iter().flat_map(|plain| interleaved(&plain).into_iter().chain([plain]).collect::<Vec<_>>()).collect()
}

fn every_model() -> Vec<Subject> {
    let mut all = Vec::new();
    for folder in folders() {
        let model = Model::open(&folder).unwrap();
        let golden = Shards::open(&[folder.join("golden.safetensors")], &Default::default()).unwrap();
        let values = |name: &str| {
            let info = golden.info(name).unwrap();
            let mut values = vec![0.0; info.elements()];
            golden.read(name, 0..info.matrix()[0], &mut values).unwrap();
            values
        };
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let tokens = values("input_ids").into_iter().map(|t| t as u32).collect();
        let output = ["logits", "one_segment_embedding"].into_iter().find(|name| golden.tensors().contains_key(*name));
        let logits = values(output.unwrap());
        all.push(Subject { name, graph: model.graph, source: model.source, tokens, logits });
    }
    all
}

/// Rotary rows of queries and keys stored as pairs, and a graph that says so. None if they share a tensor.
fn interleaved(plain: &Subject) -> Option<Subject> {
    let mut graph = plain.graph.clone();
    let mut heads = BTreeMap::new();
    for (kind, split) in [("query", "query_heads"), ("key", "key_heads")] {
        for block in 0..graph.block_count() {
            let Some(id) = graph.find(&format!("blocks.{block}.attention.{kind}")) else { continue };
            let count = graph.fact(graph.find(&format!("b{block}.{split}")).unwrap()).dims[1].constant().unwrap();
            let attar_graph::Origin::Weight(expr) = graph.get(id).origin.clone() else { panic!("a weight") };
            if !matches!(expr, Expr::Tensor(_)) {
                return None;
            }
            heads.insert(expr.tensor_name().to_owned(), count);
            graph.replace_weight(id, graph.fact(id).encoding, Expr::Halves(Box::new(expr), count));
        }
    }
    let source = Arc::new(Interleaved { below: plain.source.clone(), heads });
    Some(Subject { name: format!("{}, interleaved", plain.name), graph, source, ..plain.clone() })
}

/// A source whose tensors of `heads` have their rows in pairs.
struct Interleaved {
    below: Arc<dyn Source>,
    heads: BTreeMap<String, usize>,
}

impl Source for Interleaved {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        self.below.tensors()
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        let Some(heads) = self.heads.get(name) else { return self.below.read(name, rows, out) };
        let [count, columns] = self.info(name)?.matrix();
        let head = count / heads;
        for (row, out) in rows.zip(out.chunks_mut(columns)) {
            let (at, half) = (row % head, head / 2);
            let from = row - at + if at % 2 == 0 { at / 2 } else { half + at / 2 };
            self.below.read(name, from..from + 1, out)?;
        }
        Ok(())
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> attar_tensor::Result<QuantizedTensor> {
        self.below.read_quantized(name, rows)
    }

    fn digest(&self, name: &str) -> attar_tensor::Result<Digest> {
        self.below.digest(name)
    }
}

impl Subject {
    fn has_plain_stream(&self) -> bool {
        WITH_PLAIN_STREAM.contains(&self.graph.name())
    }

    fn compute(&self) -> Vec<f32> {
        self.graph.verify().unwrap();
        self.graph.verify_weights(&*self.source).unwrap();
        let weights = SourceWeights(self.source.clone());
        let run = Run::new(&self.graph, &weights, Mode::Inference, vec![Inputs::tokens(&[&self.tokens], 0).unwrap()]);
        run.finish(0).unwrap().0[0].flatten_all().unwrap().to_vec1().unwrap()
    }

    #[track_caller]
    fn assert_unchanged(&self, how: &str) {
        let scale = self.logits.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let worst = self.compute().iter().zip(&self.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= RELATIVE * scale, "{}, {how}: off by {worst} where the largest is {scale}", self.name);
    }

    fn rewritten(&self, rewrite: Rewrite) -> Subject {
        Subject { graph: rewrite.graph, ..self.clone() }
    }

    fn rotated(&self, rotate: &Rotate) -> Subject {
        self.rewritten(rotate.rewrite(&self.graph).unwrap())
    }

    /// Scaled as `smooth` says; the scales lie in `folder`.
    fn smoothed(&self, smooth: &Smooth, folder: &Path) -> Subject {
        let sites = smooth.sites(&self.graph).unwrap();
        let mut scaled = Vec::new();
        let mut vectors = BTreeMap::new();
        for (number, (site, choice)) in sites.iter().zip(self.choices(smooth, &sites)).enumerate() {
            let columns = self.columns(site).iter().map(|channel| choice.scales[*channel]).collect();
            let names = [format!("{number}.channels"), format!("{number}.columns")];
            scaled.push((site.clone(), SmoothScales { channels: Expr::tensor(&names[0]), columns: Expr::tensor(&names[1]) }));
            vectors.extend(names.into_iter().zip([choice.scales, columns]));
        }
        let source = Arc::new(Overlay::new(stored(&vectors, folder), self.source.clone()));
        Subject { source, ..self.rewritten(smooth.rewrite(&self.graph, &scaled).unwrap()) }
    }

    fn columns(&self, site: &Site) -> Vec<usize> {
        site.channel_of_columns(self.graph.fact(site.readers[0].input).width().unwrap())
    }

    /// What the smoother picks for every site on the golden tokens.
    fn choices(&self, smooth: &Smooth, sites: &[Site]) -> Vec<Choice> {
        let weights = SourceWeights(self.source.clone());
        let mut stream = Stream::new(&self.graph, vec![Inputs::tokens(&[&self.tokens], 0).unwrap()]);
        let mut choices = Vec::new();
        for site in sites {
            while stream.block() != site.block {
                stream.leave(&weights).unwrap();
            }
            let channel = self.columns(site);
            let mut seen = Seeing::new(channel.len());
            stream.reach(&weights, site.readers[0].input, &mut |_, x| Ok(seen.add(x)?)).unwrap();
            let matrices: Vec<(usize, Vec<f32>)> =
                site.readers.iter().map(|reader| self.matrix(reader.expr(&self.graph))).collect();
            choices.push(smooth.method.0.scales(smooth, &matrices, &seen, &channel).unwrap());
        }
        choices
    }

    fn matrix(&self, expr: &Expr) -> (usize, Vec<f32>) {
        let info = expr.info(&*self.source).unwrap();
        let mut values = vec![0.0; info.elements()];
        expr.read(&*self.source, 0..info.matrix()[0], &mut values).unwrap();
        (info.matrix()[0], values)
    }
}

fn stored(vectors: &BTreeMap<String, Vec<f32>>, folder: &Path) -> Arc<dyn Source> {
    let entry = |(name, values): (&String, &Vec<f32>)| Entry { name: name.clone(), dtype: Dtype::F32, dims: vec![values.len()] };
    let entries: Vec<Entry> = vectors.iter().map(entry).collect();
    let path = folder.join("scales.safetensors");
    let mut writer = Writer::new(File::create(&path).unwrap(), &entries, &BTreeMap::new()).unwrap();
    for values in vectors.values() {
        let mut bytes = Vec::new();
        Dtype::F32.encode(values, &mut bytes);
        writer.append(&bytes).unwrap();
    }
    writer.finish();
    Arc::new(Shards::open(&[path], &BTreeMap::new()).unwrap())
}

fn rotations() -> Vec<(&'static str, Rotate)> {
    let none = Rotate { residual: false, value: false, seed: 3, ..Rotate::default() };
    vec![
        ("residual", Rotate { residual: true, ..none.clone() }),
        ("value", Rotate { value: true, ..none.clone() }),
        ("mlp", Rotate { mlp: true, ..none.clone() }),
        ("all", Rotate { mlp: true, seed: u64::MAX, ..Rotate::default() }),
    ]
}

fn smooths() -> Vec<Smooth> {
    let text = |method: &str| match method {
        "awq" => "method = \"awq\"\ngrid = \"int3\"\ngroup = 16\ntail = \"short\"".to_owned(),
        method => format!("method = \"{method}\"\nalpha = 0.6"),
    };
    SMOOTHERS.iter().map(|smoother| toml::from_str(&text(smoother.name())).unwrap()).collect()
}

#[test]
fn rotations_keep_the_logits_of_transformers() {
    for subject in subjects() {
        for (name, rotate) in rotations() {
            subject.rotated(&rotate).assert_unchanged(name);
            let changes = rotate.rewrite(&subject.graph).unwrap().changes();
            assert!(changes.iter().any(|change| change.name == "blocks.0.mlp.down") != (name == "value"), "{name}");
        }
    }
}

/// LayerNorm, and norms between a layer and the residual stream, do not commute with a rotation of the stream. Values and the
/// inputs of the last layer of an MLP rotate in every architecture.
#[test]
fn streams_that_cannot_rotate_are_refused_by_name_and_all_else_rotates() {
    let others: Vec<Subject> = every_model().into_iter().filter(|subject| !subject.has_plain_stream()).collect();
    let names: Vec<&str> = others.iter().map(|subject| subject.graph.name()).collect();
    for architecture in ["gemma3", "gpt2", "bert"] {
        assert!(names.contains(&architecture), "{names:?}");
    }
    for subject in others {
        for (name, rotate) in rotations() {
            if !rotate.residual {
                subject.rotated(&rotate).assert_unchanged(name);
                assert!(!rotate.rewrite(&subject.graph).unwrap().changes().is_empty(), "{}: {name}", subject.name);
                continue;
            }
            let Err(Error::Structure { value, problem }) = rotate.rewrite(&subject.graph) else {
                panic!("{}: its residual stream cannot rotate", subject.name)
            };
            assert!(subject.graph.find(&value).is_some(), "{value}");
            let layer_norm = subject.graph.name() != "gemma3";
            assert_eq!(layer_norm, problem.contains("is a LayerNorm"), "{}: `{value}` {problem}", subject.name);
        }
    }
}

/// Norms, values and gated MLPs are scaled wherever the graph allows it: next to LayerNorm with a bias, norms of queries, gains
/// of one plus a weight, fused tensors, a plain MLP.
#[test]
fn smoothers_keep_the_outputs_of_every_architecture() {
    for subject in every_model() {
        for smooth in smooths() {
            let folder = tempfile::tempdir().unwrap();
            let sites: Vec<String> = smooth.sites(&subject.graph).unwrap().into_iter().map(|site| site.name).collect();
            let has = |name: &str| sites.iter().any(|site| site == name);
            assert!(has("blocks.0.attention.value"), "{}: {sites:?}", subject.name);
            // In BERT the norm's output is also added to the stream.
            let pre_norm = subject.graph.name() != "bert";
            assert_eq!(has("blocks.1.attention_norm"), pre_norm, "{}: {sites:?}", subject.name);
            let gated = !["bert", "gpt2"].contains(&subject.graph.name());
            assert_eq!(has("blocks.1.mlp.up"), gated, "{}: {sites:?}", subject.name);
            assert!(!has("final_norm"), "{}: {sites:?}", subject.name);
            subject.smoothed(&smooth, folder.path()).assert_unchanged(smooth.method.0.name());
        }
    }
}

#[test]
fn smoothers_keep_the_logits_of_transformers() {
    for subject in subjects() {
        for smooth in smooths() {
            let folder = tempfile::tempdir().unwrap();
            let smoothed = subject.smoothed(&smooth, folder.path());
            smoothed.assert_unchanged(smooth.method.0.name());
            let up = |subject: &Subject| subject.matrix(query(&subject.graph)).1;
            assert_ne!(up(&subject), up(&smoothed), "{}: nothing was scaled", smooth.method.0.name());
        }
    }
}

/// The weight of a query.
fn query(graph: &Graph) -> &Expr {
    graph.weights().find(|(_, value, _)| value.name == "blocks.0.attention.query").unwrap().2
}

#[test]
fn transformations_compose_in_any_order() {
    for subject in subjects() {
        for smooth in smooths() {
            let rotate = &rotations()[3].1;
            let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            subject.rotated(rotate).smoothed(&smooth, folders[0].path()).assert_unchanged("rotate, smooth");
            subject.smoothed(&smooth, folders[1].path()).rotated(rotate).assert_unchanged("smooth, rotate");
        }
    }
}

#[test]
fn awq_finds_less_error_than_no_scaling() {
    for subject in subjects() {
        let smooth = &smooths()[0];
        let sites = smooth.sites(&subject.graph).unwrap();
        let choices = subject.choices(smooth, &sites);
        assert!(choices.iter().all(|choice| choice.error <= 1.0 && choice.error > 0.0));
        assert!(choices.iter().any(|choice| choice.alpha > 0.0 && choice.error < 0.99), "{}: {choices:?}", subject.name);
    }
}

/// Only what the setting is about is rounded, and tables that were one can be another's half.
#[test]
fn tables_take_the_format_that_was_asked_for() {
    let subject = &subjects()[1];
    let rotate = Rotate { tables: attar_compress::TableDtype::F16, ..Rotate::default() };
    let rotated = subject.rotated(&rotate);
    rotated.graph.verify_weights(&*rotated.source).unwrap();
    let changes = rotate.rewrite(&subject.graph).unwrap().changes();
    let rounded: Vec<&str> = changes
        .iter()
        .filter(|change| rotated.graph.fact(change.id).encoding.to_string() == "f16")
        .map(|change| change.name.as_str())
        .collect();
    assert_eq!(rounded, ["embedding", "lm_head"]);
    let scale = subject.logits.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let worst = rotated.compute().iter().zip(&subject.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 0.002 * scale && worst > 1e-6 * scale, "{worst} of {scale}");
}

#[test]
fn a_rotation_of_nothing_and_codes_are_refused() {
    let subject = &subjects()[1];
    let none = Rotate { residual: false, value: false, ..Rotate::default() };
    assert!(matches!(none.rewrite(&subject.graph), Err(Error::NothingToRotate)));
    let mut graph = subject.graph.clone();
    let id = graph.find("blocks.1.mlp.up").unwrap();
    graph.replace_weight(id, "int4/g16".parse().unwrap(), Expr::tensor("codes"));
    let error = Rotate::default().rewrite(&graph).unwrap_err();
    assert!(error.to_string().contains("blocks.1.mlp.up"), "{error}");
    assert_eq!(error.key(), Some("kind"));
    let sites = smooths()[1].sites(&graph).unwrap();
    let ones = |site: &Site| SmoothScales { channels: Expr::Ones(site.channels), columns: Expr::Ones(site.channels) };
    let scaled: Vec<_> = sites.into_iter().map(|site| (site.clone(), ones(&site))).collect();
    assert!(matches!(smooths()[1].rewrite(&graph, &scaled), Err(Error::CodesStay { .. })));
}

/// A residual stream that something else reads cannot be turned: the node is named.
#[test]
fn a_graph_with_other_readers_is_refused_by_name() {
    let text = |end: &str| {
        format!(
            "graph g(tokens: [batch, seq] i64) {{\n  x = embedding tokens, weight(\"e\": [8, 4] f32)\n  \
             n = rms_norm x, weight(\"g\": [4] f32) {{epsilon = 0}}\n  y = linear n, weight(\"w\": [4, 4] f32)\n  {end}\n}}"
        )
    };
    let turn = |end: &str| Rotate { value: false, ..Rotate::default() }.rewrite(&Graph::parse(&text(end)).unwrap());
    turn("return y").unwrap();
    for (end, named) in [
        ("s = silu x\n  return s", "s"),
        ("return x", "x"),
        ("return n", "n"),
        ("a = add x, y\n  return a", "a"),
        ("s = silu y\n  a = add x, s\n  b = rms_norm a, weight(\"g2\": [4] f32) {epsilon = 0}\n  return b", "s"),
        ("z = linear n, weight(\"w\": [4, 4] f32)\n  return y, z", "y"),
    ] {
        match turn(end) {
            Err(Error::Structure { value, .. }) => assert_eq!(value, named, "{end}"),
            other => panic!("{end}: {other:?}"),
        }
    }
}
