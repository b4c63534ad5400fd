//! ONNX artifacts against the reference run, in the real engine, and against damage.
//!
//! Tests that run onnxruntime need `ATTAR_ENGINES`: a folder with a Python environment `onnxruntime` in it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod architectures;
#[expect(dead_code, reason = "shared with the suite of integers")]
mod checkpoints;
mod engines;
mod tiny;

use std::{fs, path::Path, slice::from_ref};

use attar_export::{AccuracyLevel, Artifact, Defect, Error, Format, Layout, Logits, Onnx, OpenVino, Side, Style, target};
use attar_graph::Graph;
use serde_json::{Value, json};
use tiny::{Model, NARROW_TOLERANCE, ROUNDED_TOLERANCE, Rounded, Scales, Tiny, call, difference, tokens};

/// Two layers of f32 products in another order; measured at 1e-6.
const ENGINE_TOLERANCE: f32 = 1e-5;

const LAYOUTS: [Layout; 2] = [Layout::DequantizeLinear, Layout::MatMulNBits];

const STYLES: [Style; 3] = [Style::Fused, Style::Standard, Style::Plain];

/// Every layout in every style.
fn ways() -> Vec<Onnx> {
    let styles = |layout| STYLES.map(|style| Onnx { layout, style, ..onnx() });
    LAYOUTS.into_iter().flat_map(styles).collect()
}

/// Of them the one that runtimes of opset 21 read.
fn plain() -> Onnx {
    Onnx { style: Style::Plain, ..onnx() }
}

/// The target with its default options, which are no part of reading back.
fn onnx() -> Onnx {
    Onnx::default()
}

fn export(model: &Model, onnx: Onnx, folder: &Path) -> Artifact {
    let plan = onnx.check(&model.graph).unwrap();
    let (mut last, mut calls) = ((0, 1), 0);
    let artifact = onnx
        .write(&model.input(), folder, &mut |done, total| {
            (last, calls) = ((done, total), calls + 1);
        })
        .unwrap();
    assert!(calls > 0 && last.0 == last.1, "progress ends at the end: {last:?}");
    assert_eq!(plan.tensors, artifact.tensors, "the plan is what is written");
    assert_eq!(plan.bytes, artifact.files[1].bytes);
    artifact
}

fn verify(model: &Model, artifact: &Artifact, folder: &Path) -> attar_export::Result<attar_export::Verification> {
    let before = |name: &str, rows, out: &mut [f32]| Ok(tiny::rows_before(&model.graph, name, rows, out));
    onnx().verify(&model.input(), artifact, folder, Some(&before))
}

/// What runs cases, if it is here.
type Engine = fn(&[Value]) -> Option<Vec<Value>>;

/// Runs cases in onnxruntime; `None` if it is not here.
fn run_engine(cases: &[Value]) -> Option<Vec<Value>> {
    engines::run("onnxruntime", "tests/in_onnxruntime.py", cases)
}

/// Runs cases in OpenVINO; `None` if it is not here, and on a processor that is emulated: what differs between processors is ONNX Runtime's.
fn run_openvino(cases: &[Value]) -> Option<Vec<Value>> {
    if std::env::var_os("ATTAR_ENGINE_RUNNER").is_some() {
        return None;
    }
    engines::run("openvino", "tests/in_openvino.py", cases)
}

fn case(folder: &Path, onnx: Onnx, calls: &[Value]) -> Value {
    let only_standard_operators = onnx.layout == Layout::DequantizeLinear && onnx.style != Style::Fused;
    json!({ "model": folder.join("model.onnx"), "check": only_standard_operators, "calls": calls })
}

/// Logits of one row of the batch of one call: `[seq][vocabulary]`.
fn logits(result: &Value, call: usize, row: usize) -> Vec<Vec<f32>> {
    assert!(result.get("error").is_none(), "{}", result["error"]);
    assert_eq!(result["overflowing"], json!([]), "products that saturate on processors without VNNI");
    serde_json::from_value(result["logits"][call][row].clone()).unwrap()
}

