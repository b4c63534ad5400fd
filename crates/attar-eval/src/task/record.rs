//! Records of questions: JSON objects, one a line or in a list, and what is made of their fields.
//!
//! A setting that makes a text of a record is a template in Jinja over the record's fields (`Question: {{ question }}`), and one that finds a
//! value in it an expression (`choices.text`); both have the methods of Python's strings, and the filters `regex_replace(pattern, to)` and
//! `index(value)`.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use super::kind::read;
use crate::{Error, Result};

/// Instructions that a template may take for a record.
const FUEL: u64 = 1_000_000;

/// An object of a file.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) fields: Map<String, Value>,
    /// Where it is.
    pub(super) place: Place,
}

/// Where a record is, for messages.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// From 1.
    number: usize,
    /// Of what is counted.
    unit: &'static str,
}

impl Place {
    /// What is wrong there.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Record { path: self.path.clone(), unit: self.unit, number: self.number, reason: reason.into() }
    }
}

/// The records of a file; lines without text are left out.
pub(super) fn records(path: &Path) -> Result<Vec<Record>> {
    records_of(path, &read(path)?)
}

/// The records of a text.
pub(super) fn records_of(path: &Path, text: &str) -> Result<Vec<Record>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('[') {
        let all = serde_json::from_str::<Vec<Value>>(text);
        let all =
            all.map_err(|e| Place { path: path.into(), number: e.line(), unit: "line" }.wrong(format!("no list of JSON: {e}")))?;
        return all.into_iter().enumerate().map(|(at, value)| record(path, at + 1, "record", value)).collect();
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(at, line)| {
        let place = || Place { path: path.into(), number: at + 1, unit: "line" };
        let value = serde_json::from_str(line).map_err(|e| place().wrong(format!("no JSON: {e}")))?;
        record(path, at + 1, "line", value)
    });
    parsed.collect()
}

/// The lines of a file, each as the field `name` of a record.
pub(super) fn lines(path: &Path, name: &str) -> Result<Vec<Record>> {
    let text = read(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let record = |(at, line): (usize, &str)| Record {
        fields: Map::from_iter([(name.to_owned(), line.into())]),
        place: Place { path: path.into(), number: at + 1, unit: "line" },
    };
    Ok(lines.map(record).collect())
}

fn record(path: &Path, number: usize, unit: &'static str, value: Value) -> Result<Record> {
    let place = Place { path: path.into(), number, unit };
    match value {
        Value::Object(fields) => Ok(Record { fields, place }),
        _ => Err(place.wrong("expected a JSON object")),
    }
}

impl Record {
    /// The first of its fields with one of these names.
    pub(super) fn first(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.fields.get(*name)?)))
    }

    /// A text by a template.
    pub(super) fn text(&self, setting: &'static str, template: &str) -> Result<String> {
        let jinja = jinja();
        let rendered = jinja.render_str(template, &self.fields);
        rendered.map_err(|error| {
            let named =
                jinja.template_from_str(template).map(|template| template.undeclared_variables(false)).unwrap_or_default();
            self.place.wrong(format!("`{setting}`: {}", self.told(&error, named)))
        })
    }

    /// A value by an expression.
    pub(super) fn value(&self, setting: &'static str, expression: &str) -> Result<Value> {
        let jinja = jinja();
        let compiled =
            jinja.compile_expression(expression).map_err(|error| self.place.wrong(format!("`{setting}`: {}", told(&error))))?;
        let found = compiled.eval(&self.fields);
        let named = || compiled.undeclared_variables(false);
        let found = found.map_err(|error| self.place.wrong(format!("`{setting}`: {}", self.told(&error, named()))))?;
        if found.is_undefined() {
            return Err(self.place.wrong(format!("`{setting}`: there is no `{expression}`")));
        }
        serde_json::to_value(&found).map_err(|error| self.place.wrong(format!("`{setting}`: {error}")))
    }
}

impl Record {
    /// What is wrong with a template or expression that names these fields.
    fn told(&self, error: &minijinja::Error, named: HashSet<String>) -> String {
        let mut missing: Vec<&String> = named.iter().filter(|name| !self.fields.contains_key(*name)).collect();
        missing.sort();
        match (error.kind(), &missing[..]) {
            (minijinja::ErrorKind::UndefinedError, [_, ..]) => {
                let list = |names: Vec<&String>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                format!("there is no {} among {}", list(missing), list(self.fields.keys().collect()))
            }
            _ => told(error),
        }
    }
}

