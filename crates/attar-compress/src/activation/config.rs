//! The settings of the step `activations`, and what they mean for a graph.

use std::{borrow::Cow, fmt};

use attar_graph::{Graph, Node, Op, ValueId};
use attar_tensor::nearest;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    ActivationBudget, ActivationSensitivity, Codes, Feed, Known, OBSERVERS, Observer, Site,
    values::{self, is_quantized, weight_of},
};
use crate::{Error, Patterns, Result, pattern, quantize::registered};

/// Quantize activations and the KV cache.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Activations {
    /// Linear layers whose inputs are quantized, as patterns over canonical weight names. Every pattern must match at
    /// least one; an empty list quantizes only the KV cache.
    #[serde(default = "crate::quantize::block_matrices")]
    pub select: Patterns,
    /// Bits per activation: 8, 16, or `auto` for 16 where they help most within a `budget`, and 8 elsewhere.
    #[serde(default)]
    pub bits: ActivationBits,
    /// Under `bits = "auto"`: what 16 bits may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<ActivationBudget>,
    /// Under `bits = "auto"`: how the loss of 8 bits is found [default: `fisher`, and `drift` for encoders].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<ActivationSensitivity>,
    /// `dynamic`: a scale for each token, computed at inference. `static`: fixed scales, from the calibration text.
    #[serde(default)]
    pub mode: ActivationMode,
    /// Granularity of static scales: one per `tensor` (default) or one per `channel`. Products of inputs with
    /// per-channel scales are computed in f32.
    pub granularity: Option<ActivationGranularity>,
    /// How the range of a static scale is chosen: `minmax` (default), `percentile` or `mse`.
    pub observer: Option<ObserverName>,
    /// For `observer = "percentile"`: percentage of the values that lie within the range, on either side [default:
    /// 99.99].
    pub percentile: Option<f64>,
    /// Give each static scale a zero point.
    #[serde(default)]
    pub asymmetric: bool,
    /// Which values have static scales: the `inputs` of linear layers (default), the `linear` layers' results, too, or `all`, for
    /// integer-only runtimes.
    pub values: Option<ActivationValues>,
    /// With `values = "all"`: linear layers that read and make 16 bits instead of `bits`, as patterns over canonical weight names.
    pub wide: Option<Patterns>,
    /// Quantize the KV cache, with a dynamic scale for each head and token.
    pub kv: Option<KvCache>,
}

/// Which values have static scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ActivationValues {
    /// What linear layers read.
    #[default]
    Inputs,
    /// What linear layers read, and what they make.
    Linear,
    /// Every value. Norms and attention are split into their parts. Products of matrices read and make codes of `bits`; a value
    /// that others read, too, has 16 bits for these.
    All,
}

/// Bits per code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationBits {
    /// 8 or 16.
    Fixed(u32),
    /// 16 where a budget allows and the loss of 8 is largest; otherwise 8.
    Auto,
}

impl ActivationBits {
    /// The bits, or the fewest that may be chosen.
    pub fn least(self) -> u32 {
        match self {
            ActivationBits::Fixed(bits) => bits,
            ActivationBits::Auto => 8,
        }
    }
}

impl Default for ActivationBits {
    fn default() -> ActivationBits {
        ActivationBits::Fixed(8)
    }
}

const AUTO: &str = "auto";

impl Serialize for ActivationBits {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            ActivationBits::Fixed(bits) => serializer.serialize_u32(*bits),
            ActivationBits::Auto => serializer.serialize_str(AUTO),
        }
    }
}

impl<'de> Deserialize<'de> for ActivationBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<ActivationBits, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = ActivationBits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("8, 16 or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, bits: i64) -> std::result::Result<ActivationBits, E> {
                match bits {
                    8 | 16 => Ok(ActivationBits::Fixed(bits as u32)),
                    other => Err(E::custom(format!("invalid value: `{other}`, expected 8, 16 or \"auto\""))),
                }
            }

            fn visit_u64<E: de::Error>(self, bits: u64) -> std::result::Result<ActivationBits, E> {
                self.visit_i64(bits.min(i64::MAX as u64) as i64)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<ActivationBits, E> {
                match text {
                    AUTO => Ok(ActivationBits::Auto),
                    other => Err(E::custom(format!("invalid value: `{other}`, expected 8, 16 or \"auto\""))),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ActivationBits {
    fn schema_name() -> Cow<'static, str> {
        "ActivationBits".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [{ "type": "integer", "enum": [8, 16] }, { "type": "string", "const": AUTO }] })
    }

    fn inline_schema() -> bool {
        true
    }
}