fn assert_close(found: &[Vec<f32>], wanted: &[Vec<f32>], what: &str) {
    let error = difference(found, wanted, what);
    assert!(error <= ENGINE_TOLERANCE, "{what}: off by {error}");
}

/// Every row's likeliest token is the reference's, or as likely to the tolerance.
fn assert_same_choices(found: &[Vec<f32>], wanted: &[Vec<f32>], what: &str) {
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let largest = wanted.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    for (position, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let (ours, theirs) = (best(found), best(wanted));
        let behind = (wanted[theirs] - wanted[ours]) / largest;
        assert!(behind <= ROUNDED_TOLERANCE, "{what}: position {position} prefers {ours} to {theirs}, by {behind}");
    }
}

fn all_cases() -> Vec<(Tiny, Onnx)> {
    let all = tiny::everywhere().into_iter().flat_map(|tiny| ways().into_iter().map(move |onnx| (tiny.clone(), onnx)));
    all.chain(tiny::standard_only().into_iter().map(|tiny| (tiny, plain()))).collect()
}

fn describe(tiny: &Tiny, Onnx { layout, style, .. }: Onnx) -> String {
    format!("{layout}, {style}, linear {}, table {}, head {:?}, inner {}", tiny.linear, tiny.table, tiny.head, tiny.inner)
}

#[test]
fn every_scheme_is_written_and_read_back_to_the_bit() {
    for (tiny, onnx) in all_cases() {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny.build(folder.path());
        let artifact = export(&model, onnx, folder.path());
        let verification = verify(&model, &artifact, folder.path());
        let verification = verification.unwrap_or_else(|e| panic!("{}: {e}", describe(&tiny, onnx)));
        let all: usize = artifact.tensors.iter().map(|t| t.dims.iter().product::<usize>()).sum();
        assert_eq!(verification.weights, all as u64, "{}", describe(&tiny, onnx));
        assert_eq!(verification.tensors.len(), artifact.tensors.len());
    }
}

