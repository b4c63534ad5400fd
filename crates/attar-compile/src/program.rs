//! A model as integer kernels over matrices: what a plan computes, before tiling and placement.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    Element, Error, Result,
    fixed::{NormRow, Rescale, saturate},
};

/// Index of a [`Tensor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorId(pub u32);

/// The role of a tensor in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Written by the caller before every run.
    Input,
    /// Read by the caller after every run.
    Output,
    /// Made and read within a run.
    Scratch,
    /// Kept between runs: keys and values.
    State,
    /// Codes of a weight `[out, in]`, stored tile by tile in the order of use.
    Weight,
    /// Anything else that never changes, stored by rows.
    Constant,
}

/// A matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Unique in its program.
    pub name: String,
    /// Rows; a weight's are its outputs.
    pub rows: u64,
    /// Numbers in a row.
    pub columns: u64,
    /// How numbers are stored.
    pub element: Element,
    /// What it is for.
    pub role: Role,
}

impl Tensor {
    /// Bytes of all of it, by rows.
    pub fn bytes(&self) -> u64 {
        self.element.bytes(self.columns) * self.rows
    }
}

/// How an output column of a product becomes a number: 10 bytes as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// Applied to accumulator and bias.
    pub rescale: Rescale,
    /// Added to the accumulator.
    pub bias: i32,
    /// Bits by which a residual is shifted down (rounding half up) before it is added: log2 of the output's step over its own.
    pub coarser: u8,
}

impl Column {
    /// As stored: multiplier, bias, shift, `coarser`, little-endian.
    pub const ELEMENT: Element = Element { bits: 80, per: 1 };
}

/// Where some columns of a kernel's output are written: a tensor, starting at a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The tensor.
    pub tensor: TensorId,
    /// The row for the kernel's first row.
    pub row: u64,
}

/// What happens to the accumulators of a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Epilogue {
    /// Rescaled to the output's element.
    Rescale,
    /// Rescaled, added to a residual of the output's shape and element.
    Add {
        /// int16, in the output's steps or finer ones: see [`Column::coarser`].
        residual: TensorId,
    },
    /// Rescaled to int16, looked up between two entries of a table, and rescaled to the output: an activation.
    Activated {
        /// The activation in int16 at [`crate::fixed::GATE_ENTRIES`] equidistant codes, from the lowest on.
        table: Vec<i16>,
        /// From the table's step to the output's.
        rescale: Rescale,
    },
    /// Rescaled to int16, normed head by head where a range says so, rotated by position (RoPE), rescaled to int8. The first
    /// `rotated` columns are rotated, in pairs `(i, i + head / 2)` of every head.
    Rotary {
        /// `[positions * batch, head]` int16: cosines of a position, then sines, each `head / 2`. None where nothing is rotated.
        table: Option<TensorId>,
        /// The row of the table for the first row.
        position: u64,
        /// Columns of a head.
        head: u64,
        /// A multiple of `head`.
        rotated: u64,
        /// What is done with the columns of queries, of keys and of values. Those that are normed come first.
        ranges: Vec<Range>,
    },
    /// Two products at once: the weight's rows `2j` and `2j + 1` are gate and up of output `j`. The gate is rescaled to
    /// int16 and looked up between two entries of a table, up to int16; their product is rescaled to the output.
    Gated {
        /// The activation in int16 at [`crate::fixed::GATE_ENTRIES`] equidistant gates, from that of the lowest code on.
        table: Vec<i16>,
        /// From `table[gate] * up` to the output.
        rescale: Rescale,
    },
}

/// Neighbouring columns of a product with a rotary embedding: whole heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// One past its last column; it begins where the one before ends.
    pub end: u64,
    /// The norm of each of its heads, before the rotary embedding.
    pub norm: Option<HeadNorm>,
    /// From int16 to int8, at the end.
    pub rescale: Rescale,
}

/// Root mean square norm of the columns of a head, from int16 to int16 (Zhang & Sennrich 2019; of queries and keys: Henry et al.
/// 2020, Dehghani et al. 2023).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadNorm {
    /// Of the columns of a head: see [`crate::fixed::stored_gain`].
    pub gains: Vec<i32>,
    /// `head * epsilon / scale^2` of the step before the norm.
    pub epsilon: u64,
    /// Fractional bits of the gains.
    pub gain_shift: u32,
}

