//! An artifact that was there before the run: a folder that engines open, as evals and verbs find it.

use std::path::{Path, PathBuf};

use attar_eval::{ENGINES, Engine, Mode, engine::Artifact};
use attar_model::{ChatTemplate, Config, Tokenizer};
use attar_tensor::Digest;

use crate::{Engines, Error, Result, artifact, described, output::PROMISED};

/// An artifact that some engine opens.
pub struct Existing {
    /// Where it is.
    pub folder: PathBuf,
    /// Of the model that it was made from.
    pub config: Config,
}

impl Existing {
    /// The artifact at `folder`.
    pub fn open(folder: &Path) -> Result<Existing> {
        let config_path = folder.join("config.json");
        let text = std::fs::read(&config_path)
            .map_err(|e| Error::input(format!("cannot read `{}`", config_path.display())).because(&e))?;
        let json = serde_json::from_slice(&text)
            .map_err(|e| Error::input(format!("`{}` is not JSON", config_path.display())).because(&e))?;
        let config = Config::from_json(&config_path, json)?;
        Ok(Existing { folder: folder.into(), config })
    }

    /// The tokenizer of the model that it was made from.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let rows = self.config.json["vocab_size"].as_u64().and_then(|rows| usize::try_from(rows).ok());
        Ok(Tokenizer::open(&self.folder.join("tokenizer.json"))?.within(rows))
    }

    /// The chat template of that model, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let beside = |name: &'static str| {
            let path = self.folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some((path, text))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(attar_model::Error::Io { path, source }),
            }
        };
        Ok(ChatTemplate::beside(beside)?)
    }

    /// Fails if a file of it is not what attar wrote. What others wrote is taken as it is.
    pub fn check_whole(path: &Path) -> Result<()> {
        artifact::check_whole(path)
    }

    /// Whether attar wrote it to return the logits of the last token alone.
    pub(crate) fn returns_last(&self) -> bool {
        described::returns_last(&self.folder)
    }

    /// The engines that open what is at `path`, those for the target that it names first; none opens a checkpoint.
    pub fn engines(path: &Path) -> impl Iterator<Item = &'static Engine> {
        let target = described::target_of(path);
        let mut engines: Vec<&Engine> = ENGINES.to_vec();
        engines.retain(|engine| engine.opens.iter().any(|opens| path.join(opens.file).exists()));
        engines.sort_by_key(|engine| !engine.opens.iter().any(|opens| Some(opens.target) == target.as_deref()));
        engines.into_iter()
    }

    /// Whether `engine` opens what is at `path`.
    pub fn check(path: &Path, engine: &'static Engine) -> Result<()> {
        if engine.opens.iter().any(|opens| path.join(opens.file).exists()) {
            return Ok(());
        }
        let mut files: Vec<String> = engine.opens.iter().map(|opens| format!("`{}`", opens.file)).collect();
        files.dedup();
        let targets: Vec<&str> = engine.opens.iter().map(|opens| opens.target).collect();
        let message = format!("{} cannot open `{}`: there is no {}", engine.title, path.display(), files.join(" or "));
        Err(Error::recipe(message).hint(format!("export it first: `attar export --target {}`", targets.join("|"))))
    }

    /// The artifact in an engine, if that is installed.
    pub fn run_by(&self, engine: &'static Engine, mode: Mode, engines: &Engines) -> attar_eval::Result<Artifact> {
        Ok(Artifact::new(engines.find(engine)?, &self.folder, mode, &engines.host))
    }

    /// Its files, sorted; not what a run says of itself.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let failed = |source| attar_tensor::Error::Io { action: "read", path: self.folder.clone(), source };
        let entries = std::fs::read_dir(&self.folder).map_err(failed)?.flatten();
        let own = |entry: &std::fs::DirEntry| !PROMISED.iter().any(|promised| entry.file_name() == *promised);
        let mut files: Vec<PathBuf> = entries.filter(own).map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        files.sort();
        Ok(files)
    }

    /// The same with their digests, by their names.
    pub(crate) fn digests(&self) -> Result<Vec<(String, Digest)>> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.files()?.iter().map(|path| Ok((name(path), Digest::of_file(path)?))).collect()
    }

    /// Numbers in its weights, if attar wrote it.
    pub(crate) fn parameters(&self) -> Option<u64> {
        described::weights_in(&self.folder)
    }
}