#[test]
fn onnxruntime_agrees_with_the_reference_run() {
    let (mut cases, mut wanted, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    let text = tokens(1, 9);
    for (tiny, onnx) in all_cases() {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny.build(folder.path());
        export(&model, onnx, folder.path());
        cases.push(case(folder.path(), onnx, &[call(from_ref(&text), &[0], 0)]));
        wanted.push((model.reference(&text, 0, None).0, describe(&tiny, onnx)));
        folders.push(folder);
    }
    for results in [run_engine(&cases), run_openvino(&cases)].into_iter().flatten() {
        let (mut wrong, mut refused) = (Vec::new(), 0);
        for (result, (wanted, what)) in results.iter().zip(&wanted) {
            match result.get("error").map(Value::to_string) {
                Some(error) if REFUSED_BY_OPENVINO.iter().any(|refusal| error.contains(refusal)) => refused += 1,
                Some(error) => wrong.push(format!("{what}: {error}")),
                None => {
                    let off = difference(&logits(result, 0, 0), wanted, what);
                    wrong.extend((off > ENGINE_TOLERANCE).then(|| format!("{what}: off by {off}")));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(refused * 5 < results.len(), "{refused} of {} refused", results.len());
    }
}

/// What OpenVINO 2026.4 cannot read: groups that do not divide a row in `DequantizeLinear`, and a table in `GatherBlockQuantized` whose
/// zeros are one a row.
const REFUSED_BY_OPENVINO: [&str; 2] = ["cannot be divided by block_size", "ConvertGatherToGatherCompressed"];

/// A prompt and then token by token, so that what the cache holds counts.
#[test]
fn onnxruntime_agrees_on_activations_in_integers() {
    let (mut cases, mut wanted, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    let text = tokens(6, 9);
    let all = tiny::in_integers().into_iter().flat_map(|tiny| ways().into_iter().map(move |onnx| (tiny.clone(), onnx)));
    let is_held =
        |tiny: &Tiny, onnx: Onnx| onnx.layout == Layout::DequantizeLinear || tiny.linear == "f32" || tiny.linear.contains("/g");
    for (tiny, onnx) in all.filter(|(tiny, onnx)| is_held(tiny, *onnx)) {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny.build(folder.path());
        let artifact = export(&model, onnx, folder.path());
        verify(&model, &artifact, folder.path()).unwrap_or_else(|e| panic!("{}: {e}", describe(&tiny, onnx)));
        let mut calls = vec![call(&[text[..6].to_vec()], &[0], 0)];
        calls.extend((6..9).map(|i| call(&[text[i..=i].to_vec()], &[0], i)));
        cases.push(case(folder.path(), onnx, &calls));
        let plain_folder = tempfile::tempdir().unwrap();
        let floats = Tiny { activations: None, kv: None, ..tiny.clone() }.build(plain_folder.path());
        let what = format!("{}, {:?}, kv {:?}", describe(&tiny, onnx), tiny.activations, tiny.kv);
        let (rounded, plain) = (model.reference(&text, 0, None).0, floats.reference(&text, 0, None).0);
        // 16 bits are worth too little to be seen in the logits: there the rounding is counted.
        let dynamic = tiny.activations.is_some_and(|rounded| rounded.bits == 16 && rounded.scales.is_none());
        let rounds = model.graph.nodes().iter().filter(|node| node.op.def().name == "quantize").count();
        let wide = tiny.activations.is_some_and(|rounded| rounded.bits == 16);
        let most = if wide { ROUNDED_TOLERANCE } else { NARROW_TOLERANCE };
        wanted.push((rounded, plain, dynamic.then_some(rounds), what, most));
        folders.push(folder);
    }
    let Some(results) = run_engine(&cases) else { return };
    for (result, (rounded, plain, rounds, what, most)) in results.iter().zip(wanted) {
        let found: Vec<Vec<f32>> = (0..4).flat_map(|call| logits(result, call, 0)).collect();
        let (off, cost) = (difference(&found, &rounded, &what), difference(&plain, &rounded, &what));
        assert!(off <= most, "{what}: off by {off}, and rounding is worth {cost}");
        if let Some(rounds) = rounds {
            assert_eq!(result["ops"]["Round"], rounds, "{what}");
        } else {
            assert!(off <= 0.1 * cost, "{what}: off by {off} where rounding is worth {cost}");
        }
        assert_same_choices(&found, &rounded, &what);
    }
}

/// Only products that a processor without VNNI gets wrong are stored in another way.
#[test]
fn weights_are_unsigned_where_their_products_are_integers_and_can_overflow() {
    let storage = |linear, activations| {
        let plan = onnx().check(&Tiny { linear, activations, ..Tiny::default() }.graph()).unwrap();
        plan.tensors.iter().find(|t| t.name == "b0.q").unwrap().storage.clone()
    };
    let one = |bits| Some(Rounded { bits, scales: Some(Scales::One), zero: false });
    let channels = Some(Rounded { bits: 8, scales: Some(Scales::Channels), zero: false });
    let dynamic = Some(Rounded { bits: 8, scales: None, zero: false });
    for linear in ["int8/row", "int8/tensor", "int8/row/f32"] {
        assert!(storage(linear, one(8)).starts_with("uint8 "), "{linear}");
        for activations in [None, one(16), channels, dynamic] {
            assert!(storage(linear, activations).starts_with("int8 "), "{linear} {activations:?}");
        }
    }
    for linear in ["int8/g32", "int6/row", "int5/tensor"] {
        assert!(storage(linear, one(8)).starts_with("int8 "), "{linear}");
    }
}

#[test]
fn static_activations_of_four_bits_are_refused_before_any_work() {
    let activations = Some(Rounded { bits: 4, scales: Some(Scales::One), zero: false });
    let graph = Tiny { activations, ..Tiny::default() }.graph();
    let error = onnx().check(&graph).expect_err("refused");
    assert!(matches!(&error, Error::Node { op: "quantize", .. }), "{error}");
    assert!(error.hint().is_some());
}

/// Every product of quantized weights becomes one fused kernel when the model is loaded.
#[test]
fn onnxruntime_fuses_what_it_multiplies() {
    // One scale for a whole tensor is fused where its rows are a multiple of 32.
    let fused = [
        "int4/g32/short",
        "int4/g32/asymmetric/short",
        "int8/g32/short",
        "int8/row",
        "int4/row",
        "int4/tensor",
        "int3/g32/f32/short",
        "int4/g64/short",
    ];
    let (mut cases, mut folders) = (Vec::new(), Vec::new());
    for linear in fused {
        let folder = tempfile::tempdir().unwrap();
        let inner = if linear.ends_with("tensor") { 96 } else { 172 };
        let model = Tiny { linear, inner, ..Tiny::default() }.build(folder.path());
        export(&model, plain(), folder.path());
        cases.push(case(folder.path(), plain(), &[call(&[tokens(1, 3)], &[0], 0)]));
        folders.push(folder);
    }
    let Some(results) = run_engine(&cases) else { return };
    for (result, linear) in results.iter().zip(fused) {
        assert_eq!(result["ops"]["MatMulNBits"], 7 * tiny::LAYERS, "{linear}: {}", result["ops"]);
        assert!(result["ops"].get("DequantizeLinear").is_none(), "{linear}");
    }
}

#[test]
fn a_prompt_in_two_parts_gives_what_the_whole_gives() {
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    let text = tokens(2, 11);
    for (tiny, onnx) in [Tiny { window: Some(4), ..Tiny::default() }, Tiny { bias: true, linear: "int4/g32", ..Tiny::default() }]
        .into_iter()
        .flat_map(|tiny| ways().into_iter().map(move |onnx| (tiny.clone(), onnx)))
    {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny.build(folder.path());
        export(&model, onnx, folder.path());
        let mut calls = vec![call(&[text[..5].to_vec()], &[0], 0), call(&[text[5..8].to_vec()], &[0], 5)];
        calls.extend((8..11).map(|i| call(&[text[i..=i].to_vec()], &[0], i)));
        cases.push(case(folder.path(), onnx, &calls));
        kept.push((folder, model.reference(&text, 0, None).0, onnx, describe(&tiny, onnx)));
    }
    let Some(results) = run_engine(&cases) else { return };
    for (result, (_, whole, onnx, what)) in results.iter().zip(kept) {
        let found: Vec<Vec<f32>> = (0..5).flat_map(|call| logits(result, call, 0)).collect();
        assert_close(&found, &whole, &what);
        let names: Vec<String> = serde_json::from_value(result["inputs"].clone()).unwrap();
        let known = ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"];
        let known: Vec<&str> = known.into_iter().filter(|name| onnx.style != Style::Fused || *name != "position_ids").collect();
        assert_eq!(names[..known.len()], known, "{what}");
        assert_eq!(result["outputs"][1], "present.0.key");
    }
}

#[test]
fn padding_on_the_left_changes_nothing_behind_it() {
    let mut kept = Vec::new();
    let (long, short) = (tokens(3, 7), tokens(4, 4));
    let padded: Vec<u32> = [0; 3].into_iter().chain(short[..3].iter().copied()).collect();
    let batch = [long[..6].to_vec(), padded];
    let next = [vec![long[6]], vec![short[3]]];
    let calls = [call(&batch, &[0, 3], 0), call(&next, &[0, 3], 6)];
    // The cap is among the scores of this model.
    for (onnx, softcap) in ways().into_iter().flat_map(|onnx| [None, Some(0.1)].map(|softcap| (onnx, softcap))) {
        let folder = tempfile::tempdir().unwrap();
        let model = Tiny { linear: "int4/g32", window: Some(5), softcap, ..Tiny::default() }.build(folder.path());
        export(&model, onnx, folder.path());
        kept.push((folder, model, onnx));
    }
    // OpenVINO dies of `GroupQueryAttention` in batches of several.
    let engines: [(_, Engine, &[Style]); 2] =
        [("onnxruntime", run_engine, &STYLES), ("openvino", run_openvino, &[Style::Standard, Style::Plain])];
    for (engine, run, styles) in engines {
        let kept: Vec<_> = kept.iter().filter(|(.., onnx)| styles.contains(&onnx.style)).collect();
        let cases: Vec<Value> = kept.iter().map(|(folder, _, onnx)| case(folder.path(), *onnx, &calls)).collect();
        for (result, (_, model, onnx)) in run(&cases).iter().flatten().zip(kept) {
            let what = |part: &str| format!("{engine}, {}, {}: {part}", onnx.layout, onnx.style);
            let (long, short) = (model.reference(&long, 0, None).0, model.reference(&short, 0, None).0);
            assert_close(&logits(result, 0, 0), &long[..6], &what("whole row"));
            assert_close(&logits(result, 1, 0), &long[6..], &what("whole row, decode"));
            let padded = logits(result, 0, 1);
            assert!(padded.iter().flatten().all(|v| v.is_finite()));
            assert_close(&padded[3..], &short[..3], &what("padded row"));
            assert_close(&logits(result, 1, 1), &short[3..], &what("padded row, decode"));
        }
    }
}

/// The last row of each call, and no other.
#[test]
fn logits_of_the_last_token_are_those_of_all_in_its_place() {
    let text = tokens(4, 8);
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    for onnx in ways().into_iter().map(|onnx| Onnx { logits: Logits::Last, ..onnx }) {
        let folder = tempfile::tempdir().unwrap();
        let model = Tiny { linear: "int4/g32", table: "int4/g32", ..Tiny::default() }.build(folder.path());
        let artifact = export(&model, onnx, folder.path());
        assert_eq!(artifact.outputs[0].dims, ["batch_size", "1", "50"]);
        cases.push(case(folder.path(), onnx, &[call(&[text[..6].to_vec()], &[0], 0), call(&[text[6..].to_vec()], &[0], 6)]));
        kept.push((folder, model.reference(&text, 0, None).0));
    }
    for results in [run_engine(&cases), run_openvino(&cases)].into_iter().flatten() {
        for (result, (_, wanted)) in results.iter().zip(&kept) {
            assert_close(&logits(result, 0, 0), &wanted[5..6], "a prompt");
            assert_close(&logits(result, 1, 0), &wanted[7..8], "what follows");
        }
    }
}

/// How many nodes of a file do what: the operators that a style has are used, and those that do their work otherwise are gone.
#[test]
fn files_have_one_operator_for_each_thing_that_their_style_has_one_for() {
    let layers = tiny::LAYERS;
    let every = [("MatMulNBits", 4 * layers + 1), ("GatherBlockQuantized", 1), ("QuickGelu", layers)];
    let of_fused = [
        ("GroupQueryAttention", layers),
        ("SimplifiedLayerNormalization", 1),
        ("SkipSimplifiedLayerNormalization", 2 * layers),
        ("Sin", 0),
        ("Cos", 0),
        ("Range", 0),
    ];
    // The two layers have different angles.
    let of_standard = [
        ("Attention", layers),
        ("RotaryEmbedding", 2 * layers),
        ("RMSNormalization", 2 * layers + 1),
        ("Sin", layers),
        ("Cos", layers),
    ];
    for (style, of_style) in [(Style::Fused, &of_fused[..]), (Style::Standard, &of_standard)] {
        let folder = tempfile::tempdir().unwrap();
        let model = Tiny { linear: "int4/g32", table: "int4/g32", ..Tiny::default() }.build(folder.path());
        let onnx = Onnx { layout: Layout::MatMulNBits, style, ..onnx() };
        export(&model, onnx, folder.path());
        let Some(results) = run_engine(&[case(folder.path(), onnx, &[call(&[tokens(1, 3)], &[0], 0)])]) else { return };
        let ops = &results[0]["ops"];
        let none = ["Transpose", "Softmax", "MatMul"].map(|op| (op, 0));
        for (op, count) in every.iter().chain(of_style).chain(&none) {
            assert_eq!(ops.get(op).unwrap_or(&json!(0)), count, "{style}, {op}: {ops}");
        }
    }
}

#[test]
fn a_graph_without_caches_is_exported_too() {
    let text = tokens(5, 6);
    let (mut cases, mut kept) = (Vec::new(), Vec::new());
    for onnx in ways() {
        let folder = tempfile::tempdir().unwrap();
        let model = Tiny { cache: false, ..Tiny::default() }.build(folder.path());
        let artifact = export(&model, onnx, folder.path());
        assert_eq!(artifact.outputs.len(), 1);
        cases.push(case(folder.path(), onnx, &[call(from_ref(&text), &[0], 0)]));
        kept.push((folder, model.reference(&text, 0, None).0));
    }
    let Some(results) = run_engine(&cases) else { return };
    for (result, (_, wanted)) in results.iter().zip(&kept) {
        assert_close(&logits(result, 0, 0), wanted, "no caches");
    }
}

/// Moves along the last dimension, which no decoder has and a fused graph may keep.
#[test]
fn slices_splits_and_concatenations_are_exported_too() {
    let tokens = tokens(7, 6);
    let (mut cases, mut wanted, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for parts in [
        "low = slice nf {length = 40}\n    high = slice nf {start = 40, length = 24}",
        "low, high = split nf {widths = [40, 24]}",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Tiny::default().build(folder.path());
        let moves = format!("{parts}\n    turned = concat high, low");
        let text = model.graph.to_string().replace("logits = linear nf,", &format!("{moves}\n    logits = linear turned,"));
        model.graph = Graph::parse(&text).unwrap();
        assert!(text.contains("linear turned,"));
        export(&model, plain(), folder.path());
        cases.push(case(folder.path(), plain(), &[call(from_ref(&tokens), &[0], 0)]));
        wanted.push(model.reference(&tokens, 0, None).0);
        folders.push(folder);
    }
    assert_eq!(wanted[0], wanted[1]);
    let Some(results) = run_engine(&cases) else { return };
    for (result, wanted) in results.iter().zip(&wanted) {
        assert_close(&logits(result, 0, 0), wanted, "moves");
    }
}

/// What was fused is written as it was: the same tensors and nodes, and nothing of the packing.
#[test]
fn a_fused_graph_is_exported_as_what_it_was() {
    let text = tokens(8, 7);
    let (mut cases, mut wanted, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for onnx in ways() {
        let activations = Some(Rounded { bits: 8, scales: None, zero: false });
        let tiny = Tiny { linear: "int4/g32", bias: true, activations, kv: Some(8), ..Tiny::default() };
        let folders_of = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [apart, fused] = folders_of.each_ref().map(|folder| tiny.build(folder.path()));
        let (graph, _) = attar_compile::pass::Fuse::default().run(&fused.graph).unwrap();
        assert!(graph.nodes().len() < 20, "{graph}");
        let fused = Model { graph, ..fused };
        let artifacts = [export(&apart, onnx, folders_of[0].path()), export(&fused, onnx, folders_of[1].path())];
        let (one, other) = (&artifacts[0].files, &artifacts[1].files);
        assert_eq!((one[0].bytes, &one[1]), (other[0].bytes, &other[1]), "independent nodes may change places");
        verify(&fused, &artifacts[1], folders_of[1].path()).unwrap();
        cases.push(case(folders_of[1].path(), onnx, &[call(from_ref(&text), &[0], 0)]));
        wanted.push(fused.reference(&text, 0, None).0);
        assert_eq!(wanted[wanted.len() - 1], apart.reference(&text, 0, None).0);
        folders.extend(folders_of);
    }
    let Some(results) = run_engine(&cases) else { return };
    for (result, wanted) in results.iter().zip(wanted) {
        assert!(difference(&logits(result, 0, 0), &wanted, "fused") <= ROUNDED_TOLERANCE);
    }
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    for onnx in ways() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let files = folders.each_ref().map(|folder| {
            let model = Tiny { linear: "int4/g32/asymmetric", ..Tiny::default() }.build(folder.path());
            export(&model, onnx, folder.path()).files
        });
        assert_eq!(files[0], files[1]);
    }
}

/// Each byte that holds a number is compared; the rest is found by the digest.
#[test]
fn a_changed_byte_is_found() {
    for onnx in ways() {
        let folder = tempfile::tempdir().unwrap();
        let model = Tiny { linear: "int4/g32/asymmetric", table: "int8/g32", ..Tiny::default() }.build(folder.path());
        let artifact = export(&model, onnx, folder.path());
        let path = folder.path().join("model.onnx.data");
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 60) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).unwrap();
            let error = verify(&model, &artifact, folder.path()).expect_err("damaged");
            let named = matches!(
                &error,
                Error::Differs { .. } | Error::Tensor(_) | Error::Malformed { defect: Defect::Unexpected { .. }, .. }
            );
            assert!(named && error.hint().is_some(), "byte {at}: {error}");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = verify(&model, &artifact, folder.path()).expect_err("cut short");
        assert!(matches!(error, Error::Malformed { defect: Defect::Extent { .. }, .. }), "{error}");
    }
}

#[test]
fn a_model_that_is_not_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny::default().build(folder.path());
    let artifact = export(&model, plain(), folder.path());
    let path = folder.path().join("model.onnx");
    for bytes in [vec![0x2b; 1000], vec![0xff; 40], Vec::new()] {
        fs::write(&path, bytes).unwrap();
        let error = verify(&model, &artifact, folder.path()).expect_err("not a model");
        assert!(matches!(error, Error::Malformed { defect: Defect::Parse(_), .. }), "{error}");
    }
}

#[test]
fn verification_measures_what_quantization_cost() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { linear: "int4/g32", ..Tiny::default() }.build(folder.path());
    let mut artifact = export(&model, plain(), folder.path());
    artifact.record(&verify(&model, &artifact, folder.path()).unwrap());
    for tensor in artifact.tensors.iter().filter(|t| t.encoding == "int4/g32") {
        let snr = tensor.snr_db.expect("measured");
        assert!((18.0..26.0).contains(&snr), "{}: {snr}", tensor.name);
    }
    let text = serde_json::to_string(&artifact).unwrap();
    let again: Artifact = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (again.files, again.options, again.inputs),
        (artifact.files.clone(), artifact.options.clone(), artifact.inputs.clone())
    );
    assert!((artifact.totals.quantized_bits_per_weight - 4.5).abs() < 1e-9);
    let share: f64 = artifact.not_quantized.iter().map(|p| p.share).sum();
    let quantized = artifact.totals.quantized_weights as f64 / artifact.totals.weights as f64;
    assert!((share + quantized - 1.0).abs() < 1e-9);
}

#[test]
fn weights_that_lost_too_much_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { linear: "int4/g32", ..Tiny::default() }.build(folder.path());
    let artifact = export(&model, plain(), folder.path());
    let noise = |_: &str, _, out: &mut [f32]| {
        out.copy_from_slice(&tiny::original("something else", out.len()));
        Ok(true)
    };
    let error = onnx().verify(&model.input(), &artifact, folder.path(), Some(&noise)).expect_err("noise");
    assert!(matches!(error, Error::Noise { .. }), "{error}");
}

