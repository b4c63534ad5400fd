//! The code of attention.
//!
//! ```text
//! for HEAD (of each sequence of a batch):
//!   load all keys and values, if they stay
//!   for ROWS:
//!     load queries
//!     for KEYS: (load keys and values;) sums, softmax += attend(queries, keys, values)
//!     out = sums / softmax
//! ```

use super::AttentionTiles;
use crate::{
    Element, Program,
    lower::{Builder, First, Lowered, at_buffer, at_operand, compute, load, open, region, release, tiles, wait},
    plan::{Attend, Compute, Constant, Extent, Region, Span, Statement, View},
    program::Attention,
};

const HEAD: u8 = 0;
const ROWS: u8 = 1;
const KEYS: u8 = 2;

impl AttentionTiles {
    /// The code of a kernel.
    pub fn lower(&self, program: &Program, attention: &Attention, name: &str) -> Lowered {
        let mut builder = Builder::new(name, self.align);
        let code = Nest::new(self, program, attention, &mut builder).code();
        builder.done(code, &|_| First { beside: program.batch, ..First::default() })
    }
}

/// Everything that the loops refer to.
struct Nest<'a> {
    tiles: &'a AttentionTiles,
    attention: &'a Attention,
    /// Of queries of a sequence.
    rows: u64,
    batch: u64,
    operands: Operands,
    buffers: Buffers,
    /// Numbers of the constants of [`Compute::Attend`] and of [`Compute::Attended`].
    constants: [u32; 2],
}

struct Operands {
    query: u32,
    state: u32,
    out: u32,
}

struct Buffers {
    /// Keys and values.
    states: [u32; 2],
    sums: u32,
    softmax: u32,
    /// `None` on the chip.
    query: Option<u32>,
    out: Option<u32>,
}

impl Buffers {
    fn new(tiles: &AttentionTiles, program: &Program, attention: &Attention, builder: &mut Builder) -> Buffers {
        let head = attention.head;
        let rows = tiles.tokens * attention.group();
        let total = attention.total(program.queries(attention));
        let key_bytes = (tiles.keys.min(total) * head).next_multiple_of(tiles.align);
        let states = ["keys", "values"].map(|name| match tiles.resident {
            true => builder.packed(name, Element::INT8, tiles.held(program, attention) * key_bytes),
            false => builder.ring(name, Element::INT8, 2, key_bytes),
        });
        let sums = builder.ring("sums", Element::INT32, 1, 4 * rows * head);
        let softmax = builder.ring("softmax", Element::INT32, 1, 8 * rows);
        // Logits and weights: the device's own, no statement names them.
        builder.ring("scores", Element::INT8, 1, tiles.scores(rows));
        let [query, out] = [("query", attention.query, tiles.on_chip[0]), ("out", attention.out, tiles.on_chip[1])].map(
            |(name, id, on_chip)| {
                let element = program.get(id).element;
                (!on_chip).then(|| builder.ring(name, element, 2, element.bytes(rows * head)))
            },
        );
        Buffers { states, sums, softmax, query, out }
    }
}

