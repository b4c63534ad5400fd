//! Models in static integers: integer-only in LiteRT, with products in integers on Hexagon; every architecture.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod checkpoints;
mod engines;
#[expect(dead_code, reason = "shared with the suite of ONNX")]
mod tiny;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    sync::Arc,
};

use attar_compress::{ActivationSite, Activations, insert};
use attar_export::{Artifact, Format, Lookups, Qnn, Tflite};
use attar_graph::{Fact, Graph, Inputs, Mode, Node, Op, Run, SourceWeights, ValueId, op::zero_dtype};
use attar_tensor::{
    Dtype, Overlay,
    safetensors::{Entry, Shards, Writer},
};
use candle_core::{Device, Tensor};
use checkpoints::{SchemeOf, all_in_codes, each_in_codes, folders, name, open, pruned_in_codes, reference};
use serde_json::{Value, json};
use tiny::{Model, difference, tokens};

/// What NPUs of microcontrollers take: bytes, whatever levels are in them.
const CODES: &str = "int8/row/f32/positive";
const LEVELS: [&str; 2] = ["int4/row/positive", "int3/row/f32/positive"];

/// How many numbers of a value LiteRT may round to other codes than the reference run's and those beside.
const BEYOND: f64 = 0.01;

/// The step `activations`, its ranges those of a text.
fn in_integers(model: &Model, settings: Value, text: &[u32], folder: &Path) -> Model {
    let settings: Activations = serde_json::from_value(settings).unwrap();
    let split = settings.split(&model.graph).unwrap().into_owned();
    let sites = settings.sites(&split).unwrap();
    let ranges = ranges(model, &split, &sites, text);
    let (mut entries, mut bytes) = (Vec::new(), Vec::new());
    for (site, range) in sites.iter().zip(ranges) {
        let ([scale, zero], cover) = (site.constants(), site.known.cover(site.codes, range));
        Dtype::F32.encode(&[cover.0], &mut bytes);
        entries.push(Entry { name: scale, dtype: Dtype::F32, dims: vec![1] });
        if site.codes.asymmetric {
            let dtype = zero_dtype(site.codes.bits);
            dtype.encode(&[cover.1], &mut bytes);
            entries.push(Entry { name: zero, dtype, dims: vec![1] });
        }
    }
    let path = folder.join("constants.safetensors");
    let mut writer = Writer::new(File::create(&path).unwrap(), &entries, &BTreeMap::new()).unwrap();
    writer.append(&bytes).unwrap();
    writer.finish();
    let constants = Shards::open(&[path], &BTreeMap::new()).unwrap();
    let source = Arc::new(Overlay::new(Arc::new(constants), model.source.clone()));
    Model { graph: insert(&split, &sites).unwrap(), source, side: model.side.clone() }
}

/// Least and greatest value at each site.
fn ranges(model: &Model, split: &attar_graph::Graph, sites: &[ActivationSite], text: &[u32]) -> Vec<[f32; 2]> {
    let mut watched = split.clone();
    let ids: Vec<_> = sites.iter().map(|site| watched.find(&site.value).unwrap()).collect();
    for id in &ids {
        if !watched.outputs().contains(id) {
            watched.output(*id);
        }
    }
    let weights = SourceWeights(model.source.clone());
    let inputs = Inputs::tokens(&[text], 0).unwrap();
    let (outputs, _) = Run::new(&watched, &weights, Mode::Inference, vec![inputs]).finish(0).unwrap();
    let of = |id| {
        let at = watched.outputs().iter().position(|output| output == id).unwrap();
        let values = outputs[at].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().fold([0.0f32; 2], |[low, high], x| [low.min(*x), high.max(*x)])
    };
    ids.iter().map(of).collect()
}

