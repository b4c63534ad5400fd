//! What lies in memory between runs. Prefill and decode, and all chunks of a prompt, read the same weights and the same states:
//! the first of their plans that has one decides where it lies and in which tiles, and the others find it there.

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
        let mut image = Image::default();
        image.add(plan);
        image
    }

    /// Takes in what a plan has beside what is known.
    pub fn add(&mut self, plan: &Plan) {
        for tensor in plan.tensors.iter().filter(|tensor| lasts(tensor.role)) {
            self.tensors.entry(tensor.name.clone()).or_insert_with(|| tensor.clone());
        }
    }

    /// Where a tensor of this name and shape lies.
    pub(crate) fn find(&self, name: &str, [rows, columns]: [u64; 2]) -> Option<&Placed> {
        self.tensors.get(name).filter(|found| [found.rows, found.columns] == [rows, columns])
    }

    /// All of them.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Placed> {
        self.tensors.values()
    }
}

/// Whether a tensor is there before a run and behind it.
pub(super) fn lasts(role: Role) -> bool {
    matches!(role, Role::Weight | Role::Constant | Role::State)
}
