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

use attar_graph::Expr;

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
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The name of the tensor without `.weight` or `.bias`.
    pub module: &'static str,
    /// The two rows of a rotary pair are neighbours, not half a head apart.
    pub interleaved: bool,
}

/// A row of a table.
pub(crate) const fn row(canonical: &'static str, hugging_face: Stored, gguf: Stored) -> Row {
    Row { canonical, hugging_face, gguf }
}

/// A tensor that is the weight as the graph has it.
pub(crate) const fn stored(module: &'static str) -> Stored {
    Stored { module, interleaved: false }
}

impl Stored {
    /// The same with neighbouring rows for each rotary pair.
    pub(crate) const fn interleaved(self) -> Stored {
        Stored { interleaved: true, ..self }
    }

    /// The weight that the graph needs, from what is stored. `heads`: how many heads its rows fall into.
    pub(crate) fn weight(&self, block: Option<usize>, heads: usize) -> Expr {
        let tensor = self.tensor(block, "weight");
        if self.interleaved { Expr::Halves(Box::new(tensor), heads) } else { tensor }
    }

    /// The bias that belongs to it.
    pub(crate) fn bias(&self, block: Option<usize>) -> Expr {
        self.tensor(block, "bias")
    }

    fn tensor(&self, block: Option<usize>, part: &str) -> Expr {
        Expr::tensor(format!("{}.{part}", numbered(self.module, block)))
    }
}

impl Names {
    /// The module that stores the weight of that canonical name, if one stores it alone.
    pub fn module(&self, naming: Naming, canonical: &str) -> Option<String> {
        let (row, block) = self.rows.iter().find_map(|row| Some((row, matching(row.canonical, canonical)?)))?;
        Some(numbered(row.stored(naming).module, block))
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
    pub(crate) fn block(&self, naming: Naming, tensor: &str) -> Option<usize> {
        let prefixes = self.rows.iter().filter_map(|row| Some(row.stored(naming).module.split_once('*')?.0));
        let number = |prefix: &str| tensor.strip_prefix(prefix)?.split('.').next()?.parse().ok();
        prefixes.into_iter().find_map(number)
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
fn matching(pattern: &str, name: &str) -> Option<Option<usize>> {
    match pattern.split_once('*') {
        Some((before, after)) => Some(Some(name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()?)),
        None => (name == pattern).then_some(None),
    }
}
