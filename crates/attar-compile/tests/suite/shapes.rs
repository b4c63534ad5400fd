//! A decoder as shapes alone, without a checkpoint. Every number that depends on weights (rescalings, gains, tables) is a legal
//! placeholder, so these programs are for planning and timing, never for running a model.

use attar_compile::{
    Element, Kernel, Program, Result, TensorId,
    fixed::{GATE_ENTRIES, Rescale, weight_bits},
    program::{Attention, Column, Destination, Epilogue, Linear, Mask, Norm, Range, Role},
};

/// A decoder of equal blocks: norm, QKV with rotary positions, attention, output, norm, gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Decoder {
    /// Numbers of the residual stream.
    pub(crate) width: u64,
    /// Inner features of the MLP.
    pub(crate) inner: u64,
    /// Query heads.
    pub(crate) heads: u64,
    /// Key and value heads; a divisor of `heads`.
    pub(crate) key_heads: u64,
    /// Numbers of a head, even.
    pub(crate) head: u64,
    /// Number of blocks.
    pub(crate) blocks: u64,
    /// How many positions a query sees, itself included.
    pub(crate) window: Option<u64>,
    /// How weights are stored.
    pub(crate) weight: Element,
    /// Words of the head that follows the blocks with a norm before it, in logits of int16 for every row. Without it the
    /// program ends with the last block.
    pub(crate) vocabulary: Option<u64>,
}

impl Decoder {
    /// The integer program for `rows` tokens after `past` others: a prompt, a part of it, or with one row a step of
    /// decoding. Input is the residual stream `[rows, width]` in int16; keys and values have room for `past + rows` tokens.
    ///
    /// # Errors
    /// Where the sizes do not go together, or sums would pass 32 bits.
    pub(crate) fn program(&self, rows: u64, past: u64) -> Result<Program> {
        let mut shapes = Shapes { decoder: self, rows, past, program: Program::default() };
        shapes.blocks();
        let program = shapes.program;
        program.check()?;
        Ok(program)
    }

    /// Columns of the products that make queries, and keys with values.
    fn attention_widths(&self) -> [u64; 2] {
        [self.heads * self.head, 2 * self.key_heads * self.head]
    }
}

/// A program under construction.
struct Shapes<'a> {
    decoder: &'a Decoder,
    rows: u64,
    past: u64,
    program: Program,
}

impl Shapes<'_> {
    fn blocks(&mut self) {
        let Decoder { blocks, head, vocabulary, .. } = *self.decoder;
        let table = self.program.tensor("rotary", [self.past + self.rows, head], Element::INT16, Role::Constant);
        let mut x = self.wide("input", Role::Input);
        for at in 0..blocks {
            let role = if at + 1 == blocks && vocabulary.is_none() { Role::Output } else { Role::Scratch };
            let out = self.wide(&format!("blocks.{at}.out"), role);
            self.block(&format!("blocks.{at}"), table, x, out);
            x = out;
        }
        if let Some(words) = vocabulary {
            let normed = self.norm("norm", x);
            let logits = self.program.tensor("logits", [self.rows, words], Element::INT16, Role::Output);
            self.linear("head", normed, words, vec![Destination { tensor: logits, row: 0 }], Epilogue::Rescale);
        }
    }

    fn block(&mut self, name: &str, table: TensorId, x: TensorId, out: TensorId) {
        let Decoder { width, inner, .. } = *self.decoder;
        let attended = self.attention(name, table, x);
        let middle = self.wide(&format!("{name}.middle"), Role::Scratch);
        let whole = |tensor: TensorId| vec![Destination { tensor, row: 0 }];
        self.linear(&format!("{name}.output"), attended, width, whole(middle), Epilogue::Add { residual: x });
        let normed = self.norm(&format!("{name}.mlp.norm"), middle);
        let gated = self.scratch(&format!("{name}.gated"), inner);
        let gate = Epilogue::Gated { table: vec![0; GATE_ENTRIES], rescale: plain() };
        self.linear(&format!("{name}.gate"), normed, 2 * inner, whole(gated), gate);
        self.linear(&format!("{name}.down"), gated, width, whole(out), Epilogue::Add { residual: middle });
    }

    /// From the block's input to what its heads have gathered.
    fn attention(&mut self, name: &str, table: TensorId, x: TensorId) -> TensorId {
        let (Decoder { heads, key_heads, head, window, .. }, rows, past) = (*self.decoder, self.rows, self.past);
        let [queries, states] = self.decoder.attention_widths();
        let normed = self.norm(&format!("{name}.norm"), x);
        let query = self.scratch(&format!("{name}.query"), queries);
        let state = self.program.tensor(format!("{name}.state"), [past + rows, states], Element::INT8, Role::State);
        let rotated = queries + states / 2;
        let ranges = [queries, rotated, queries + states].map(|end| Range { end, norm: None, rescale: plain() }).to_vec();
        let rotary = Epilogue::Rotary { table: Some(table), position: past, head, rotated, ranges };
        let parts = vec![Destination { tensor: query, row: 0 }, Destination { tensor: state, row: past }];
        self.linear(&format!("{name}.qkv"), normed, queries + states, parts, rotary);
        let out = self.scratch(&format!("{name}.attended"), queries);
        let attention = Attention {
            query,
            state,
            out,
            heads,
            key_heads,
            head,
            past,
            mask: window.map_or(Mask::Causal, Mask::Window),
            weight_bits: weight_bits(past + rows),
            logits: plain(),
            rescale: plain(),
        };
        self.program.kernel(format!("{name}.attention"), Kernel::Attention(attention));
        out
    }

    fn linear(&mut self, name: &str, x: TensorId, outputs: u64, out: Vec<Destination>, epilogue: Epilogue) {
        let shape = [outputs, self.program.get(x).columns];
        let weight = self.program.tensor(format!("{name}.weight"), shape, self.decoder.weight, Role::Weight);
        let columns = self.program.tensor(format!("{name}.columns"), [1, outputs], Column::ELEMENT, Role::Constant);
        self.program.kernel(name, Kernel::Linear(Linear { x, weight, columns, out, epilogue, narrow: 0 }));
    }

    fn norm(&mut self, name: &str, x: TensorId) -> TensorId {
        let width = self.decoder.width;
        let gains = self.program.tensor(format!("{name}.gains"), [1, width], Element::INT32, Role::Constant);
        let out = self.scratch(&format!("{name}.out"), width);
        self.program.kernel(
            name,
            Kernel::Norm(Norm { x, row: 0, gains, out, epsilon: width, gain_shift: 10, centered: false, residual: None }),
        );
        out
    }

    /// Of the residual stream.
    fn wide(&mut self, name: &str, role: Role) -> TensorId {
        self.program.tensor(name, [self.rows, self.decoder.width], Element::INT16, role)
    }

    fn scratch(&mut self, name: &str, columns: u64) -> TensorId {
        self.program.tensor(name, [self.rows, columns], Element::INT8, Role::Scratch)
    }
}

/// A rescaling that stands for any other.
fn plain() -> Rescale {
    Rescale::new(1.0 / 64.0).expect("1/64 is a legal factor")
}