impl HeadNorm {
    /// Norms the columns of a head.
    pub(crate) fn apply(&self, head: &[i32]) -> impl Iterator<Item = i32> {
        let norm = NormRow { epsilon: self.epsilon, gain_shift: self.gain_shift, gains: &self.gains, biases: None };
        norm.apply(head).map(|x| saturate(x, 16))
    }
}

/// Columns of `ranges` whose heads are normed: all of those before the first range that is not.
pub(crate) fn normed_columns(ranges: &[Range]) -> u64 {
    ranges.iter().take_while(|range| range.norm.is_some()).last().map_or(0, |range| range.end)
}

/// What is wrong with the ranges of `columns` columns in heads of `head`, of which the first `normed` are normed.
pub(crate) fn wrong_ranges(ranges: &[Range], [columns, head, normed]: [u64; 3]) -> Option<&'static str> {
    let start = |at: usize| if at == 0 { 0 } else { ranges[at - 1].end };
    let whole = |at: usize| ranges[at].end > start(at) && ranges[at].end.is_multiple_of(head);
    if head == 0 || head % 2 != 0 || !(0..ranges.len()).all(whole) || ranges.last().is_none_or(|last| last.end < columns) {
        return Some("has ranges of columns that are no whole heads");
    }
    let right = |range: &Range| match &range.norm {
        Some(norm) => range.end <= normed && norm.gains.len() as u64 == head,
        None => range.end > normed,
    };
    (!ranges.iter().all(right)).then_some("norms heads with other gains than they need")
}

impl Epilogue {
    /// Accumulator columns for each output.
    pub(crate) fn pairs(&self) -> u64 {
        match self {
            Epilogue::Gated { .. } => 2,
            _ => 1,
        }
    }
}

/// `out = epilogue(x weight^T)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    /// `[m, k]` int8 or int16.
    pub x: TensorId,
    /// `[n, k]`.
    pub weight: TensorId,
    /// `[1, n]` of [`Column`].
    pub columns: TensorId,
    /// Side by side.
    pub out: Vec<Destination>,
    /// How accumulators become results.
    pub epilogue: Epilogue,
    /// Bits by which sums of 64 bits are shifted down (rounding half up) before they are rescaled; 0 for sums of 32.
    pub narrow: u8,
}

/// Norm of int16 rows: by their root mean square (Zhang & Sennrich 2019), or of what they differ from their mean (Ba et al. 2016), with
/// a residual added to the result where there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Norm {
    /// `[row + m or more, d]` int16.
    pub x: TensorId,
    /// The row of `x` that becomes the first.
    pub row: u64,
    /// `[1 or more, d]` int32: gains ([`crate::fixed::stored_gain`]); if rows are centered, biases behind them
    /// ([`crate::fixed::BIAS_BITS`]); if there is a residual, the bits by which it is shifted down, like [`Column::coarser`].
    pub gains: TensorId,
    /// `[m, d]` int8 or int16.
    pub out: TensorId,
    /// `d * epsilon / scale^2` of `x`'s least step.
    pub epsilon: u64,
    /// Fractional bits of the gains.
    pub gain_shift: u32,
    /// Whether the mean of a row is taken off, and a bias added.
    pub centered: bool,
    /// `[m, d]` int16, added to the result.
    pub residual: Option<TensorId>,
}

impl Norm {
    /// Rows of its constants.
    pub fn constants(&self) -> u64 {
        1 + u64::from(self.centered) + u64::from(self.residual.is_some())
    }
}

/// Which keys a row of queries sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mask {
    /// Those before its own, and its own.
    Causal,
    /// So many of these at most: the last ones.
    Window(u64),
    /// All that count as past, and no others.
    Past,
}

impl Mask {
    /// The keys that `rows` rows see between them, of which the first is `row` rows behind `past` keys: the first key, and one past the
    /// last.
    pub fn keys(self, past: u64, row: u64, rows: u64) -> (u64, u64) {
        let first = past.saturating_add(row);
        let from = match self {
            Mask::Window(window) => first.saturating_add(1).saturating_sub(window),
            Mask::Causal | Mask::Past => 0,
        };
        (from, if self == Mask::Past { past } else { first.saturating_add(rows) })
    }
}

