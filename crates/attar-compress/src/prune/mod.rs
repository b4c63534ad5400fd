//! Pruning: MLP channels, query heads and groups of heads leave a model, and the layers that read them are fitted to what is left; or
//! single weights leave ([`sparse`]), and matrices keep their shape.
//!
//! What leaves is a *unit*: an MLP channel (a row of gate and up, a column of down), a query head (rows of the query, columns of the
//! attention's output), or a key-value head with all query heads that read it. A [`Pruner`] picks the units that stay from the
//! second moments of what the reading layer reads; [`Fit`] then says how the columns that stay take over: exact least squares in
//! every case, against the layer's own output or against the residual stream of the whole model. [`reshaped`] makes the smaller
//! graph. `docs/guide` tells which shape is for which device.

mod activation;
mod depth;
mod fluctuation;
mod hidden;
mod magnitude;
mod obs;
mod refit;
mod reshape;
mod shape;
mod site;
mod sparse;
mod sparsity;
mod support;
mod sweep;
mod target;
mod wanda;

use std::borrow::Cow;

use attar_graph::{Graph, Op};
use attar_tensor::{Encoding, nearest};
use faer::Mat;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use depth::{Sublayer, renumbered, without};
pub use hidden::{Hidden, Place};
pub use refit::{Response, lost, refitted};
pub use reshape::{Cut, reshaped, stored_as};
pub use shape::{Found, Shape, candidates, narrowed};
pub use site::{Stream, Unit, UnitSite};
pub use sparse::{Score, sparse};
pub use sparsity::{Sparse, Sparsity};
pub use support::{Wanted, on_support};
pub use target::{Cost, Target};

use crate::{
    Error, Hessian, Patterns, Result, pattern,
    quantize::{block_matrices, registered},
    transform::structure::Layer,
};

/// A way to pick the units that stay.
pub trait Pruner: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// Raised whenever the same input gives another choice: part of every cache key.
    fn version(&self) -> u32;

    /// Bytes of memory that choosing among the columns of a layer `[rows, columns]` takes at most.
    fn memory(&self, dims: [usize; 2]) -> u64;

    /// What every column is worth by itself.
    fn scores(&self, seen: &Observed<'_>) -> Result<Vec<f64>>;

    /// The units that stay, in rising order: from every pool as many as it keeps. By default those whose columns are worth most.
    fn keep(&self, seen: &Observed<'_>, pools: &[Pool]) -> Result<Vec<usize>> {
        Ok(seen.best(pools, &self.scores(seen)?))
    }

    /// How it picks single weights; `None` if it only knows units.
    fn of_weights(&self) -> Option<Score> {
        None
    }
}

/// Every way, in the order of the documentation.
pub static PRUNERS: &[&dyn Pruner] =
    &[&obs::Obs, &activation::Activation, &wanda::Wanda, &magnitude::Magnitude, &fluctuation::Fluctuation];

registered!(
    /// A pruner by its name.
    PrunerName, "method", &'static dyn Pruner, PRUNERS
);

/// Units of which some stay.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The units.
    pub units: Vec<usize>,
    /// How many of them stay.
    pub keep: usize,
}

/// A layer, and what it reads on the calibration text.
pub struct Observed<'a> {
    /// `[rows, columns]`.
    pub weight: &'a [f32],
    /// Second moments of its input, and so the number of its columns.
    pub moments: &'a Hessian,
    /// Means of its input, a number a column.
    pub means: &'a [f64],
    /// Neighbouring columns that make a unit.
    pub width: usize,
}

