//! From a graph to the Hugging Face folder that holds it: the way back from the names of an architecture and its builder.
//!
//! [`Folder`] says which tensors the class of the architecture has and how each is made of the graph's weights: rows of
//! several ones below each other, `[in, out]`, less one. Whoever writes it decides on number formats and files.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use attar_graph::{Axis, Expr, Graph, Op, ValueId};
use attar_tensor::{Digest, Dtype, Encoding, Error as TensorError, QuantizedTensor, Source, TensorInfo};
use serde_json::{Value, json};

use crate::{
    Architecture, Config, Names, Naming, Result,
    config::Pooling,
    names::{Stored, matching, numbered},
    sentence,
    shape::{checked, describe, indescribable},
};

/// What a Hugging Face folder holds of a graph.
pub struct Folder {
    /// Its tensors, in the order in which the graph reads them.
    pub tensors: Vec<FolderTensor>,
    architecture: &'static Architecture,
}

/// A tensor of a folder.
#[derive(Clone, Debug)]
pub struct FolderTensor {
    /// `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Outermost first.
    pub dims: Vec<usize>,
    /// The weights that it is made of: below each other, or next to each other if `across` is set.
    pub parts: Vec<Part>,
    /// Whether parts are columns.
    pub across: bool,
}

/// A weight of the graph in a tensor.
#[derive(Clone, Debug)]
pub struct Part {
    /// The weight.
    pub weight: ValueId,
    /// Its numbers as the tensor has them.
    pub expr: Expr,
    /// The dimensions of those.
    pub dims: Vec<usize>,
    /// One is to be subtracted from each.
    pub less_one: bool,
    /// The weight is what the tensor has, plus one.
    pub gain: bool,
}

impl Folder {
    /// Of a graph of a known architecture.
    ///
    /// # Errors
    /// If no configuration says its sizes, or the architecture's class has no place for a weight.
    pub fn of(graph: &Graph) -> Result<Folder> {
        let (architecture, _) = checked(graph)?;
        let read: HashSet<ValueId> = graph.nodes().iter().flat_map(|node| node.inputs.iter().copied()).collect();
        let embedding = graph.weights().find(|(_, value, _)| value.name == "embedding").map(|(.., expr)| expr);
        let mut tensors: Vec<(FolderTensor, Vec<usize>)> = Vec::new();
        for (id, value, expr) in graph.weights().filter(|(id, ..)| read.contains(id)) {
            let Place { name, row, stored } = place(architecture.weights, &value.name)
                .ok_or_else(|| indescribable(&value.name, "no place in it", "weights of the architecture alone"))?;
            if value.name == "lm_head" && Some(expr) == embedding {
                continue;
            }
            let dims = value.fact.constant_dims().unwrap_or_default();
            let part = Part::of(id, expr, dims, stored);
            match tensors.iter_mut().find(|(tensor, _)| tensor.name == name) {
                Some((tensor, rows)) => {
                    let at = rows.partition_point(|other| *other < row);
                    rows.insert(at, row);
                    tensor.parts.insert(at, part);
                }
                None => {
                    let across = part.dims.len() == 1 || stored.transposed;
                    tensors.push((FolderTensor { name, dims: Vec::new(), parts: vec![part], across }, vec![row]));
                }
            }
        }
        let tensors = tensors.into_iter().map(|(tensor, rows)| tensor.joined(architecture.weights, &rows));
        Ok(Folder { tensors: tensors.collect::<Result<_>>()?, architecture })
    }

    /// The `config.json` for `graph`, from the one that its model came with: sizes are those of the graph, and the class is
    /// named. The architecture's own builder makes the same graph from it.
    ///
    /// # Errors
    /// If it does not: the configuration says something else, or an op or a setting of an op is not the architecture's.
    pub fn config(&self, config: &Value, graph: &Graph) -> Result<Value> {
        let mut config = describe(config, graph)?;
        let names = self.architecture.names;
        if config["architectures"].get(0) != Some(&json!(names[0])) {
            config["architectures"] = json!([names[0]]);
        }
        if config["model_type"].is_null() {
            config["model_type"] = json!(names.last());
        }
        let mut parsed = Config::from_json("config.json".as_ref(), config.clone())?;
        parsed.pooling = Pooling::of(graph);
        let built = self.architecture.graph(&parsed, Naming::HuggingFace, &self.outline())?;
        same_structure(graph, &built)?;
        Ok(config)
    }

    /// What sentence-transformers reads beside an encoder: files by name. Without them it takes the mean of all positions,
    /// and so do we.
    pub fn beside(&self, graph: &Graph) -> Vec<(&'static str, Value)> {
        let hidden = graph.find("embedding").and_then(|id| graph.fact(id).constant_dims()).map_or(0, |dims| dims[1]);
        sentence::written(Pooling::of(graph), hidden)
    }

    /// The tensors without numbers, which is what a graph is built from.
    fn outline(&self) -> Outline {
        let info = |tensor: &FolderTensor| TensorInfo { dims: tensor.dims.clone(), encoding: Encoding::Plain(Dtype::F32) };
        Outline(self.tensors.iter().map(|tensor| (tensor.name.clone(), info(tensor))).collect())
    }
}

