//! Profiles of devices for `for = "…"`: which target and options they take, and which weights.
//!
//! A profile is a TOML file in `devices/for`. What a model holds and the profile forbids is an error of the plan, with the way out.

use std::{collections::BTreeMap, sync::LazyLock};

use attar_graph::Graph;
use attar_tensor::{Encoding, Granularity, Scheme};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Error, Result};

/// The shipped profiles and their files.
static FILES: &[(&str, &str)] = &[
    ("intel-npu", include_str!("../../../devices/for/intel-npu.toml")),
    ("intel-cpu", include_str!("../../../devices/for/intel-cpu.toml")),
    ("android-cpu", include_str!("../../../devices/for/android-cpu.toml")),
    ("hexagon", include_str!("../../../devices/for/hexagon.toml")),
    ("ethos-u55", include_str!("../../../devices/for/ethos-u55.toml")),
    ("ethos-u65", include_str!("../../../devices/for/ethos-u65.toml")),
    ("ethos-u85", include_str!("../../../devices/for/ethos-u85.toml")),
    ("onnx-cpu", include_str!("../../../devices/for/onnx-cpu.toml")),
];

/// Every profile, in the order of the documentation.
pub static PROFILES: LazyLock<Vec<Profile>> = LazyLock::new(|| {
    let read = |(name, text): &(&'static str, &str)| {
        let file = toml::from_str(text).unwrap_or_else(|error| panic!("devices/for/{name}.toml: {error}"));
        Profile { name, file }
    };
    FILES.iter().map(read).collect()
});

/// What a device takes.
#[derive(Debug)]
pub struct Profile {
    /// The name in recipes and on the command line.
    pub name: &'static str,
    file: File,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// As its makers call it.
    title: String,
    /// For whom, in one line.
    summary: String,
    target: String,
    /// Defaults of the target's options.
    #[serde(default)]
    options: serde_json::Map<String, serde_json::Value>,
    /// Quantized weights are of one of these kinds; of any, if there are none.
    #[serde(default)]
    weights: Vec<Allowed>,
}

/// A kind of quantized weights.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    grids: Vec<String>,
    groups: Vec<Group>,
    #[serde(default)]
    asymmetric: bool,
    /// Whether scales must not be negative.
    #[serde(default)]
    positive_scales: bool,
    scales: Vec<String>,
}

/// What shares a scale: so many weights, or a `row`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Group {
    Size(usize),
    Word(String),
}

impl Allowed {
    fn in_words(&self) -> String {
        let groups: Vec<String> = self.groups.iter().map(Group::in_words).collect();
        let zeros = if self.asymmetric { "" } else { "symmetric " };
        let signs = if self.positive_scales { "positive scales" } else { "scales" };
        format!("{zeros}{} in {} with {signs} in {}", or(&self.grids), or(&groups), or(&self.scales))
    }

    /// What of `scheme` is not allowed: what to set instead.
    fn way_out(&self, scheme: &Scheme) -> Option<String> {
        let group = match scheme.granularity {
            Granularity::Group(size) => self.groups.iter().any(|group| matches!(group, Group::Size(n) if *n == size)),
            Granularity::Row => self.groups.iter().any(|group| matches!(group, Group::Word(word) if word == "row")),
            Granularity::Tensor => self.groups.iter().any(|group| matches!(group, Group::Word(word) if word == "tensor")),
        };
        let scale = scheme.scale.to_string();
        if !self.grids.iter().any(|grid| grid == scheme.grid.name()) {
            Some(format!("quantize to `{}`", self.grids[0]))
        } else if !self.asymmetric && !scheme.is_symmetric() {
            Some("set `asymmetric = false`".into())
        } else if !group {
            Some(format!("set `group = {}`", self.groups.first().map_or_else(String::new, Group::as_written)))
        } else if !self.scales.contains(&scale) {
            Some(format!("set `scale_dtype = \"{}\"`", self.scales[0]))
        } else if self.positive_scales && !scheme.has_positive_scales() {
            Some("set `positive_scales = true`".into())
        } else {
            None
        }
    }
}

impl Group {
    fn in_words(&self) -> String {
        match self {
            Group::Size(size) => format!("groups of {size}"),
            Group::Word(word) => format!("whole {word}s"),
        }
    }

    fn as_written(&self) -> String {
        match self {
            Group::Size(size) => size.to_string(),
            Group::Word(word) => format!("\"{word}\""),
        }
    }
}