impl Observed<'_> {
    /// Columns of the layer.
    pub fn columns(&self) -> usize {
        self.moments.inputs()
    }

    /// Rows of the layer.
    pub fn rows(&self) -> usize {
        self.weight.len() / self.columns().max(1)
    }

    /// The mean square of the layer's output, of all its rows together.
    pub fn output_energy(&self) -> f64 {
        let n = self.columns();
        let weight = Mat::from_fn(self.rows(), n, |i, j| f64::from(self.weight[i * n + j]));
        let seen = &weight * Mat::from_fn(n, n, |i, j| self.moments.mean(i, j));
        (0..self.rows()).flat_map(|i| (0..n).map(move |j| (i, j))).map(|at| weight[at] * seen[at]).sum()
    }

    /// The squared length of every column of the weight.
    fn column_energies(&self) -> Vec<f64> {
        let mut energies = vec![0.0; self.columns()];
        for row in self.weight.chunks(self.columns().max(1)) {
            energies.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w) * f64::from(*w));
        }
        energies
    }

    /// From every pool the units with the highest sums of `scores` over their columns; of equals, the first.
    fn best(&self, pools: &[Pool], scores: &[f64]) -> Vec<usize> {
        let of_unit = |unit: usize| scores[unit * self.width..(unit + 1) * self.width].iter().sum::<f64>();
        let mut kept = Vec::new();
        for pool in pools {
            let mut scored: Vec<(usize, f64)> = pool.units.iter().map(|unit| (*unit, of_unit(*unit))).collect();
            scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            kept.extend(scored.into_iter().take(pool.keep).map(|(unit, _)| unit));
        }
        kept.sort_unstable();
        kept
    }
}

/// What the columns that stay are fitted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Nothing: they stay as they are.
    None,
    /// The layer's output in the unpruned model, on the inputs that it has there.
    #[default]
    Layer,
    /// The residual stream of the unpruned model, on the inputs that the layer has after all pruning before it: the fit also makes up
    /// for what earlier layers lost. Under `sparsity`, layers that do not add to the residual stream are fitted to their own outputs in
    /// the unpruned model. The text goes through both models.
    Residual,
}

impl Fit {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Fit::None => "none",
            Fit::Layer => "layer",
            Fit::Residual => "residual",
        }
    }
}

/// Make a model smaller in shape: fewer MLP channels, heads or blocks; or make its weights sparse.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// MLP channels that stay in every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp: Option<usize>,
    /// Query heads that stay in every block; a multiple of the key-value heads that stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Key-value heads that stay in every block. Each that leaves takes its query heads along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Blocks that stay. Those leave whose absence is measured to cost least, by KL divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// What leaves a block under `blocks` [default: block].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// Blocks at the start, and as many at the end, that stay whole under `blocks` or `target` [default: 2].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<usize>,
    /// Channels of the residual stream that stay, the same in all blocks. A step of its own: nothing else leaves along with them. Layers that
    /// read or write the stream are fitted to what the unpruned model has there, on their inputs in the smaller one; with `fit = "none"`
    /// only the gains of norms are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// A budget in place of a shape: of all uniform shapes that meet it, up to ten are measured and the one with the least KL
    /// divergence stays. What `mlp`, `heads`, `kv_heads` or `blocks` say is not searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Under `target`: MLPs of different blocks may keep different numbers of channels, where that is measured to lose less than the best
    /// shape that is the same for all. The target `safetensors` cannot hold such a model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vary: bool,
    /// Under `target`: what divides the channels that stay of an MLP, such as the tile of a device or the group of a quantization
    /// [default: the largest power of two up to 64 that divides those of the model].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple: Option<usize>,
    /// In place of a smaller shape: single weights that leave, as a share of every matrix (`0.5`), or all but n of every m consecutive
    /// inputs (`"2:4"`). Matrices keep their shape, and later steps keep the zeros. Devices differ in what that brings: name yours by
    /// `device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<Sparsity>,
    /// Under `sparsity`: the weights that become sparse, as patterns over canonical names [default: the matrices of the blocks].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Patterns>,
    /// Under `sparsity`: the device that the model is for, a name or a file. The plan warns where it gains nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How the channels and heads that stay are chosen. Single weights are chosen by `obs` (SparseGPT), `wanda` or `magnitude`.
    #[serde(default = "default_method")]
    pub method: PrunerName,
    /// What the layers that read them, or that lose weights, are fitted to.
    #[serde(default)]
    pub fit: Fit,
    /// The most KL divergence from the model before the step, in nats per token on calibration text that is kept aside. Above it
    /// nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_kl: Option<f64>,
}

