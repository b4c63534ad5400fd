//! What calibration text shows: the ranges of values, and the values of a prompt.

use std::{collections::BTreeMap, sync::Arc};

use attar_graph::{Graph, Inputs, Mode, Op, Run, SourceWeights, ValueId, kernel::with_f32};
use attar_tensor::Source;

use super::{Progress, Watch};
use crate::{Error, Result, convert::Ranges};

/// A model's graph without fused nodes, and the ranges that were observed on it.
pub(super) struct Seen {
    pub(super) graph: Graph,
    pub(super) source: Arc<dyn Source>,
    pub(super) ranges: Ranges,
}

impl Seen {
    /// Runs windows of text, and keeps the largest magnitude in each channel of every value.
    pub(super) fn new(graph: &Graph, source: &Arc<dyn Source>, windows: &[Vec<u32>], watch: Watch<'_>) -> Result<Seen> {
        let plain = graph.legalize(&|op| !matches!(op, Op::Fused(_)))?;
        let mut seen = Seen { graph: plain, source: Arc::clone(source), ranges: Ranges::default() };
        let mut largest: BTreeMap<ValueId, Vec<f32>> = BTreeMap::new();
        for (done, window) in windows.iter().enumerate() {
            Progress { stage: "observing ranges", what: "a window of text", done, total: windows.len() }.tell(watch)?;
            seen.walk(window, &mut |id, numbers, width| {
                let channels = largest.entry(id).or_insert_with(|| vec![0.0; width]);
                for row in numbers.chunks(width) {
                    channels.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
                }
                true
            })?;
        }
        seen.ranges = Ranges(largest.into_iter().map(|(id, channels)| (seen.graph.get(id).name.clone(), channels)).collect());
        Ok(seen)
    }

    /// Two values, by name, on the first `tokens` tokens of a window, which is repeated if it is shorter.
    pub(super) fn values(&self, window: &[u32], tokens: usize, names: [&str; 2]) -> Result<[Vec<f32>; 2]> {
        let window: Vec<u32> = window.iter().copied().cycle().take(tokens).collect();
        let ids = names.map(|name| self.graph.find(name).expect("what a program reads and makes is a value of its graph"));
        let mut found = [Vec::new(), Vec::new()];
        self.walk(&window, &mut |id, numbers, _| {
            for (place, _) in found.iter_mut().zip(ids).filter(|(_, wanted)| *wanted == id) {
                *place = numbers.to_vec();
            }
            found.iter().any(Vec::is_empty)
        })?;
        Ok(found)
    }

    fn walk(&self, window: &[u32], see: See<'_>) -> Result<()> {
        walk(&self.graph, &self.source, window, see)
    }
}

/// Takes a value, its numbers, and the width of a row; returns whether to go on.
pub(super) type See<'a> = &'a mut dyn FnMut(ValueId, &[f32], usize) -> bool;

/// Runs tokens and passes every value to `see`, block by block until that returns false. A value that is not finite is an error.
pub(super) fn walk(graph: &Graph, source: &Arc<dyn Source>, window: &[u32], see: See<'_>) -> Result<()> {
    let weights = SourceWeights(Arc::clone(source));
    let mut run = Run::new(graph, &weights, Mode::Inference, vec![Inputs::tokens(&[window], 0)?]);
    let mut wanted = true;
    while let Some(block) = run.next_block().filter(|_| wanted) {
        let mut failed = None;
        let mut tap = |_: usize, id: ValueId, tensor: &candle_core::Tensor| {
            let width = tensor.dims().last().copied().unwrap_or(1).max(1);
            let shown = with_f32(tensor, |numbers| {
                if numbers.iter().all(|x| x.is_finite()) {
                    wanted = see(id, numbers, width);
                } else {
                    let (value, block) = (graph.get(id).name.clone(), graph.block_name(block).to_owned());
                    failed.get_or_insert(Error::NotFinite { value, block });
                }
            });
            if let Err(error) = shown {
                failed.get_or_insert(Error::Graph(error.into()));
            }
        };
        run.step(Some(&mut tap))?;
        failed.map_or(Ok(()), Err)?;
    }
    Ok(())
}
