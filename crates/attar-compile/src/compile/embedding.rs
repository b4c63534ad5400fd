//! The table that takes tokens to the residual stream: what a runtime reads where the device's program begins.

use std::{io::Write, sync::Arc};

use attar_graph::{Graph, Op, Origin, ValueId};
use attar_tensor::Source;

use super::Seen;
use crate::{Error, Result, convert::Residual};

/// Of each token, its row of the residual stream before the first block, in codes.
#[derive(Clone, Debug)]
pub struct Embedding {
    graph: Graph,
    value: ValueId,
    residual: Residual,
    /// Tokens.
    pub rows: u64,
    /// Codes of a row.
    pub width: u64,
}

/// Tokens in one run of the graph.
const CHUNK: u32 = 128;

impl Embedding {
    /// The rows at the value `name`, if they depend on their token alone.
    pub(super) fn of(seen: &Seen, name: &str, residual: Residual) -> Result<Option<Embedding>> {
        let graph = &seen.graph;
        let tables = graph.nodes().iter().filter(|node| node.op == Op::Embedding).filter_map(|node| node.inputs.get(1));
        let table = tables
            .filter(|id| matches!(graph.get(**id).origin, Origin::Weight(_)))
            .find_map(|id| graph.fact(*id).constant_dims());
        let (Some(value), Some([rows, _])) = (graph.find(name), table.as_deref()) else { return Ok(None) };
        let (rows, width) = (*rows as u64, residual.exponents.len() as u64);
        let embedding = Embedding { graph: graph.clone(), value, residual, rows, width };
        let last = (rows - 1).min(1) as u32;
        let [before, after] = [[0, last], [last, 0]].map(|tokens| embedding.values(&seen.source, &tokens));
        let (before, after) = (before?, after?);
        let half = before.len() / 2;
        let is_free = before[..half] == after[half..] && before[half..] == after[..half];
        Ok(is_free.then_some(embedding))
    }

    /// Bytes of the table: `[rows, width]` int16, little-endian.
    pub fn bytes(&self) -> u64 {
        2 * self.rows * self.width
    }

    /// Writes the table, a few rows at a time.
    ///
    /// # Errors
    /// If a weight cannot be read, a value is not finite, or the table cannot be written.
    pub fn write(&self, source: &Arc<dyn Source>, to: &mut dyn Write) -> Result<()> {
        let end = self.rows as u32;
        for first in (0..end).step_by(CHUNK as usize) {
            let tokens: Vec<u32> = (first..end.min(first + CHUNK)).collect();
            let codes = self.residual.round(&self.values(source, &tokens)?);
            let bytes: Vec<u8> = codes.iter().flat_map(|code| (*code as i16).to_le_bytes()).collect();
            to.write_all(&bytes).map_err(|source| Error::ImageWrite { source })?;
        }
        Ok(())
    }

    fn values(&self, source: &Arc<dyn Source>, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut found = Vec::new();
        super::seen::walk(&self.graph, source, tokens, &mut |id, numbers, _| {
            if id == self.value {
                found = numbers.to_vec();
            }
            found.is_empty()
        })?;
        Ok(found)
    }
}
