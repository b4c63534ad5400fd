//! scratch: speed
use std::{path::Path, time::Instant};
use attar_eval::*;
use attar_model::Model;
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
#[expect(clippy::print_stdout, reason = "scratch")]
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let model = Model::open(Path::new(&a[1])).unwrap();
    let text = Perplexity { tokens: Some(a[3].parse().unwrap()), window: a[4].parse().unwrap(), ..Perplexity::of(&a[2]) };
    let t = (cpu(), Instant::now());
    let windows = text.windows(&model).unwrap();
    println!("windows {} cpu {:.2} wall {:.2}", windows.len(), cpu() - t.0, t.1.elapsed().as_secs_f64());
    let n: usize = windows.iter().map(|w| w.tokens.len()).sum();
    let runner = Reference::new(&model);
    let t = (cpu(), Instant::now());
    let mut l = runner.start(&windows, &|_, _| {}).unwrap();
    let mut out = vec![];
    l.rows(0, 0..1, &mut out).unwrap();
    println!("blocks: {:.0} tok/cpu-s, cpu {:.2} wall {:.2}", n as f64 / (cpu() - t.0), cpu() - t.0, t.1.elapsed().as_secs_f64());
    let t1 = (cpu(), Instant::now());
    let m = alone(&windows, &mut *l, None, &|_, _| {}).unwrap();
    println!("head+measure: cpu {:.2} wall {:.2}", cpu() - t1.0, t1.1.elapsed().as_secs_f64());
    println!("all: {:.0} tok/cpu-s, {:.1} tok/s; {:?}", n as f64 / (cpu() - t.0), n as f64 / t.1.elapsed().as_secs_f64(), m);
    if a.len() > 5 {
        let mut l2 = runner.start(&windows, &|_, _| {}).unwrap();
        l2.rows(0, 0..1, &mut out).unwrap();
        let t1 = (cpu(), Instant::now());
        let m = compare(&windows, &mut *l2, &mut *l, None, &|_, _| {}).unwrap();
        println!("compare: cpu {:.2} wall {:.2} {:?}", cpu() - t1.0, t1.1.elapsed().as_secs_f64(), m);
        let p = windows[0].tokens[..32].to_vec();
        let t1 = (cpu(), Instant::now());
        runner.generate(&p, 1, &[], &mut |_| {}).unwrap();
        println!("prompt: cpu {:.2} wall {:.2}", cpu() - t1.0, t1.1.elapsed().as_secs_f64());
        let t1 = (cpu(), Instant::now());
        runner.generate(&p, 33, &[], &mut |_| {}).unwrap();
        println!("prompt + 32: cpu {:.2} wall {:.2}", cpu() - t1.0, t1.1.elapsed().as_secs_f64());
    }
}