fn write(model: &Model, format: &Tflite, folder: &Path) -> attar_export::Result<Artifact> {
    let plan = format.check(&model.graph)?;
    format.check_side(&model.side)?;
    let artifact = format.write(&model.input(), folder, &mut |_, _| ())?;
    let names = |tensors: &[attar_export::TensorEntry]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan.tensors), names(&artifact.tensors), "the plan is what is written");
    format.verify(&model.input(), &artifact, folder, None)?;
    Ok(artifact)
}

/// The graph cut at every rounded value, which is an input; what the op before makes of other inputs is an output.
fn cut(graph: &Graph) -> Graph {
    let mut made = Vec::new();
    let mut cut = graph
        .rebuilt(&mut |copy, node, name, inputs| {
            if !is_rounding(node) {
                return copy.node(name, node.op.clone(), inputs);
            }
            made.push(copy.node(&format!("{name}.made"), node.op.clone(), inputs)?);
            copy.input(name, graph.fact(node.output()).clone())
        })
        .unwrap();
    made.into_iter().for_each(|id| cut.output(id));
    cut
}

fn is_rounding(node: &Node) -> bool {
    matches!(node.op, Op::Quantize { .. })
}

/// The tensor of LiteRT's model that a rounded value is.
fn tensor_of(graph: &Graph, rounding: &Node, lookups: Lookups) -> String {
    let x = rounding.inputs[0];
    if let Some(table) = graph.maker(x).filter(|maker| maker.op == Op::Embedding && lookups == Lookups::Outside) {
        match graph.get(table.inputs[0]).name.as_str() {
            "tokens" => return "serving_default/embeddings".into(),
            "token_types" => return "serving_default/token_type_embeddings".into(),
            "positions" if !graph.nodes().iter().any(|node| matches!(node.op, Op::Cache { .. })) => (),
            _ => return "serving_default/position_embeddings".into(),
        }
    }
    let of = if graph.maker(x).is_some_and(is_rounding) { rounding.output() } else { x };
    graph.get(of).name.clone()
}

/// What LiteRT has at a rounded value: of a decoder, the rows of one position after the other.
fn found(result: &Value, name: &str, dims: &[usize], [scale, zero]: [f32; 2]) -> Option<Tensor> {
    let rows: Vec<Vec<f32>> = serde_json::from_value(result["codes"].get(name)?.clone()).unwrap();
    let value = |code: &f32| (code - zero) * scale;
    if rows.len() == 1 {
        return Some(Tensor::from_vec(rows[0].iter().map(value).collect::<Vec<f32>>(), dims, &Device::Cpu).unwrap());
    }
    let mut all = vec![0.0; dims.iter().product()];
    let (heads, tokens, width) = match dims {
        [_, heads, tokens, width] => (*heads, *tokens, *width),
        [_, tokens, width] => (1, *tokens, *width),
        _ => panic!("{name}: {dims:?}"),
    };
    for (at, row) in rows.iter().enumerate() {
        // Scores: keys of the cache, and the own one behind.
        let keys = row.len() / heads;
        for head in 0..heads {
            let row = &row[head * keys..][..keys];
            let to = &mut all[(head * tokens + at) * width..][..width];
            match keys == width {
                true => to.iter_mut().zip(row).for_each(|(to, code)| *to = value(code)),
                false => (0..=at).for_each(|key| to[key] = value(&row[if key == at { keys - 1 } else { key }])),
            }
        }
    }
    Some(Tensor::from_vec(all, dims, &Device::Cpu).unwrap())
}

