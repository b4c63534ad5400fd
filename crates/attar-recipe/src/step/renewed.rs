//! A model's weights in the middle of a walk that changes them: some are new already.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use attar_graph::{Expr, SourceWeights, Weights};
use attar_tensor::{Source, safetensors::Shards};
use candle_core::{Device, Tensor};

/// Weights of which some are new.
pub(super) struct Renewed {
    below: SourceWeights,
    /// By canonical name: the tensor and its file, or zeros.
    new: RwLock<BTreeMap<String, Option<(String, PathBuf)>>>,
}

impl Renewed {
    pub(super) fn over(source: &Arc<dyn Source>) -> Renewed {
        Renewed { below: SourceWeights(source.clone()), new: RwLock::default() }
    }

    pub(super) fn take(&self, name: &str, tensor: &str, path: PathBuf) {
        self.new.write().expect("no panic holds this lock").insert(name.into(), Some((tensor.into(), path)));
    }

    /// The weight `name` is zeros from now on.
    pub(super) fn clear(&self, name: &str) {
        self.new.write().expect("no panic holds this lock").insert(name.into(), None);
    }
}

impl Weights for Renewed {
    fn whole(&self, name: &str, expr: &Expr) -> attar_graph::Result<Tensor> {
        let new = self.new.read().expect("no panic holds this lock");
        match new.get(name) {
            None => self.below.whole(name, expr),
            Some(None) => Ok(self.below.whole(name, expr)?.zeros_like()?),
            Some(Some((tensor, path))) => {
                let stored = Shards::open(std::slice::from_ref(path), &BTreeMap::new())?;
                Ok(Tensor::from_vec(stored.whole(tensor)?, stored.info(tensor)?.dims.as_slice(), &Device::Cpu)?)
            }
        }
    }

    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> attar_graph::Result<Tensor> {
        match self.new.read().expect("no panic holds this lock").contains_key(name) {
            true => {
                let whole = self.whole(name, expr)?;
                Ok(whole.index_select(&Tensor::new(rows, whole.device())?, 0)?)
            }
            false => self.below.rows(name, expr, rows),
        }
    }
}