/// When scales are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ActivationMode {
    /// Computed at inference, for each token.
    #[default]
    Dynamic,
    /// Fixed, from the calibration text.
    Static,
}

/// Granularity of static scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ActivationGranularity {
    /// One scale per tensor.
    #[default]
    Tensor,
    /// One scale per channel.
    Channel,
}

/// Number format of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum KvCache {
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
}

registered!(
    /// An observer by its name.
    ObserverName, "observer", &'static dyn Observer, OBSERVERS
);

impl Activations {
    /// The values of `graph` that become integers, in running order, with the fewest bits that they may have. Reads no weight.
    pub fn sites(&self, graph: &Graph) -> Result<Vec<Site>> {
        self.check()?;
        if self.values() == ActivationValues::All {
            let wide = self.wide.as_deref().unwrap_or_default();
            let names: Vec<&str> = graph.nodes().iter().filter_map(|node| weight_of(graph, node)).collect();
            pattern::check("wide", wide, &names, false)?;
            return values::sites(graph, Codes { bits: self.bits.least(), asymmetric: self.asymmetric }, wide);
        }
        let linears: Vec<(&Node, &str)> = graph.nodes().iter().filter_map(|node| Some((node, weight_of(graph, node)?))).collect();
        let names: Vec<&str> = linears.iter().map(|(_, name)| *name).collect();
        pattern::check("select", &self.select, &names, false)?;
        let mut sites: Vec<(ValueId, Site)> = Vec::new();
        for node in graph.nodes() {
            let Some((feed, codes, scales)) = self.wanted(graph, node) else { continue };
            let input = node.inputs[0];
            if is_quantized(graph, input) {
                let key = if matches!(feed, Feed::Cache(_)) { "kv" } else { "select" };
                return Err(Error::AlreadyIntegers { key, reader: feed.to_string(), value: graph.get(input).name.clone() });
            }
            match sites.iter_mut().find(|(value, site)| *value == input && site.codes == codes) {
                Some((_, site)) => site.feeds.push(feed),
                None => sites.push((input, site(graph, input, codes, scales, feed))),
            }
        }
        if self.kv.is_some() && !sites.iter().any(|(_, site)| matches!(site.feeds[0], Feed::Cache(_))) {
            return Err(Error::NoCache);
        }
        if sites.is_empty() {
            return Err(Error::NoActivations);
        }
        let mut sites: Vec<Site> = sites.into_iter().map(|(_, site)| site).collect();
        if self.values() == ActivationValues::Linear {
            let results = linears.iter().filter(|(_, name)| self.select.iter().any(|pattern| pattern.matches(name)));
            let codes = Codes { bits: self.bits.least(), asymmetric: self.asymmetric };
            sites.extend(results.map(|(node, _)| values::site(graph, node.output(), codes)));
        }
        Ok(sites)
    }

