//! TOML with exact positions.
//!
//! serde's tagged enums lose positions, so a document is walked as a tree of spanned values: the word that says what a
//! table is (`kind`, `target`, `task`) is taken out and looked up, and only the rest is handed to serde. Every key
//! and value keeps its place under a path like `step[1].group`, for mistakes that show later.

use std::{collections::BTreeMap, ops::Range, path::PathBuf};

use attar_tensor::nearest;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use crate::{Error, Result, settings, words::plain};

/// A parsed text and the place of everything in it.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    places: BTreeMap<String, Range<usize>>,
}

impl Document {
    /// Records the place of everything in `table`.
    pub(crate) fn new(path: PathBuf, text: String, table: &DeTable<'_>) -> Document {
        let mut places = BTreeMap::new();
        note_table(&mut places, "", table);
        Document { path, text, places }
    }

    /// `error` with the place of `key`, or of the closest thing around it.
    pub(crate) fn place(&self, error: Error, key: &str) -> Error {
        let mut key = key;
        loop {
            if let Some(span) = self.places.get(key) {
                return error.at(&self.path, &self.text, span.clone());
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return error.at(&self.path, &self.text, 0..0),
            }
        }
    }

    pub(crate) fn at(&self, error: Error, span: Range<usize>) -> Error {
        error.at(&self.path, &self.text, span)
    }
}

fn note_table(places: &mut BTreeMap<String, Range<usize>>, prefix: &str, table: &DeTable<'_>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        note_value(places, &path, value);
    }
}

fn note_value(places: &mut BTreeMap<String, Range<usize>>, path: &str, value: &Spanned<DeValue<'_>>) {
    places.insert(path.into(), value.span());
    match value.get_ref() {
        DeValue::Table(table) => note_table(places, path, table),
        DeValue::Array(array) => {
            array.iter().enumerate().for_each(|(i, value)| note_value(places, &format!("{path}[{i}]"), value));
        }
        _ => {}
    }
}

/// The root of a text.
pub(crate) fn parse(path: PathBuf, text: &str) -> Result<(Document, DeTable<'_>)> {
    let empty = Document { path: path.clone(), text: text.into(), places: BTreeMap::new() };
    let root = DeTable::parse(text).map_err(|e| {
        let error = Error::recipe(e.message().trim().replace('\n', "; "));
        empty.at(error, e.span().unwrap_or(0..0))
    })?;
    let root = root.into_inner();
    Ok((Document::new(path, text.into(), &root), root))
}

/// A table of the document on its way to becoming a typed value.
pub(crate) struct Section<'d, 't> {
    pub(crate) document: &'d Document,
    /// Its key: `step[1]`.
    pub(crate) key: String,
    /// What it is, for messages: "step 2 (`quantize`)".
    pub(crate) title: String,
    table: DeTable<'t>,
    span: Range<usize>,
}

impl<'d, 't> Section<'d, 't> {
    /// The whole document.
    pub(crate) fn root(document: &'d Document, table: DeTable<'t>) -> Section<'d, 't> {
        Section { document, key: String::new(), title: "the recipe".into(), table, span: 0..0 }
    }