/// Attention; a key head serves `heads / key_heads` query heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// `[m * batch, heads * head]` int8.
    pub query: TensorId,
    /// For each sequence as many rows as there are keys, or more, `2 * key_heads * head` int8 each: all key heads, then all value heads.
    pub state: TensorId,
    /// `[m * batch, heads * head]` int8 or int16.
    pub out: TensorId,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub key_heads: u64,
    /// Columns of a head.
    pub head: u64,
    /// Keys of a sequence before the first query's own; with [`Mask::Past`], the keys that count.
    pub past: u64,
    /// Which of them a row of queries sees.
    pub mask: Mask,
    /// Fractional bits of the weights of keys: [`crate::fixed::weight_bits`] of the state's rows.
    pub weight_bits: u8,
    /// From products to logits in base 2.
    pub logits: Rescale,
    /// From weighted means of values to the output.
    pub rescale: Rescale,
}

/// A whole gated MLP, `down(gated(x)) + residual`, as one kernel: the inner activations never leave the chip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatedMlp {
    /// With [`Epilogue::Gated`]; its output tensor is what stays on the chip.
    pub gated: Linear,
    /// Reads it.
    pub down: Linear,
}

/// A norm and the kernel that reads it as one kernel: normed rows never leave the chip, and are recomputed where they are read
/// again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normed {
    /// Its output tensor is what stays on the chip.
    pub norm: Norm,
    /// [`Kernel::Linear`] or [`Kernel::GatedMlp`], whose `x` that is.
    #[serde(deserialize_with = "product")]
    pub then: Box<Kernel>,
}

/// What a norm stands before, as a file has it: nothing nests in it, so no file makes the reader recurse.
fn product<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Box<Kernel>, D::Error> {
    /// [`Kernel`] by the same numbers.
    #[derive(Deserialize)]
    enum Product {
        Norm(Norm),
        Linear(Linear),
        Attention(Attention),
        GatedMlp(GatedMlp),
    }
    let kernel = match Product::deserialize(deserializer)? {
        Product::Norm(norm) => Kernel::Norm(norm),
        Product::Linear(linear) => Kernel::Linear(linear),
        Product::Attention(attention) => Kernel::Attention(attention),
        Product::GatedMlp(mlp) => Kernel::GatedMlp(mlp),
    };
    Ok(Box::new(kernel))
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kernel {
    /// A norm.
    Norm(Norm),
    /// A product.
    Linear(Linear),
    /// Attention.
    Attention(Attention),
    /// A gated MLP.
    GatedMlp(GatedMlp),
    /// A norm within a product.
    Normed(Normed),
}

impl Kernel {
    /// The tensors it reads, in the order of its operands.
    pub fn reads(&self) -> Vec<TensorId> {
        match self {
            Kernel::Norm(norm) => [norm.x, norm.gains].into_iter().chain(norm.residual).collect(),
            Kernel::Linear(linear) => linear.reads(),
            Kernel::Attention(attention) => vec![attention.query, attention.state],
            Kernel::GatedMlp(mlp) => {
                let inner = mlp.gated.out[0].tensor;
                mlp.gated.reads().into_iter().chain(mlp.down.reads().into_iter().filter(|id| *id != inner)).collect()
            }
            Kernel::Normed(Normed { norm, then }) => {
                let wide = [norm.x, norm.gains];
                let others = then.reads().into_iter().filter(|id| *id != norm.out && !wide.contains(id));
                wide.into_iter().chain(others).collect()
            }
        }
    }

    /// The tensors it writes.
    pub fn writes(&self) -> Vec<TensorId> {
        match self {
            Kernel::Norm(norm) => vec![norm.out],
            Kernel::Linear(linear) => linear.out.iter().map(|part| part.tensor).collect(),
            Kernel::Attention(attention) => vec![attention.out],
            Kernel::GatedMlp(mlp) => mlp.down.out.iter().map(|part| part.tensor).collect(),
            Kernel::Normed(normed) => normed.then.writes(),
        }
    }

    /// The kernel without the norm at its entry.
    pub fn core(&self) -> &Kernel {
        match self {
            Kernel::Normed(normed) => &normed.then,
            _ => self,
        }
    }

    /// The norm at its entry.
    pub fn entry(&self) -> Option<&Norm> {
        match self {
            Kernel::Normed(normed) => Some(&normed.norm),
            _ => None,
        }
    }
}

impl Linear {
    pub(crate) fn reads(&self) -> Vec<TensorId> {
        let mut ids = vec![self.x, self.weight, self.columns];
        match &self.epilogue {
            Epilogue::Add { residual } => ids.push(*residual),
            Epilogue::Rotary { table, .. } => ids.extend(table),
            Epilogue::Rescale | Epilogue::Activated { .. } | Epilogue::Gated { .. } => {}
        }
        ids
    }
}

/// Kernels in running order over tensors.
///
/// With a `batch`, several sequences of one length run side by side. Their rows are interleaved in every tensor that has rows of tokens, states
/// and rotary tables included: row `i * batch + b` is that of token `i` of sequence `b`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// All of them.
    pub tensors: Vec<Tensor>,
    /// Each with its name.
    pub kernels: Vec<(String, Kernel)>,
    /// Sequences side by side, 1 or more.
    pub batch: u64,
}

