//! One block as a function of what enters it: for what trains a block, or goes back through a model block by block.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{
    BlockId, Graph, Mode, Node, Result, ValueId, Weights,
    run::{Lane, evaluate},
};

/// Values of a graph by their ids.
pub type Values = BTreeMap<ValueId, Tensor>;

impl Graph {
    /// What `block` makes of `entering` that a later block reads or the graph returns. Values that only pass by are not
    /// in it. With [`Mode::Training`] gradients flow back to the tensors of `entering` and of `weights`.
    pub fn evaluate_block(&self, block: BlockId, weights: &dyn Weights, mode: Mode, entering: &Values) -> Result<Values> {
        self.evaluate_block_with(block, weights, mode, entering, &mut |_, tensor| Ok(tensor))
    }

    /// The same, where what every node makes goes on as what `change` makes of it.
    pub fn evaluate_block_with(
        &self,
        block: BlockId,
        weights: &dyn Weights,
        mode: Mode,
        entering: &Values,
        change: &mut dyn FnMut(&Node, Tensor) -> Result<Tensor>,
    ) -> Result<Values> {
        let mut lane = Lane { values: entering.clone().into_iter().collect(), ..Lane::default() };
        let mut macs = 0;
        for node in self.nodes_of(block) {
            let tensor = evaluate(self, weights, mode, node, &mut lane, &mut macs)?;
            lane.values.insert(node.output, change(node, tensor)?);
        }
        let leaving = self.leaving(block);
        Ok(lane.values.into_iter().filter(|(id, _)| leaving.contains(id)).collect())
    }

    /// The values that `block` makes and a later block reads or the graph returns, in running order.
    pub fn leaving(&self, block: BlockId) -> Vec<ValueId> {
        let made = self.nodes_of(block).map(|node| node.output);
        made.filter(|id| self.is_read_after(*id, block) || self.outputs().contains(id)).collect()
    }

    /// Whether a later block than `block` reads a value.
    pub fn is_read_after(&self, id: ValueId, block: BlockId) -> bool {
        self.nodes().iter().any(|node| node.block > block && node.inputs.contains(&id))
    }
}
