//! Errors of commands that run a recipe of one step, in the words of the command line: the user has not seen that recipe.
//!
//! ```text
//! step 1 (`quantize`), `group`: found `0`, …              `--group`: found `0`, …
//! hint: add `[data.train]` with the `path` of a text         hint: add `--train FILE`
//! ```

use attar_recipe::Error;
use clap::{ArgMatches, Command};

/// What a recipe calls otherwise than the command line, and how that calls it.
const PHRASES: &[(&str, &str)] = &[
    ("`[data.train]` with the `path` of a text", "`--train FILE`"),
    ("`[data.calibration]`", "`--calibration`"),
    ("`[data.train]`", "`--train`"),
    ("and the recipe has none", "and there is none"),
    ("name it in the recipe: `[model]` with ", "add "),
    (" (on the command line `--ignore`)", ""),
    ("`output`", "`--out`"),
    ("the output folder of this recipe", "the output folder"),
    ("give the recipe another", "give another"),
    ("eval `eval` cannot", "cannot"),
    ("eval `eval`: ", ""),
];

/// `error` without its place in the recipe, with flags where that says keys.
pub(super) fn in_flags(error: Error, command: &Command, arguments: &ArgMatches) -> Error {
    let flags = Flags { command, arguments };
    let words = |text: &str| flags.words(text);
    Error {
        place: None,
        message: words(without_section(&error.message)),
        causes: error.causes.iter().map(|cause| words(cause)).collect(),
        hint: error.hint.as_deref().map(words),
        ..error
    }
}

/// Without ``step 1 (`quantize`)`` in front.
fn without_section(message: &str) -> &str {
    let numbered = ["step 1 (", "eval 1 (", "export 1 ("].iter().find_map(|section| message.strip_prefix(section));
    let rest = numbered.and_then(|rest| Some(rest.split_once(')')?.1));
    rest.and_then(|rest| rest.strip_prefix(", ").or(rest.strip_prefix(": "))).unwrap_or(message)
}

struct Flags<'a> {
    command: &'a Command,
    arguments: &'a ArgMatches,
}

impl Flags<'_> {
    /// `text` with the flag for every key between backticks.
    fn words(&self, text: &str) -> String {
        let text = PHRASES.iter().fold(text.to_owned(), |text, (key, flag)| text.replace(key, flag));
        let parts = text.split('`').enumerate().map(|(at, part)| match at % 2 {
            1 => self.flag(part).unwrap_or_else(|| part.into()),
            _ => part.into(),
        });
        parts.collect::<Vec<String>>().join("`")
    }

    /// `key` or `key = value` as it is typed, if the command has a flag for it.
    fn flag(&self, text: &str) -> Option<String> {
        let (key, value) = text.split_once(" = ").map_or((text, None), |(key, value)| (key, Some(value)));
        // What was typed as a value is no key.
        let typed = |id: &clap::Id| {
            let given = self.arguments.try_get_raw(id.as_str()).ok().flatten();
            given.is_some_and(|mut values| values.any(|value| value == text))
        };
        let arguments = || self.command.get_arguments();
        if arguments().any(|argument| typed(argument.get_id())) {
            return None;
        }
        let long = arguments().find(|argument| argument.get_id() == key).and_then(|argument| argument.get_long())?;
        Some(match value {
            None => format!("--{long}"),
            Some(value) => format!("--{long} {}", value.trim_matches(['[', '"', ']'])),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn said(message: &str) -> String {
        let command = Command::new("quantize")
            .arg(Arg::new("model"))
            .arg(Arg::new("group").long("group"))
            .arg(Arg::new("scale_dtype").long("scale-dtype"))
            .arg(Arg::new("data").long("data"))
            .arg(Arg::new("ignore").long("ignore"));
        let arguments = command.clone().get_matches_from(["quantize", "data", "--group", "0"]);
        in_flags(Error::recipe(message), &command, &arguments).message
    }

    #[test]
    fn keys_become_flags() {
        assert_eq!(said("step 1 (`quantize`), `group`: found `0`"), "`--group`: found `0`");
        assert_eq!(said("leave out `scale_dtype = \"int6\"`"), "leave out `--scale-dtype int6`");
        let list = "leave it out: name it in the recipe: `[model]` with `ignore = [\"a\"]` (on the command line `--ignore`)";
        assert_eq!(said(list), "leave it out: add `--ignore a`");
        assert_eq!(said("add `[data.train]` with the `path` of a text"), "add `--train FILE`");
    }

    #[test]
    fn what_was_typed_stays() {
        assert_eq!(said("cannot read `data`"), "cannot read `data`", "a folder of that name is the model");
        assert_eq!(said("`grid` is no flag"), "`grid` is no flag");
    }
}
