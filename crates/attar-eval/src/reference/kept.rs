//! Weights that are read once and kept, as far as there is room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use attar_graph::{Expr, Weights, integer::IntegerMatrix};
use candle_core::Tensor;

/// Weights that are read once and kept, as far as there is room.
pub(super) struct Kept<'w> {
    below: &'w dyn Weights,
    kept: Mutex<Room>,
}

struct Room {
    bytes: usize,
    tensors: HashMap<String, Tensor>,
    integers: HashMap<String, Option<Arc<IntegerMatrix>>>,
}

impl<'w> Kept<'w> {
    pub(super) fn new(below: &'w dyn Weights, bytes: usize) -> Kept<'w> {
        Kept { below, kept: Mutex::new(Room { bytes, tensors: HashMap::new(), integers: HashMap::new() }) }
    }
}

impl Weights for Kept<'_> {
    fn whole(&self, name: &str, expr: &Expr) -> attar_graph::Result<Tensor> {
        let mut room = self.kept.lock().expect("no panic holds this lock");
        if let Some(tensor) = room.tensors.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = self.below.whole(name, expr)?;
        let bytes = tensor.elem_count() * size_of::<f32>();
        if bytes <= room.bytes {
            room.bytes -= bytes;
            room.tensors.insert(name.into(), tensor.clone());
        }
        Ok(tensor)
    }

    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> attar_graph::Result<Tensor> {
        self.below.rows(name, expr, rows)
    }

    fn integers(&self, name: &str, expr: &Expr) -> attar_graph::Result<Option<Arc<IntegerMatrix>>> {
        let mut room = self.kept.lock().expect("no panic holds this lock");
        if let Some(known) = room.integers.get(name) {
            return Ok(known.clone());
        }
        let matrix = self.below.integers(name, expr)?;
        let bytes = matrix.as_ref().map_or(0, |matrix| matrix.bytes());
        if bytes <= room.bytes {
            room.bytes -= bytes;
            room.integers.insert(name.into(), matrix.clone());
        }
        Ok(matrix)
    }
}
