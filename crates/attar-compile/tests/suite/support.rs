//! Programs with random numbers: single kernels, and blocks of a decoder.

use attar_compile::{
    Data, Element, Kernel, Memory, Program, TensorId,
    fixed::{GATE_ENTRIES, Rescale, stored_gain, weight_bits},
    program::{Attention, Column, Destination, Epilogue, HeadNorm, Linear, Mask, Norm, Range, Role},
};

/// A small generator (SplitMix64, Steele et al. 2014).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }
}

/// Weights in these elements.
pub(crate) const WEIGHTS: [Element; 5] =
    [Element::INT8, Element::INT4, Element { bits: 136, per: 32 }, Element { bits: 3, per: 1 }, Element { bits: 72, per: 16 }];

/// The sizes of a decoder block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) rows: u64,
    pub(crate) past: u64,
    pub(crate) width: u64,
    pub(crate) inner: u64,
    pub(crate) heads: u64,
    pub(crate) key_heads: u64,
    pub(crate) head: u64,
    pub(crate) window: Option<u64>,
    pub(crate) weight: Element,
    /// Whether heads of queries and keys are normed.
    pub(crate) normed_heads: bool,
}

/// A factor that is in range.
fn rescale_by(factor: f64) -> Rescale {
    Rescale::new(factor).expect("the factors of tests are small")
}

/// A program under construction with its numbers.
pub(crate) struct Builder {
    pub(crate) program: Program,
    pub(crate) data: Vec<(TensorId, Data)>,
    pub(crate) random: Random,
    /// Which activations of a block are int16: those of these bits.
    pub(crate) wide: u64,
}

impl Builder {
    pub(crate) fn new(seed: u64) -> Builder {
        Builder { program: Program::default(), data: Vec::new(), random: Random(seed), wide: 0 }
    }

    pub(crate) fn memory(self) -> (Program, Memory) {
        let mut memory = Memory::new(&self.program);
        self.data.into_iter().for_each(|(id, data)| memory.set(id, data));
        (self.program, memory)
    }

    pub(crate) fn numbers(&mut self, name: &str, shape: [u64; 2], element: Element, role: Role) -> TensorId {
        let id = self.program.tensor(name, shape, element, role);
        let top = if element.bits == 16 { 20_000 } else { 127 };
        let numbers = (0..shape[0] * shape[1]).map(|_| self.random.within(-top, top) as i32).collect();
        self.data.push((id, Data::Numbers(numbers)));
        id
    }

    pub(crate) fn scratch(&mut self, name: &str, shape: [u64; 2], element: Element) -> TensorId {
        self.program.tensor(name, shape, element, Role::Scratch)
    }

    /// A weight `[n, k]` and its columns, which bring sums to about `reach`.
    pub(crate) fn weight(&mut self, name: &str, [n, k]: [u64; 2], element: Element, reach: f64) -> [TensorId; 2] {
        let bits = if element.per == 1 { element.bits } else { (element.bits - 8) / element.per };
        let top = 1i64 << (bits - 1);
        let codes = (0..n * k).map(|_| self.random.within(-top, top - 1) as i8).collect();
        let groups = if element.per > 1 { n * k.div_ceil(u64::from(element.per)) } else { 0 };
        let scales = (0..groups).map(|_| self.random.within(-31, 31) as i8).collect();
        let weight = self.program.tensor(name, [n, k], element, Role::Weight);
        self.data.push((weight, Data::Weight { codes, scales }));
        let typical = (k as f64).sqrt() * 70.0 * (top as f64 / 1.7) * if groups > 0 { 18.0 } else { 1.0 };
        let columns = self.program.tensor(format!("{name} columns"), [1, n], Column::ELEMENT, Role::Constant);
        let all = (0..n).map(|_| {
            let factor = reach / typical * (1.0 + self.random.within(-30, 30) as f64 / 100.0);
            Column {
                rescale: rescale_by(factor),
                bias: self.random.within(-500, 500) as i32,
                coarser: self.random.within(0, 3) as u8,
            }
        });
        let all = Data::Columns(all.collect());
        self.data.push((columns, all));
        [weight, columns]
    }

    #[expect(clippy::too_many_arguments, reason = "a layer has so many parts")]
    pub(crate) fn linear(
        &mut self,
        name: &str,
        x: TensorId,
        n: u64,
        element: Element,
        reach: f64,
        out: Vec<Destination>,
        epilogue: Epilogue,
    ) {
        let k = self.program.get(x).columns;
        let from = self.program.get(x).element;
        let narrow = Program::narrow(from, k, element);
        // Numbers of int16 are 160 times those of int8 here, before their sums are narrowed.
        let reach = if from == Element::INT16 { reach / 160.0 * f64::from(1u32 << narrow) } else { reach };
        let [weight, columns] = self.weight(name, [n, k], element, reach);
        self.program.kernel(name, Kernel::Linear(Linear { x, weight, columns, out, epilogue, narrow }));
    }

    pub(crate) fn norm(&mut self, name: &str, x: TensorId, out: TensorId) {
        self.norm_of(name, x, out, false, None);
    }

