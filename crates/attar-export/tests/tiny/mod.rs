//! Tiny models of the Llama family with any scheme anywhere, and sources that hold them.

use std::{collections::BTreeMap, fmt::Write as _, fs::File, ops::Range, path::Path, sync::Arc};

use attar_export::Side;
use attar_graph::{Expr, Graph, Inputs, Mode, Run, SourceWeights, State};
use attar_tensor::{
    Encoding, Granularity, QuantizedTensor, Scheme, SharedParts, Source, TensorInfo,
    safetensors::{Entry, PartLayout, Shards, Writer},
};
use serde_json::{Value, json};

pub(crate) const VOCABULARY: usize = 50;
pub(crate) const LAYERS: usize = 2;
const CONTEXT: usize = 40;

/// What varies between models.
#[derive(Clone)]
pub(crate) struct Tiny {
    pub(crate) linear: &'static str,
    pub(crate) table: &'static str,
    pub(crate) head: Option<&'static str>,
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) bias: bool,
    pub(crate) window: Option<usize>,
    /// The cap on scores of attention.
    pub(crate) softcap: Option<f64>,
    pub(crate) key_heads: usize,
    pub(crate) cache: bool,
    pub(crate) vocabulary: usize,
    pub(crate) layers: usize,
    /// Whether the rows of queries are stored interleaved.
    pub(crate) interleaved: bool,
    /// What linear layers read is rounded to.
    pub(crate) activations: Option<Rounded>,
    /// Bits of keys and values before the cache.
    pub(crate) kv: Option<u32>,
}

/// What an engine's order of f32 operations changes where activations are rounded: a value that lies between two codes to the last bits goes to either, and what
/// follows sees a step of a code there. With 16 bits some values of every token do, with 8 bits few. Measured at 4e-4 for
/// 16 bits before a cache of 8, at 2e-3 there with tables and weights under one scale, and below 1e-6 where no code is of 16
/// bits.
pub(crate) const ROUNDED_TOLERANCE: f32 = 5e-3;

/// The same where no activation is rounded to 16 bits.
pub(crate) const NARROW_TOLERANCE: f32 = 2e-3;

/// Linear layers and tables, shared with the head, of codes under few scales: those that become products of integers.
const WIDE: [(&str, &str); 4] = [
    ("int8/tensor", "int8/row"),
    ("int8/row/f32", "int8/tensor"),
    ("int8/row/asymmetric", "int8/row/asymmetric"),
    ("int6/row", "int5/tensor"),
];

/// Every form of activations in integers, with weights in integers and in floats, and caches of both widths.
pub(crate) fn in_integers() -> Vec<Tiny> {
    let activations = |bits, scales, zero| Some(Rounded { bits, scales, zero });
    let forms = [
        activations(8, None, false),
        activations(16, None, false),
        activations(8, Some(Scales::One), false),
        activations(8, Some(Scales::One), true),
        activations(16, Some(Scales::One), false),
        activations(16, Some(Scales::One), true),
        activations(8, Some(Scales::Channels), false),
        activations(8, Some(Scales::Channels), true),
        None,
    ];
    let mut all = Vec::new();
    for activations in forms {
        for (linear, kv) in [("int4/g32", None), ("int8/g32/asymmetric", Some(8)), ("f32", Some(4)), ("int8/row", None)] {
            if activations.is_some() || kv.is_some() {
                all.push(Tiny { linear, activations, kv, ..Tiny::default() });
            }
        }
        if activations.is_some_and(|rounded| rounded.scales == Some(Scales::One)) {
            all.extend(WIDE.map(|(linear, table)| Tiny { linear, table, activations, kv: Some(8), ..Tiny::default() }));
        }
    }
    all
}

/// How activations are in integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounded {
    pub(crate) bits: u32,
    /// Static scales, as many as that; a dynamic one, if there are none.
    pub(crate) scales: Option<Scales>,
    pub(crate) zero: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scales {
    One,
    Channels,
}

impl Default for Tiny {
    fn default() -> Tiny {
        Tiny {
            linear: "f32",
            table: "bf16",
            head: None,
            width: 64,
            inner: 96,
            bias: false,
            window: None,
            softcap: None,
            key_heads: 2,
            cache: true,
            vocabulary: VOCABULARY,
            layers: LAYERS,
            interleaved: false,
            activations: None,
            kv: None,
        }
    }
}

