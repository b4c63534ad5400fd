//! The step `smooth`: a unit is a site, whose channels are scaled together.
//!
//! Scaling changes no activation but those that it scales, and what reads these sees them as before. So all sites are
//! looked at in one pass over the float model, in any order and each on its own; a killed run goes on at its block.

use std::path::PathBuf;

use attar_compress::{Choice, Error as Unfit, Hessian, Seeing, Site, Smooth, SmoothScales};
use attar_graph::{Expr, Graph};
use attar_tensor::{Digest, Source, safetensors::Shards};

use super::{
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    passage::Passage,
    transformed::{self, write_tensors},
};
use crate::{Error, model::Working, report::SiteReport, session::Session, settings::of};

pub(super) static SMOOTH: StepKind = StepKind {
    name: "smooth",
    about: "Scale channels by activation statistics so that quantization loses less (AWQ, SmoothQuant)",
    schema: of::<Smooth>,
    build: |section| Ok(Box::new(section.finish::<Smooth>(&["kind".into()])?)),
    folder: None,
    looks_inside: true,
    predicts: false,
};

impl Step for Smooth {
    fn kind(&self) -> &'static StepKind {
        &SMOOTH
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let sites = self.sites(&model.graph).map_err(refused)?;
        check_calibrated(model.calibrated)?;
        let memory = sites.iter().map(|site| memory(self, site, &model.graph)).max().unwrap_or(0);
        // Any vector will do: only shapes are planned.
        let ones = |site: Site| {
            let columns = columns(&site, &model.graph).len();
            (site.clone(), SmoothScales { channels: Expr::Ones(site.channels), columns: Expr::Ones(columns) })
        };
        let rewrite = self.rewrite(&model.graph, &sites.into_iter().map(ones).collect::<Vec<_>>()).map_err(refused)?;
        Ok(transformed::plan(model, rewrite, memory))
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let sites = self.sites(&model.graph).map_err(refused)?;
        check_calibrated(session.calibration.is_some())?;
        let blobs = seen(self, model, &sites, session)?;
        let files: Vec<PathBuf> = blobs.iter().map(|(_, blob)| session.store.path(blob)).collect();
        let stored = Shards::open(&files, &Default::default())?;
        let (mut scaled, mut reports) = (Vec::new(), Vec::new());
        for (site, (name, _)) in sites.into_iter().zip(&blobs) {
            reports.push(report(&site, name, &stored)?);
            let columns = if stored.tensors().contains_key(&columns_of(name)) { columns_of(name) } else { name.clone() };
            scaled.push((site, SmoothScales { channels: Expr::tensor(name), columns: Expr::tensor(columns) }));
        }
        let rewrite = self.rewrite(&model.graph, &scaled).map_err(refused)?;
        let mut used = transformed::apply(SMOOTH.name, model, rewrite, files, reports, session)?;
        used.extend(blobs.into_iter().map(|(_, blob)| blob));
        Ok(used)
    }
}

fn check_calibrated(calibrated: bool) -> Result<(), StepError> {
    if calibrated {
        return Ok(());
    }
    let hint = "add `[data.calibration]` with the `path` of a text".to_owned();
    let error = Error::recipe("scales are chosen by what activations say, and the recipe has no text for that").hint(hint);
    Err(StepError { key: Some("method".into()), error })
}

/// Bytes that the work at a site takes, its statistics included.
fn memory(smooth: &Smooth, site: &Site, graph: &Graph) -> u64 {
    let dims = |reader: &attar_compress::Layer| graph.fact(reader.weight).constant_dims().unwrap_or_default();
    let layers: Vec<[usize; 2]> = site.readers.iter().filter_map(|reader| dims(reader).try_into().ok()).collect();
    smooth.method.0.memory(&layers) + Hessian::bytes(layers.first().map_or(0, |dims| dims[1]))
}

/// The channel of every column of a site's readers.
fn columns(site: &Site, graph: &Graph) -> Vec<usize> {
    site.channel_of_columns(graph.fact(site.readers[0].input).width().unwrap_or(0))
}

/// What the scales of columns are called, where they are not those of channels.
fn columns_of(channels: &str) -> String {
    format!("{channels}/columns")
}

