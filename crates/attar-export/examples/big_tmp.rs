#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]
use attar_export::*;
use attar_graph::Graph;
use attar_tensor::{safetensors::*, *};
use std::{collections::BTreeMap, fs::File, io::Write, path::Path, sync::Arc, time::Instant};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (mode, scheme, n, k) = (&a[1], &a[2], a[3].parse::<usize>().unwrap(), a[4].parse::<usize>().unwrap());
    let out = Path::new("/tmp/w/exp/big"); let path = out.with_extension("safetensors");
    let s: Scheme = scheme.parse().unwrap();
    let graph = Graph::parse(&format!("graph g(x: [batch, seq, {k}] f32) {{ y = linear x, weight(\"w\": [{n}, {k}] {scheme})\n return y }}")).unwrap();
    if mode == "make" {
        let l = PartLayout::new("w", s, [n, k]);
        let entries: Vec<Entry> = l.entries().collect();
        let mut w = Writer::new(std::io::BufWriter::new(File::create(&path).unwrap()), &entries, &BTreeMap::new()).unwrap();
        let mut st = 1u32;
        for (i, e) in entries.iter().enumerate() {
            let count: usize = e.dims.iter().product();
            let mut b = Vec::new();
            if i == 1 { let v: Vec<f32> = (0..count).map(|i| 0.01 + (i % 97) as f32 * 1e-3).collect(); e.dtype.encode(&v, &mut b); }
            else { b = (0..count).map(|_| { st = st.wrapping_mul(1664525).wrapping_add(1013904223); (st >> 20) as u8 }).collect(); }
            w.append(&b).unwrap();
        }
        w.finish().flush().unwrap(); return;
    }
    let source: Arc<dyn Source> = Arc::new(Shards::open(&[path], &BTreeMap::from([("w".to_string(), (s, [n, k]))])).unwrap());
    let layout = if a.len() > 5 { Layout::MatMulNBits } else { Layout::DequantizeLinear };
    let (options, input) = (Options { layout }, Input { graph: &graph, source: &*source });
    let t = Instant::now();
    let art = target("onnx").unwrap().write(&input, &options, out, &mut |_, _| ()).unwrap();
    println!("write {:?} {}", t.elapsed(), rss());
    let t = Instant::now();
    target("onnx").unwrap().verify(&input, &art, out, None).unwrap();
    println!("verify {:?} {}", t.elapsed(), rss());
}
fn rss() -> String { std::fs::read_to_string("/proc/self/status").unwrap().lines().find(|l| l.starts_with("VmHWM")).unwrap().into() }