const HEADS: usize = 4;

impl Tiny {
    /// The graph in text form. Without a head of its own, the table is the head.
    pub(crate) fn text(&self) -> String {
        let (width, inner, linear, table, vocabulary) = (self.width, self.inner, self.linear, self.table, self.vocabulary);
        let head = width / HEADS;
        let narrow = self.key_heads * head;
        let mut text = String::from("graph tiny(tokens: [batch, seq] i64, positions: [batch, seq] i64) {\n  block input {\n");
        writeln!(text, "    x = embedding tokens, weight(\"embedding\": [{vocabulary}, {width}] {table})\n  }}").unwrap();
        let mut x = "x".to_string();
        for layer in 0..self.layers {
            let n = format!("b{layer}.");
            let weight = |name: &str, out: usize, input: usize| {
                let stored = match self.interleaved && name == "q" {
                    true => format!(" = halves(tensor(\"b{layer}.{name}\"), {HEADS})"),
                    false => String::new(),
                };
                format!("weight(\"b{layer}.{name}\": [{out}, {input}] {linear}{stored})")
            };
            let bias = |name: &str, out: usize| match self.bias {
                true => format!(", weight(\"b{layer}.{name}.bias\": [{out}] f16)"),
                false => String::new(),
            };
            writeln!(text, "  block blocks.{layer} {{").unwrap();
            writeln!(text, "    {n}n1 = rms_norm {x}, weight(\"b{layer}.norm1\": [{width}] f32) {{epsilon = 1e-5}}").unwrap();
            for (name, out) in [("q", width), ("k", narrow), ("v", narrow)] {
                writeln!(text, "    {n}{name}0 = linear {n}n1, {}{}", weight(name, out, width), bias(name, out)).unwrap();
                let heads = out / head;
                writeln!(text, "    {n}{name}1 = split_heads {n}{name}0 {{heads = {heads}}}").unwrap();
            }
            let scaling = if layer == 0 { "" } else { ", scaling = \"linear\", factor = 2" };
            for name in ["q", "k"] {
                writeln!(text, "    {n}{name}2 = rope {n}{name}1, positions {{theta = 10000{scaling}}}").unwrap();
            }
            let (key, value) = match self.cache {
                true => {
                    writeln!(text, "    {n}kc = cache {n}k2 {{state = \"blocks.{layer}.attention.key\"}}").unwrap();
                    writeln!(text, "    {n}vc = cache {n}v1 {{state = \"blocks.{layer}.attention.value\"}}").unwrap();
                    ("kc", "vc")
                }
                false => ("k2", "v1"),
            };
            let window = self.window.map(|w| format!(", window = {w}")).unwrap_or_default();
            let softcap = self.softcap.map(|cap| format!(", softcap = {cap}")).unwrap_or_default();
            let scale = 1.0 / (head as f64).sqrt();
            writeln!(text, "    {n}a = attention {n}q2, {n}{key}, {n}{value} {{scale = {scale}{window}{softcap}}}").unwrap();
            writeln!(text, "    {n}m = merge_heads {n}a").unwrap();
            writeln!(text, "    {n}out = linear {n}m, {}{}", weight("o", width, width), bias("o", width)).unwrap();
            writeln!(text, "    {n}r1 = add {x}, {n}out").unwrap();
            writeln!(text, "    {n}n2 = rms_norm {n}r1, weight(\"b{layer}.norm2\": [{width}] bf16) {{epsilon = 1e-6}}").unwrap();
            writeln!(text, "    {n}g = linear {n}n2, {}", weight("gate", inner, width)).unwrap();
            writeln!(text, "    {n}u = linear {n}n2, {}", weight("up", inner, width)).unwrap();
            writeln!(text, "    {n}s = swiglu {n}g, {n}u").unwrap();
            writeln!(text, "    {n}d = linear {n}s, {}", weight("down", width, inner)).unwrap();
            writeln!(text, "    {n}r2 = add {n}r1, {n}d\n  }}").unwrap();
            x = format!("{n}r2");
        }
        writeln!(text, "  block head {{\n    nf = rms_norm {x}, weight(\"norm\": [{width}] f32) {{epsilon = 1e-5}}").unwrap();
        let weight = match self.head {
            Some(encoding) => format!("weight(\"head\": [{vocabulary}, {width}] {encoding})"),
            None => format!("weight(\"tied\": [{vocabulary}, {width}] {table} = tensor(\"embedding\"))"),
        };
        writeln!(text, "    logits = linear nf, {weight}\n  }}\n  return logits\n}}").unwrap();
        self.in_integers(&text)
    }

