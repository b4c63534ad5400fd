//! An encoder in C: a text in one run, and its embedding.

use std::ops::Range;

use libloading::Library;

use super::{Error, check, sizes};
use crate::engine::kind::{Failure, Session};

type Encode = unsafe extern "C" fn(*const u32, usize, *mut i32, *mut u64) -> i32;

/// What it makes.
const EMBEDDING: &str = "sentence_embedding";

/// A compiled encoder, loaded. Its state is static, so that there is one at a time of each library.
pub(super) struct Encoder {
    encode: Encode,
    width: usize,
    positions: u64,
    step: f32,
    /// Whether the embedding is the mean of all rows, and whether it has length 1.
    mean: bool,
    normalized: bool,
    fed: Vec<u32>,
    embedding: Vec<f32>,
    /// Declared last: the function is in it.
    _library: Library,
}

impl Encoder {
    pub(super) fn of(library: Library, width: usize) -> Result<Encoder, Error> {
        let (_, positions, step) = sizes(&library)?;
        let (mut rows, mut normalized) = (0, 0);
        // SAFETY: the signatures are those of `shim.c`.
        let encode = unsafe {
            library.get::<unsafe extern "C" fn(*mut u64, *mut u64)>("attar_engine_pooling")?(&raw mut rows, &raw mut normalized);
            *library.get::<Encode>("attar_engine_encode")?
        };
        if rows == 0 {
            return Err(Error::NoPooling);
        }
        let none = (Vec::new(), Vec::new());
        let (mean, normalized) = (rows == 1, normalized == 1);
        Ok(Encoder { encode, width, positions, step, mean, normalized, fed: none.0, embedding: none.1, _library: library })
    }

    fn run(&mut self) -> Result<(), Error> {
        let (mut codes, mut about) = (vec![0; self.width], [0; 2]);
        // SAFETY: pointer and length are those of one slice; `codes` has room for a row, and `about` for two numbers.
        let status = unsafe { (self.encode)(self.fed.as_ptr(), self.fed.len(), codes.as_mut_ptr(), about.as_mut_ptr()) };
        check(status, about, (self.fed.len(), self.positions))?;
        let scale = f64::from(self.step) / if self.mean { self.fed.len() as f64 } else { 1.0 };
        let values: Vec<f64> = codes.iter().map(|code| f64::from(*code) * scale).collect();
        let length = if self.normalized { values.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12) } else { 1.0 };
        self.embedding = values.iter().map(|x| (x / length) as f32).collect();
        Ok(())
    }
}

impl Session for Encoder {
    fn outputs(&self) -> Vec<String> {
        vec![EMBEDDING.into()]
    }

    fn feed(&mut self, tokens: &[u32], _: bool) -> Result<(), Failure> {
        if tokens.len() as u64 > self.positions {
            return Err(Error::NoRoom { tokens: tokens.len(), positions: self.positions }.into());
        }
        self.fed = tokens.to_vec();
        self.embedding.clear();
        Ok(())
    }

    fn rows(&mut self, output: &str, rows: Range<usize>) -> Result<(&[f32], usize), Failure> {
        if output != EMBEDDING {
            return Err(Error::Output { wanted: EMBEDDING, found: output.into() }.into());
        }
        if rows != (0..1) {
            return Err(Error::Rows { rows, fed: 1 }.into());
        }
        if self.embedding.is_empty() {
            self.run()?;
        }
        Ok((&self.embedding, self.width))
    }
}
