//! The settings of the quantize step, and what they mean for a graph.

use std::borrow::Cow;

use attar_graph::{Expr, Graph, Op, ValueId};
use attar_tensor::{Dtype, Encoding, GRIDS, Granularity, Grid, Scheme, Tail, ZeroPoint, nearest};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{QUANTIZERS, Quantizer};
use crate::{Error, Pattern, Patterns, Result, ScaleSearch, pattern};

/// Quantize weights.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// Weights to quantize: patterns over canonical names. Every pattern must match one.
    #[serde(default = "block_matrices")]
    pub select: Patterns,
    /// Weights of `select` to leave as they are. Every pattern must match one.
    #[serde(default)]
    pub keep: Patterns,
    /// Which values exist.
    pub grid: GridName,
    /// What shares a scale: so many neighbours in a row, `"row"` or `"tensor"`.
    #[serde(default)]
    pub group: Grouping,
    /// What to do where the group does not divide a row: `error`, or a `short` last group.
    #[serde(default)]
    pub tail: TailRule,
    /// Store a zero point with every scale.
    #[serde(default)]
    pub asymmetric: bool,
    /// How scales are chosen.
    #[serde(default)]
    pub scales: ScaleSearch,
    /// The format of the scales.
    #[serde(default)]
    pub scale_dtype: ScaleDtype,
    /// How codes are chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Other settings for some of the selected weights; the last that matches counts.
    #[serde(default, rename = "override", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// Other settings for some of the selected weights.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Which of the selected weights. Every pattern must match one.
    pub select: Patterns,
    /// As in the step.
    pub grid: Option<GridName>,
    /// As in the step.
    pub group: Option<Grouping>,
    /// As in the step.
    pub tail: Option<TailRule>,
    /// As in the step.
    pub asymmetric: Option<bool>,
    /// As in the step.
    pub scales: Option<ScaleSearch>,
    /// As in the step.
    pub scale_dtype: Option<ScaleDtype>,
    /// As in the step.
    pub algorithm: Option<Algorithm>,
}

pub(crate) fn block_matrices() -> Patterns {
    vec![Pattern::new("blocks.*.{attention,mlp}.*").expect("a constant that the tests parse")]
}

/// A name out of a registry.
macro_rules! registered {
    ($(#[$doc:meta])* $name:ident, $what:literal, $of:ty, $all:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name(pub $of);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.name())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<$name, D::Error> {
                let name = String::deserialize(deserializer)?;
                let found = $all.iter().copied().find(|entry| entry.name() == name);
                found.map($name).ok_or_else(|| {
                    let known: Vec<&str> = $all.iter().map(|entry| entry.name()).collect();
                    let hint = match nearest(&name, known.iter().copied()) {
                        Some(nearest) => format!("did you mean `{nearest}`?"),
                        None => format!("known: {}", known.join(", ")),
                    };
                    de::Error::custom(format!("unknown {} `{name}`; {hint}", $what))
                })
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let names: Vec<&str> = $all.iter().map(|entry| entry.name()).collect();
                json_schema!({ "type": "string", "enum": names })
            }

            fn inline_schema() -> bool {
                true
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.0.name())
            }
        }
    };
}

pub(crate) use registered;

registered!(
    /// A grid by its name.
    GridName, "grid", &'static dyn Grid, GRIDS
);
registered!(
    /// A quantizer by its name.
    Algorithm, "algorithm", &'static dyn Quantizer, QUANTIZERS
);

impl Default for Algorithm {
    fn default() -> Algorithm {
        Algorithm(QUANTIZERS[0])
    }
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping(pub Granularity);

impl Default for Grouping {
    fn default() -> Grouping {
        Grouping(Granularity::Group(64))
    }
}

impl Serialize for Grouping {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0 {
            Granularity::Group(n) => serializer.serialize_u64(n as u64),
            Granularity::Row => serializer.serialize_str("row"),
            Granularity::Tensor => serializer.serialize_str("tensor"),
        }
    }
}

