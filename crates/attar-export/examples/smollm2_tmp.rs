#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]
use attar_export::*;
use attar_graph::Graph;
use attar_tensor::{safetensors::*, *};
use std::{collections::BTreeMap, fmt::Write as _, fs::File, io::Write, path::Path, sync::Arc, time::Instant};

fn text(linear: &str, table: &str) -> String {
    let mut t = String::from("graph smol(tokens: [batch, seq] i64, positions: [batch, seq] i64) {\n block input {\n");
    let emb = format!("[49152, 576] {table} = tensor(\"model.embed_tokens.weight\")");
    writeln!(t, "x = embedding tokens, weight(\"embedding\": {emb})\n}}").unwrap();
    let mut x = "x".to_string();
    for l in 0..30 {
        let p = format!("l{l}.");
        let w = |n: &str, o: usize, i: usize| format!("weight(\"blocks.{l}.{n}\": [{o}, {i}] {linear} = tensor(\"model.layers.{l}.{n}.weight\"))");
        let g = |n: &str| format!("weight(\"blocks.{l}.{n}\": [576] bf16 = tensor(\"model.layers.{l}.{n}.weight\"))");
        writeln!(t, "block blocks.{l} {{").unwrap();
        writeln!(t, "{p}n1 = rms_norm {x}, {} {{epsilon = 1e-5}}", g("input_layernorm")).unwrap();
        for (n, o, h) in [("q", 576, 9), ("k", 192, 3), ("v", 192, 3)] {
            writeln!(t, "{p}{n}0 = linear {p}n1, {}", w(&format!("self_attn.{n}_proj"), o, 576)).unwrap();
            writeln!(t, "{p}{n}1 = split_heads {p}{n}0 {{heads = {h}}}").unwrap();
        }
        for n in ["q", "k"] { writeln!(t, "{p}{n}2 = rope {p}{n}1, positions {{theta = 100000}}").unwrap(); }
        writeln!(t, "{p}kc = cache {p}k2 {{state = \"blocks.{l}.attention.key\"}}").unwrap();
        writeln!(t, "{p}vc = cache {p}v1 {{state = \"blocks.{l}.attention.value\"}}").unwrap();
        writeln!(t, "{p}a = attention {p}q2, {p}kc, {p}vc {{scale = 0.125}}").unwrap();
        writeln!(t, "{p}m = merge_heads {p}a").unwrap();
        writeln!(t, "{p}o = linear {p}m, {}", w("self_attn.o_proj", 576, 576)).unwrap();
        writeln!(t, "{p}r1 = add {x}, {p}o").unwrap();
        writeln!(t, "{p}n2 = rms_norm {p}r1, {} {{epsilon = 1e-5}}", g("post_attention_layernorm")).unwrap();
        writeln!(t, "{p}g = linear {p}n2, {}", w("mlp.gate_proj", 1536, 576)).unwrap();
        writeln!(t, "{p}u = linear {p}n2, {}", w("mlp.up_proj", 1536, 576)).unwrap();
        writeln!(t, "{p}s = swiglu {p}g, {p}u").unwrap();
        writeln!(t, "{p}d = linear {p}s, {}", w("mlp.down_proj", 576, 1536)).unwrap();
        writeln!(t, "{p}r2 = add {p}r1, {p}d\n}}").unwrap();
        x = format!("{p}r2");
    }
    writeln!(t, "block head {{ nf = rms_norm {x}, weight(\"norm\": [576] bf16 = tensor(\"model.norm.weight\")) {{epsilon = 1e-5}}\nlogits = linear nf, weight(\"head\": {emb})\n}}\nreturn logits\n}}").unwrap();
    t
}
fn quantize(values: &[f32], [rows, columns]: [usize; 2], scheme: Scheme) -> QuantizedTensor {
    let grid = scheme.grid;
    let mut t = QuantizedTensor { dims: [rows, columns], ..QuantizedTensor::empty(scheme, columns) };
    let group = scheme.group(columns);
    let mut codes = vec![0; columns];
    for row in values.chunks(columns) {
        for (v, c) in row.chunks(group).zip(codes.chunks_mut(group)) {
            let (lo, hi) = v.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
            let f = grid.cover(lo, hi, scheme.is_symmetric());
            let f = Fit { scale: scheme.round_scale(f.scale).unwrap(), ..f };
            grid.encode(v, f, c);
            t.scales.push(f.scale);
            if !scheme.is_symmetric() { t.zeros.push(f.zero) }
        }
        pack::pack_row(&codes, grid.bits(), &mut t.codes);
    }
    t
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (mode, linear, table, layout, out) = (&a[1], &a[2], &a[3], &a[4], Path::new(&a[5]));
    let base = Checkpoint::open(Path::new("/tmp/w/smollm2")).unwrap().source;
    let path = out.with_extension("safetensors");
    let graph = Graph::parse(&text(linear, table)).unwrap();
    let mut quantized = BTreeMap::new();
    let mut all = BTreeMap::new();
    for (_, v, e) in graph.weights() { all.insert(e.tensor_name().to_string(), v.fact.clone()); }
    for (n, f) in &all { if let Encoding::Quantized(s) = f.encoding { let d = f.constant_dims().unwrap(); quantized.insert(n.clone(), (s, [d[0], d[1]])); } }
    if mode == "make" {
        let mut entries = Vec::new();
        for (n, f) in &all { let d = f.constant_dims().unwrap(); match f.encoding {
            Encoding::Quantized(s) => entries.extend(PartLayout::new(n, s, [d[0], d[1]]).entries()),
            Encoding::Plain(dtype) => entries.push(Entry { name: n.clone(), dtype, dims: d }), _ => panic!() } }
        let mut w = Writer::new(std::io::BufWriter::new(File::create(&path).unwrap()), &entries, &BTreeMap::new()).unwrap();
        for (n, f) in &all {
            let info = base.info(n).unwrap();
            let mut v = vec![0.0; info.elements()];
            base.read(n, 0..info.matrix()[0], &mut v).unwrap();
            match f.encoding {
                Encoding::Quantized(s) => { let q = quantize(&v, info.matrix(), s); w.append(&q.codes).unwrap();
                    let mut b = Vec::new(); s.scale.encode(&q.scales, &mut b); w.append(&b).unwrap();
                    let mut b = Vec::new(); for r in q.zeros.chunks(s.groups(info.matrix()[1])) { pack::pack_row(r, s.grid.bits(), &mut b); } w.append(&b).unwrap(); }
                Encoding::Plain(d) => { let mut b = Vec::new(); d.encode(&v, &mut b); w.append(&b).unwrap(); }
                _ => panic!() }
        }
        w.finish().flush().unwrap();
        return;
    }
    let source: Arc<dyn Source> = Arc::new(Shards::open(&[path], &quantized).unwrap());
    let layout = if layout == "nbits" { Layout::MatMulNBits } else { Layout::DequantizeLinear };
    let options = Options { layout };
    let input = Input { graph: &graph, source: &*source };
    let t = Instant::now();
    target("onnx").unwrap().check(&graph, &options).unwrap();
    println!("check {:?}", t.elapsed());
    let t = Instant::now();
    let mut art = target("onnx").unwrap().write(&input, &options, out, &mut |_, _| ()).unwrap();
    println!("write {:?} cpu {:.2}", t.elapsed(), cpu());
    let t = Instant::now();
    let original = |n: &str, r, o: &mut [f32]| { let id = graph.find(n).unwrap(); let e = graph.weights().find(|(w, ..)| *w == id).unwrap().2; base.read(e.tensor_name(), r, o)?; Ok(true) };
    let v = target("onnx").unwrap().verify(&input, &art, out, None).unwrap();
    println!("verify {:?} cpu {:.2} {}", t.elapsed(), cpu(), v.weights);
    let t = Instant::now();
    let v = target("onnx").unwrap().verify(&input, &art, out, Some(&original)).unwrap();
    art.record(&v);
    println!("verify+snr {:?} cpu {:.2}", t.elapsed(), cpu());
    println!("{:?}", art.totals);
    println!("{:?}", art.tensors.iter().filter_map(|t| t.snr_db).fold((1e9f64, 0f64), |(a, b), x| (a.min(x), b.max(x))));
}
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/self/stat").unwrap(); let f: Vec<&str> = s.split(' ').collect(); (f[13].parse::<f64>().unwrap() + f[14].parse::<f64>().unwrap()) / 100.0 }
