//! What a run reads models from: the checkpoint or artifact that it is about, and the checkpoint that it compares with.

use std::path::PathBuf;

use attar_model::{Config, Model, Tokenizer};

use crate::{
    Error, Existing, Recipe, Result,
    inputs::Inputs,
    recipe::{Compared, Subject},
    side,
};

/// What a recipe is about, opened.
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Measured {
    Model(Model),
    Artifact(Existing),
}

/// Texts that tell tokenizers apart: words, numbers, code, white space, other scripts.
const PROBES: [&str; 4] = [
    "The tokenizer's words, again.",
    "In 1984 they'd paid $12,345.67",
    "for (int i = 0; i < n; i++) {\n\t\tx[i] *= 2;\n}\n",
    "naïve café, 東京と日本語, привет мир",
];

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

    /// Fails if the baseline has a tokenizer that makes other tokens: their logits could not be compared.
    pub(crate) fn check_tokenizers(&self) -> Result<()> {
        let Some(baseline) = self.baseline.as_ref().filter(|baseline| baseline.no_tokenizer().is_none()) else { return Ok(()) };
        let Ok(own) = self.tokenizer() else { return Ok(()) };
        let theirs = baseline.tokenizer()?;
        for text in PROBES {
            let [own, theirs] = [own.encode(text), theirs.encode(text)];
            if let (Ok(own), Ok(theirs)) = (own, theirs)
                && own != theirs
            {
                let first = text.lines().next().unwrap_or_default();
                let message = format!("the baseline has another tokenizer: the text `{first}` becomes {theirs:?}, not {own:?}");
                return Err(Error::input(message).hint("compare models of one tokenizer".to_owned()));
            }
        }
        Ok(())
    }

    /// The windows of the recipe's calibration text, if there is such.
    pub(crate) fn windows(&self, recipe: &Recipe) -> Result<Option<Vec<Vec<u32>>>> {
        let Some(calibration) = recipe.calibration() else { return Ok(None) };
        let windows = calibration.windows(&self.tokenizer()?, self.config());
        windows.map(Some).map_err(|e| recipe.document.place(e.into(), "data.calibration"))
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
        files.extend(recipe.calibration().map(|calibration| calibration.path.clone()));
        files.extend(recipe.step_files().map(|(_, file)| file));
        files.extend(recipe.evals.iter().flat_map(|eval| eval.task.files()));
        Inputs::identify(files)
    }

    /// Every file that they are read from.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = match &self.subject {
            Measured::Model(model) => model.files.iter().cloned().chain(side::paths(model)?).collect(),
            Measured::Artifact(existing) => existing.files()?,
        };
        files.extend(self.baseline.iter().flat_map(|model| model.files.iter().cloned()));
        Ok(files)
    }
}