impl Default for Program {
    fn default() -> Program {
        Program { tensors: Vec::new(), kernels: Vec::new(), batch: 1 }
    }
}

impl Program {
    /// Adds a tensor.
    pub fn tensor(&mut self, name: impl Into<String>, [rows, columns]: [u64; 2], element: Element, role: Role) -> TensorId {
        self.tensors.push(Tensor { name: name.into(), rows, columns, element, role });
        TensorId(self.tensors.len() as u32 - 1)
    }

    /// Adds a kernel at the end.
    pub fn kernel(&mut self, name: impl Into<String>, kernel: Kernel) {
        self.kernels.push((name.into(), kernel));
    }

    /// One tensor.
    pub fn get(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// `[m, k, n]` of a product; `n` counts accumulator columns.
    pub fn product(&self, linear: &Linear) -> [u64; 3] {
        let weight = self.get(linear.weight);
        [self.get(linear.x).rows, weight.columns, weight.rows]
    }

    /// Rows of queries of each sequence.
    pub fn queries(&self, attention: &Attention) -> u64 {
        self.get(attention.query).rows / self.batch.max(1)
    }

    /// How the sums of a product are stored: int8 makes 32 bits, int16 makes 64.
    pub(crate) fn sums(&self, linear: &Linear) -> Element {
        if self.get(linear.x).element == Element::INT16 { Element::INT64 } else { Element::INT32 }
    }

    /// Bits by which the sums of a product of int16 with `[n, k]` weights are shifted down, so that the largest fits in 32 bits.
    pub fn narrow(x: Element, k: u64, weight: Element) -> u8 {
        if x != Element::INT16 {
            return 0;
        }
        (u128::BITS - largest_sum(x, k, weight).leading_zeros()).saturating_sub(31) as u8
    }

    /// Multiply-accumulates of a kernel that no plan can leave out.
    pub fn macs(&self, kernel: &Kernel) -> u64 {
        match kernel {
            Kernel::Norm(_) => 0,
            Kernel::Linear(linear) => self.product(linear).iter().product(),
            Kernel::Attention(attention) => {
                let rows = self.queries(attention);
                let seen: u64 = (0..rows).map(|row| attention.keys(row).1 - attention.keys(row).0).sum();
                2 * seen * self.batch * attention.heads * attention.head
            }
            Kernel::GatedMlp(mlp) => [&mlp.gated, &mlp.down].iter().map(|l| self.product(l).iter().product::<u64>()).sum(),
            Kernel::Normed(normed) => self.macs(&normed.then),
        }
    }

    /// Checks that shapes agree, sums fit in 32 bits, and every kernel reads tensors that are written before.
    ///
    /// # Errors
    /// The first kernel that breaks a rule.
    pub fn check(&self) -> Result<()> {
        let mut written: Vec<bool> = self.tensors.iter().map(|t| t.role != Role::Scratch && t.role != Role::Output).collect();
        for (name, kernel) in &self.kernels {
            let wrong = |what: &'static str| Error::Kernel { kernel: name.clone(), what };
            if kernel.reads().iter().any(|id| !written[id.0 as usize]) {
                return Err(wrong("reads a tensor that no earlier kernel writes"));
            }
            self.wrong(kernel).map_or(Ok(()), |what| Err(wrong(what)))?;
            kernel.writes().iter().for_each(|id| written[id.0 as usize] = true);
        }
        Ok(())
    }

    fn wrong(&self, kernel: &Kernel) -> Option<&'static str> {
        match kernel {
            Kernel::Norm(norm) => self.check_norm(norm),
            Kernel::Linear(linear) => self.check_linear(linear),
            Kernel::Attention(attention) => self.check_attention(attention),
            Kernel::GatedMlp(mlp) => self.check_linear(&mlp.gated).or(self.check_linear(&mlp.down)),
            Kernel::Normed(Normed { norm, then }) => match &**then {
                Kernel::Linear(Linear { x, .. }) | Kernel::GatedMlp(GatedMlp { gated: Linear { x, .. }, .. })
                    if *x == norm.out =>
                {
                    let adds = norm.residual.map(|_| "adds a residual to rows that never leave the chip");
                    adds.or(self.check_norm(norm)).or(self.wrong(then))
                }
                _ => Some("norms rows that it does not read"),
            },
        }
    }