fn report(site: &Site, name: &str, stored: &Shards) -> Result<SiteReport, StepError> {
    let mut choice = [0.0; 2];
    stored.read(&format!("{name}/choice"), 0..1, &mut choice)?;
    let decimal = |x: f32| x.to_string().parse::<f64>().unwrap_or(f64::NAN);
    let [alpha, error] = choice.map(decimal);
    Ok(SiteReport { name: site.name.clone(), alpha, error: (error < 1.0).then_some(error) })
}

/// The scales of every site: what the tensor is called, and its blob.
fn seen(smooth: &Smooth, model: &Working, sites: &[Site], session: &Session<'_>) -> Result<Vec<(String, Digest)>, StepError> {
    let mut passage = Passage::new(&model.graph, model.source.clone(), session);
    let last = sites.last().map(|site| site.block);
    let mut all = Vec::new();
    session.observer.stage(&format!("{}: smooth", model.title), sites.len() as u64);
    for block in model.graph.blocks().take_while(|block| Some(*block) <= last) {
        session.check_interrupt()?;
        let block_key = passage.block_key(block)?;
        let mut looked = false;
        for site in sites.iter().filter(|site| site.block == block) {
            session.observer.advance(all.len() as u64, &site.name);
            let key = site_key(smooth, site, &block_key);
            let name = format!("{}/scale/{}", site.name, key.short());
            let blob = match session.done(&key)? {
                Some(blob) => blob,
                None => {
                    looked = true;
                    let choice = look(smooth, site, &mut passage, model)?;
                    let channel = columns(site, &model.graph);
                    session.unit(key, |to| write(to, &name, &choice, &channel))?
                }
            };
            all.push((name, blob));
        }
        match (Some(block) == last, looked) {
            (true, _) => {}
            (false, true) => passage.leave(block)?,
            (false, false) => passage.skip(block)?,
        }
    }
    Ok(all)
}

/// All that decides the scales of a site.
fn site_key(smooth: &Smooth, site: &Site, block: &Digest) -> Digest {
    let method = smooth.method.0;
    let settings = format!(
        "smooth {} {} {:?} {:?} {:?} {}",
        method.name(),
        method.version(),
        smooth.scheme(),
        smooth.scales,
        smooth.alpha,
        site.name
    );
    Digest::of_parts([block.as_bytes().as_slice(), settings.as_bytes()])
}

/// Sees what a site's readers read, and picks its scales.
fn look(smooth: &Smooth, site: &Site, passage: &mut Passage<'_>, model: &Working) -> Result<Choice, StepError> {
    let channel = columns(site, &model.graph);
    let input = site.readers[0].input;
    let mut seen = Seeing::new(channel.len());
    let (stream, weights) = passage.at(site.block)?;
    stream.reach(weights, input, &mut |_, x| Ok(seen.add(x)?))?;
    if !seen.hessian.is_finite() {
        let block = model.graph.block_name(site.block).into();
        return Err(Unfit::Activations { block, value: model.graph.get(input).name.clone() }.into());
    }
    let matrix = |reader: &attar_compress::Layer| {
        let expr = reader.expr(&model.graph);
        let info = expr.info(&*model.source)?;
        let mut values = vec![0.0; info.elements()];
        expr.read(&*model.source, 0..info.matrix()[0], &mut values)?;
        attar_graph::Result::Ok((info.matrix()[0], values))
    };
    let matrices: Vec<(usize, Vec<f32>)> = site.readers.iter().map(matrix).collect::<attar_graph::Result<_>>()?;
    Ok(smooth.method.0.scales(smooth, &matrices, &seen, &channel)?)
}

fn write(to: &mut dyn std::io::Write, name: &str, choice: &Choice, channel: &[usize]) -> Result<(), Error> {
    let columns: Vec<f32> = channel.iter().map(|channel| choice.scales[*channel]).collect();
    let numbers = [choice.alpha as f32, choice.error as f32];
    let (channels, all, two) = ([choice.scales.len()], [columns.len()], [2]);
    let mut tensors: Vec<(String, &[usize], &[f32])> =
        vec![(name.to_owned(), &channels, &choice.scales), (format!("{name}/choice"), &two, &numbers)];
    if columns != choice.scales {
        tensors.push((columns_of(name), &all, &columns));
    }
    write_tensors(to, &tensors)
}