    /// With an op `quantize` before every linear layer and cache that is to read integers.
    fn in_integers(&self, text: &str) -> String {
        let (mut out, mut made) = (String::new(), Vec::new());
        for line in text.lines() {
            let mut line = line.to_string();
            for (op, wanted) in [("linear", self.activations.is_some()), ("cache", self.kv.is_some())] {
                let Some((before, after)) = line.split_once(&format!(" = {op} ")).filter(|_| wanted) else { continue };
                let end = after.find([',', ' ']).unwrap();
                let (x, rest) = after.split_at(end);
                if !made.contains(&format!("{x}.{op}")) {
                    writeln!(out, "    {x}.{op} = quantize {x}{}", self.rounding(x, op)).unwrap();
                    made.push(format!("{x}.{op}"));
                }
                line = format!("{before} = {op} {x}.{op}{rest}");
            }
            writeln!(out, "{line}").unwrap();
        }
        out
    }

    /// Scale, zero and bits of the value `x`.
    fn rounding(&self, x: &str, op: &str) -> String {
        let Some(Rounded { bits, scales, zero }) = self.activations.filter(|_| op == "linear") else {
            return format!(" {{bits = {}}}", self.kv.unwrap());
        };
        let Some(scales) = scales else { return format!(" {{bits = {bits}}}") };
        let width = if x.ends_with(".s") { self.inner } else { self.width };
        let count = if scales == Scales::One { 1 } else { width };
        let format = if bits > 8 { "i16" } else { "i8" };
        let zero = if zero { format!(", weight(\"{x}.zero\": [{count}] {format})") } else { String::new() };
        format!(", weight(\"{x}.scale{bits}\": [{count}] f32){zero} {{bits = {bits}}}")
    }

    pub(crate) fn graph(&self) -> Graph {
        Graph::parse(&self.text()).unwrap_or_else(|e| panic!("{e}\n{}", self.text()))
    }

    /// The graph and a source, written to `folder`.
    pub(crate) fn build(&self, folder: &Path) -> Model {
        let graph = self.graph();
        let source = source(&graph, &folder.join("weights.safetensors"));
        Model { graph, source, side: Side { context: Some(CONTEXT), ..Side::default() } }
    }
}

pub(crate) struct Model {
    pub(crate) graph: Graph,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) side: Side,
}

impl Model {
    pub(crate) fn input(&self) -> attar_export::Input<'_> {
        attar_export::Input { graph: &self.graph, source: &*self.source, side: &self.side }
    }

    /// Logits of the reference run, `[seq][vocabulary]`, and the state it leaves.
    pub(crate) fn reference(&self, tokens: &[u32], past: usize, state: Option<State>) -> (Vec<Vec<f32>>, Option<State>) {
        let weights = SourceWeights(self.source.clone());
        let inputs = Inputs { state, ..Inputs::tokens(&[tokens], past).unwrap() };
        let (outputs, state) = Run::new(&self.graph, &weights, Mode::Inference, vec![inputs]).finish(0).unwrap();
        (outputs[0].squeeze(0).unwrap().to_vec2().unwrap(), state)
    }
}

