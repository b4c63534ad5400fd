//! The step `smooth`: a unit is a site, whose channels are scaled together.
//!
//! Scaling changes no activation but those that it scales, and what reads these sees them as before. So all sites are
//! looked at in one pass over the float model, in any order and each on its own; a killed run goes on at its block.

use std::path::PathBuf;

use attar_compress::{Choice, Error as Unfit, Hessian, Seeing, Site, Smooth, SmoothScales};
use attar_graph::{BlockId, Expr, Graph, SourceWeights};
use attar_tensor::{Digest, Source, safetensors::Shards};

use super::{
    codes::refused,
    kind::{PlannedTensor, Step, StepError, StepKind},
    transformed::{self, write_tensors},
};
use crate::{
    Error,
    model::Working,
    report::SiteReport,
    session::Session,
    settings::of,
    walk::{self, Side, Visitor, Walk, Windows, block_key, first_key},
    walker::Walker,
};

pub(super) static SMOOTH: StepKind = StepKind {
    name: "smooth",
    about: "Scale channels by activation statistics so that quantization loses less (AWQ, SmoothQuant)",
    schema: of::<Smooth>,
    build: |section| Ok(Box::new(section.finish::<Smooth>(&["kind".into()])?)),
    folder: None,
    is_verb: true,
    examples: &[
        "attar smooth model --method awq --grid int4 --group 64 --calibration text.txt --out smooth",
        "attar smooth model --method smoothquant --calibration text.txt --samples 16 --out smooth-int8",
    ],
    looks_inside: true,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

pub(super) static WALKER: Walker =
    Walker { name: "smooth", doing: "smooth", example: "[[step]]\nkind = \"smooth\"\nmethod = \"awq\"\ngrid = \"int3\"\n" };

impl Step for Smooth {
    fn kind(&self) -> &'static StepKind {
        &SMOOTH
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn needs_text(&self) -> bool {
        true
    }

    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        let sites = self.sites(&model.graph).map_err(refused)?;
        walk::plan(model, 1);
        let memory = sites.iter().map(|site| memory(self, site, &model.graph)).max().unwrap_or(0);
        // Any vector will do: only shapes are planned.
        let ones = |site: Site| {
            let columns = columns(&site, &model.graph).len();
            (site.clone(), SmoothScales { channels: Expr::Ones(site.channels), columns: Expr::Ones(columns) })
        };
        let rewrite = self.rewrite(&model.graph, &sites.into_iter().map(ones).collect::<Vec<_>>()).map_err(refused)?;
        transformed::plan(model, rewrite, memory)
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        let sites = self.sites(&model.graph).map_err(refused)?;
        let blobs = seen(self, model, &sites, session)?;
        let files: Vec<PathBuf> = blobs.iter().map(|(_, blob)| session.store.open(blob)).collect::<attar_tensor::Result<_>>()?;
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
    let first = first_key(&model.graph, session.calibration.unwrap_or_default());
    let key = Digest::of_parts([b"passage 1".as_slice(), first.as_bytes()]);
    let weights = SourceWeights(model.source.clone());
    let mut looking = Looking { smooth, model, sites, session, found: Vec::new() };
    let count = sites.last().map_or(0, |site| site.block.index() + 1);
    let sides = vec![Side { graph: &model.graph, weights: &weights }];
    Walk::new(&WALKER, &model.title, key, sides, session).visit(count, &mut looking)?;
    Ok(looking.found)
}

/// Looks at the sites of every block in turn.
struct Looking<'a> {
    smooth: &'a Smooth,
    model: &'a Working,
    /// In running order.
    sites: &'a [Site],
    session: &'a Session<'a>,
    /// What the tensor of a site's scales is called, and its blob.
    found: Vec<(String, Digest)>,
}

impl Visitor for Looking<'_> {
    fn key(&self, before: &Digest, block: BlockId) -> crate::Result<Digest> {
        block_key(before, &self.model.graph, block, &*self.model.source, [])
    }

    fn units(&self, block: BlockId, key: &Digest) -> Vec<Digest> {
        self.sites_of(block).map(|site| site_key(self.smooth, site, key)).collect()
    }

    fn take(&mut self, block: BlockId, key: &Digest, blobs: &[Digest]) -> crate::Result<()> {
        let named = self.sites_of(block).zip(blobs).map(|(site, blob)| (name(site, &site_key(self.smooth, site, key)), *blob));
        let named: Vec<_> = named.collect();
        self.found.extend(named);
        Ok(())
    }

    fn visit(&mut self, block: BlockId, key: &Digest, windows: &mut Windows<'_>) -> crate::Result<()> {
        for site in self.sites_of(block) {
            self.session.check_interrupt()?;
            windows.tell(0, &site.name);
            let key = site_key(self.smooth, site, key);
            let name = name(site, &key);
            let blob = match self.session.done(&key)? {
                Some(blob) => blob,
                None => {
                    let choice = look(self.smooth, site, windows, self.model)?;
                    let channel = columns(site, &self.model.graph);
                    self.session.unit(key, |to| write(to, &name, &choice, &channel))?
                }
            };
            self.found.push((name, blob));
        }
        Ok(())
    }
}

impl<'a> Looking<'a> {
    fn sites_of(&self, block: BlockId) -> impl Iterator<Item = &'a Site> + use<'a> {
        self.sites.iter().filter(move |site| site.block == block)
    }
}

/// What the scales of a site are called in the store.
fn name(site: &Site, key: &Digest) -> String {
    format!("{}/scale/{}", site.name, key.short())
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
fn look(smooth: &Smooth, site: &Site, windows: &mut Windows<'_>, model: &Working) -> crate::Result<Choice> {
    let channel = columns(site, &model.graph);
    let input = site.readers[0].input;
    let mut seen = Seeing::new(channel.len());
    windows.reach(0, input, &mut |_, x| Ok(seen.add(x)?))?;
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
