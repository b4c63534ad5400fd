//! LiteRT by itself: `model.tflite`, an encoder for texts of one length.

use std::{fs, path::Path};

use attar_graph::{Graph, Op};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    emit::{Call, Model},
    lm::{artifact, notes},
    schema, verify,
    weight::{Stored, write_model},
};
use crate::{Artifact, Error, Format, Input, Original, Plan, Progress, Result, Side, Target, Verification, kit, target};

pub(crate) static TARGET: Target = Target {
    name: "tflite",
    about: "a LiteRT model of an encoder, for texts of one length",
    version: 1,
    schema: attar_settings::schema::<Tflite>,
    parse: target::parse::<Tflite>,
};

const MODEL: &str = "model.tflite";

/// What LiteRT's own converters call the only signature.
const SIGNATURE: &str = "serving_default";

/// Tokens of a text, unless `tokens` says how many.
const LENGTH: usize = 128;

/// A model for LiteRT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tflite {
    /// Tokens of a text; shorter ones are padded behind [default: as many as the model takes, at most 128].
    pub tokens: Option<usize>,
}

impl Tflite {
    fn tokens(&self, takes: Option<usize>) -> Result<usize> {
        let refuse = |found: usize, wanted: String| {
            Err(Error::Option { target: TARGET.name, key: "tokens", found: found.to_string(), wanted })
        };
        match (self.tokens, takes) {
            (Some(0), _) => refuse(0, "1 or more".into()),
            (Some(asked), Some(takes)) if asked > takes => {
                refuse(asked, format!("at most the {takes} tokens that the model takes"))
            }
            (asked, takes) => Ok(asked.unwrap_or(takes.unwrap_or(LENGTH).min(LENGTH))),
        }
    }

    fn call(&self, takes: Option<usize>) -> Result<Call<'static>> {
        Ok(Call { signature: SIGNATURE, tokens: self.tokens(takes)?, cache: 0, outputs: true })
    }
}

impl Format for Tflite {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        check_kind(graph)?;
        let model = Model::new(graph, TARGET.name)?;
        model.subgraph(self.call(None)?, &[])?;
        let tensors = model.stored.iter().map(Stored::entry).collect();
        Ok(Plan { tensors, bytes: model.bytes, notes: notes(&model.stored) })
    }

    fn check_side(&self, side: &Side) -> Result<()> {
        self.tokens(side.context).map(drop)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        check_kind(model.graph)?;
        let built = Model::new(model.graph, TARGET.name)?;
        model.graph.verify_weights(model.source)?;
        let graph = built.subgraph(self.call(model.side.context)?, &built.row_scales(model.source)?)?;
        let flatbuffer = schema::flatbuffer(std::slice::from_ref(&graph));
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        write_model(&folder.join(MODEL), &[(0, &flatbuffer)], &built.stored, model.source, progress)?;
        Ok(artifact(&TARGET, self.options(), kit::files(folder, &[MODEL], model.side)?, &graph, &built.stored))
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let verification = verify::verify(model, artifact, &folder.join(MODEL), original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// A model that generates is for LiteRT-LM.
fn check_kind(graph: &Graph) -> Result<()> {
    let caches = graph.nodes().iter().any(|node| matches!(node.op, Op::Cache { .. }));
    let (wanted, found) = ("encoders", "keeps keys and values of earlier calls");
    if caches { Err(Error::Kind { target: TARGET.name, wanted, found, hint: "use `target = \"litert-lm\"`" }) } else { Ok(()) }
}