/// What is wrong with a template before any record is read.
pub(super) fn check_template(setting: &'static str, template: &str) -> Result<()> {
    let checked = jinja().template_from_str(template).map(|_| ());
    checked.map_err(|error| Error::Template { key: setting, reason: told(&error) })
}

/// The same of an expression.
pub(super) fn check_expression(setting: &'static str, expression: &str) -> Result<()> {
    let checked = jinja().compile_expression(expression).map(|_| ());
    checked.map_err(|error| Error::Template { key: setting, reason: told(&error) })
}

fn jinja() -> Environment<'static> {
    let mut jinja = Environment::new();
    jinja.set_undefined_behavior(UndefinedBehavior::Strict);
    jinja.set_keep_trailing_newline(true);
    jinja.set_fuel(Some(FUEL));
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.add_filter("index", |list: Vec<minijinja::Value>, of: minijinja::Value| list.iter().position(|one| *one == of));
    jinja.add_filter("regex_replace", |text: String, pattern: String, to: String| {
        let pattern = regex::Regex::new(&pattern)
            .map_err(|error| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, error.to_string()))?;
        Ok::<_, minijinja::Error>(pattern.replace_all(&text, to.as_str()).into_owned())
    });
    jinja
}

fn told(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{} ({detail})", error.kind()),
        None => error.kind().to_string(),
    }
}

/// A text or a number as a text.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Record {
        records_of(Path::new("x.jsonl"), text).expect("it is JSON").remove(0)
    }

    #[test]
    fn lines_and_lists_are_records() {
        let lines = records_of(Path::new("x"), "{\"a\":1}\n\n{\"a\":2}\n").expect("two lines");
        let list = records_of(Path::new("x"), "\u{feff}[{\"a\":1},\n {\"a\":2}]").expect("a list");
        let fields = |records: &[Record]| records.iter().map(|record| record.fields["a"].clone()).collect::<Vec<_>>();
        assert_eq!(fields(&lines), fields(&list));
    }

    #[test]
    fn what_is_no_record_is_named_with_its_place() {
        let wrong = |text: &str| records_of(Path::new("x"), text).expect_err("it is wrong").to_string();
        assert!(wrong("{\"a\":1}\n{\"a\"").starts_with("`x`, line 2: no JSON: "));
        assert_eq!(wrong("{\"a\":1}\n3"), "`x`, line 2: expected a JSON object");
        assert_eq!(wrong("[{\"a\":1}, 3]"), "`x`, record 2: expected a JSON object");
        assert!(wrong("[{\"a\":1}\n").starts_with("`x`, line 2: no list of JSON: "));
    }

    #[test]
    fn templates_and_expressions_see_the_fields() {
        let record = one(r#"{ "q": "a [x] b ", "choices": { "text": ["1", "2"] }, "n": 2 }"#);
        assert_eq!(record.text("prompt", "{{ q.strip() | regex_replace('\\[.*?\\] ', '') }}:\n").expect("it renders"), "a b:\n");
        assert_eq!(record.value("options", "choices.text").expect("it is there"), serde_json::json!(["1", "2"]));
        assert_eq!(record.value("answer", "n - 1").expect("it is there"), serde_json::json!(1));
    }

    #[test]
    fn missing_fields_and_bad_templates_are_errors() {
        let record = one(r#"{ "q": "a" }"#);
        let wrong = record.text("prompt", "{{ nothing }} {{ q }}").expect_err("it is not there").to_string();
        assert!(wrong.ends_with("`prompt`: there is no `nothing` among `q`"), "{wrong}");
        assert!(record.value("answer", "nothing").is_err());
        let wrong = record.value("answer", "nothing.at.all").expect_err("it is not there").to_string();
        assert!(wrong.ends_with("`answer`: there is no `nothing` among `q`"), "{wrong}");
        assert!(record.text("prompt", "{% for i in range(100000000) %}{% endfor %}").is_err(), "it ends");
        assert!(check_template("prompt", "{{ q").is_err() && check_expression("answer", "1 +").is_err());
        assert!(check_template("prompt", "{{ q }}").is_ok() && check_expression("answer", "a.b - 1").is_ok());
    }
}
