//! scratch
use candle_core::*;
use std::time::Instant;
#[expect(clippy::print_stdout, reason = "scratch")]
fn main() {
    for (m, k, n) in [(1024, 1024, 1024), (512, 576, 1536), (2048, 576, 1536), (2048, 1536, 576), (2048, 576, 576), (256, 576, 49152), (512, 576, 49152), (64, 576, 49152)] {
        let x = Tensor::randn(0f32, 1., (m, k), &Device::Cpu).unwrap();
        let w = Tensor::randn(0f32, 1., (n, k), &Device::Cpu).unwrap();
        let wt = w.t().unwrap();
        let wc = wt.contiguous().unwrap();
        let flop = 2.0 * (m * n * k) as f64;
        let reps = (4e10 / flop).ceil() as usize;
        let time = |f: &dyn Fn()| { f(); let mut best = f64::MAX; for _ in 0..3 { let t = Instant::now(); for _ in 0..reps { f() } best = best.min(t.elapsed().as_secs_f64() / reps as f64); } flop / best / 1e9 };
        let a = time(&|| { x.matmul(&wt).unwrap(); });
        let b = time(&|| { x.matmul(&wc).unwrap(); });
        let xt = x.t().unwrap();
        let c = time(&|| { w.matmul(&xt).unwrap(); });
        println!("{m}x{k}x{n}: x w^T {a:.0}, row-major {b:.0}, w x^T {c:.0} GFLOP/s");
    }
}
