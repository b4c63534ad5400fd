//! Lower bounds on the bytes that any schedule of a kernel moves, given which of its tensors are on the chip.

use crate::{
    Element, Program, TensorId, attention_lower_bound,
    lower::Tiles,
    lower_bound,
    program::{Attention, Column, Destination, Epilogue, Kernel, Linear},
    schedule::Choice,
};

/// The lower bound for the kernel of `choice` with `sram` bytes on chip; `on` says which tensors are on the chip.
pub(super) fn least(program: &Program, choice: &Choice, sram: u64, on: &dyn Fn(TensorId) -> bool) -> u64 {
    let least = Least { program, sram, on };
    let entry = choice.kernel.entry();
    let x = |x: TensorId| entry.map_or(least.whole(x), |norm| least.whole(norm.x));
    let gains = entry.map_or(0, |norm| least.whole(norm.gains));
    match (choice.kernel.core(), &choice.tiles) {
        (Kernel::Linear(linear), Tiles::Linear(tiles)) => {
            let once = x(linear.x) + least.weight(linear) + least.written(linear);
            least.extra(linear) + gains + lower_bound(&tiles.loaded(), sram).max(once)
        }
        (Kernel::Attention(attention), _) => least.attention(attention),
        (Kernel::GatedMlp(mlp), _) => {
            let products = [&mlp.gated, &mlp.down].map(|l| least.weight(l) + least.extra(l));
            // Rows that are normed and then added are read once.
            let twice = entry.filter(|norm| mlp.down.reads().contains(&norm.x)).map_or(0, |norm| least.whole(norm.x));
            x(mlp.gated.x) - twice + gains + products.iter().sum::<u64>() + least.written(&mlp.down)
        }
        (Kernel::Norm(norm), _) => {
            let rows = program.get(norm.out).rows;
            let residual = norm.residual.map_or(0, |residual| least.whole(residual));
            least.rows(norm.x, rows) + residual + least.whole(norm.out) + least.whole(norm.gains)
        }
        (kernel, _) => kernel.reads().iter().chain(&kernel.writes()).map(|id| least.whole(*id)).sum(),
    }
}

struct Least<'a> {
    program: &'a Program,
    sram: u64,
    on: &'a dyn Fn(TensorId) -> bool,
}

impl Least<'_> {
    /// Bytes of `rows` rows, if they are not on the chip. Tiles are padded as a whole, not by rows.
    fn rows(&self, id: TensorId, rows: u64) -> u64 {
        let tensor = self.program.get(id);
        if (self.on)(id) { 0 } else { tensor.element.bytes(rows * tensor.columns) }
    }

    fn whole(&self, id: TensorId) -> u64 {
        self.rows(id, self.program.get(id).rows)
    }

    fn weight(&self, linear: &Linear) -> u64 {
        self.whole(linear.weight)
    }

    /// What a product writes, once.
    fn written(&self, linear: &Linear) -> u64 {
        let rows = self.program.product(linear)[0];
        linear.out.iter().map(|Destination { tensor, .. }| self.rows(*tensor, rows)).sum()
    }

    /// What a product's epilogue reads, once: other data than the product's, so that it comes on top.
    fn extra(&self, linear: &Linear) -> u64 {
        let [rows, _, n] = self.program.product(linear);
        let more = match &linear.epilogue {
            Epilogue::Add { residual } => self.whole(*residual),
            Epilogue::Rotary { table, .. } => table.map_or(0, |table| self.rows(table, rows)),
            Epilogue::Rescale | Epilogue::Activated { .. } | Epilogue::Gated { .. } => 0,
        };
        Column::ELEMENT.bytes(n) + more
    }

    /// Queries, outputs and all keys and values that are seen, once; or, where queries and outputs come and go, the bound of
    /// the later half of the rows on the keys that all of them see, plus the rest once.
    fn attention(&self, attention: &Attention) -> u64 {
        let Attention { query, state, out, key_heads, head, .. } = *attention;
        let rows = self.program.get(query).rows;
        let (from, to) = (attention.keys(0).0, attention.keys(rows - 1).1);
        let seen = |keys: u64| self.rows(state, keys);
        let once = self.whole(query) + self.whole(out) + seen(to - from);
        let elements = [query, state, out].map(|id| self.program.get(id).element);
        if (self.on)(query) || (self.on)(out) || elements != [Element::INT8; 3] {
            return once;
        }
        let common = attention.keys(rows / 2).1.saturating_sub(attention.keys(rows - 1).0);
        let later = rows - rows / 2;
        let part = self.rows(query, later) + self.rows(out, later) + seen(common);
        let group = attention.group() * later;
        let bound = key_heads * attention_lower_bound(group, common, head, Element::INT8, Element::INT32, self.sram);
        once + bound.saturating_sub(part)
    }
}