#[test]
fn a_tensor_that_became_constant_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = "graph g(x: [seq, 64] f32) { y = linear x, weight(\"constant\": [8, 64] int4/g32)\n return y }";
    let graph = attar_graph::Graph::parse(text).unwrap();
    let source = tiny::source(&graph, &folder.path().join("weights.safetensors"));
    let model = Model { graph, source, side: Side::default() };
    let artifact = export(&model, plain(), folder.path());
    verify(&model, &artifact, folder.path()).expect("it was constant before");
    let varied = |_: &str, _, out: &mut [f32]| {
        out.copy_from_slice(&tiny::original("varied", out.len()));
        Ok(true)
    };
    let error = onnx().verify(&model.input(), &artifact, folder.path(), Some(&varied)).expect_err("constant");
    assert!(matches!(error, Error::Constant { found: 0.25, .. }), "{error}");
}

#[test]
fn tied_weights_are_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { table: "int4/g32", ..Tiny::default() }.build(folder.path());
    for onnx in ways() {
        let artifact = export(&model, onnx, folder.path());
        let tied = artifact.tensors.iter().find(|t| t.name == "embedding").unwrap();
        assert_eq!(tied.also, ["tied"]);
        assert_eq!(artifact.tensors.iter().filter(|t| t.dims == tied.dims).count(), 1);
    }
}

