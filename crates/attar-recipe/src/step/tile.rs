//! The step `tile`: how every distinct product of the model is cut for a device. Facts are enough; the model stays as it is.

use attar_compile::{Tile, Tiled, report::ProductReport};
use attar_tensor::Digest;

use super::{Step, StepError, StepKind, compile::refused};
use crate::{model::Working, plan::PlannedTensor, run::json, schema::of, session::Session};

pub(super) static TILE: StepKind = StepKind {
    name: "tile",
    about: "Cut every distinct product of the model for a device's SRAM",
    schema: of::<Tile>,
    build: |section| Ok(Box::new(section.finish::<Tile>(&["kind".into()])?)),
    folder: Some("tiled"),
    looks_inside: true,
};

impl Step for Tile {
    fn kind(&self) -> &'static StepKind {
        &TILE
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    /// Whether everything can be cut; what is best in other ways can wait.
    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let only_best = Tile { pareto: false, ..self.clone() };
        only_best.run(&model.graph, &*model.source).map_err(refused)?;
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        session.observer.stage(&format!("{}: tile for {}", model.title, self.device), 0);
        session.check_interrupt()?;
        let tiled = self.run(&model.graph, &*model.source).map_err(refused)?;
        model.leave(&TILE, vec![("tiles.json".into(), json(&tiled)), ("tiles.txt".into(), text(&tiled).into_bytes())]);
        model.tilings.push(summary(tiled));
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