/// How many numbers LiteRT rounds to another code than the next one to the reference run's, which is given what LiteRT has before, and what is worst.
fn far(model: &Model, lookups: Lookups, text: &[u32], result: &Value, what: &str) -> Vec<(String, f64)> {
    assert!(result.get("error").is_none(), "{what}: {}", result["error"]);
    let cut = cut(&model.graph);
    let whole = |values: Vec<u32>| Tensor::from_vec(values, (1, text.len()), &Device::Cpu).unwrap();
    let positions = whole((0..text.len() as u32).collect());
    let mut given = vec![("tokens".to_owned(), whole(text.to_vec())), ("positions".into(), positions)];
    given.push(("token_types".into(), whole(vec![0; text.len()])));
    let numbers = |name: &str| {
        let mut numbers = [0.0];
        model.source.read(name, 0..1, &mut numbers).unwrap();
        numbers[0]
    };
    let size = |symbol: &str| {
        Some(match symbol {
            "batch" => 1,
            "seq" => text.len(),
            _ => 0,
        })
    };
    let dims = |fact: &Fact| fact.dims.iter().map(|dim| dim.bind(&size).unwrap()).collect::<Vec<usize>>();
    let mut steps = Vec::new();
    for node in model.graph.nodes().iter().filter(|node| is_rounding(node)) {
        let [scale, zero] = [1, 2].map(|at| node.inputs.get(at).map_or(0.0, |id| numbers(&model.graph.get(*id).name)));
        let (name, dims) = (model.graph.get(node.output()).name.clone(), dims(model.graph.fact(node.output())));
        let tensor = tensor_of(&model.graph, node, lookups);
        let found = found(result, &tensor, &dims, [scale, zero]).unwrap_or_else(|| panic!("{what}: LiteRT has no `{tensor}`"));
        let Op::Quantize { bits } = node.op else { continue };
        // Of 16 bits, LiteRT's tables of functions are exact in 11.
        steps.push((name.clone(), if bits > 8 { 32.0 * scale } else { scale }, dims, found.clone()));
        given.push((name, found));
    }
    let weights = SourceWeights(model.source.clone());
    let (outputs, _) = Run::new(&cut, &weights, Mode::Inference, vec![Inputs::named(given)]).finish(0).unwrap();
    let mut shares = Vec::new();
    for (name, step, dims, found) in steps {
        let at = cut.outputs().iter().position(|id| cut.get(*id).name == format!("{name}.made")).unwrap();
        let [wanted, found] = [&outputs[at], &found].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let sees = |i: usize| dims.len() < 4 || dims[2] != dims[3] || i % dims[3] <= i / dims[3] % dims[2];
        let far = wanted.iter().zip(&found).enumerate().filter(|(i, (a, b))| sees(*i) && (*a - *b).abs() > 1.01 * step);
        shares.push((name, far.count() as f64 / wanted.len() as f64));
    }
    shares
}

