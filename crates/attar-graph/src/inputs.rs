//! What a caller gives to an evaluation.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::{Graph, Result, State, Values};

/// The input of tokens, `[batch, seq]`.
pub const TOKENS: &str = "tokens";

/// The input of their positions, `[batch, seq]`.
pub const POSITIONS: &str = "positions";

/// The input of which segment each token is in, `[batch, seq]`: `token_type_ids` of BERT.
pub const TOKEN_TYPES: &str = "token_types";

/// The inputs of one lane.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// By the names of the graph's inputs. Those that a graph does not have are left out.
    pub tensors: BTreeMap<String, Tensor>,
    /// What earlier calls left, if this lane continues them.
    pub state: Option<State>,
}

impl Inputs {
    /// Tokens `[windows, length]` at positions from `past` on, all of the first segment.
    ///
    /// # Panics
    /// If the windows differ in length.
    pub fn tokens(windows: &[&[u32]], past: usize) -> Result<Inputs> {
        let length = windows.first().map_or(0, |w| w.len());
        assert!(windows.iter().all(|w| w.len() == length), "windows of one lane have one length");
        let positions: Vec<u32> = windows.iter().flat_map(|_| (past as u32)..(past + length) as u32).collect();
        let types = vec![0u32; positions.len()];
        let tensor = |all: Vec<u32>| Tensor::from_vec(all, (windows.len(), length), &Device::Cpu);
        let given = [(TOKENS, tensor(windows.concat())?), (POSITIONS, tensor(positions)?), (TOKEN_TYPES, tensor(types)?)];
        Ok(Inputs::named(given))
    }

    /// Tensors by the names of inputs.
    pub fn named<N: Into<String>>(tensors: impl IntoIterator<Item = (N, Tensor)>) -> Inputs {
        Inputs { tensors: tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect(), state: None }
    }

    /// Tensors in the order of [`Graph::inputs`].
    pub fn in_order(graph: &Graph, tensors: impl IntoIterator<Item = Tensor>) -> Inputs {
        Inputs::named(graph.inputs().iter().map(|id| graph.get(*id).name.clone()).zip(tensors))
    }

    /// The inputs of `graph` that are given.
    pub fn of(&self, graph: &Graph) -> Values {
        let given = |id: &crate::ValueId| Some((*id, self.tensors.get(&graph.get(*id).name)?.clone()));
        graph.inputs().iter().filter_map(given).collect()
    }
}