impl<'de> Deserialize<'de> for Grouping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Grouping, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Grouping;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number of at least 1, `\"row\"` or `\"tensor\"`")
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> std::result::Result<Grouping, E> {
                match usize::try_from(n) {
                    Ok(n) if n > 0 => Ok(Grouping(Granularity::Group(n))),
                    _ => Err(E::invalid_value(de::Unexpected::Signed(n), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> std::result::Result<Grouping, E> {
                self.visit_i64(i64::try_from(n).unwrap_or(-1))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> std::result::Result<Grouping, E> {
                match word {
                    "row" => Ok(Grouping(Granularity::Row)),
                    "tensor" => Ok(Grouping(Granularity::Tensor)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Grouping {
    fn schema_name() -> Cow<'static, str> {
        "Grouping".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [{ "type": "integer", "minimum": 1 }, { "type": "string", "enum": ["row", "tensor"] }] })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// What to do where the group does not divide a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TailRule {
    /// Refuse.
    #[default]
    Error,
    /// Make the last group of the row shorter.
    Short,
}

/// The format of scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ScaleDtype {
    /// 16 bits, 11 of them significant.
    #[default]
    F16,
    /// 16 bits, 8 of them significant, the range of f32.
    Bf16,
    /// 32 bits.
    F32,
}

impl From<ScaleDtype> for Dtype {
    fn from(dtype: ScaleDtype) -> Dtype {
        match dtype {
            ScaleDtype::F16 => Dtype::F16,
            ScaleDtype::Bf16 => Dtype::BF16,
            ScaleDtype::F32 => Dtype::F32,
        }
    }
}

/// What becomes of one weight.
#[derive(Clone)]
pub struct Assignment {
    /// The weight.
    pub id: ValueId,
    /// Its canonical name.
    pub name: String,
    /// Where it is now.
    pub expr: Expr,
    /// Rows and columns.
    pub dims: [usize; 2],
    /// How it will be stored.
    pub scheme: Scheme,
    /// How its scales are chosen.
    pub search: ScaleSearch,
    /// How its codes are chosen.
    pub algorithm: &'static dyn Quantizer,
}

/// A matrix of the graph that can be quantized.
struct Matrix {
    id: ValueId,
    name: String,
    expr: Expr,
    dims: [usize; 2],
    encoding: Encoding,
}

impl Quantize {
    /// What becomes of each selected weight of `graph`, in the graph's order.
    pub fn assign(&self, graph: &Graph) -> Result<Vec<Assignment>> {
        let matrices = matrices(graph);
        check_matches("select", &self.select, &matrices, false)?;
        check_matches("keep", &self.keep, &matrices, false)?;
        let selected: Vec<Matrix> =
            matrices.into_iter().filter(|m| any(&self.select, &m.name) && !any(&self.keep, &m.name)).collect();
        if selected.is_empty() {
            return Err(Error::NothingLeft);
        }
        for (i, other) in self.overrides.iter().enumerate() {
            check_matches(&format!("override[{i}].select"), &other.select, &selected, true)?;
        }
        let (mut assignments, mut misfits) = (Vec::new(), Vec::new());
        for matrix in selected {
            match self.assign_one(matrix) {
                Ok(assignment) => assignments.push(assignment),
                Err(misfit @ Error::DoesNotFit { .. }) => misfits.push(misfit),
                Err(error) => return Err(error),
            }
        }
        let more = misfits.len().saturating_sub(1);
        match misfits.into_iter().next() {
            Some(Error::DoesNotFit { key, weight, scheme, source, .. }) => {
                Err(Error::DoesNotFit { key, weight, others: more, scheme, source })
            }
            _ => Ok(assignments),
        }
    }

    fn assign_one(&self, matrix: Matrix) -> Result<Assignment> {
        if let Encoding::Quantized(scheme) = matrix.encoding {
            return Err(Error::AlreadyQuantized { weight: matrix.name, scheme });
        }
        let mut settings = self.clone();
        let mut group_key = "group".to_owned();
        for (i, other) in self.overrides.iter().enumerate().filter(|(_, o)| any(&o.select, &matrix.name)) {
            settings.replace(other);
            if other.group.is_some() {
                group_key = format!("override[{i}].group");
            }
        }
        let scheme = settings.scheme();
        scheme.fit(matrix.dims[1]).map_err(|source| Error::DoesNotFit {
            key: group_key,
            weight: matrix.name.clone(),
            others: 0,
            scheme,
            source,
        })?;
        let Matrix { id, name, expr, dims, .. } = matrix;
        Ok(Assignment { id, name, expr, dims, scheme, search: settings.scales, algorithm: settings.algorithm.0 })
    }

    fn replace(&mut self, other: &Override) {
        macro_rules! take {
            ($($field:ident),*) => {
                $(if let Some(value) = other.$field { self.$field = value; })*
            };
        }
        take!(grid, group, tail, asymmetric, scales, scale_dtype, algorithm);
    }

    fn scheme(&self) -> Scheme {
        Scheme {
            grid: self.grid.0,
            granularity: self.group.0,
            zero: if self.asymmetric { ZeroPoint::Asymmetric } else { ZeroPoint::Symmetric },
            scale: self.scale_dtype.into(),
            tail: match self.tail {
                TailRule::Error => Tail::Error,
                TailRule::Short => Tail::Short,
            },
        }
    }
}

fn any(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|p| p.matches(name))
}

fn check_matches(key: &str, patterns: &[Pattern], matrices: &[Matrix], within_selection: bool) -> Result<()> {
    let names: Vec<&str> = matrices.iter().map(|matrix| matrix.name.as_str()).collect();
    pattern::check(key, patterns, &names, within_selection)
}

/// The kind of a canonical name: `blocks.3.mlp.down` as `blocks.*.mlp.down`.
pub fn kind(name: &str) -> String {
    let parts = name.split('.').map(|part| if part.parse::<usize>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// The matrices of linear layers and the tables of embeddings, in the graph's order.
fn matrices(graph: &Graph) -> Vec<Matrix> {
    let used: Vec<ValueId> = graph
        .nodes()
        .iter()
        .filter(|node| matches!(node.op, Op::Linear | Op::Embedding))
        .filter_map(|node| node.inputs.get(1).copied())
        .collect();
    graph
        .weights()
        .filter(|(id, ..)| used.contains(id))
        .filter_map(|(id, value, expr)| {
            let dims = value.fact.constant_dims()?.try_into().ok()?;
            Some(Matrix { id, name: value.name.clone(), expr: expr.clone(), dims, encoding: value.fact.encoding })
        })
        .collect()
}