    fn check_norm(&self, norm: &Norm) -> Option<&'static str> {
        let [x, gains, out] = [norm.x, norm.gains, norm.out].map(|id| self.get(id));
        let residual = norm.residual.map(|id| self.get(id));
        (x.columns != gains.columns
            || gains.rows != norm.constants()
            || x.columns != out.columns
            || norm.row + out.rows > x.rows
            || residual.is_some_and(|residual| [residual.rows, residual.columns] != [out.rows, out.columns]))
        .then_some("has operands whose shapes do not agree")
    }

    fn check_linear(&self, linear: &Linear) -> Option<&'static str> {
        let ([m, k, n], weight) = (self.product(linear), self.get(linear.weight));
        let columns: u64 = linear.out.iter().map(|part| self.get(part.tensor).columns).sum();
        let rows = linear.out.iter().all(|part| part.row + m <= self.get(part.tensor).rows);
        if self.get(linear.x).columns != k
            || columns * linear.epilogue.pairs() != n
            || !rows
            || self.get(linear.columns).columns != n
        {
            return Some("has operands whose shapes do not agree");
        }
        if k % u64::from(weight.element.per) != 0 {
            return Some("has a group size that does not divide its depth");
        }
        let x = self.get(linear.x).element;
        if !matches!(x, Element::INT8 | Element::INT16) {
            return Some("reads neither int8 nor int16");
        }
        if linear.narrow != Program::narrow(x, k, weight.element) {
            return Some("narrows its sums by another number of bits than they need");
        }
        if let Epilogue::Rotary { table, head, ranges, rotated, .. } = &linear.epilogue {
            let wrong = wrong_ranges(ranges, [n, *head, normed_columns(ranges)]);
            if wrong.is_some() || rotated % head != 0 {
                return wrong.or(Some("rotates columns that are no whole heads"));
            }
            if (*rotated > 0) != table.is_some() {
                return Some("has a rotary table and rotates nothing, or the other way round");
            }
        }
        (largest_sum(x, k, weight.element) >> linear.narrow >= 1 << 31).then_some("could overflow its accumulators")
    }

    fn check_attention(&self, attention: &Attention) -> Option<&'static str> {
        let (query, state, out) = (self.get(attention.query), self.get(attention.state), self.get(attention.out));
        let Attention { heads, key_heads, head, past, mask, .. } = attention;
        if self.batch == 0 || [query.rows, state.rows].iter().any(|rows| !rows.is_multiple_of(self.batch)) {
            return Some("has rows that are not those of a batch of sequences");
        }
        let keys = mask.keys(*past, 0, self.queries(attention));
        let room = state.rows / self.batch;
        let fits = query.columns == heads * head
            && state.columns == 2 * key_heads * head
            && (out.rows, out.columns) == (query.rows, query.columns)
            && *key_heads > 0
            && heads % key_heads == 0
            && keys.0 < keys.1
            && keys.1 <= room
            && attention.weight_bits == crate::fixed::weight_bits(room);
        (!fits).then_some("has operands whose shapes do not agree")
    }
}

/// No sum of `k` terms is larger: codes of half the bits of a run, scales of up to 7 bits where groups have them.
fn largest_sum(x: Element, k: u64, weight: Element) -> u128 {
    let code = 1u128 << (weight.bits / weight.per).saturating_sub(1);
    let scale = if weight.per > 1 { 127 } else { 1 };
    (u128::from(k) << (x.bits - 1)) * code * scale
}

impl Attention {
    /// The keys that query row `row` sees: from, to.
    pub fn keys(&self, row: u64) -> (u64, u64) {
        self.mask.keys(self.past, row, 1)
    }

    /// Keys that there are for `rows` rows of queries, seen or not.
    pub fn total(&self, rows: u64) -> u64 {
        self.mask.keys(self.past, 0, rows).1
    }

    /// Query heads of a key head.
    pub fn group(&self) -> u64 {
        self.heads / self.key_heads
    }
}
