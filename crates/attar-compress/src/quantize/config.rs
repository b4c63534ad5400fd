//! The settings of the quantize step, and what they mean for a graph.

use std::{borrow::Cow, collections::BTreeSet};

use attar_graph::{Expr, Graph, Op, ValueId};
use attar_settings::Size;
use attar_tensor::{Encoding, GRIDS, Granularity, Grid, ScaleFormat, Scheme, Tail, ZeroPoint, nearest};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    QUANTIZERS, Quantizer, Rate,
    rate::{self, rates},
};
use crate::{
    Error, Pattern, Patterns, Result, ScaleSearch,
    allocate::{Budget, Choice, Sensitivity, default_choices},
    pattern,
};

/// Quantize weights.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["grid"] }, { "required": ["bits"] }, { "required": ["bytes"] }, { "required": ["coded_bits"] }]))]
pub struct Quantize {
    /// Weights to quantize, as patterns over canonical names. Every pattern must match at least one weight.
    #[serde(default = "block_matrices")]
    pub select: Patterns,
    /// Weights of `select` to leave as they are. Every pattern must match at least one weight.
    #[serde(default)]
    pub keep: Patterns,
    /// Number format of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<GridName>,
    /// Instead of `grid`: budget in bits per weight, scales included, averaged over the selected weights. Each weight
    /// gets the scheme of `choices` that minimizes the total predicted loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<f64>,
    /// Instead of `grid`: budget for the whole model as stored, in bytes or as a size such as `"60 MB"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Size>,
    /// Instead of `grid`: budget in bits per weight of the stream that the coder of `device` makes of the codes, averaged over the selected
    /// weights. Each weight gets a step between its int8 codes, the same for all rows, and zeros where they cost least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coded_bits: Option<f64>,
    /// With `coded_bits`: a device whose file says what its coder takes, by name or file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// With a budget: schemes to choose from, such as `int4/g32/int6`. A weight can only get those whose group size
    /// divides its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<Choice>>,
    /// With a budget: how the loss of a choice is predicted. Default: `fisher` with a calibration text, otherwise
    /// `weights`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<Sensitivity>,
    /// Weights that share a scale: a group size along the row, `row` or `tensor`. Default: 64, or what the grid
    /// requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Grouping>,
    /// What to do where the group size does not divide the row: fail (`error`) or end it with a shorter group
    /// (`short`).
    #[serde(default)]
    pub tail: TailRule,
    /// Store a zero point with every scale.
    #[serde(default)]
    pub asymmetric: bool,
    /// Use positive scales only, which costs symmetric integers one code: LiteRT takes no others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub positive_scales: bool,
    /// Criterion for the scales.
    #[serde(default)]
    pub scales: ScaleSearch,
    /// Number format of the scales (for `lut` grids, of the table entries). Default: `f16`, or what the grid requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<ScaleDtype>,
    /// Rounding algorithm.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What to do where all weights of a row or group, not all zero, came out as zeros or as a single value, or where
    /// their scale has no precision left: fail (`error`) or list it in the report (`report`, which `coded_bits` implies: rows of zeros cost
    /// no bits).
    #[serde(default, skip_serializing_if = "LostRule::is_error")]
    pub lost: LostRule,
    /// Other settings for some of the selected weights. The last override that matches applies.
    #[serde(default, rename = "override", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// Other settings for some of the selected weights.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Which of the selected weights. Every pattern must match at least one of them.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive_scales: Option<bool>,
    /// As in the step.
    pub scales: Option<ScaleSearch>,
    /// As in the step.
    pub scale_dtype: Option<ScaleDtype>,
    /// As in the step.
    pub algorithm: Option<Algorithm>,
}

/// What `coded_bits` can be at least: the coarsest steps that are tried take more of most weights.
pub const LEAST_CODED: f64 = 1.4;

/// And at most: what int8 takes uncoded.
pub const MOST_CODED: f64 = 8.0;

