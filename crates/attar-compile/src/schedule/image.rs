//! The memory between runs. Prefill, its chunks and decode share weights and states: the first plan that has one decides its
//! address and its tiles, and the others use them.

use std::collections::HashMap;

use crate::{
    plan::{Placed, Plan},
    program::Role,
};

/// Weights, constants and states of plans, with their addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    tensors: HashMap<String, Placed>,
}

impl Image {
    /// Of a plan.
    pub fn of(plan: &Plan) -> Image {
        let mut image = Image::default();
        image.add(plan);
        image
    }

    /// Adds the tensors of a plan that are not known yet.
    pub fn add(&mut self, plan: &Plan) {
        for tensor in plan.tensors.iter().filter(|tensor| lasts(tensor.role)) {
            self.tensors.entry(tensor.name.clone()).or_insert_with(|| tensor.clone());
        }
    }

    /// The tensor of this name and shape, if it is known.
    pub(crate) fn find(&self, name: &str, [rows, columns]: [u64; 2]) -> Option<&Placed> {
        self.tensors.get(name).filter(|found| [found.rows, found.columns] == [rows, columns])
    }

    /// All of them.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Placed> {
        self.tensors.values()
    }
}

/// Whether a tensor outlives a run.
pub(super) fn lasts(role: Role) -> bool {
    matches!(role, Role::Weight | Role::Constant | Role::State)
}
