//! What lies in memory between runs. Prefill and decode, and all chunks of a prompt, read the same weights and the same states:
//! the first of their plans decides where these lie and in which tiles, and the others find them there.

use std::collections::HashMap;

use crate::{
    plan::{Placed, Plan},
    program::Role,
};

/// Weights, constants and states of a plan, where they lie.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    tensors: HashMap<String, Placed>,
}

impl Image {
    /// Of a plan.
    pub fn of(plan: &Plan) -> Image {
        let lasting = plan.tensors.iter().filter(|tensor| lasts(tensor.role));
        Image { tensors: lasting.map(|tensor| (tensor.name.clone(), tensor.clone())).collect() }
    }

    /// Where a tensor of this name and shape lies.
    pub(super) fn find(&self, name: &str, [rows, columns]: [u64; 2]) -> Option<&Placed> {
        self.tensors.get(name).filter(|found| [found.rows, found.columns] == [rows, columns])
    }

    /// All of them.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Placed> {
        self.tensors.values()
    }
}

/// Whether a tensor is there before a run and behind it.
pub(super) fn lasts(role: Role) -> bool {
    matches!(role, Role::Weight | Role::Constant | Role::State)
}