fn or(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

impl Profile {
    /// The profile of that name.
    pub fn named(name: &str) -> Option<&'static Profile> {
        PROFILES.iter().find(|profile| profile.name == name)
    }

    /// What it is for, in one line.
    pub fn summary(&self) -> &str {
        &self.file.summary
    }

    /// The target that it is written in.
    pub fn target(&self) -> &str {
        &self.file.target
    }

    /// The kinds of quantized weights that it takes, in words.
    pub fn weights(&self) -> String {
        let kinds: Vec<String> = self.file.weights.iter().map(Allowed::in_words).collect();
        if kinds.is_empty() { format!("all that target `{}` takes", self.file.target) } else { kinds.join("; ") }
    }

    /// The options of a target, where `given` says nothing of them.
    pub(crate) fn complete(&self, mut given: serde_json::Value) -> serde_json::Value {
        if let Some(given) = given.as_object_mut() {
            for (key, value) in &self.file.options {
                given.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        given
    }

    /// Whether a device takes all quantized weights of a graph; else the kinds that it does not, and what to do about the first.
    pub(crate) fn check(&self, graph: &Graph) -> Result<()> {
        let mut refused: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut way_out = None;
        for (_, value, _) in graph.weights() {
            let Encoding::Quantized(scheme) = value.fact.encoding else { continue };
            if let Some(instead) = self.refusal(&scheme) {
                way_out.get_or_insert(instead);
                refused.entry(scheme.to_string()).or_default().push(&value.name);
            }
        }
        let Some(way_out) = way_out else { return Ok(()) };
        let message = format!("{} takes {}", self.file.title, self.weights());
        let causes = refused.iter().map(|(scheme, names)| match names[..] {
            [one] => format!("`{one}` is {scheme}"),
            _ => format!("{} weights are {scheme}, `{}` the first of them", names.len(), names[0]),
        });
        Err(Error { causes: causes.collect(), ..Error::recipe(message) }.hint(way_out))
    }

    /// What to set for a scheme that it does not take. Of several kinds, the nearest is the one with that grid.
    fn refusal(&self, scheme: &Scheme) -> Option<String> {
        if self.file.weights.iter().any(|allowed| allowed.way_out(scheme).is_none()) {
            return None;
        }
        let of_grid = |allowed: &&Allowed| allowed.grids.iter().any(|grid| grid == scheme.grid.name());
        let nearest = self.file.weights.iter().find(of_grid).or(self.file.weights.first())?;
        nearest.way_out(scheme)
    }
}

/// A profile by its name, in recipes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct For(pub(crate) &'static Profile);

impl Serialize for For {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de> Deserialize<'de> for For {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<For, D::Error> {
        let name = String::deserialize(deserializer)?;
        Profile::named(&name).map(For).ok_or_else(|| {
            let known: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
            D::Error::custom(format!("no device is named `{name}`; known: {}", known.join(", ")))
        })
    }
}

impl JsonSchema for For {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "For".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
        json_schema!({ "type": "string", "enum": names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(scheme: &str) -> Graph {
        let text = format!("graph g(x: [seq, 128] f32) {{ y = linear x, weight(\"w\": [64, 128] {scheme})\n return y }}");
        Graph::parse(&text).unwrap()
    }

    #[test]
    fn profiles_are_of_targets_and_of_options_that_exist() {
        for profile in PROFILES.iter() {
            let target = attar_export::target(profile.target()).unwrap();
            assert!((target.parse)(profile.complete(serde_json::json!({}))).is_ok(), "{}", profile.name);
            assert!(!profile.summary().is_empty());
        }
    }

    #[test]
    fn what_a_device_does_not_take_is_an_error_with_the_way_out() {
        let npu = Profile::named("intel-npu").unwrap();
        for scheme in ["int4/g64", "int4/g128", "int4/row", "int3/g64", "int8/row", "f32"] {
            npu.check(&graph(scheme)).unwrap_or_else(|error| panic!("{scheme}: {}", error.message));
        }
        for (scheme, way_out) in [
            ("int4/g32", "set `group = 64`"),
            ("int4/g64/asymmetric", "set `asymmetric = false`"),
            ("int4/g64/f32", "set `scale_dtype = \"f16\"`"),
            ("int8/g64", "set `group = \"row\"`"),
            ("nf4/g64", "quantize to `int4`"),
        ] {
            let error = npu.check(&graph(scheme)).unwrap_err();
            assert_eq!(error.hint.as_deref(), Some(way_out), "{scheme}");
            assert!(error.message.starts_with("Intel NPU takes symmetric int4") && error.causes[0].contains(scheme), "{error:?}");
        }
        Profile::named("intel-cpu").unwrap().check(&graph("nf4/g32")).unwrap();
    }
}
