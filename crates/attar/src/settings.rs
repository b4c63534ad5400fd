//! Command-line flags from JSON Schema: a setting of a step, target or task is defined once, in its struct; its flag is derived.

use clap::{Arg, ArgAction, ArgMatches, Command, builder::PossibleValuesParser};
use serde_json::Value;
use toml::Table;

/// Adds a flag for each property of `schema`; lists of tables have none.
pub(crate) fn flags(mut command: Command, schema: &Value) -> Command {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(arg) = flag(name, property, required.contains(&name.as_str())) {
            command = command.arg(arg);
        }
    }
    command
}

fn flag(name: &str, property: &Value, required: bool) -> Option<Arg> {
    let mut help = property["description"].as_str().unwrap_or_default().replace('\n', " ");
    match &property["default"] {
        Value::Null | Value::Bool(false) => {}
        default if property["default"].as_array().is_none_or(|list| !list.is_empty()) => {
            help += &format!(" [default: {}]", default.to_string().trim_matches('"'));
        }
        _ => {}
    }
    let arg = Arg::new(name.to_owned()).long(name.replace('_', "-")).help(help).required(required);
    if allows(property, "boolean") {
        return Some(match property["default"] {
            Value::Bool(true) => arg.value_name("BOOL").value_parser(["true", "false"]),
            // What may be left out is one of three: then it is neither.
            _ if allows(property, "null") => arg.value_name("BOOL").value_parser(["true", "false"]),
            _ => arg.action(ArgAction::SetTrue),
        });
    }
    let item = if allows(property, "array") { &property["items"] } else { property };
    if let Some(keys) = keys(item) {
        let list = allows(property, "array");
        return (!list).then(|| arg.value_name(format!("{}=VALUE", keys.join("|"))).action(ArgAction::Append));
    }
    let arg = arg.value_name(value_name(item)).action(if allows(property, "array") { ArgAction::Append } else { ArgAction::Set });
    match words(item) {
        Some(words) if !allows(item, "integer") => Some(arg.value_parser(PossibleValuesParser::new(words))),
        _ => Some(arg),
    }
}

/// The keys of a table, if a schema is that of one.
fn keys(schema: &Value) -> Option<Vec<String>> {
    let here = schema["properties"].as_object().map(|keys| keys.keys().cloned().collect());
    here.or_else(|| branches(schema).find_map(keys)).or_else(|| allows(schema, "object").then(Vec::new))
}

/// The schema of a key of a table.
fn property<'s>(schema: &'s Value, key: &str) -> &'s Value {
    match &schema["properties"][key] {
        Value::Null => {
            branches(schema).map(|branch| property(branch, key)).find(|found| !found.is_null()).unwrap_or(&Value::Null)
        }
        found => found,
    }
}

/// Whether a schema accepts values of a type.
fn allows(schema: &Value, kind: &str) -> bool {
    let here = match &schema["type"] {
        Value::String(one) => one == kind,
        Value::Array(many) => many.iter().any(|k| k == kind),
        _ => false,
    };
    here || branches(schema).any(|branch| allows(branch, kind))
}

fn branches(schema: &Value) -> impl Iterator<Item = &Value> {
    ["oneOf", "anyOf"].into_iter().flat_map(|key| schema[key].as_array().into_iter().flatten())
}

/// The words that a schema allows, if it lists any.
fn words(schema: &Value) -> Option<Vec<String>> {
    let mut words: Vec<String> =
        schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
    words.extend(schema["const"].as_str().map(Into::into));
    words.extend(branches(schema).filter_map(self::words).flatten());
    (!words.is_empty()).then_some(words)
}

fn value_name(schema: &Value) -> String {
    let words = words(schema).map(|words| words.join("|"));
    match (allows(schema, "integer") || allows(schema, "number"), words) {
        (true, Some(words)) => format!("N|{words}"),
        (true, None) => "N".into(),
        (false, _) => "VALUE".into(),
    }
}

/// The flags given on the command line, as a table of a recipe.
pub(crate) fn table(schema: &Value, matches: &ArgMatches) -> Table {
    let mut table = Table::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if !matches.try_contains_id(name).unwrap_or(false)
            || matches.value_source(name) != Some(clap::parser::ValueSource::CommandLine)
        {
            continue;
        }
        if allows(property, "boolean") {
            let given = matches.try_get_one::<String>(name).ok().flatten();
            table.insert(name.clone(), toml::Value::Boolean(given.is_none_or(|word| word == "true")));
            continue;
        }
        let texts: Vec<&String> = matches.get_many(name).into_iter().flatten().collect();
        if keys(property).is_some() {
            table.insert(name.clone(), toml::Value::Table(pairs(property, &texts)));
            continue;
        }
        let value = match allows(property, "array") {
            true => toml::Value::Array(texts.into_iter().map(|text| value(&property["items"], text)).collect()),
            false => value(property, texts.last().expect("a flag that was given has a value")),
        };
        table.insert(name.clone(), value);
    }
    table
}

/// `KEY=VALUE`s as a table. A key that is a list may be repeated.
fn pairs(schema: &Value, texts: &[&String]) -> Table {
    let mut table = Table::new();
    for text in texts {
        let (key, text) = text.split_once('=').unwrap_or((text, ""));
        let of_key = property(schema, key);
        if !allows(of_key, "array") {
            table.insert(key.to_owned(), value(of_key, text));
            continue;
        }
        let list = table.entry(key).or_insert_with(|| toml::Value::Array(Vec::new()));
        list.as_array_mut().expect("nothing else is put there").push(value(&of_key["items"], text));
    }
    table
}

fn value(schema: &Value, text: &str) -> toml::Value {
    let integer = text.parse().ok().filter(|_| allows(schema, "integer")).map(toml::Value::Integer);
    let number = || text.parse().ok().filter(|_| allows(schema, "number")).map(toml::Value::Float);
    integer.or_else(number).unwrap_or_else(|| toml::Value::String(text.into()))
}
