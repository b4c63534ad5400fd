//! Where the constants of a graph come from.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use attar_tensor::{Encoding, Source};
use candle_core::{Device, Tensor};

use crate::{Error, Expr, Result, integer::IntegerMatrix};

/// Where constants come from.
pub trait Weights: Sync {
    /// The weight `name` as f32.
    fn whole(&self, name: &str, expr: &Expr) -> Result<Tensor>;

    /// Some of its rows, in the given order.
    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> Result<Tensor> {
        let whole = self.whole(name, expr)?;
        Ok(whole.index_select(&Tensor::new(rows, whole.device())?, 0)?)
    }

    /// The weight `name` as integers, if it is stored as integer codes. Products with quantized values are then integer, too.
    fn integers(&self, _name: &str, _expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        Ok(None)
    }
}

/// Constants read from a checkpoint on demand, and not kept.
pub struct SourceWeights(pub Arc<dyn Source>);

impl Weights for SourceWeights {
    fn whole(&self, _: &str, expr: &Expr) -> Result<Tensor> {
        let info = expr.info(&*self.0)?;
        let mut values = vec![0.0; info.elements()];
        expr.read(&*self.0, 0..info.matrix()[0], &mut values)?;
        Ok(Tensor::from_vec(values, info.dims.as_slice(), &Device::Cpu)?)
    }

    fn rows(&self, _: &str, expr: &Expr, rows: &[u32]) -> Result<Tensor> {
        let [count, columns] = expr.info(&*self.0)?.matrix();
        let mut distinct: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate() {
            distinct.entry(*row).or_default().push(at);
        }
        let mut values = vec![0.0; rows.len() * columns];
        let mut one = vec![0.0; columns];
        for (row, places) in distinct {
            let row = row as usize;
            if row >= count {
                return Err(Error::Token { token: row as u32, vocabulary: count });
            }
            expr.read(&*self.0, row..row + 1, &mut one)?;
            for at in places {
                values[at * columns..][..columns].copy_from_slice(&one);
            }
        }
        Ok(Tensor::from_vec(values, (rows.len(), columns), &Device::Cpu)?)
    }

    fn integers(&self, _: &str, expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        let Encoding::Quantized(_) = expr.encoding(&*self.0)? else { return Ok(None) };
        let [rows, _] = expr.info(&*self.0)?.matrix();
        Ok(IntegerMatrix::new(&expr.read_quantized(&*self.0, 0..rows)?).map(Arc::new))
    }
}

/// Constants held in memory by canonical name, for training; all others come from `below`.
pub struct TensorWeights<'a> {
    /// By canonical name.
    pub tensors: HashMap<String, Tensor>,
    /// The source of all others.
    pub below: &'a dyn Weights,
}

impl Weights for TensorWeights<'_> {
    fn whole(&self, name: &str, expr: &Expr) -> Result<Tensor> {
        self.tensors.get(name).cloned().map_or_else(|| self.below.whole(name, expr), Ok)
    }

    fn integers(&self, name: &str, expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        if self.tensors.contains_key(name) { Ok(None) } else { self.below.integers(name, expr) }
    }
}

/// Caches the weights that it reads whole.
pub struct Cached<'a> {
    below: &'a dyn Weights,
    read: Mutex<HashMap<String, Tensor>>,
    integers: Mutex<HashMap<String, Option<Arc<IntegerMatrix>>>>,
}

impl<'a> Cached<'a> {
    /// Over `below`.
    pub fn new(below: &'a dyn Weights) -> Cached<'a> {
        Cached { below, read: Mutex::default(), integers: Mutex::default() }
    }
}

impl Weights for Cached<'_> {
    fn whole(&self, name: &str, expr: &Expr) -> Result<Tensor> {
        let mut read = self.read.lock().expect("no panic holds this lock");
        if let Some(tensor) = read.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = self.below.whole(name, expr)?;
        read.insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    fn rows(&self, name: &str, expr: &Expr, rows: &[u32]) -> Result<Tensor> {
        self.below.rows(name, expr, rows)
    }

    fn integers(&self, name: &str, expr: &Expr) -> Result<Option<Arc<IntegerMatrix>>> {
        let mut read = self.integers.lock().expect("no panic holds this lock");
        if let Some(known) = read.get(name) {
            return Ok(known.clone());
        }
        let integers = self.below.integers(name, expr)?;
        read.insert(name.into(), integers.clone());
        Ok(integers)
    }
}