/// What leaves a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// All of it.
    #[default]
    Block,
    /// Its attention. Only attar's own folders can hold such a model.
    Attention,
    /// Its MLP. Only attar's own folders can hold such a model.
    Mlp,
}

fn default_method() -> PrunerName {
    PrunerName(&obs::Obs)
}

/// Blocks that stay at each end, where it is not said.
const ENDS: usize = 2;

/// What divides channels, where it is not said and divides those of the model.
const MULTIPLE: usize = 64;

impl Prune {
    /// Whether the settings fit each other and `graph`. Reads no weight.
    ///
    /// # Errors
    /// If nothing is asked for, if a number is none that the model has, or if heads would not divide.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let without = |key, given: bool, other| if given { Err(Error::Idle { key, other }) } else { Ok(()) };
        if let Some(found) = self.max_kl.filter(|most| !(most.is_finite() && *most > 0.0)) {
            return Err(Error::Bound { key: "max_kl", found });
        }
        if let Some(sparsity) = self.sparsity {
            return self.check_sparse(sparsity, graph);
        }
        without("select", self.select.is_some(), "sparsity")?;
        without("device", self.device.is_some(), "sparsity")?;
        let shaped = [self.mlp, self.heads, self.kv_heads, self.blocks].iter().any(Option::is_some);
        if let Some(hidden) = self.hidden {
            if shaped || self.target.is_some() {
                let hint = "give the other one a step of its own, before or after";
                return Err(Error::Contradiction { key: "hidden", other: "mlp, heads, kv_heads, blocks or target".into(), hint });
            }
            return Hidden::of(graph)?.check(hidden);
        }
        if !shaped && self.target.is_none() {
            return Err(Error::NothingToPrune);
        }
        without("multiple", self.multiple.is_some() && self.target.is_none(), "target")?;
        without("vary", self.vary && self.target.is_none(), "target")?;
        if self.vary && (self.mlp.is_some() || self.target.as_ref().is_some_and(|target| target.kv_bytes.is_some())) {
            let (other, hint) = match self.mlp {
                Some(mlp) => (format!("mlp = {mlp}"), "leave one of them out"),
                None => ("target = { kv_bytes }".into(), "the channels of MLPs add nothing to the cache: leave `vary` out"),
            };
            return Err(Error::Contradiction { key: "vary", other, hint });
        }
        without("ends", self.ends.is_some() && self.blocks.is_none() && self.target.is_none(), "blocks")?;
        without("depth", self.depth.is_some() && self.blocks.is_none(), "blocks")?;
        UnitSite::of(graph)?.iter().try_for_each(|site| self.quota(site).map(drop))
    }

    /// Whether single weights can leave as asked.
    fn check_sparse(&self, sparsity: Sparsity, graph: &Graph) -> Result<()> {
        let shapes = [
            ("mlp", self.mlp.is_some()),
            ("heads", self.heads.is_some()),
            ("kv_heads", self.kv_heads.is_some()),
            ("blocks", self.blocks.is_some()),
            ("hidden", self.hidden.is_some()),
            ("vary", self.vary),
            ("depth", self.depth.is_some()),
            ("ends", self.ends.is_some()),
            ("target", self.target.is_some()),
            ("multiple", self.multiple.is_some()),
        ];
        if let Some((key, _)) = shapes.into_iter().find(|(_, given)| *given) {
            let hint = "make two steps of it: the first changes the shape, the second removes single weights";
            return Err(Error::Contradiction { key, other: "sparsity".into(), hint });
        }
        self.score()?;
        for layer in self.sparse_layers(graph)? {
            let columns = graph.fact(layer.weight).constant_dims().map_or(0, |dims| dims[1]);
            if let Sparsity::Pattern { keep, of } = sparsity
                && !columns.is_multiple_of(of)
            {
                let weight = graph.get(layer.weight).name.clone();
                return Err(Error::PatternDoesNotFit { weight, keep, of, columns });
            }
        }
        Ok(())
    }

    /// How single weights are chosen.
    ///
    /// # Errors
    /// If the method only knows units.
    pub fn score(&self) -> Result<Score> {
        self.method.0.of_weights().ok_or_else(|| {
            let known = PRUNERS.iter().filter(|pruner| pruner.of_weights().is_some()).map(|pruner| pruner.name());
            Error::NotOfWeights { method: self.method.0.name(), known: known.collect() }
        })
    }

    /// The layers that become sparse, in running order.
    ///
    /// # Errors
    /// If a pattern matches no weight, or a weight that no layer alone reads, or codes.
    pub fn sparse_layers(&self, graph: &Graph) -> Result<Vec<Layer>> {
        let select = self.select.clone().unwrap_or_else(block_matrices);
        let names: Vec<&str> = graph.weights().map(|(_, value, _)| value.name.as_str()).collect();
        pattern::check("select", &select, &names, false)?;
        let wanted = |name: &str| select.iter().any(|pattern| pattern.matches(name));
        let mut layers = Vec::new();
        for (id, value, expr) in graph.weights().filter(|(_, value, _)| value.fact.dims.len() == 2 && wanted(&value.name)) {
            if let Encoding::Quantized(scheme) = value.fact.encoding {
                return Err(Error::CodesStay { weight: value.name.clone(), scheme });
            }
            let tied = graph.weights().any(|(other, _, e)| other != id && e == expr);
            let node = graph.nodes().iter().find(|node| node.op == Op::Linear && node.inputs[1] == id);
            match node.filter(|_| !tied).and_then(|node| Layer::of(graph, node).ok()) {
                Some(layer) => layers.push(layer),
                None => return Err(Error::NoLayerOfItsOwn { weight: value.name.clone() }),
            }
        }
        let place = |layer: &Layer| graph.nodes().iter().position(|node| node.outputs.contains(&layer.output));
        layers.sort_by_key(place);
        match layers.is_empty() {
            true => Err(Error::NoMatch {
                key: "select[0]".into(),
                pattern: select[0].text().into(),
                within_selection: false,
                nearest: Vec::new(),
            }),
            false => Ok(layers),
        }
    }

    /// Bytes that choosing and fitting the weights of a layer `[rows, columns]` takes.
    pub fn sparse_memory(dims: [usize; 2]) -> u64 {
        sweep::memory(dims).max(support::memory(dims))
    }

    /// What leaves a block.
    pub fn depth(&self) -> Depth {
        self.depth.unwrap_or_default()
    }

    /// Blocks that stay whole at each end.
    pub fn ends(&self) -> usize {
        self.ends.unwrap_or(ENDS)
    }

    /// What divides the channels that stay of `channels`.
    ///
    /// # Errors
    /// If it was said, and is no number of channels.
    pub fn multiple(&self, channels: usize) -> Result<usize> {
        match self.multiple {
            Some(found) if found == 0 || found > channels => {
                Err(Error::Setting { key: "multiple", found, wanted: format!("the MLPs have {channels} channels") })
            }
            Some(multiple) => Ok(multiple),
            None => Ok(1 << channels.trailing_zeros().min(MULTIPLE.trailing_zeros())),
        }
    }

    /// How much of a site stays, by `mlp`, `heads` and `kv_heads`.
    pub fn quota(&self, site: &UnitSite) -> Result<Quota> {
        let within = |key, asked: Option<usize>, has: usize| match asked {
            Some(asked) if asked == 0 || asked > has => {
                let wanted = format!("`{}` has {has}: 1 to {has} can stay", site.name);
                Err(Error::Setting { key, found: asked, wanted })
            }
            asked => Ok(asked.unwrap_or(has)),
        };
        match site.unit {
            Unit::Channel { channels } => Ok(Quota::Channels(within("mlp", self.mlp, channels)?)),
            Unit::Head { heads, key_heads, .. } => {
                let groups = within("kv_heads", self.kv_heads, key_heads)?;
                // Without a number of its own, a group that stays keeps all its query heads.
                let all = heads / key_heads * groups;
                let queries = within("heads", self.heads, heads)?.min(if self.heads.is_some() { heads } else { all });
                if queries > all || !queries.is_multiple_of(groups) {
                    let each = all / groups;
                    let way_out = match (1..=each).map(|each| each * groups).min_by_key(|n| n.abs_diff(queries)) {
                        Some(nearest) if nearest < heads => format!("`heads = {nearest}` would do"),
                        _ => "a query head leaves with its key-value head, by `kv_heads`".into(),
                    };
                    let wanted = format!(
                        "{groups} key-value heads of `{}` keep up to {each} query heads, all as many: {way_out}",
                        site.name
                    );
                    return Err(Error::Setting { key: "heads", found: queries, wanted });
                }
                Ok(Quota::Heads { groups, each: queries / groups })
            }
        }
    }

    /// The units of a site that stay, in rising order: channels, or query heads.
    pub fn choose(&self, site: &UnitSite, quota: &Quota, seen: &Observed<'_>) -> Result<Vec<usize>> {
        let method = self.method.0;
        match (site.unit, quota) {
            (Unit::Channel { channels }, Quota::Channels(keep)) => {
                method.keep(seen, &[Pool { units: (0..channels).collect(), keep: *keep }])
            }
            (Unit::Head { heads, key_heads, width }, Quota::Heads { groups, each }) => {
                let group = heads / key_heads;
                let mut kept: Vec<usize> = (0..key_heads).collect();
                if *groups < key_heads {
                    let of_groups = Observed { width: width * group, ..*seen };
                    kept = method.keep(&of_groups, &[Pool { units: kept, keep: *groups }])?;
                }
                let queries = |key: &usize| (key * group..(key + 1) * group).collect::<Vec<usize>>();
                if *each == group {
                    return Ok(kept.iter().flat_map(queries).collect());
                }
                // Query heads are chosen for the layer as it is without the groups that left.
                let alive: Vec<usize> = kept.iter().flat_map(queries).flat_map(|head| head * width..(head + 1) * width).collect();
                let moments = seen.moments.restricted(&alive);
                let weight: Vec<f32> =
                    seen.weight.chunks(seen.columns()).flat_map(|row| alive.iter().map(|column| row[*column])).collect();
                let means: Vec<f64> = alive.iter().map(|column| seen.means[*column]).collect();
                let rest = Observed { weight: &weight, moments: &moments, means: &means, width };
                let pool = |at: usize| Pool { units: (at * group..(at + 1) * group).collect(), keep: *each };
                let chosen = method.keep(&rest, &(0..kept.len()).map(pool).collect::<Vec<_>>())?;
                Ok(chosen.into_iter().map(|head| kept[head / group] * group + head % group).collect())
            }
            _ => unreachable!("`quota` is of the site"),
        }
    }
}