/// In 8 bits and in 16, looked up inside and outside, with weights of fewer levels in bytes.
#[test]
fn every_architecture_is_within_a_step_of_its_reference_run() {
    let (mut cases, mut wanted) = (Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 16);
    for path in folders() {
        let mut ways = vec![(8, Lookups::Inside, CODES), (8, Lookups::Outside, CODES), (16, Lookups::Inside, CODES)];
        if ["tiny-bert", "tiny-llama-llama3"].contains(&name(&path).as_str()) {
            ways.extend(LEVELS.map(|levels| (8, Lookups::Inside, levels)));
        }
        for (bits, lookups, codes_of) in ways {
            let what = format!("{} in {bits} bits, {lookups:?}, {codes_of}", name(&path));
            let kept = [(); 3].map(|()| tempfile::tempdir().unwrap());
            let [codes, constants, target] = kept.each_ref().map(|folder| folder.path());
            let settings = json!({ "mode": "static", "values": "all", "bits": bits, "asymmetric": bits == 8 });
            let model = in_integers(&all_in_codes(&open(&path), codes, codes_of), settings, &text, constants);
            let common = Tflite { lookups: Some(lookups), ..Tflite::default() };
            let format = match name(&path).as_str() {
                "tiny-bert" => Tflite { tokens: Some(text.len()), ..common },
                _ => Tflite { context: Some(16), prefill: Some(5), ..common },
            };
            match write(&model, &format, target) {
                Ok(_) => cases.push(json!({ "folder": target, "tokens": text })),
                Err(error) => {
                    assert!(bits == 16 && error.to_string().contains("GELU of 8 bits"), "{what}: {error}");
                    continue;
                }
            }
            wanted.push((model, lookups, what, kept));
        }
    }
    let Some(results) = engines::run("litert", "tests/in_litert_integers.py", &cases) else { return };
    let mut wrong = Vec::new();
    for (result, (model, lookups, what, _)) in results.iter().zip(&wanted) {
        let beyond = far(model, *lookups, &text, result, what).into_iter().filter(|(_, share)| *share > BEYOND);
        wrong.extend(beyond.map(|(name, share)| format!("{what}: {:.1}% of `{name}`", share * 100.0)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Forms of weights, and what Hexagon makes of products with them and activations of 16 bits, as a share of the largest logit: everything else is f16. Measured
/// at 3.0e-3, 6.5e-3 and 1.16e-2 at most.
const ON_HEXAGON: [(&str, SchemeOf, f32); 3] = [
    ("rows of int8", |_, _| CODES, 4e-3),
    ("rows of int4", |_, _| "int4/row/f32/positive", 7e-3),
    ("blocks of int4", in_blocks, 1.2e-2),
];

/// The same of 8 bits. Measured at .143.
const IN_BYTES: f32 = 0.15;

/// Low-power blockwise quantization, and a scale a row where Hexagon multiplies blocks by something else.
fn in_blocks(graph: &Graph, weight: ValueId) -> &'static str {
    let has_bias = |node: &Node| node.op == Op::Linear && node.inputs[1] == weight && node.inputs.len() > 2;
    let columns = graph.fact(weight).constant_dims().unwrap()[1];
    if !columns.is_multiple_of(32) || graph.nodes().iter().any(has_bias) {
        "int4/row/f32/positive"
    } else {
        "int4/g16/int4/positive"
    }
}

/// Qualcomm's library says nothing when it is wrong.
#[test]
fn every_architecture_with_products_in_integers_agrees_on_hexagon() {
    let (mut cases, mut wanted) = (Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 20);
    for path in folders() {
        for (bits, (form, scheme, wide)) in [16, 8].into_iter().flat_map(|bits| ON_HEXAGON.map(|form| (bits, form))) {
            let bound = if bits == 16 { wide } else { IN_BYTES };
            let what = format!("{} in {form} and {bits} bits", name(&path));
            let kept = [(); 3].map(|()| tempfile::tempdir().unwrap());
            let [codes, constants, target] = kept.each_ref().map(|folder| folder.path());
            let settings = json!({ "mode": "static", "values": "linear", "bits": bits, "select": ["**"] });
            let model = in_integers(&each_in_codes(&open(&path), codes, scheme), settings, &text, constants);
            let format = match name(&path).as_str() {
                "tiny-bert" => Qnn { tokens: Some(24), ..Qnn::default() },
                _ => Qnn { context: Some(24), prefill: Some(18), ..Qnn::default() },
            };
            format.check(&model.graph).unwrap_or_else(|error| panic!("{what}: {error}"));
            let artifact = format.write(&model.input(), target, &mut |_, _| ()).unwrap_or_else(|error| panic!("{what}: {error}"));
            format.verify(&model.input(), &artifact, target, None).unwrap_or_else(|error| panic!("{what}: {error}"));
            let lpbq = artifact.tensors.iter().any(|tensor| tensor.storage.contains("int4 scales in 8 bits under an f32 a row"));
            let has_biases_alone = name(&path) == "tiny-bert";
            assert_eq!(lpbq, form.starts_with("blocks") && !has_biases_alone, "{what}");
            let calls = match format.tokens {
                Some(_) => vec![json!({ "tokens": text })],
                None => [json!({ "tokens": text[..17], "padding": 1 })]
                    .into_iter()
                    .chain(text[17..].iter().map(|token| json!({ "tokens": [token], "padding": 0 })))
                    .collect(),
            };
            cases.push(json!({ "folder": target, "calls": calls }));
            wanted.push((reference(&model, &text), bound, what, kept));
        }
    }
    let Some(results) = engines::run("onnxruntime-qnn", "tests/in_qnn.py", &cases) else { return };
    let mut wrong = Vec::new();
    for (result, (wanted, bound, what, _)) in results.iter().zip(&wanted) {
        let Some(calls) = result["logits"].as_array().or(result["outputs"].as_array()) else {
            wrong.push(format!("{what}: {}", result["error"]));
            continue;
        };
        let found = calls.iter().flat_map(|call| serde_json::from_value::<Vec<Vec<f32>>>(call.clone()).unwrap());
        let off = difference(&found.collect::<Vec<_>>(), wanted, what);
        wrong.extend((off > *bound).then(|| format!("{what}: off by {off}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// As they are written for other runtimes, Hexagon's norms of heads are silently wrong for some numbers of tokens: by .5 of the largest logit for 24.
#[test]
fn norms_of_heads_are_right_for_any_number_of_tokens() {
    let (mut cases, mut wanted) = (Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 24);
    let normed = |path: &Path| ["tiny-qwen3", "tiny-gemma3", "tiny-gemma3-softcap"].contains(&name(path).as_str());
    for (path, count) in
        folders().into_iter().filter(|path| normed(path)).flat_map(|path| [1, 5, 18, 24].map(|n| (path.clone(), n)))
    {
        let what = format!("{}, {count} tokens", name(&path));
        let kept = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [codes, constants, target] = kept.each_ref().map(|folder| folder.path());
        let settings = json!({ "mode": "static", "values": "linear", "bits": 16, "select": ["**"] });
        let model = in_integers(&each_in_codes(&open(&path), codes, |_, _| CODES), settings, &text, constants);
        let format = Qnn { context: Some(32), prefill: Some(count), ..Qnn::default() };
        format.write(&model.input(), target, &mut |_, _| ()).unwrap_or_else(|error| panic!("{what}: {error}"));
        cases.push(json!({ "folder": target, "calls": [{ "tokens": text[..count], "padding": 0 }] }));
        wanted.push((reference(&model, &text[..count]), what, kept));
    }
    let Some(results) = engines::run("onnxruntime-qnn", "tests/in_qnn.py", &cases) else { return };
    for (result, (wanted, what, _)) in results.iter().zip(&wanted) {
        let found: Vec<Vec<Vec<f32>>> = serde_json::from_value(result["logits"].clone()).unwrap_or_else(|_| panic!("{result}"));
        let off = difference(&found[0], wanted, what);
        assert!(off <= ON_HEXAGON[0].2, "{what}: off by {off}");
    }
}

/// Under a scale of 0, Hexagon's products are off by half of the largest logit.
#[test]
fn rows_of_zeros_are_zeros_on_hexagon() {
    let (mut cases, mut wanted) = (Vec::new(), Vec::new());
    let text: Vec<u32> = tokens(9, 20);
    let path = folders().into_iter().find(|path| name(path) == "tiny-llama-yarn").unwrap();
    for (form, scheme, bound) in ON_HEXAGON {
        let kept = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [codes, constants, target] = kept.each_ref().map(|folder| folder.path());
        let settings = json!({ "mode": "static", "values": "linear", "bits": 16, "select": ["**"] });
        let model = in_integers(&pruned_in_codes(&open(&path), codes, scheme), settings, &text, constants);
        let format = Qnn { context: Some(24), prefill: Some(20), ..Qnn::default() };
        let artifact = format.write(&model.input(), target, &mut |_, _| ()).unwrap_or_else(|error| panic!("{form}: {error}"));
        format.verify(&model.input(), &artifact, target, None).unwrap_or_else(|error| panic!("{form}: {error}"));
        cases.push(json!({ "folder": target, "calls": [{ "tokens": text, "padding": 0 }] }));
        wanted.push((reference(&model, &text), bound, form, kept));
    }
    let Some(results) = engines::run("onnxruntime-qnn", "tests/in_qnn.py", &cases) else { return };
    for (result, (wanted, bound, form, _)) in results.iter().zip(&wanted) {
        let found: Vec<Vec<Vec<f32>>> = serde_json::from_value(result["logits"].clone()).unwrap_or_else(|_| panic!("{result}"));
        let off = difference(&found[0], wanted, form);
        assert!(off <= *bound, "{form}: off by {off}");
    }
}

/// With a bias, with an odd number of blocks of 16, and of blocks of 8, Qualcomm's library computes something else, and says nothing.
#[test]
fn blocks_that_hexagon_does_not_take_are_refused() {
    let text: Vec<u32> = tokens(9, 20);
    let cases: [(&str, SchemeOf, &str); 7] = [
        ("tiny-llama-yarn", |_, _| "int4/g16/int4/positive", "rows of a multiple of 32"),
        ("tiny-qwen2", |_, _| "int4/g16/int4/positive", "a layer with a bias"),
        ("tiny-mistral", |_, _| "int4/g8/int4/positive", "in groups of 16, 32, 64 or 128"),
        ("tiny-mistral", |_, _| "int4/g16/int4", "with positive scales"),
        ("tiny-mistral", |_, _| "int2/g16/int4/positive", "codes of 3 bits"),
        ("tiny-mistral", |_, _| "int8/g16/int4/positive", "at most 4 bits"),
        ("tiny-mistral", |_, _| "int4/g16/f32/positive", "scales in `int4`"),
    ];
    for (folder, scheme, words) in cases {
        let path = folders().into_iter().find(|path| name(path) == folder).unwrap();
        let kept = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let settings = json!({ "mode": "static", "values": "linear", "bits": 16, "select": ["**"] });
        let model = each_in_codes(&open(&path), kept[0].path(), scheme);
        let error = Qnn::default().check(&in_integers(&model, settings, &text, kept[1].path()).graph).expect_err(words);
        assert!(error.to_string().contains(words) && error.hint().is_some(), "{words}: {error}");
    }
}

type Damage = fn(&mut Vec<u8>);

/// A bit of a weight, of a table beside the model, and what a table means.
#[test]
fn a_change_is_found() {
    let kept = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [codes, constants, target] = kept.each_ref().map(|folder| folder.path());
    let path = folders().into_iter().find(|path| name(path) == "tiny-llama-llama3").unwrap();
    let settings = json!({ "mode": "static", "values": "all", "asymmetric": true });
    let model = in_integers(&all_in_codes(&open(&path), codes, CODES), settings, &tokens(9, 16), constants);
    let format = Tflite { context: Some(16), lookups: Some(Lookups::Outside), ..Tflite::default() };
    let artifact = write(&model, &format, target).unwrap();
    let damages: [(&str, Damage); 5] = [
        ("decode.tflite", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("prefill.tflite", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("embeddings.bin", |bytes| bytes[10] ^= 1),
        ("embeddings.bin", |bytes| bytes.truncate(bytes.len() - 2)),
        ("tables.json", |bytes| *bytes = String::from_utf8_lossy(bytes).replacen("\"scale\": ", "\"scale\": 1", 1).into_bytes()),
    ];
    for (file, damage) in damages {
        let whole = fs::read(target.join(file)).unwrap();
        let mut damaged = whole.clone();
        damage(&mut damaged);
        assert_ne!(damaged, whole, "{file}");
        fs::write(target.join(file), damaged).unwrap();
        let error = format.verify(&model.input(), &artifact, target, None).expect_err(file);
        assert!(error.hint().is_some(), "{file}: {error}");
        fs::write(target.join(file), whole).unwrap();
    }
    format.verify(&model.input(), &artifact, target, None).unwrap();
    fs::remove_file(target.join("embeddings.bin")).unwrap();
    format.verify(&model.input(), &artifact, target, None).expect_err("a table is gone");
}
