//! What checkpoints call the weights of an architecture: one table for Hugging Face folders and GGUF files.
//!
//! A row joins a canonical name, which graphs, recipes and reports use, with the module that stores the weight in each
//! format; `*` stands for the number of a block. An architecture builds its graph from the table, and whoever writes
//! checkpoints or adapters reads the same table in the other direction.
//!
//! ```
//! # use attar_model::{ARCHITECTURES, Naming};
//! let names = ARCHITECTURES[0].weights;
//! assert_eq!(names.module(Naming::HuggingFace, "blocks.7.mlp.up").as_deref(), Some("model.layers.7.mlp.up_proj"));
//! assert_eq!(names.module(Naming::Gguf, "blocks.7.mlp.up").as_deref(), Some("blk.7.ffn_up"));
//! ```

use std::ops::Range;

use attar_graph::{Axis, Expr, Runs};
use attar_tensor::Source;

use crate::{Error, Pattern, Result};

/// A checkpoint format that has its own names for weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// `blk.0.attn_q.weight`.
    Gguf,
}

/// The weights of an architecture.
#[derive(Debug)]
pub struct Names {
    /// What Hugging Face modules begin with in checkpoints of the whole class, and lack in those of its base.
    pub optional_prefix: &'static str,
    /// What Hugging Face modules begin with in checkpoints of a larger class, and lack in those of this one.
    pub larger_prefix: &'static str,
    /// Tensors of Hugging Face folders and GGUF files that the graph does not need, each with the reason.
    pub harmless: &'static [(&'static str, &'static str)],
    /// Every weight that has a module. A bias belongs to the module of its weight and has no row.
    pub rows: &'static [Row],
}

/// One weight of the model, or one of every block.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `blocks.*.attention.query`.
    pub canonical: &'static str,
    /// In a Hugging Face folder.
    pub hugging_face: Stored,
    /// In a GGUF file.
    pub gguf: Stored,
}

/// How a format stores a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The name of the tensor without `.weight` or `.bias`.
    pub module: &'static str,
    /// The two rows of a rotary pair are neighbours, not half a head apart.
    pub interleaved: bool,
    /// `[in, out]`.
    pub transposed: bool,
    /// Several weights are the rows of one tensor, one after the other in the order of the table.
    pub fused: bool,
    /// A gain is stored less one.
    pub less_one: bool,
}

/// A row of a table.
pub(crate) const fn row(canonical: &'static str, hugging_face: Stored, gguf: Stored) -> Row {
    Row { canonical, hugging_face, gguf }
}

/// A tensor that is the weight as the graph has it.
pub(crate) const fn stored(module: &'static str) -> Stored {
    Stored { module, interleaved: false, transposed: false, fused: false, less_one: false }
}

/// What of a stored tensor a weight is.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// Heads that its rows fall into.
    pub(crate) heads: usize,
    /// Its rows, if it shares the tensor.
    pub(crate) rows: Range<usize>,
    /// Rows of a tensor that it shares.
    pub(crate) of: usize,
}

impl Slot {
    /// All `rows` rows.
    pub(crate) fn whole(rows: usize) -> Slot {
        Slot { heads: 1, rows: 0..rows, of: rows }
    }
}

impl Stored {
    /// The same with neighbouring rows for each rotary pair.
    pub(crate) const fn interleaved(self) -> Stored {
        Stored { interleaved: true, ..self }
    }

    /// The same as `[in, out]`.
    pub(crate) const fn transposed(self) -> Stored {
        Stored { transposed: true, ..self }
    }

    /// Some rows of a tensor that several weights share.
    pub(crate) const fn fused(self) -> Stored {
        Stored { fused: true, ..self }
    }

    /// A gain that is stored less one.
    pub(crate) const fn less_one(self) -> Stored {
        Stored { less_one: true, ..self }
    }

    /// Whether the tensor holds the weight as the graph has it, and nothing else.
    fn is_plain(&self) -> bool {
        *self == stored(self.module)
    }

    /// The matrix that the graph needs, from what is stored.
    pub(crate) fn matrix(&self, tensor: String, slot: &Slot, source: &dyn Source) -> Result<Expr> {
        let mut expr = Expr::tensor(tensor);
        if self.transposed {
            expr = expr.transposed();
        }
        if self.fused {
            check_rows(&expr, expr.info(source)?.matrix()[0], slot)?;
            expr = expr.selected(Axis::Rows, Runs::new([slot.rows.clone()]));
        }
        Ok(if self.interleaved { Expr::Halves(Box::new(expr), slot.heads) } else { expr })
    }