    /// Of rows that are centered or not, with a residual or not.
    pub(crate) fn norm_of(&mut self, name: &str, x: TensorId, out: TensorId, centered: bool, residual: Option<TensorId>) {
        let width = self.program.get(x).columns;
        let norm = Norm { x, row: 0, gains: x, out, epsilon: width, gain_shift: 10, centered, residual };
        let shape = [norm.constants(), width];
        let gains = self.program.tensor(format!("{name} gains"), shape, Element::INT32, Role::Constant);
        let root = (width as f64).sqrt() as i32;
        let mut all: Vec<i32> = (0..width).map(|_| self.random.within(20_000, 90_000) as i32 * root).collect();
        if centered {
            all.extend((0..width).map(|_| self.random.within(-9_000, 9_000) as i32));
        }
        if residual.is_some() {
            all.extend((0..width).map(|_| self.random.within(0, 3) as i32));
        }
        self.data.push((gains, Data::Numbers(all)));
        self.program.kernel(name, Kernel::Norm(Norm { gains, ..norm }));
    }

    /// Gains that bring heads to about 4,000.
    fn head_norm(&mut self, head: u64) -> HeadNorm {
        let reach = 4000.0 * (head as f64).sqrt();
        let gains = (0..head).map(|_| stored_gain(self.random.within(20, 180) as f64 / 100.0 * reach * 64.0, 0)).collect();
        HeadNorm { gains, epsilon: head * 100, gain_shift: 6 }
    }

    pub(crate) fn gate(&mut self) -> Epilogue {
        let silu = |code: i32| {
            let x = f64::from(code - 512) / 64.0;
            (x / (1.0 + (-x).exp()) * 2048.0).round() as i16
        };
        Epilogue::Gated { table: (0..GATE_ENTRIES as i32).map(silu).collect(), rescale: rescale_by(1.0 / 40_000.0) }
    }

    fn activation(&self, bit: u32) -> Element {
        if self.wide >> bit & 1 == 1 { Element::INT16 } else { Element::INT8 }
    }

    /// A decoder block that reads `x` and writes `out`, int16.
    pub(crate) fn block(&mut self, at: &str, block: &Block, x: TensorId, out: TensorId) {
        let Block { rows, past, width, inner, heads, key_heads, head, window, weight, .. } = *block;
        let name = |what: &str| format!("{at}.{what}");
        let [q_width, kv_width] = [heads * head, 2 * key_heads * head];
        let normed = self.scratch(&name("normed"), [rows, width], self.activation(0));
        self.norm(&name("norm"), x, normed);
        let query = self.scratch(&name("query"), [rows, q_width], Element::INT8);
        let state = self.numbers(&name("state"), [past + rows, kv_width], Element::INT8, Role::State);
        let table = self.numbers(&name("table"), [past + rows, head], Element::INT16, Role::Constant);
        let rescale = rescale_by(1.0 / 64.0);
        let norms = [0, 1].map(|_| block.normed_heads.then(|| self.head_norm(head)));
        let [query_norm, key_norm] = norms;
        let ranges = vec![
            Range { end: q_width, norm: query_norm, rescale },
            Range { end: q_width + kv_width / 2, norm: key_norm, rescale: rescale_by(1.0 / 80.0) },
            Range { end: q_width + kv_width, norm: None, rescale },
        ];
        let rotary = Epilogue::Rotary { table: Some(table), position: past, head, rotated: q_width + kv_width / 2, ranges };
        let parts = vec![Destination { tensor: query, row: 0 }, Destination { tensor: state, row: past }];
        self.linear(&name("qkv"), normed, q_width + kv_width, weight, 4000.0, parts, rotary);
        let attended = self.scratch(&name("attended"), [rows, q_width], self.activation(1));
        let logits = rescale_by(300.0 / (head as f64).sqrt() / 5000.0);
        let rescale = rescale_by(1.7);
        let attention = Attention {
            query,
            state,
            out: attended,
            heads,
            key_heads,
            head,
            past,
            mask: window.map_or(Mask::Causal, Mask::Window),
            weight_bits: weight_bits(past + rows),
            logits,
            rescale,
        };
        self.program.kernel(name("attention"), Kernel::Attention(attention));
        let middle = self.scratch(&name("middle"), [rows, width], Element::INT16);
        let parts = vec![Destination { tensor: middle, row: 0 }];
        self.linear(&name("output"), attended, width, weight, 6000.0, parts, Epilogue::Add { residual: x });
        let normed = self.scratch(&name("normed again"), [rows, width], self.activation(2));
        self.norm(&name("norm again"), middle, normed);
        let gated = self.scratch(&name("gated"), [rows, inner], self.activation(3));
        let gate = self.gate();
        self.linear(&name("gate"), normed, 2 * inner, weight, 300.0, vec![Destination { tensor: gated, row: 0 }], gate);
        let parts = vec![Destination { tensor: out, row: 0 }];
        self.linear(&name("down"), gated, width, weight, 6000.0, parts, Epilogue::Add { residual: middle });
    }

    /// So many equal blocks behind each other.
    pub(crate) fn blocks(&mut self, count: usize, block: &Block) {
        let shape = [block.rows, block.width];
        let mut x = self.numbers("x", shape, Element::INT16, Role::Input);
        for at in 0..count {
            let last = at + 1 == count;
            let role = if last { Role::Output } else { Role::Scratch };
            let out = self.program.tensor(format!("out {at}"), shape, Element::INT16, role);
            self.block(&format!("blocks.{at}"), block, x, out);
            x = out;
        }
    }
}
