//! The step `rotate`: a unit is a matrix whose rows are rotated together.

use attar_compress::Rotate;
use attar_tensor::Digest;

use super::{
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    transformed,
};
use crate::{model::Working, session::Session, settings::of};

pub(super) static ROTATE: StepKind = StepKind {
    name: "rotate",
    about: "Rotate inner coordinates by orthogonal matrices, so that quantization loses less",
    schema: of::<Rotate>,
    build: |section| Ok(Box::new(section.finish::<Rotate>(&["kind".into()])?)),
    folder: None,
    is_verb: true,
    examples: &["attar rotate model --out rotated", "attar rotate model --mlp --tables f16 --out rotated-mlp"],
    looks_inside: true,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

impl Step for Rotate {
    fn kind(&self) -> &'static StepKind {
        &ROTATE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let rewrite = self.rewrite(&model.graph).map_err(refused)?;
        transformed::plan(model, rewrite, 0)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let rewrite = self.rewrite(&model.graph).map_err(refused)?;
        transformed::apply(ROTATE.name, model, rewrite, Vec::new(), Vec::new(), session)
    }
}