    /// The gain that the graph needs.
    pub(crate) fn gain(&self, tensor: String, width: usize) -> Expr {
        let expr = Expr::tensor(tensor);
        if self.less_one { expr.plus(Expr::Ones(width)) } else { expr }
    }

    /// The bias that the graph needs.
    pub(crate) fn bias(&self, tensor: String, slot: &Slot, source: &dyn Source) -> Result<Expr> {
        let expr = Expr::tensor(tensor);
        if !self.fused {
            return Ok(expr);
        }
        check_rows(&expr, expr.info(source)?.elements(), slot)?;
        Ok(expr.selected(Axis::Columns, Runs::new([slot.rows.clone()])))
    }
}

/// A shared tensor has the rows of all who share it.
fn check_rows(expr: &Expr, found: usize, slot: &Slot) -> Result<()> {
    match found == slot.of {
        true => Ok(()),
        false => Err(Error::Contradiction {
            first: format!("{} rows in {}", found, expr.tensor_name()),
            second: format!("{} by the sizes of the weights in it", slot.of),
        }),
    }
}

impl Names {
    /// The module that stores the weight of that canonical name as the graph has it, if one does.
    pub fn module(&self, naming: Naming, canonical: &str) -> Option<String> {
        let (row, block) = self.rows.iter().find_map(|row| Some((row, matching(row.canonical, canonical)?)))?;
        let stored = row.stored(naming);
        stored.is_plain().then(|| numbered(stored.module, block))
    }

    /// Why the graph does not need the stored tensor, if it is one of those.
    pub(crate) fn reason(&self, tensor: &str) -> Option<&'static str> {
        self.harmless.iter().find(|(pattern, _)| Pattern::new(*pattern).matches(tensor)).map(|(_, reason)| *reason)
    }

    /// How the modules of a source begin, other than in the table.
    pub(crate) fn prefix(&self, naming: Naming, source: &dyn Source) -> Prefix {
        let any = |prefix: &str| source.tensors().keys().any(|tensor| tensor.starts_with(prefix));
        match naming {
            Naming::Gguf => Prefix::default(),
            Naming::HuggingFace if !self.larger_prefix.is_empty() && any(self.larger_prefix) => {
                Prefix { add: self.larger_prefix, drop: "" }
            }
            Naming::HuggingFace if any(self.optional_prefix) => Prefix::default(),
            Naming::HuggingFace => Prefix { add: "", drop: self.optional_prefix },
        }
    }

    /// How `naming` stores a weight.
    ///
    /// # Panics
    /// If no row has that canonical name: an architecture asks only for names of its own table.
    pub(crate) fn stored(&self, naming: Naming, canonical: &str) -> &'static Stored {
        let row = self.rows.iter().find(|row| row.canonical == canonical);
        row.unwrap_or_else(|| panic!("`{canonical}` is in the table of the architecture")).stored(naming)
    }

    /// The block that a stored tensor belongs to, if it belongs to one.
    pub(crate) fn block(&self, naming: Naming, tensor: &str, prefix: Prefix) -> Option<usize> {
        let before = self.rows.iter().filter_map(|row| Some(row.stored(naming).module.split_once('*')?.0));
        let number = |before: &str| tensor.strip_prefix(&prefix.of(before))?.split('.').next()?.parse().ok();
        before.into_iter().find_map(number)
    }
}

/// How the modules of a checkpoint begin, other than in the table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prefix {
    add: &'static str,
    drop: &'static str,
}

impl Prefix {
    /// The module as the checkpoint calls it.
    pub(crate) fn of(&self, module: &str) -> String {
        format!("{}{}", self.add, module.strip_prefix(self.drop).unwrap_or(module))
    }
}

impl Row {
    /// How `naming` stores it.
    pub fn stored(&self, naming: Naming) -> &Stored {
        match naming {
            Naming::HuggingFace => &self.hugging_face,
            Naming::Gguf => &self.gguf,
        }
    }
}

/// `pattern` with the number of a block for `*`.
pub(crate) fn numbered(pattern: &str, block: Option<usize>) -> String {
    match block {
        Some(block) => pattern.replacen('*', &block.to_string(), 1),
        None => pattern.into(),
    }
}

/// The number of the block, if there is one, of a name that `pattern` matches.
pub(crate) fn matching(pattern: &str, name: &str) -> Option<Option<usize>> {
    match pattern.split_once('*') {
        Some((before, after)) => Some(Some(name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()?)),
        None => (name == pattern).then_some(None),
    }
}