/// Numbers that look like weights: the sum of four uniform ones; or all the same, if the name says so.
pub(crate) fn original(name: &str, count: usize) -> Vec<f32> {
    if name.contains("constant") {
        return vec![0.25; count];
    }
    if name.ends_with(".zero") {
        return (0..count).map(|i| (i % 7) as f32 - 5.0).collect();
    }
    if let Some((_, bits)) = name.rsplit_once(".scale") {
        // Some values of most activations are clipped.
        let reach = 2.5 / f32::powi(2.0, bits.parse::<i32>().unwrap() - 1);
        return (0..count).map(|i| reach * (1.0 + (i % 5) as f32 / 10.0)).collect();
    }
    let mut state = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |s, b| (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let offset = if name.contains("norm") { 1.0 } else { 0.0 };
    (0..count).map(|_| offset + 0.08 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Rounds to nearest. Learned tables are quantiles; scales that are codes are the nearest ones.
pub(crate) fn quantize(values: &[f32], [rows, columns]: [usize; 2], scheme: Scheme) -> QuantizedTensor {
    let grid = scheme.grid;
    let mut tensor = QuantizedTensor { dims: [rows, columns], ..QuantizedTensor::empty(scheme, columns) };
    let group = scheme.group(columns);
    let cover = |values: &[f32]| {
        let low = values.iter().copied().fold(f32::MAX, f32::min);
        let high = values.iter().copied().fold(f32::MIN, f32::max);
        scheme.cover(low, high)
    };
    let largest = |values: &[f32]| {
        let scales = values.chunks(columns).flat_map(|row| row.chunks(group)).map(|group| cover(group).scale);
        scales.fold(0.0f32, |most, scale| if scale.abs() > most.abs() { scale } else { most })
    };
    match scheme.scale.super_count(2) {
        0 => (),
        1 => tensor.supers.push(scheme.scale.super_scale(largest(values)).unwrap()),
        _ => tensor.supers = values.chunks(columns).map(|row| scheme.scale.super_scale(largest(row)).unwrap()).collect(),
    }
    let shared = |tensor: &mut QuantizedTensor, row: usize, values: &[f32]| {
        let (fit, over) = (cover(values), tensor.super_of(row));
        match (scheme.entries(), scheme.scale.plain()) {
            (1, Some(dtype)) => tensor.scales.push(dtype.round(fit.scale)),
            (1, None) => tensor.scales.push(scheme.scale.scale(scheme.scale.code(fit.scale, over), over)),
            (entries, _) => {
                let mut sorted = values.to_vec();
                sorted.sort_by(f32::total_cmp);
                let at = |entry: usize| sorted[(2 * entry + 1) * sorted.len() / (2 * entries)];
                tensor.scales.extend((0..entries).map(|entry| scheme.scale.round(at(entry)).unwrap()));
            }
        }
        tensor.zeros.extend((!scheme.is_symmetric()).then_some(fit.zero));
    };
    if scheme.granularity == Granularity::Tensor {
        shared(&mut tensor, 0, values);
    }
    for (row, values) in values.chunks(columns).enumerate() {
        let mut codes = vec![0; columns];
        for (at, (values, codes)) in values.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
            if scheme.granularity != Granularity::Tensor {
                shared(&mut tensor, row, values);
            }
            grid.encode(values, tensor.fit(row, at), codes);
        }
        grid.packing().pack(&codes, &mut tensor.codes);
    }
    tensor
}

/// How names of matrices end that have a row of zeros.
pub(crate) const PRUNED: &str = ".pruned";

/// Every stored tensor of `graph`, made from its name.
pub(crate) fn source(graph: &Graph, path: &Path) -> Arc<dyn Source> {
    let (mut entries, mut bytes, mut quantized) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut stored = BTreeMap::new();
    for (_, value, expr) in graph.weights() {
        stored.insert(expr.tensor_name().to_string(), value.fact.clone());
    }
    for (name, fact) in stored {
        let dims = fact.constant_dims().unwrap();
        let mut values = original(name.trim_end_matches(PRUNED), dims.iter().product());
        if name.ends_with(PRUNED) {
            let columns = values.len() / dims[0];
            values[dims[0] / 2 * columns..][..columns].fill(0.0);
        }
        match fact.encoding {
            Encoding::Quantized(scheme) => {
                let dims = [dims[0], dims[1]];
                add_quantized(&name, &quantize(&values, dims, scheme), &mut entries, &mut bytes);
                quantized.insert(name, (scheme, dims));
            }
            Encoding::Plain(dtype) => {
                dtype.encode(&values, &mut bytes);
                entries.push(Entry { name, dtype, dims });
            }
            Encoding::Blocks(_) => panic!("not written"),
        }
    }
    let mut writer = Writer::new(File::create(path).unwrap(), &entries, &BTreeMap::new()).unwrap();
    writer.append(&bytes).unwrap();
    writer.finish();
    Arc::new(Shards::open(&[path.into()], &quantized).unwrap())
}

fn add_quantized(name: &str, tensor: &QuantizedTensor, entries: &mut Vec<Entry>, bytes: &mut Vec<u8>) {
    entries.extend(PartLayout::new(name, tensor.scheme, tensor.dims).entries());
    bytes.extend(&tensor.codes);
    let mut shared = SharedParts::default();
    shared.add(tensor);
    shared.bytes().for_each(|part| bytes.extend(part));
}

/// Rows of what a weight of `graph` was before quantization, if it is stored as it is read.
pub(crate) fn rows_before(graph: &Graph, name: &str, rows: Range<usize>, out: &mut [f32]) -> bool {
    let Some((_, value, Expr::Tensor(stored))) = graph.weights().find(|(_, value, _)| value.name == name) else { return false };
    let dims = value.fact.constant_dims().unwrap();
    let all = original(stored, dims.iter().product());
    let columns = dims[dims.len() - 1];
    out.copy_from_slice(&all[rows.start * columns..rows.end * columns]);
    true
}

/// Models that every layout can hold.
pub(crate) fn everywhere() -> Vec<Tiny> {
    let each = |linear, table, head| Tiny { linear, table, head, ..Tiny::default() };
    vec![
        each("f32", "f32", None),
        each("bf16", "bf16", Some("f16")),
        each("f64", "f64", None),
        Tiny { interleaved: true, ..each("int4/g32", "f32", None) },
        each("int4/g32", "bf16", None),
        each("int4/g32", "int4/g32", None),
        each("int4/g32/f32", "int4/g16", Some("int8/g32")),
        each("int4/g32/asymmetric", "int4/g16/asymmetric", None),
        each("int4/g64/asymmetric/short", "int8/g32", Some("int4/g32")),
        each("int8/g32", "int8/g32", None),
        each("int8/g16/asymmetric/bf16", "int8/g32/asymmetric", None),
        each("int3/g32", "int3/g32", Some("int3/g16/asymmetric")),
        each("int3/g32/asymmetric", "int3/g64/asymmetric", None),
        each("int5/g32", "int6/g32", Some("int2/g16")),
        each("int2/g16/asymmetric", "int5/g64/asymmetric", None),
        Tiny { inner: 172, ..each("int4/g64/short", "int4/g64/short", None) },
        Tiny { inner: 172, width: 48, ..each("int4/g64/asymmetric/short", "int4/g32/asymmetric/short", None) },
        Tiny { inner: 172, width: 48, ..each("int8/g32/short", "int8/g32/short", None) },
        Tiny { bias: true, ..each("int4/g32", "bf16", None) },
        Tiny { window: Some(3), key_heads: 1, ..each("int8/g32", "f32", None) },
        Tiny { key_heads: 4, ..each("int4/g16", "f32", None) },
        Tiny { vocabulary: 51, ..each("int8/g32", "int8/g32", None) },
        each("int4/g32/int6", "int4/g16/int4", Some("int8/g32/int8")),
        each("int4/g16/asymmetric/int6", "int3/g32/int6", None),
        each("int8/g32/e4m3", "int4/g32/e4m3", Some("int4/g16/asymmetric/e8m0")),
        Tiny { inner: 172, interleaved: true, ..each("int4/g64/int6/short", "int4/g32/int6", None) },
        each("ternary/g32", "ternary/g16", Some("ternary/g32/int6")),
    ]
}

/// Models that only standard operators can hold.
pub(crate) fn standard_only() -> Vec<Tiny> {
    let each = |linear, table, head| Tiny { linear, table, head, ..Tiny::default() };
    vec![
        each("int8/row", "int8/row", None),
        each("int8/row/asymmetric", "int8/row/asymmetric", None),
        each("int4/row", "int4/row", None),
        each("int4/row/asymmetric", "int4/row/asymmetric", Some("int4/row")),
        each("int4/row/asymmetric", "int4/row/asymmetric", None),
        each("int8/tensor", "int8/tensor", Some("int8/tensor/asymmetric")),
        each("int4/tensor", "int4/tensor", None),
        each("int4/tensor/asymmetric", "int4/tensor/asymmetric", None),
        each("int3/tensor/asymmetric/f32", "int3/tensor", Some("f32")),
        each("int8/tensor/asymmetric", "int8/tensor/asymmetric", None),
        each("int4/g48/short", "int4/g24/asymmetric/short", Some("int4/g8")),
        each("ternary/tensor", "ternary/row", None),
        each("nf4/g32", "nf4/g16", Some("nf4/row")),
        each("nf4/tensor", "nf4/g32", None),
        each("gauss4/g32/int6", "gauss3/g16/int4", Some("gauss4/g64/short")),
        each("mxfp4/g32", "mxfp4/g32", None),
        each("nvfp4/g16", "nvfp4/g16", Some("mxfp4/g32")),
        each("fp8_e4m3/g32", "fp8_e4m3/g32", Some("fp8_e4m3/row")),
        each("fp8_e4m3/row", "fp8_e5m2/row", None),
        each("fp8_e5m2/tensor", "fp8_e4m3/tensor", Some("fp8_e5m2/g16/int8")),
        each("lut4/g32", "lut4/row", Some("lut4/tensor")),
        each("lut3/row", "lut2/row", None),
        each("lut2/tensor", "lut3/tensor", None),
        each("lut1/g32", "lut1/g16", Some("lut3/g32/f32")),
        Tiny { inner: 172, interleaved: true, ..each("nf4/g64/short", "nf4/g25/short", None) },
        Tiny { inner: 97, ..each("lut3/row", "lut3/g21/short", None) },
        Tiny { vocabulary: 51, inner: 97, ..each("int4/g32/short", "int4/g32", Some("int4/g32/asymmetric")) },
    ]
}

/// The largest, as a share of the largest logit.
pub(crate) fn difference(found: &[Vec<f32>], wanted: &[Vec<f32>], what: &str) -> f32 {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let largest = wanted.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    // No number is further off than one that is none.
    let worse = |m: f32, (f, w): (&f32, &f32)| if (f - w).is_nan() { f32::INFINITY } else { m.max((f - w).abs()) };
    found.iter().flatten().zip(wanted.iter().flatten()).fold(0.0, worse) / largest
}

pub(crate) fn call(tokens: &[Vec<u32>], padding: &[usize], past: usize) -> Value {
    let all = past + tokens[0].len();
    let mask: Vec<Vec<u32>> = padding.iter().map(|p| (0..all).map(|i| u32::from(i >= *p)).collect()).collect();
    let positions: Vec<Vec<usize>> = padding.iter().map(|p| (past..all).map(|i| i.saturating_sub(*p)).collect()).collect();
    let segments: Vec<Vec<u32>> = tokens.iter().map(|tokens| vec![0; tokens.len()]).collect();
    json!({ "input_ids": tokens, "attention_mask": mask, "position_ids": positions, "token_type_ids": segments })
}

pub(crate) fn tokens(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 17 + seed * 29 + i * i * 3) % VOCABULARY as u32).collect()
}

/// A source that has some tensors in blocks of a GGUF file.
struct InBlocks(Arc<dyn Source>, BTreeMap<String, TensorInfo>);

impl Source for InBlocks {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.1
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        self.0.read(name, rows, out)
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> attar_tensor::Result<QuantizedTensor> {
        self.0.read_quantized(name, rows)
    }

    fn digest(&self, name: &str) -> attar_tensor::Result<attar_tensor::Digest> {
        self.0.digest(name)
    }
}

impl Model {
    /// The model with that tensor in Q8_0 blocks.
    pub(crate) fn in_blocks(mut self, tensor: &str) -> Model {
        let mut tensors = self.source.tensors().clone();
        let encoding = Encoding::Blocks(attar_tensor::BlockFormat::Q8_0);
        tensors.get_mut(tensor).unwrap().encoding = encoding;
        let weights: Vec<_> = self.graph.weights().map(|(id, _, expr)| (id, expr.clone())).collect();
        for (id, expr) in weights.into_iter().filter(|(_, expr)| expr.tensor_name() == tensor) {
            self.graph.replace_weight(id, encoding, expr);
        }
        self.source = Arc::new(InBlocks(self.source, tensors));
        self
    }
}