/// Whether two graphs compute the same of weights of the same names, wherever these are.
///
/// # Errors
/// The first node of `graph` that is another one in `built`.
pub fn same_structure(graph: &Graph, built: &Graph) -> Result<()> {
    let text = |graph: &Graph| {
        let mut graph = graph.clone();
        let weights: Vec<(ValueId, String)> = graph.weights().map(|(id, value, _)| (id, value.name.clone())).collect();
        for (id, name) in weights {
            graph.replace_weight(id, Encoding::Plain(Dtype::F32), Expr::tensor(name));
        }
        graph.to_string()
    };
    let (found, wanted) = (text(graph), text(built));
    let differ = found.lines().chain([""]).zip(wanted.lines().chain([""])).find(|(found, wanted)| found != wanted);
    let Some((found, wanted)) = differ else { return Ok(()) };
    let part = found.split('=').next().unwrap_or_default().trim();
    Err(indescribable(part, format!("`{}`", found.trim()), format!("`{}`", wanted.trim())))
}

/// Where a weight goes.
struct Place {
    /// The tensor.
    name: String,
    /// The row of the table.
    row: usize,
    stored: Stored,
}

/// The tensor for the weight of that canonical name.
fn place(names: &Names, canonical: &str) -> Option<Place> {
    let (weight, is_bias) = canonical.strip_suffix(".bias").map_or((canonical, false), |weight| (weight, true));
    let mut rows = names.rows.iter().enumerate();
    let (row, block, stored) = rows.find_map(|(at, row)| Some((at, matching(row.canonical, weight)?, row.hugging_face)))?;
    let module = numbered(stored.module, block);
    match is_bias {
        true => {
            let stored = Stored { transposed: false, less_one: false, ..stored };
            Some(Place { name: format!("{module}.bias"), row, stored })
        }
        false => Some(Place { name: format!("{module}.weight"), row, stored }),
    }
}

impl Part {
    fn of(weight: ValueId, expr: &Expr, dims: Vec<usize>, stored: Stored) -> Part {
        let before = if stored.less_one { before_one(expr) } else { None };
        let less_one = stored.less_one && before.is_none();
        let expr = before.unwrap_or_else(|| expr.clone());
        let (expr, dims) = match stored.transposed {
            true => (transposed(expr), dims.into_iter().rev().collect()),
            false => (expr, dims),
        };
        Part { weight, expr, dims, less_one, gain: stored.less_one }
    }
}

impl Part {
    /// Rows and columns; a vector is one row.
    pub fn matrix(&self) -> [usize; 2] {
        TensorInfo { dims: self.dims.clone(), encoding: Encoding::Plain(Dtype::F32) }.matrix()
    }

    /// Rows as the tensor has them. `out` is `[rows, columns]`.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.expr.read(source, rows, out)?;
        if self.less_one {
            out.iter_mut().for_each(|x| *x -= 1.0);
        }
        Ok(())
    }
}

/// What `expr` adds one to, which is known to the last bit.
fn before_one(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Sum(of, one) if matches!(**one, Expr::Ones(_)) => Some((**of).clone()),
        Expr::Select(axis, of, indices) => Some(before_one(of)?.selected(*axis, indices.clone())),
        _ => None,
    }
}

/// `expr` with rows as columns, without doing so twice.
fn transposed(expr: Expr) -> Expr {
    match expr {
        Expr::Transpose(of) => *of,
        Expr::Select(Axis::Rows, of, rows) if matches!(*of, Expr::Transpose(_)) => transposed(*of).selected(Axis::Columns, rows),
        other => other.transposed(),
    }
}

impl FolderTensor {
    /// With the dimensions of all its parts, which are those of the `rows` of the table.
    fn joined(mut self, names: &Names, rows: &[usize]) -> Result<FolderTensor> {
        let module = names.rows[rows[0]].hugging_face.module;
        let sharing = names.rows.iter().filter(|row| row.hugging_face.module == module).count();
        if rows.len() != sharing {
            return Err(indescribable(&self.name, format!("{} of the weights it is made of", rows.len()), sharing.to_string()));
        }
        let at = if self.across { self.parts[0].dims.len() - 1 } else { 0 };
        let along: usize = self.parts.iter().map(|part| part.dims[at]).sum();
        self.dims.clone_from(&self.parts[0].dims);
        let others = |dims: &[usize]| dims.iter().enumerate().filter(|(dim, _)| *dim != at).map(|(_, n)| *n).collect::<Vec<_>>();
        if self.parts.iter().any(|part| others(&part.dims) != others(&self.dims)) {
            return Err(indescribable(&self.name, "weights of several widths", "one width"));
        }
        self.dims[at] = along;
        Ok(self)
    }
}

impl Pooling {
    /// What the graph of an encoder does.
    fn of(graph: &Graph) -> Pooling {
        let any = |wanted: fn(&Op) -> bool| graph.nodes().iter().any(|node| wanted(&node.op));
        Pooling { first_token: any(|op| matches!(op, Op::FirstPool)), normalize: any(|op| matches!(op, Op::Normalize { .. })) }
    }
}

/// Tensors without numbers.
struct Outline(BTreeMap<String, TensorInfo>);

impl Source for Outline {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.0
    }

    fn read(&self, name: &str, _: Range<usize>, _: &mut [f32]) -> std::result::Result<(), TensorError> {
        Err(self.unknown(name))
    }

    fn read_quantized(&self, name: &str, _: std::ops::Range<usize>) -> std::result::Result<QuantizedTensor, TensorError> {
        Err(self.unknown(name))
    }

    fn digest(&self, name: &str) -> std::result::Result<Digest, TensorError> {
        Err(self.unknown(name))
    }
}
