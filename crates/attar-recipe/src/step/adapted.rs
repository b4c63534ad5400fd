//! Low-rank adapters next to weights in codes, and what `recover` and `distill` do with them alike.

use attar_compress::{Pattern, learn::with_adapters};
use attar_graph::Graph;
use attar_model::{Naming, module};

use super::{
    kind::StepError,
    plain::{self, PlainTrainable},
    trainable::trainable,
};
use crate::{
    Error,
    model::{Adapters, Working},
};

/// A model with adapters that are to be trained.
pub(super) struct Adapted {
    /// The model's graph with them.
    pub(super) graph: Graph,
    /// Their factors.
    pub(super) factors: Vec<PlainTrainable>,
    /// Which weights have one.
    pub(super) adapters: Adapters,
}

impl Adapted {
    /// With adapters of `rank` next to the quantized weights that `select` names. What is wrong is `key`'s fault.
    pub(super) fn of(select: &[Pattern], rank: usize, key: &str, model: &Working) -> Result<Adapted, StepError> {
        let trainable = trainable(select, model)?;
        let refused = |message: String, hint: &str| {
            let error = Error::recipe(message).hint(hint.to_owned());
            Err(StepError { key: Some(key.into()), error })
        };
        if let Some(sparse) = trainable.iter().find(|trained| trained.zeros) {
            let message = format!("`{}` is sparse, and an adapter next to it would fill its zeros", sparse.name);
            return refused(message, "leave it out of `select`, or train it by `recover`, which can merge adapters");
        }
        if let Some(transformed) = trainable.iter().find(|trained| !trained.is_of_checkpoint()) {
            let message =
                format!("`{}` was transformed: its adapter would fit no other copy of the checkpoint", transformed.name);
            return refused(
                message,
                "leave out the steps that transform weights, or train them by `recover`, which can merge adapters",
            );
        }
        if let Some(foreign) = trainable.iter().find(|trained| module(&model.graph, Naming::HuggingFace, &trained.name).is_none())
        {
            let message = format!("`{}` has no name that PEFT knows", foreign.name);
            return refused(message, "leave it out of `select`");
        }
        let weights: Vec<String> = trainable.iter().map(|trained| trained.name.clone()).collect();
        let names: Vec<&str> = weights.iter().map(String::as_str).collect();
        let graph = with_adapters(&model.graph, &names, rank)?;
        let factors = plain::adapters(&graph, &trainable);
        Ok(Adapted { graph, factors, adapters: Adapters { rank, weights } })
    }
}