pub(crate) fn block_matrices() -> Patterns {
    vec![Pattern::new("blocks.*.{attention,mlp}.*").expect("a constant that the tests parse")]
}

/// A name from a registry.
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

/// Weights that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping(pub Granularity);

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

/// What to do where the group size does not divide a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TailRule {
    /// Fail.
    #[default]
    Error,
    /// End the row with a shorter group.
    Short,
}

/// What to do where rows or groups of weights are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LostRule {
    /// Fail.
    #[default]
    Error,
    /// List them in the report.
    Report,
}

impl LostRule {
    fn is_error(&self) -> bool {
        *self == LostRule::Error
    }
}

/// Number format of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ScaleDtype {
    /// 16 bits, 11 of them significant.
    F16,
    /// 16 bits, 8 of them significant, the range of f32.
    Bf16,
    /// 32 bits.
    F32,
    /// Two-level: signed 8-bit integers times one f16 per row.
    Int8,
    /// Two-level: signed 6-bit integers times one f16 per row.
    Int6,
    /// Two-level: signed 4-bit integers times one f16 per row.
    Int4,
    /// 8-bit powers of two, unsigned (MX block scales).
    E8m0,
    /// Two-level: FP8 E4M3 times one f32 per tensor (NVFP4 block scales).
    E4m3,
}

impl From<ScaleDtype> for ScaleFormat {
    fn from(dtype: ScaleDtype) -> ScaleFormat {
        match dtype {
            ScaleDtype::F16 => ScaleFormat::F16,
            ScaleDtype::Bf16 => ScaleFormat::Bf16,
            ScaleDtype::F32 => ScaleFormat::F32,
            ScaleDtype::Int8 => ScaleFormat::Int8,
            ScaleDtype::Int6 => ScaleFormat::Int6,
            ScaleDtype::Int4 => ScaleFormat::Int4,
            ScaleDtype::E8m0 => ScaleFormat::E8m0,
            ScaleDtype::E4m3 => ScaleFormat::E4m3,
        }
    }
}

/// How one weight will be quantized.
#[derive(Clone)]
pub struct Assignment {
    /// The weight.
    pub id: ValueId,
    /// Its canonical name.
    pub name: String,
    /// Other selected weights with the same expression: they stay tied.
    pub tied: Vec<(ValueId, String)>,
    /// Its current expression.
    pub expr: Expr,
    /// Rows and columns.
    pub dims: [usize; 2],
    /// How it will be stored.
    pub scheme: Scheme,
    /// How its scales are chosen.
    pub search: ScaleSearch,
    /// Its rounding algorithm.
    pub algorithm: &'static dyn Quantizer,
    /// What to do where rows or groups of it are lost.
    pub lost: LostRule,
    /// Whether its weights that are exactly zero stay so.
    pub zeros: bool,
    /// How coarse it is rounded for a coder of codes.
    pub rate: Option<Rate>,
}

