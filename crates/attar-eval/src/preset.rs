//! Tasks with the settings of well-known data sets, from the folder `evals/`. The data itself is not there: licences vary.

use std::sync::LazyLock;

use serde_json::Value;

use crate::{Task, task};

/// A task with some of its settings.
#[derive(Debug)]
pub struct Preset {
    /// The name that recipes use as a task's.
    pub name: &'static str,
    /// One line of help.
    pub about: String,
    /// What is measured.
    pub task: &'static Task,
    /// Settings, which those of a recipe go before.
    pub settings: Value,
}

/// The files of the folder, sorted.
const FILES: &[(&str, &str)] = &[
    ("arc", include_str!("../../../evals/arc.toml")),
    ("commonsenseqa", include_str!("../../../evals/commonsenseqa.toml")),
    ("domains", include_str!("../../../evals/domains.toml")),
    ("gsm8k", include_str!("../../../evals/gsm8k.toml")),
    ("hellaswag", include_str!("../../../evals/hellaswag.toml")),
    ("mmlu", include_str!("../../../evals/mmlu.toml")),
    ("openbookqa", include_str!("../../../evals/openbookqa.toml")),
    ("piqa", include_str!("../../../evals/piqa.toml")),
    ("truthfulqa", include_str!("../../../evals/truthfulqa.toml")),
    ("winogrande", include_str!("../../../evals/winogrande.toml")),
];

/// Every preset.
pub static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let preset = |(name, text): &(&'static str, &str)| {
        let mut table: toml::Table = text.parse().expect("the files are TOML: a test reads them");
        let kind = table.remove("task").expect("a preset names its task");
        let about = text.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a preset says what it is");
        Preset {
            name,
            about: about.into(),
            task: task(kind.as_str().expect("a name")).expect("there is such a task"),
            settings: serde_json::to_value(table).expect("TOML without dates is JSON"),
        }
    };
    FILES.iter().map(preset).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of a text in small letters.
    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_lowercase).collect()
    }

    #[test]
    fn texts_to_measure_on_share_no_thirteen_words_with_the_calibration_mixture() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let texts = |folder: &str| {
            let files = std::fs::read_dir(root.join(folder)).expect("it is in the repository").flatten();
            let texts = files.filter(|file| file.file_name() != "README.md").filter(|file| file.path().is_file());
            texts.map(|file| words(&std::fs::read_to_string(file.path()).expect("it is text"))).collect::<Vec<_>>()
        };
        let mixture = texts("calibration");
        let known: std::collections::HashSet<&[String]> = mixture.iter().flat_map(|words| words.windows(13)).collect();
        assert!(known.len() > 20_000);
        let measured = [texts("evals/domains"), vec![words(crate::PROMPTS)]].concat();
        assert_eq!(measured.len(), 6);
        for words in &measured {
            let shared = words.windows(13).find(|run| known.contains(run));
            assert_eq!(shared, None, "the mixture has these words, too");
        }
    }

    #[test]
    fn every_file_of_the_folder_is_a_preset_whose_settings_are_those_of_its_task() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../evals");
        let files = std::fs::read_dir(folder).expect("it is in the repository").flatten();
        let mut names: Vec<String> =
            files.filter_map(|f| Some(f.file_name().to_str()?.strip_suffix(".toml")?.to_owned())).collect();
        names.sort();
        assert_eq!(names, PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>());
        for preset in &*PRESETS {
            let mut settings = preset.settings.clone();
            if settings.get("texts").is_none() {
                settings["data"] = "x".into();
            }
            let parsed = (preset.task.parse)(settings).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            parsed.check(&crate::task::tests::config()).unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            assert!(task(preset.name).is_err(), "{} is a task's name, too", preset.name);
        }
    }
}