/// How much of a site stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// So many channels.
    Channels(usize),
    /// So many key-value heads, each with as many query heads.
    Heads {
        /// Key-value heads.
        groups: usize,
        /// Query heads of each.
        each: usize,
    },
}

impl Quota {
    /// The first units of every pool: any would do to see what a smaller graph is like.
    pub fn first(&self, site: &UnitSite) -> Vec<usize> {
        match (*self, site.unit) {
            (Quota::Heads { groups, each }, Unit::Head { heads, key_heads, .. }) => {
                let group = heads / key_heads;
                (0..groups).flat_map(|key| key * group..key * group + each).collect()
            }
            (quota, _) => (0..quota.units()).collect(),
        }
    }

    /// Whether all of `site` stays.
    pub fn is_whole(&self, site: &UnitSite) -> bool {
        match (*self, site.unit) {
            (Quota::Channels(keep), Unit::Channel { channels }) => keep == channels,
            (Quota::Heads { groups, each }, Unit::Head { heads, key_heads, .. }) => groups == key_heads && each * groups == heads,
            _ => false,
        }
    }

    /// Units that stay: channels, or query heads.
    pub fn units(&self) -> usize {
        match *self {
            Quota::Channels(keep) => keep,
            Quota::Heads { groups, each } => groups * each,
        }
    }
}