impl Assignment {
    /// The weight and those that are tied to it.
    pub fn ids(&self) -> impl Iterator<Item = ValueId> + '_ {
        std::iter::once(self.id).chain(self.tied.iter().map(|(id, _)| *id))
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.tied.iter().map(|(_, name)| name.as_str()))
    }

    /// Whether it applies to that weight.
    pub fn is_of(&self, id: ValueId) -> bool {
        self.ids().any(|own| own == id)
    }
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
    /// How each selected weight of `graph` will be quantized, in the graph's order; under a budget, the first of its options.
    pub fn assign(&self, graph: &Graph) -> Result<Vec<Assignment>> {
        let first = |options: Vec<Assignment>| options.into_iter().next().expect("every weight has an option");
        Ok(self.options(graph)?.into_iter().map(first).collect())
    }

    /// The options of each selected weight of `graph`, in the graph's order: one, or, under a budget, all choices that fit it.
    pub fn options(&self, graph: &Graph) -> Result<Vec<Vec<Assignment>>> {
        self.check_budget()?;
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
        let (mut all, mut misfits): (Vec<Vec<Assignment>>, Vec<Error>) = Default::default();
        for matrix in selected {
            match self.options_of(matrix) {
                Ok(options) => match all.iter_mut().find(|others| is_tied(others, &options)) {
                    Some(others) => others.iter_mut().for_each(|o| o.tied.push((options[0].id, options[0].name.clone()))),
                    None => all.push(options),
                },
                Err(misfit @ Error::DoesNotFit { .. }) => misfits.push(misfit),
                Err(error) => return Err(error),
            }
        }
        let more = misfits.len().saturating_sub(1);
        match misfits.into_iter().next() {
            Some(Error::DoesNotFit { key, weight, scheme, source, .. }) => {
                Err(Error::DoesNotFit { key, weight, others: more, scheme, source })
            }
            _ => Ok(all),
        }
    }

    /// The same for a model of which the weights in `sparse`, by canonical name, have zeros that stay.
    ///
    /// # Errors
    /// If no option of such a weight has a code for zero.
    pub fn options_with_zeros(&self, graph: &Graph, sparse: &BTreeSet<String>) -> Result<Vec<Vec<Assignment>>> {
        let mut all = self.options(graph)?;
        for options in all.iter_mut().filter(|options| options[0].names().any(|name| sparse.contains(name))) {
            let first = options[0].clone();
            options.retain(|option| option.scheme.grid.has_zero());
            if options.is_empty() {
                let key = if self.grid.is_some() || self.place("grid", &first.name) != "grid" {
                    self.place("grid", &first.name)
                } else {
                    "choices".into()
                };
                return Err(Error::NoZero { key, weight: first.name, scheme: first.scheme });
            }
            options.iter_mut().for_each(|option| option.zeros = true);
        }
        Ok(all)
    }

    /// The budget of the selected weights, if there is one.
    pub fn budget(&self) -> Option<Budget> {
        self.bits.map(Budget::Bits).or(self.bytes.map(|size| Budget::Bytes(size.0))).or(self.coded_bits.map(Budget::Coded))
    }

    fn check_budget(&self) -> Result<()> {
        if self.budget().is_none() {
            return if self.grid.is_some() { Ok(()) } else { Err(Error::NoGrid { key: "grid".into() }) };
        }
        if self.choices.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::NoChoices);
        }
        if let Some(found) = self.coded_bits.filter(|bits| !(LEAST_CODED..=MOST_CODED).contains(bits)) {
            return Err(Error::Number { key: "coded_bits", found, wanted: "a number from 1.4 to 8" });
        }
        let whole = |other: &Override| other.grid.is_some();
        let part = |other: &Override| {
            let given = [
                ("group", other.group.is_some()),
                ("tail", other.tail.is_some()),
                ("asymmetric", other.asymmetric.is_some()),
                ("positive_scales", other.positive_scales.is_some()),
                ("scale_dtype", other.scale_dtype.is_some()),
            ];
            given.into_iter().find(|(_, given)| *given)
        };
        match self.overrides.iter().enumerate().find_map(|(i, other)| Some((i, part(other).filter(|_| !whole(other))?))) {
            Some((i, (setting, _))) => Err(Error::NoGrid { key: format!("override[{i}].{setting}") }),
            None => Ok(()),
        }
    }

    fn options_of(&self, matrix: Matrix) -> Result<Vec<Assignment>> {
        if let Encoding::Quantized(scheme) = matrix.encoding {
            return Err(Error::AlreadyQuantized { weight: matrix.name, scheme });
        }
        let mut settings = self.clone();
        self.overrides.iter().filter(|o| any(&o.select, &matrix.name)).for_each(|other| settings.replace(other));
        let fits = |scheme: &Scheme| scheme.check().and_then(|()| scheme.fit(matrix.dims[1]));
        let coded = settings.grid.is_none() && settings.coded_bits.is_some();
        let schemes = match settings.grid {
            Some(grid) => vec![settings.scheme(grid)],
            None if coded => vec![rate::scheme()],
            None => settings.choices.clone().unwrap_or_else(default_choices).into_iter().map(|choice| choice.0).collect(),
        };
        let fitting: Vec<Scheme> = schemes.iter().copied().filter(|scheme| fits(scheme).is_ok()).collect();
        if let ([], Err(source)) = (&fitting[..], fits(&schemes[0])) {
            let key = match settings.grid {
                Some(_) => self.place(source.setting().unwrap_or("group"), &matrix.name),
                None => "choices".into(),
            };
            return Err(Error::DoesNotFit { key, weight: matrix.name, others: 0, scheme: schemes[0], source });
        }
        if coded && !settings.algorithm.0.weighs_bits() {
            return Err(Error::NoRate { algorithm: settings.algorithm.0.name() });
        }
        let rates = if coded { rates().map(Some).collect() } else { vec![None] };
        let assignment = |(scheme, rate)| Assignment {
            id: matrix.id,
            name: matrix.name.clone(),
            tied: Vec::new(),
            expr: matrix.expr.clone(),
            dims: matrix.dims,
            scheme,
            search: settings.scales,
            algorithm: settings.algorithm.0,
            lost: if coded { LostRule::Report } else { settings.lost },
            zeros: false,
            rate,
        };
        Ok(fitting.into_iter().flat_map(|scheme| rates.iter().map(move |rate| (scheme, *rate))).map(assignment).collect())
    }

    /// Where `setting` is decided for a weight: in the last override that has it, or in the step.
    fn place(&self, setting: &str, weight: &str) -> String {
        let given = |other: &Override| match setting {
            "grid" => other.grid.is_some(),
            "asymmetric" => other.asymmetric.is_some(),
            "positive_scales" => other.positive_scales.is_some(),
            "scale_dtype" => other.scale_dtype.is_some(),
            _ => other.group.is_some(),
        };
        let last = self.overrides.iter().rposition(|other| any(&other.select, weight) && given(other));
        last.map_or_else(|| setting.into(), |i| format!("override[{i}].{setting}"))
    }

    fn replace(&mut self, other: &Override) {
        macro_rules! take {
            ($($field:ident),*) => {
                $(if let Some(value) = other.$field { self.$field = value; })*
            };
        }
        self.grid = other.grid.or(self.grid);
        self.group = other.group.or(self.group);
        self.scale_dtype = other.scale_dtype.or(self.scale_dtype);
        take!(tail, asymmetric, positive_scales, scales, algorithm);
    }

    fn scheme(&self, grid: GridName) -> Scheme {
        let scheme = scheme(grid, self.group, self.scale_dtype, self.asymmetric, self.tail);
        Scheme { positive: self.positive_scales, ..scheme }
    }
}

/// The scheme of some settings; what they leave out is as the grid requires.
pub fn scheme(grid: GridName, group: Option<Grouping>, scale: Option<ScaleDtype>, asymmetric: bool, tail: TailRule) -> Scheme {
    let usual = Scheme::of(grid.0);
    Scheme {
        granularity: group.map_or(usual.granularity, |group| group.0),
        scale: scale.map_or(usual.scale, Into::into),
        zero: if asymmetric { ZeroPoint::Asymmetric } else { ZeroPoint::Symmetric },
        tail: match tail {
            TailRule::Error => Tail::Error,
            TailRule::Short => Tail::Short,
        },
        ..usual
    }
}

/// Whether two weights have the same expression and the same options.
fn is_tied(a: &[Assignment], b: &[Assignment]) -> bool {
    let same = |a: &Assignment, b: &Assignment| {
        a.expr == b.expr
            && a.scheme == b.scheme
            && a.rate == b.rate
            && a.search == b.search
            && a.algorithm.name() == b.algorithm.name()
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
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