    /// The graph whose values [`Activations::sites`] lists: the same, or one in simpler ops.
    ///
    /// # Errors
    /// A graph that cannot be rebuilt.
    pub fn split<'g>(&self, graph: &'g Graph) -> attar_graph::Result<Cow<'g, Graph>> {
        match self.values() {
            ActivationValues::All => values::split(graph).map(Cow::Owned),
            _ => Ok(Cow::Borrowed(graph)),
        }
    }

    fn values(&self) -> ActivationValues {
        self.values.unwrap_or_default()
    }

    /// The range of a static scale.
    pub fn range(&self, seen: &super::Distribution, codes: Codes) -> [f32; 2] {
        let observer = self.observer();
        observer.range(seen, codes, self.percentile.or(observer.default_number()).unwrap_or_default())
    }

    /// The observer that chooses the range of static scales.
    pub fn observer(&self) -> &'static dyn Observer {
        self.observer.map_or(OBSERVERS[0], |name| name.0)
    }

    /// The input that a node reads as integers, if it is selected.
    fn wanted(&self, graph: &Graph, node: &Node) -> Option<(Feed, Codes, Option<ActivationGranularity>)> {
        let dynamic = |bits| Codes { bits, asymmetric: false };
        match &node.op {
            Op::Cache { name } => {
                let bits = match self.kv? {
                    KvCache::Int8 => 8,
                    KvCache::Int4 => 4,
                };
                Some((Feed::Cache(name.clone()), dynamic(bits), None))
            }
            _ => {
                let name = weight_of(graph, node).filter(|name| self.select.iter().any(|pattern| pattern.matches(name)))?;
                let feed = Feed::Linear(name.into());
                Some(match self.mode {
                    ActivationMode::Dynamic => (feed, dynamic(self.bits.least()), None),
                    ActivationMode::Static => {
                        let codes = Codes { bits: self.bits.least(), asymmetric: self.asymmetric };
                        (feed, codes, Some(self.granularity.unwrap_or_default()))
                    }
                })
            }
        }
    }

    /// `bits = "auto"` has a budget, and nothing else has.
    fn check_budget(&self) -> Result<()> {
        let auto = || "bits = \"auto\"".to_owned();
        match (&self.budget, self.bits) {
            (Some(budget), ActivationBits::Auto) => budget.bound().map(drop)?,
            (None, ActivationBits::Auto) => return Err(Error::NoActivationBudget),
            (Some(_), _) => return Err(Error::Idle { key: "budget", other: "bits = \"auto\"" }),
            (None, _) if self.sensitivity.is_some() => {
                return Err(Error::Idle { key: "sensitivity", other: "bits = \"auto\"" });
            }
            (None, _) => return Ok(()),
        }
        if self.values.is_some_and(|values| values != ActivationValues::Inputs) {
            let hint = "leave `values` out; with `values = \"all\"`, `wide` names the layers of 16 bits";
            return Err(Error::Contradiction { key: "values", other: auto(), hint });
        }
        let cycles = self.budget.as_ref().is_some_and(|budget| budget.cycles.is_some());
        if cycles && self.granularity == Some(ActivationGranularity::Channel) {
            let hint = "products with a scale per channel have no cycles in integers: leave it out, or bound `bytes`";
            return Err(Error::Contradiction { key: "granularity", other: "budget.cycles".into(), hint });
        }
        Ok(())
    }

    /// Settings that contradict each other.
    fn check(&self) -> Result<()> {
        self.check_budget()?;
        let dynamic = self.mode == ActivationMode::Dynamic;
        let given = [
            ("granularity", self.granularity.is_some()),
            ("observer", self.observer.is_some()),
            ("percentile", self.percentile.is_some()),
            ("asymmetric", self.asymmetric),
            ("values", self.values.is_some()),
        ];
        if let Some((key, _)) = given.into_iter().find(|(_, given)| *given && dynamic) {
            return Err(Error::Contradiction { key, other: "mode = \"dynamic\"".into(), hint: DYNAMIC });
        }
        if self.values() == ActivationValues::All {
            let other = || "values = \"all\"".to_owned();
            if self.granularity == Some(ActivationGranularity::Channel) {
                let hint = "integer-only runtimes have one scale per tensor: leave it out";
                return Err(Error::Contradiction { key: "granularity", other: other(), hint });
            }
            if self.kv.is_some() {
                let hint = "the KV cache has static scales, too: leave it out";
                return Err(Error::Contradiction { key: "kv", other: other(), hint });
            }
            let texts = |patterns: &Patterns| patterns.iter().map(|pattern| pattern.text().to_owned()).collect::<Vec<_>>();
            if texts(&self.select) != texts(&crate::quantize::block_matrices()) {
                let hint = "every linear layer is quantized: leave it out";
                return Err(Error::Contradiction { key: "select", other: other(), hint });
            }
        }
        if self.wide.is_some() && self.values() != ActivationValues::All {
            let hint = "add `values = \"all\"`, or leave it out";
            return Err(Error::Contradiction { key: "wide", other: "values = \"inputs\" or \"linear\"".into(), hint });
        }
        let Some(percent) = self.percentile else { return Ok(()) };
        if self.observer().default_number().is_none() {
            let other = format!("observer = \"{}\"", self.observer().name());
            return Err(Error::Contradiction {
                key: "percentile",
                other,
                hint: "add `observer = \"percentile\"`, or leave it out",
            });
        }
        match percent > 50.0 && percent <= 100.0 {
            true => Ok(()),
            false => Err(Error::Percentile { found: percent }),
        }
    }
}

const DYNAMIC: &str = "a dynamic scale is symmetric and that of one token: leave it out, or use `mode = \"static\"`";

fn site(graph: &Graph, value: ValueId, codes: Codes, granularity: Option<ActivationGranularity>, feed: Feed) -> Site {
    let width = graph.fact(value).width().expect("what linear layers and caches read has a width: checked by the graph");
    let scales = granularity.map(|granularity| match granularity {
        ActivationGranularity::Tensor => 1,
        ActivationGranularity::Channel => width,
    });
    Site { value: graph.get(value).name.clone(), width, codes, scales, feeds: vec![feed], returned: false, known: Known::Nothing }
}