impl<'a> Nest<'a> {
    fn new(tiles: &'a AttentionTiles, program: &Program, attention: &'a Attention, builder: &mut Builder) -> Nest<'a> {
        let (rows, batch) = (program.queries(attention), program.batch);
        let [query, state, out] = [attention.query, attention.state, attention.out].map(|id| builder.operand(id));
        let buffers = Buffers::new(tiles, program, attention, builder);
        let constants = [attention.logits, attention.rescale].map(|rescale| builder.constant(Constant::Rescale(rescale)));
        Nest { tiles, attention, rows, batch, operands: Operands { query, state, out }, buffers, constants }
    }

    /// All loops, for one sequence after another.
    fn code(&self) -> Vec<Statement> {
        (0..self.batch).map(|of| self.sequence(of)).collect()
    }

    /// The loops of a sequence. Its rows are columns here: those of all sequences lie side by side.
    fn sequence(&self, of: u64) -> Statement {
        let (resident, tokens) = (self.tiles.resident, self.tiles.tokens);
        let mut head = Vec::new();
        if resident {
            head.push(self.load_all(of));
        }
        head.push(tiles(ROWS, self.rows, tokens, [0, self.rows.div_ceil(tokens)], self.block(of)));
        if resident {
            head.extend(self.buffers.states.map(release));
        }
        let heads = self.attention.key_heads;
        tiles(HEAD, heads, 1, [0, heads], head)
    }

    /// All keys and values of a head that some row sees.
    fn load_all(&self, of: u64) -> Statement {
        let Attention { past, mask, .. } = *self.attention;
        let extent = Extent::AllKeys { rows: self.rows, past, mask };
        Statement::Loop { variable: KEYS, extent, tile: self.tiles.keys, tiles: [0, u64::MAX], body: self.load_states(of) }
    }

    /// The rows of a block in the columns of a head's group.
    fn block_region(&self, of: u64) -> Region {
        let Attention { heads, head, .. } = *self.attention;
        let unit = self.attention.group() * head;
        region(Span::tile(ROWS), Span::Tile { variable: HEAD, base: of * heads * head, unit })
    }

    /// Accumulators of a block: sums, and exponent and sum of the softmax for every row and head.
    fn accumulators(&self, of: u64) -> [View; 2] {
        let columns = Span::Tile { variable: HEAD, base: 0, unit: 2 * self.attention.group() };
        [at_buffer(self.buffers.sums, self.block_region(of)), at_buffer(self.buffers.softmax, region(Span::tile(ROWS), columns))]
    }

    /// A tile of keys, and one of values.
    fn states(&self, of: u64) -> [View; 2] {
        let Attention { key_heads, head, .. } = *self.attention;
        let part = |at: u64| {
            let base = (2 * of + at) * key_heads * head;
            region(Span::tile(KEYS), Span::Tile { variable: HEAD, base, unit: head })
        };
        let [keys, values] = self.buffers.states;
        [at_buffer(keys, part(0)), at_buffer(values, part(1))]
    }

    fn load_states(&self, of: u64) -> Vec<Statement> {
        let each = self.buffers.states.into_iter().zip(self.states(of));
        each.map(|(buffer, view)| load(buffer, self.operands.state, view.region)).collect()
    }

    /// A block of query rows.
    fn block(&self, of: u64) -> Vec<Statement> {
        let block = self.block_region(of);
        let mut code = Vec::new();
        let query = match self.buffers.query {
            None => at_operand(self.operands.query, block),
            Some(buffer) => {
                code.extend([load(buffer, self.operands.query, block), wait(buffer, block)]);
                at_buffer(buffer, block)
            }
        };
        let [sums, softmax] = self.accumulators(of);
        code.extend([open(self.buffers.sums, sums.region), open(self.buffers.softmax, softmax.region)]);
        code.push(self.keys(of, query));
        let out = match self.buffers.out {
            None => at_operand(self.operands.out, block),
            Some(buffer) => {
                code.push(open(buffer, block));
                at_buffer(buffer, block)
            }
        };
        let (head, constant) = (self.attention.head, self.constants[1]);
        code.push(compute(Compute::Attended { sums, softmax, out, head, constant }));
        code.extend(self.buffers.query.map(release));
        let store = |buffer| Statement::Store { buffer, operands: vec![(self.operands.out, 0)], region: block };
        code.extend(self.buffers.out.map(store));
        code
    }

    /// The loop over the keys that the rows of a block see.
    fn keys(&self, of: u64, query: View) -> Statement {
        let Attention { head, past, mask, weight_bits, .. } = *self.attention;
        let resident = self.tiles.resident;
        let mut body = if resident { Vec::new() } else { self.load_states(of) };
        let [key, value] = self.states(of);
        body.extend(self.buffers.states.into_iter().zip([key, value]).map(|(buffer, view)| wait(buffer, view.region)));
        let attend = Attend { head, past, mask, weight_bits, constant: self.constants[0], first: Some(KEYS) };
        let [sums, softmax] = self.accumulators(of);
        body.push(compute(Compute::Attend { query, key, value, sums, softmax, attend }));
        if !resident {
            body.extend(self.buffers.states.map(release));
        }
        let extent = Extent::Keys { rows: ROWS, past, mask };
        Statement::Loop { variable: KEYS, extent, tile: self.tiles.keys, tiles: [0, u64::MAX], body }
    }
}
