//! The recipe of a verb: a file or standard input, with settings of the command line in place of its own.

use std::path::Path;

use attar_recipe::{Error, LockMode, Recipe};
use clap::{Arg, ArgAction, ArgMatches, Command, builder::ValueParser};
use toml_edit::{DocumentMut, Item, Key, Table, TableLike, Value};

use super::{path, path_argument};

/// In the place of a path: standard input.
const STDIN: &str = "-";

/// Adds the recipe, `--set` and `--output`.
pub(super) fn recipe_arguments(command: Command) -> Command {
    let set = Arg::new("set")
        .long("set")
        .value_name("KEY=VALUE")
        .help("A setting in place of the recipe's, such as step.1.group=32 or data.calibration.samples=64; may be repeated")
        .value_parser(ValueParser::new(parse))
        .action(ArgAction::Append);
    let output = Arg::new("output").long("output").value_name("DIR").help("Output folder in place of the recipe's");
    command.arg(path_argument("RECIPE", "The recipe, a TOML file; `-` reads it from standard input")).arg(set).arg(output)
}

/// Keys of a setting, and its value.
type Setting = (Vec<Key>, Value);

fn parse(text: &str) -> Result<Setting, String> {
    let (keys, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let keys = Key::parse(keys.trim()).map_err(|_| format!("`{keys}` is no key: expected names with dots between them"))?;
    // What is no number, list, table or quoted text is text as it is.
    let value = value.trim();
    Ok((keys, value.parse().unwrap_or_else(|_| Value::from(value))))
}

/// The recipe, and what becomes of its lock file: only the recipe as it is in its file has one.
pub(super) fn recipe(arguments: &ArgMatches) -> Result<(Recipe, LockMode), Error> {
    let path = path(arguments, "recipe");
    let piped = path == Path::new(STDIN);
    let text = if piped { std::io::read_to_string(std::io::stdin().lock()) } else { std::fs::read_to_string(path) };
    let title = if piped { Path::new("standard input") } else { path };
    let text = text.map_err(|e| Error::recipe(format!("cannot read the recipe `{}`", title.display())).because(&e))?;
    let output = arguments.get_one::<String>("output").map(|folder| (vec![Key::new("output")], Value::from(folder.as_str())));
    let settings: Vec<Setting> = arguments.get_many("set").into_iter().flatten().cloned().chain(output).collect();
    let lock = if piped || !settings.is_empty() { LockMode::None } else { LockMode::Update };
    Ok((Recipe::parse(title, &changed(text, &settings)?)?, lock))
}

/// The text with settings in place of its own; every other line stays where it is. What is no TOML stays as it is, too: the
/// recipe's parser has the better words.
fn changed(text: String, settings: &[Setting]) -> Result<String, Error> {
    let Ok(mut document) = text.parse::<DocumentMut>() else { return Ok(text) };
    if settings.is_empty() {
        return Ok(text);
    }
    for (keys, value) in settings {
        set(document.as_table_mut(), keys, value).map_err(|message| {
            let shown: Vec<String> = keys.iter().map(Key::to_string).collect();
            Error::recipe(format!("`--set {}`: {message}", shown.join(".")))
                .hint("count tables of a list from 1: `step.1.group` is that of the first step".to_owned())
        })?;
    }
    Ok(document.to_string())
}

fn set(table: &mut dyn TableLike, keys: &[Key], value: &Value) -> Result<(), String> {
    let [first, rest @ ..] = keys else { return Err("expected a key".into()) };
    if rest.is_empty() {
        return match table.get_mut(first.get()) {
            Some(Item::Value(old)) => {
                let decor = old.decor().clone();
                *old = value.clone();
                *old.decor_mut() = decor;
                Ok(())
            }
            Some(_) => Err(format!("`{}` is a table, not a setting", first.get())),
            None => {
                table.insert(first.get(), Item::Value(value.clone()));
                Ok(())
            }
        };
    }
    match table.entry(first.get()).or_insert_with(implicit) {
        Item::ArrayOfTables(tables) => {
            let count = tables.len();
            let number = rest[0].get().parse::<usize>().ok().filter(|number| (1..=count).contains(number));
            let Some(number) = number else {
                return Err(format!("`{}` has {count}, expected a number from 1 to {count} after it", first.get()));
            };
            set(tables.get_mut(number - 1).expect("it was counted"), &rest[1..], value)
        }
        other => match other.as_table_like_mut() {
            Some(inner) => set(inner, rest, value),
            None => Err(format!("`{}` is a value, not a table", first.get())),
        },
    }
}

/// A table without a header, unless settings of its own need one.
fn implicit() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "recipe = 1 # of the first kind\noutput = \"out\"\n\n[[step]]\nkind = \"quantize\"\ngroup = 64 # small\n";

    fn with(settings: &[&str]) -> Result<String, String> {
        let settings: Vec<Setting> = settings.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
        changed(TEXT.into(), &settings).map_err(|error| error.message.clone())
    }

    #[test]
    fn settings_replace_those_of_the_recipe_and_nothing_moves() {
        let found = with(&["step.1.group=32", "output = some/where", "data.calibration.samples=8"]).expect("all are settings");
        let wanted = TEXT.replace("64", "32").replace("\"out\"", "\"some/where\"");
        assert_eq!(found, format!("{wanted}\n[data.calibration]\nsamples = 8\n"));
        assert_eq!(with(&["step.1.names=[\"a\", \"b\"]"]).expect("a list"), format!("{TEXT}names = [\"a\", \"b\"]\n"));
        assert_eq!(with(&[]).expect("nothing to do"), TEXT);
    }

    #[test]
    fn what_is_no_setting_is_named() {
        for (set, words) in [
            ("group", "expected KEY=VALUE"),
            ("a b=1", "is no key"),
            ("step.0.group=1", "from 1 to 1"),
            ("step.group=1", "from 1 to 1"),
            ("step=1", "is a table"),
            ("output.x=1", "is a value"),
        ] {
            let error = with(&[set]).expect_err(set);
            assert!(error.contains(words), "{set}: {error}");
        }
    }
}