    /// Takes an array of tables out.
    pub(crate) fn take_tables(&mut self, name: &str) -> Result<Vec<Section<'d, 't>>> {
        let Some(value) = self.table.remove(name) else { return Ok(Vec::new()) };
        let key = self.path(name);
        let span = value.span();
        let DeValue::Array(array) = value.into_inner() else {
            let error = Error::recipe(format!("`{name}` is a list of tables")).hint(format!("write `[[{name}]]`"));
            return Err(self.document.at(error, span));
        };
        let sections = array.into_iter().enumerate().map(|(i, item)| {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => Ok(Section {
                    document: self.document,
                    key: format!("{key}[{i}]"),
                    title: format!("{name} {}", i + 1),
                    table,
                    span,
                }),
                _ => Err(self.document.at(Error::recipe(format!("{name} {} is not a table", i + 1)), span)),
            }
        });
        sections.collect()
    }

    /// Takes the word under `name` out and looks it up among `known`.
    pub(crate) fn take_word<T: Copy>(&mut self, name: &str, default: Option<&str>, known: &[(&'static str, T)]) -> Result<T> {
        let Some(value) = self.table.remove(name) else {
            if let Some(found) = default.and_then(|word| known.iter().find(|(k, _)| *k == word)) {
                return Ok(found.1);
            }
            let words: Vec<String> = known.iter().map(|(k, _)| format!("`{k}`")).collect();
            let error = Error::recipe(format!("{} has no `{name}`", self.title)).hint(format!("one of {}", words.join(", ")));
            return Err(self.document.at(error, self.header()));
        };
        let word = value.get_ref().as_str().unwrap_or_default();
        match known.iter().find(|(k, _)| *k == word) {
            Some((k, found)) => {
                self.title = format!("{} (`{k}`)", self.title);
                Ok(*found)
            }
            None => {
                let hint = match nearest(word, known.iter().map(|(k, _)| *k)) {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => format!("known: {}", known.iter().map(|(k, _)| *k).collect::<Vec<_>>().join(", ")),
                };
                let found = self.document.text.get(value.span()).unwrap_or(word);
                Err(self.document.at(Error::recipe(format!("{}: unknown {name} {found}", self.title)).hint(hint), value.span()))
            }
        }
    }

    /// Whether a key is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// `error` at a key.
    pub(crate) fn place(&self, error: Error, name: &str) -> Error {
        self.document.place(error, &self.path(name))
    }

    /// Splits off the keys that `T` has.
    pub(crate) fn take_part<T: DeserializeOwned + JsonSchema>(&mut self) -> Result<T> {
        let fields = fields::<T>();
        let (mine, rest) =
            std::mem::take(&mut self.table).into_iter().partition(|(key, _)| fields.iter().any(|f| f == key.get_ref()));
        self.table = rest;
        self.decode(mine)
    }

    /// All that is left, as a `T`. An unknown key is an error at that key, with the closest known one; `also` are keys
    /// that were taken before.
    pub(crate) fn finish<T: DeserializeOwned + JsonSchema>(mut self, also: &[String]) -> Result<T> {
        let table = std::mem::take(&mut self.table);
        self.check_keys(&table, &settings::of::<T>(), also)?;
        self.decode(table)
    }

    /// An unknown key is an error, before anything is said of what is missing. `schemas` together name the keys, `also` those
    /// that are taken in another way.
    pub(crate) fn check_known(&self, schemas: &[&Value], also: &[String]) -> Result<()> {
        let mut all = json!({ "properties": {} });
        for (name, schema) in schemas.iter().filter_map(|schema| schema["properties"].as_object()).flatten() {
            all["properties"][name] = schema.clone();
        }
        self.check_keys(&self.table, &all, also)
    }

    /// All that is left, as a registry's entry reads it: its schema names the keys, `parse` does the rest.
    pub(crate) fn finish_as<T>(
        mut self,
        schema: &serde_json::Value,
        also: &[String],
        parse: impl FnOnce(serde_json::Value) -> std::result::Result<T, attar_eval::Invalid>,
    ) -> Result<T> {
        let table = std::mem::take(&mut self.table);
        self.check_keys(&table, schema, also)?;
        parse(self.decode(table)?).map_err(|invalid| {
            let (message, hint) = plain(&invalid.message);
            match invalid.key.as_str() {
                "" => self.document.at(Error::recipe(format!("{}: {message}", self.title)).hint(hint), self.header()),
                key => self.place(Error::recipe(format!("{}, `{key}`: {message}", self.title)).hint(hint), key),
            }
        })
    }

    /// An unknown key is an error at that key, with the closest known one, in this table and in those within it.
    fn check_keys(&self, table: &DeTable<'_>, schema: &Value, also: &[String]) -> Result<()> {
        let fields: Vec<&str> = schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        let all = || fields.iter().copied().chain(also.iter().map(String::as_str));
        for (key, value) in table {
            let word = &**key.get_ref();
            if fields.contains(&word) {
                self.check_within(word, value.get_ref(), &schema["properties"][word])?;
            } else if !also.iter().any(|taken| taken == word) {
                let hint = match nearest(word, all()) {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => format!("known: {}", all().collect::<Vec<_>>().join(", ")),
                };
                let error = Error::recipe(format!("{} has no key `{word}`", self.title)).hint(hint);
                return Err(self.document.at(error, key.span()));
            }
        }
        Ok(())
    }

    /// The same in the tables that a value is or lists, where the schema says which keys those have.
    fn check_within(&self, name: &str, value: &DeValue<'_>, schema: &Value) -> Result<()> {
        match value {
            DeValue::Table(table) => match with_keys(schema, "properties") {
                Some(schema) => self.within(name).check_keys(table, schema, &[]),
                None => Ok(()),
            },
            DeValue::Array(items) => match with_keys(schema, "items") {
                Some(schema) => items.iter().try_for_each(|item| self.check_within(name, item.get_ref(), &schema["items"])),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// A table under `name`, without what is in it.
    fn within(&self, name: &str) -> Section<'d, 't> {
        let title = format!("{}, `{name}`", self.title);
        Section { document: self.document, key: self.path(name), title, table: DeTable::new(), span: self.span.clone() }
    }

    fn decode<T: DeserializeOwned>(&self, table: DeTable<'t>) -> Result<T> {
        let value = Spanned::new(self.header(), DeValue::Table(table));
        serde_path_to_error::deserialize(ValueDeserializer::from(value)).map_err(|e| {
            let path = e.path().to_string();
            let error = e.into_inner();
            let subject = match path.trim_matches('.') {
                "" => self.title.clone(),
                key => format!("{}, `{key}`", self.title),
            };
            let (message, hint) = plain(error.message());
            let error_at = error.span().unwrap_or(self.header());
            self.document.at(Error::recipe(format!("{subject}: {message}")).hint(hint), error_at)
        })
    }

    /// Where the section starts: its `[[header]]`, not all its lines.
    pub(crate) fn header(&self) -> Range<usize> {
        let text = &self.document.text[self.span.clone()];
        let end = text.find('\n').map_or(self.span.end, |line| self.span.start + line);
        self.span.start..end.max(self.span.start)
    }

    fn path(&self, name: &str) -> String {
        if self.key.is_empty() { name.into() } else { format!("{}.{name}", self.key) }
    }
}

/// The schema, or the only one of its alternatives that has `keyword`.
fn with_keys<'s>(schema: &'s Value, keyword: &str) -> Option<&'s Value> {
    if schema.get(keyword).is_some() {
        return Some(schema);
    }
    let ways = ["anyOf", "oneOf"].into_iter().filter_map(|word| schema.get(word)?.as_array()).flatten();
    let mut found = ways.filter(|way| way.get(keyword).is_some());
    found.next().filter(|_| found.next().is_none())
}

/// The keys of a settings struct, from its schema: the one place where they are listed.
pub(crate) fn fields<T: JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(T);
    let properties = schema.get("properties").and_then(|p| p.as_object());
    properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
}