#[test]
fn what_a_layout_cannot_hold_is_an_error_before_any_work() {
    let refused = |tiny: Tiny, layout| Onnx { layout, ..onnx() }.check(&tiny.graph()).expect_err("refused");
    for linear in ["int8/row", "int4/tensor", "int4/g48/short", "int4/g8", "nf4/g32", "lut4/g32", "fp8_e4m3/g32"] {
        let error = refused(Tiny { linear, ..Tiny::default() }, Layout::MatMulNBits);
        assert!(matches!(&error, Error::Weight { tensor, .. } if tensor == "b0.q"), "{error}");
        assert!(error.to_string().contains(linear) && error.hint().unwrap().contains("dequantize-linear"), "{error}");
    }
    let odd = Tiny { table: "int4/g32", vocabulary: 51, ..Tiny::default() };
    assert!(refused(odd, Layout::DequantizeLinear).hint().unwrap().contains("matmul-nbits"));
}

/// ONNX Runtime has no fast kernel for 8-bit codes and f32 activations.
#[test]
fn slow_products_are_told_before_any_work() {
    let notes = |linear, layout, level: u8| {
        let onnx = Onnx { layout, accuracy_level: AccuracyLevel::try_from(level).unwrap(), ..onnx() };
        onnx.check(&Tiny { linear, ..Tiny::default() }.graph()).unwrap().notes
    };
    let said = notes("int8/g32", Layout::MatMulNBits, 0);
    assert!(said.len() == 1 && said[0].contains("accuracy_level = 4"), "{said:?}");
    assert!(notes("int8/g32", Layout::MatMulNBits, 4).is_empty());
    assert!(notes("int8/g32", Layout::DequantizeLinear, 0).is_empty());
    assert!(notes("int4/g32", Layout::MatMulNBits, 0).is_empty());
}

