//! The step `tile`: how every distinct matrix product of the model is tiled for a device. Facts are enough; the model stays as it is.

use std::path::PathBuf;

use attar_compile::{Tile, Tiled, report::ProductReport};
use attar_model::Model;
use attar_tensor::Digest;

use super::{
    device::{self, check_prompt, refused},
    kind::{PlannedTensor, Step, StepError, StepKind},
};
use crate::{Error, data::Data, json::json, model::Working, session::Session, settings::of, shape::facts};

pub(super) static TILE: StepKind = StepKind {
    name: "tile",
    about: "Tile every distinct matrix product of the model for a device's SRAM",
    schema: of::<Tile>,
    build: |section| Ok(Box::new(section.finish::<Tile>(&["kind".into()])?)),
    folder: Some("tiled"),
    is_verb: false,
    examples: &[],
    looks_inside: true,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

/// How the products of an opened model are cut; what the step does, and writes nothing.
pub fn cut_products(settings: &Tile, model: &Model) -> Result<Tiled, Error> {
    let working = Working::new("model", model, &Data::default())?;
    checked(settings, &working).map_err(|failed| failed.error)
}

fn checked(settings: &Tile, model: &Working) -> Result<Tiled, StepError> {
    check_prompt(settings.seq, model)?;
    settings.run(&model.graph, &*model.source).map_err(refused)
}

/// How the products of a graph of these facts are tiled.
struct Kept {
    facts: String,
    tiled: Tiled,
}

impl Step for Tile {
    fn kind(&self) -> &'static StepKind {
        &TILE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        device::files(&self.device)
    }

    /// Whether everything can be cut; what is best in other ways can wait.
    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let tiled = checked(&Tile { pareto: false, ..self.clone() }, model)?;
        if !self.pareto {
            model.kept.keep(Kept { facts: facts(&model.graph), tiled });
        }
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        session.observer.stage(&format!("{}: tile for {}", model.title, self.device), 0);
        session.check_interrupt()?;
        let kept = model.kept.get::<Kept>().filter(|kept| kept.facts == facts(&model.graph));
        let tiled = kept.map_or_else(|| checked(self, model), |kept| Ok(kept.tiled.clone()))?;
        TILE.leave(
            model,
            vec![("tiles.json".into(), json(&tiled).into()), ("tiles.txt".into(), text(&tiled).into_bytes().into())],
        );
        model.findings.push(summary(tiled));
        Ok(Vec::new())
    }
}

fn text(tiled: &Tiled) -> String {
    format!(
        "{}: {} bytes of SRAM; streamed tiles double-buffered; lower bounds are those of any schedule\n\n{}",
        tiled.device,
        tiled.sram,
        ProductReport::table(&tiled.products)
    )
}

/// Without what is best in other ways: that is in the step's own file.
fn summary(tiled: Tiled) -> Tiled {
    let products = tiled.products.into_iter().map(|product| ProductReport { front: Vec::new(), ..product });
    Tiled { products: products.collect(), ..tiled }
}
