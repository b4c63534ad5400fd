//! What a run reads models from: the checkpoint or artifact that it is about, and the checkpoint that it compares with.

use std::{cell::RefCell, path::PathBuf};

use attar_model::{ChatTemplate, Config, Model, Tokenizer};

use crate::{
    Error, ErrorKind, Existing, Recipe, Result, described,
    inputs::Inputs,
    recipe::{Compared, Subject},
    session::{Session, Texts},
    side, tokens,
    written::written,
};

/// What a recipe is about, opened.
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Measured {
    Model(Model),
    Artifact(Existing),
}

/// The models of a recipe, opened: headers are read, weights are not.
pub(crate) struct Opened {
    pub(crate) subject: Measured,
    /// `baseline`, if it is a checkpoint of its own.
    baseline: Option<Model>,
    compares: bool,
}

impl Opened {
    pub(crate) fn of(recipe: &Recipe) -> Result<Opened> {
        let subject = match recipe.subject() {
            Subject::Model(model) => Measured::Model(recipe.open_checkpoint(model, "model")?),
            Subject::Artifact(path) => {
                let existing = Existing::open(path).map_err(|e| recipe.document.place(e, "artifact"))?;
                Measured::Artifact(existing)
            }
        };
        let compared = recipe.compared();
        let baseline = match compared {
            Compared::With(checkpoint) => Some(recipe.open_checkpoint(checkpoint, "baseline")?),
            Compared::WithItself | Compared::WithNothing => None,
        };
        Ok(Opened { subject, baseline, compares: !matches!(compared, Compared::WithNothing) })
    }

    /// The checkpoint that steps start from.
    pub(crate) fn model(&self) -> Option<&Model> {
        match &self.subject {
            Measured::Model(model) => Some(model),
            Measured::Artifact(_) => None,
        }
    }

    /// What evals compare with.
    pub(crate) fn base(&self) -> Option<&Model> {
        self.baseline.as_ref().or_else(|| self.model().filter(|_| self.compares))
    }

    pub(crate) fn config(&self) -> &Config {
        match &self.subject {
            Measured::Model(model) => &model.config,
            Measured::Artifact(existing) => &existing.config,
        }
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.subject {
            Measured::Model(model) => Ok(model.tokenizer()?),
            Measured::Artifact(existing) => existing.tokenizer(),
        }
    }

    /// Fails if the recipe trains on dialogues, and the model has no way to write them.
    pub(crate) fn check_chat(&self, recipe: &Recipe) -> Result<()> {
        let training = recipe.training().is_some_and(|text| text.messages.is_some());
        let calibration = recipe.calibration().is_some_and(|text| text.needs_chat());
        for (_, key) in
            [(training, "data.train.messages"), (calibration, "data.calibration.sources")].iter().filter(|(is, _)| *is)
        {
            if self.chat_template()?.is_none() {
                let error = Error { kind: ErrorKind::Recipe, ..attar_compress::Error::NoChatTemplate.into() };
                return Err(recipe.document.place(error, key));
            }
        }
        Ok(())
    }

    /// The model's chat template, if it has one.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.subject {
            Measured::Model(model) => Ok(ChatTemplate::of(model)?),
            Measured::Artifact(existing) => existing.chat_template(),
        }
    }

    /// Fails if the baseline has a tokenizer that makes other tokens: their logits could not be compared.
    pub(crate) fn check_tokenizers(&self) -> Result<()> {
        let Some(baseline) = self.baseline.as_ref().filter(|baseline| baseline.no_tokenizer().is_none()) else { return Ok(()) };
        let Ok(own) = self.tokenizer() else { return Ok(()) };
        match tokens::difference(&own, &baseline.tokenizer()?) {
            Some(difference) => {
                let message = format!("the baseline has another tokenizer: {difference}");
                Err(Error::input(message).hint("compare models of one tokenizer".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// The windows of the recipe's texts, if there are such. What the model writes are units of `session`.
    pub(crate) fn windows(&self, recipe: &Recipe, session: &Session<'_>) -> Result<Texts> {
        let place = |e: attar_compress::Error, key| recipe.document.place(e.into(), key);
        let used = RefCell::new(Vec::new());
        let windows = |text: &attar_compress::Calibration| {
            let (chat, length) = (self.chat_template()?, text.length(self.config()));
            let write = |beginnings: Vec<Vec<u32>>| {
                let (windows, blobs) = written(session.base(), &beginnings, length, text.seed, session)?;
                used.borrow_mut().extend(blobs);
                Ok(windows)
            };
            let windows = text.windows(&self.tokenizer()?, chat.as_ref(), self.config(), &write);
            windows.map_err(|e: Error| recipe.document.place(e, "data.calibration"))
        };
        let calibration = recipe.calibration().map(windows).transpose()?;
        let calibration_of = calibration.as_ref().map(|windows| windows.of.clone()).unwrap_or_default();
        let calibration = calibration.map(|windows| windows.windows);
        let windows = |text: &attar_compress::TrainingText| {
            let chat = self.chat_template()?;
            text.windows(&self.tokenizer()?, chat.as_ref(), self.config()).map_err(|e| place(e, "data.train"))
        };
        let training = recipe.training().map(windows).transpose()?;
        Ok(Texts { calibration, calibration_of, training, written: used.into_inner() })
    }

    /// Numbers in the weights of what the recipe is about, if it says so.
    pub(crate) fn parameters(&self) -> Option<u64> {
        match &self.subject {
            Measured::Model(model) => Some(model.parameters()),
            Measured::Artifact(existing) => existing.parameters(),
        }
    }

    /// Every file that a run of the recipe reads, identified before it is opened for the run.
    pub(crate) fn inputs(recipe: &Recipe) -> Result<Inputs> {
        if let Subject::Artifact(path) = recipe.subject() {
            Existing::check_whole(path).map_err(|e| recipe.document.place(e, "artifact"))?;
        }
        let mut files = Opened::of(recipe)?.files()?;
        files.extend(recipe.calibration().iter().flat_map(|text| text.files()));
        files.extend(recipe.training().map(|text| text.path.clone()));
        files.extend(recipe.step_files().map(|(_, file)| file));
        for (key, path) in recipe.step_checkpoints() {
            files.extend(Model::open(&path).map_err(|e| recipe.document.place(e.into(), &key))?.files);
        }
        files.extend(recipe.evals.iter().flat_map(|eval| eval.task.files()));
        Inputs::identify(files)
    }

    /// Every file that they are read from.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = match &self.subject {
            Measured::Model(model) => {
                let beside = side::paths(model)?.into_iter().chain(described::description_in(&model.path));
                model.files.iter().cloned().chain(beside).collect()
            }
            Measured::Artifact(existing) => existing.files()?,
        };
        files.extend(self.baseline.iter().flat_map(|model| model.files.iter().cloned()));
        Ok(files)
    }
}