/// No target has the blocks of GGUF: they are f16, never f32, and the plan says so.
#[test]
fn blocks_of_a_gguf_are_rounded_to_f16_and_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let model = Tiny { table: "f32", ..Tiny::default() }.build(folder.path()).in_blocks("embedding");
    for target in ["onnx", "openvino"].map(|name| target(name).unwrap().default_format().unwrap()) {
        let plan = target.check(&model.graph).unwrap();
        assert!(plan.notes[0].contains("`embedding` in q8_0") && plan.notes[0].contains("f16"), "{:?}", plan.notes);
        let out = tempfile::tempdir().unwrap();
        let artifact = target.write(&model.input(), out.path(), &mut |_, _| ()).unwrap();
        let entry = artifact.tensors.iter().find(|t| t.name == "embedding").unwrap();
        assert_eq!((entry.storage.as_str(), entry.stored_bytes), ("f16", 2 * 50 * 64));
        target.verify(&model.input(), &artifact, out.path(), None).unwrap();
    }
    let kept = onnx().check(&Tiny { table: "f32", ..Tiny::default() }.graph()).unwrap();
    assert!(kept.notes.is_empty(), "{:?}", kept.notes);
}

#[test]
fn three_bit_levels_say_that_they_ride_in_four() {
    let plan = onnx().check(&Tiny { linear: "int3/g32", ..Tiny::default() }.graph()).unwrap();
    let tensor = plan.tensors.iter().find(|t| t.name == "b0.q").unwrap();
    assert_eq!(tensor.storage, "int4 transposed, blocks of 32 along inputs, f16 scales; 3-bit levels in 4-bit storage");
    assert_eq!((tensor.true_bits, tensor.stored_bytes), (64 * 64 * 3 + 128 * 16, 64 * 64 / 2 + 128 * 2));
}

#[test]
fn an_unknown_target_offers_the_nearest() {
    let error = target("onnxx").err().unwrap();
    assert_eq!(error.to_string(), "no target is named `onnxx`; did you mean `onnx`?");
}

/// The seeds of the fuzz target `onnx`, and what it found once.
#[test]
fn seeds_of_the_fuzzer_parse_or_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz/onnx");
    let seeds = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let parsed = seeds.filter(|bytes| attar_export::check_onnx(Path::new("model.onnx"), bytes).is_ok());
    assert!(parsed.count() > 0);
}
