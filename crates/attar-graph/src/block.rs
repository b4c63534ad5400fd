//! One block as a function of the values that enter it: for training a block, or backpropagation block by block.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{
    BlockId, Graph, Mode, Result, ValueId, Weights,
    run::{Lane, evaluate},
};

/// Values of a graph by their ids.
pub type Values = BTreeMap<ValueId, Tensor>;

impl Graph {
    /// The values that `block` computes from `entering` and that a later block reads or the graph returns. Values that only
    /// pass through are left out. With [`Mode::Training`] gradients flow back to the tensors of `entering` and of `weights`.
    pub fn evaluate_block(&self, block: BlockId, weights: &dyn Weights, mode: Mode, entering: &Values) -> Result<Values> {
        self.evaluate_block_with(block, weights, mode, entering, &mut |_, tensor| Ok(tensor))
    }

    /// The same, where `change` may replace every value that a node computes before others read it.
    pub fn evaluate_block_with(
        &self,
        block: BlockId,
        weights: &dyn Weights,
        mode: Mode,
        entering: &Values,
        change: &mut dyn FnMut(ValueId, Tensor) -> Result<Tensor>,
    ) -> Result<Values> {
        let mut lane = Lane { values: entering.clone().into_iter().collect(), ..Lane::default() };
        let mut macs = 0;
        for node in self.nodes_of(block) {
            for (id, tensor) in evaluate(self, weights, mode, node, &mut lane, &mut macs)? {
                lane.values.insert(id, change(id, tensor)?);
            }
        }
        let leaving = self.leaving(block);
        Ok(lane.values.into_iter().filter(|(id, _)| leaving.contains(id)).collect())
    }

    /// The values that `block` computes and that a later block reads or the graph returns, in execution order.
    pub fn leaving(&self, block: BlockId) -> Vec<ValueId> {
        let made = self.nodes_of(block).flat_map(|node| node.outputs.iter().copied());
        made.filter(|id| self.is_read_after(*id, block) || self.outputs().contains(id)).collect()
    }

    /// Whether a later block than `block` reads a value.
    pub fn is_read_after(&self, id: ValueId, block: BlockId) -> bool {
        self.nodes().iter().any(|node| node.block > block && node.inputs.contains(&id))
    }
}
