//! A unit of work: looked up by the digest of all that decides it, or else done and noted.

use std::{io::Write, path::PathBuf};

use attar_compress::TrainingWindows;
use attar_model::Model;
use attar_tensor::{Digest, FolderStore, Store};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Observer, Result, inputs::Inputs, json::json, walker::Walker};

/// What units of work need while they run.
pub struct Session<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) observer: &'a dyn Observer,
    /// The model as it was opened, if the run is about one.
    model: Option<&'a Model>,
    /// The windows that activations are seen on, if the recipe has such.
    pub(crate) calibration: Option<&'a [Vec<u32>]>,
    /// The windows that models are trained on, if the recipe has such of their own.
    pub(crate) training: Option<&'a TrainingWindows>,
    /// Who may walk.
    pub(crate) walkers: &'static [&'static Walker],
    inputs: &'a Inputs,
}

impl<'a> Session<'a> {
    /// The same, with activations seen on other windows.
    pub(crate) fn seeing(&self, windows: &'a [Vec<u32>]) -> Session<'a> {
        Session { calibration: Some(windows), ..*self }
    }
}

/// What sessions work with: finished units, and the texts that steps look at.
pub(crate) struct Workspace {
    pub(crate) store: Box<dyn Store>,
    texts: Texts,
    walkers: &'static [&'static Walker],
    inputs: Inputs,
}

/// The texts of a recipe as windows of tokens.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) calibration: Option<Vec<Vec<u32>>>,
    /// Names of the calibration's texts, with the numbers of their windows.
    pub(crate) calibration_of: Vec<(String, usize)>,
    pub(crate) training: Option<TrainingWindows>,
    /// The blobs of those that the model wrote.
    pub(crate) written: Vec<Digest>,
}

impl Workspace {
    /// Opens the store at `root`, for work on `inputs`, without texts.
    pub(crate) fn open(root: PathBuf, walkers: &'static [&'static Walker], inputs: Inputs) -> Result<Workspace> {
        Ok(Workspace { store: Box::new(FolderStore::open(&root)?), texts: Texts::default(), walkers, inputs })
    }

    /// With these texts.
    pub(crate) fn reading(self, texts: Texts) -> Workspace {
        Workspace { texts, ..self }
    }

    /// Work on `model`, of which `observer` hears.
    pub(crate) fn session<'a>(&'a self, model: impl Into<Option<&'a Model>>, observer: &'a dyn Observer) -> Session<'a> {
        Session {
            store: &*self.store,
            observer,
            model: model.into(),
            calibration: self.texts.calibration.as_deref(),
            training: self.texts.training.as_ref(),
            walkers: self.walkers,
            inputs: &self.inputs,
        }
    }
}

impl<'a> Session<'a> {
    /// The model as it was opened.
    pub(crate) fn base(&self) -> &'a Model {
        self.model.expect("steps and exports have a model: checked when parsed")
    }

    /// The blob of a unit that is done, if it is there and whole.
    pub(crate) fn done(&self, key: &Digest) -> Result<Option<Digest>> {
        Ok(self.store.done(key)?)
    }

    /// The blob of a unit: from the store if it is there and whole, or else made now.
    pub(crate) fn unit(&self, key: Digest, make: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Digest> {
        if let Some(blob) = self.done(&key)? {
            return Ok(blob);
        }
        let blob = self.store.put(make)?;
        self.check_inputs()?;
        self.store.record(key, blob)?;
        Ok(blob)
    }

    /// A unit whose result is JSON.
    pub(crate) fn json<T: Serialize>(&self, key: Digest, make: impl FnOnce() -> Result<T>) -> Result<Digest> {
        self.unit(key, |to| to.write_all(&json(&make()?)).map_err(|e| attar_tensor::Error::from(e).into()))
    }

    /// What is in the blob of such a unit; `what` it is, for an error.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, blob: &Digest, what: &str) -> Result<T> {
        let path = self.store.open(blob)?;
        let text = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
        serde_json::from_slice(&text).map_err(|e| Error::input(format!("{what} in the store cannot be read")).because(&e))
    }

    /// A unit whose result is one number, and its blob.
    pub(crate) fn number(&self, key: Digest, make: impl FnOnce() -> Result<f64>) -> Result<(f64, Digest)> {
        let blob = self.unit(key, |to| {
            let found = make()?;
            to.write_all(&found.to_le_bytes()).map_err(|e| attar_tensor::Error::from(e).into())
        })?;
        let path = self.store.open(&blob)?;
        let bytes = std::fs::read(&path).map_err(|source| attar_tensor::Error::Io { action: "read", path, source })?;
        Ok((bytes.try_into().map_or(f64::NAN, f64::from_le_bytes), blob))
    }

    /// Releases a blob that this run made and no longer needs: it is deleted unless another run uses it.
    pub(crate) fn discard(&self, blob: &Digest) -> Result<()> {
        Ok(self.store.release(blob)?)
    }

    /// Fails if what the run reads is no longer what it was: nothing made from it may be kept.
    pub(crate) fn check_inputs(&self) -> Result<()> {
        self.inputs.check()
    }

    pub(crate) fn check_interrupt(&self) -> Result<()> {
        if self.observer.interrupted() { Err(Error::interrupted()) } else { Ok(()) }
    }
}
