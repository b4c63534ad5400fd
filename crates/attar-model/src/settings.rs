//! The settings of a JSON file by key: each has the type and the range that the reader wants, `null` is the default, and what
//! nobody asked for is known in the end.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The keys that were asked for, with those of inner objects as `rope_scaling.factor`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<Mutex<BTreeSet<String>>>);

impl Asked {
    /// Notes a key.
    pub(crate) fn note(&self, key: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    }

    /// All of them.
    pub(crate) fn keys(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A JSON object whose keys are settings.
#[derive(Clone)]
pub(crate) struct Settings<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    /// What its keys have in front: `rope_scaling.`.
    at: String,
    asked: &'a Asked,
}

/// Largest count or width that a configuration may state: beyond it a product of two could overflow.
const LIMIT: usize = 1 << 24;

impl<'a> Settings<'a> {
    /// Of the file at `path`.
    pub(crate) fn new(path: &'a Path, json: &'a Value, asked: &'a Asked) -> Result<Settings<'a>> {
        match json.as_object() {
            Some(map) => Ok(Settings { path, map, at: String::new(), asked }),
            None => {
                Err(Error::Setting { path: path.into(), key: "the file".into(), found: short(json), wanted: "an object".into() })
            }
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The key with those of the objects around it.
    pub(crate) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.at)
    }

    /// The value, unless it is absent or `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.note(self.full(key));
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether it is there and `null`.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.asked.note(self.full(key));
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// The error for a value that is not `wanted`.
    pub(crate) fn wrong(&self, key: &str, found: impl Into<String>, wanted: impl Into<String>) -> Error {
        Error::Setting { path: self.path.into(), key: self.full(key), found: found.into(), wanted: wanted.into() }
    }

    /// The value, which must be there.
    pub(crate) fn need<T>(&self, key: &str, value: Option<T>, wanted: &str) -> Result<T> {
        value.ok_or_else(|| self.wrong(key, "missing", wanted))
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let value = self.get(key);
        value.map(|value| read(value).ok_or_else(|| self.wrong(key, short(value), wanted))).transpose()
    }

    /// A truth value.
    pub(crate) fn truth(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "`true` or `false`", Value::as_bool)
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A count or width of at least one.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = |value: &Value| whole(value).and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=LIMIT).contains(n));
        self.typed(key, &format!("a whole number from 1 to {LIMIT}"), size)
    }

    /// The same, where it must be given.
    pub(crate) fn need_size(&self, key: &str) -> Result<usize> {
        self.need(key, self.size(key)?, "a whole number of at least 1")
    }

    /// A number above 0 that f32 can hold.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let held = |n: &f64| (*n as f32) > 0.0 && (*n as f32).is_finite();
        self.typed(key, "a number above 0", |value| value.as_f64().filter(held))
    }

    /// A number of 0 or more that f32 can hold.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let held = |n: &f64| *n >= 0.0 && (*n as f32).is_finite();
        self.typed(key, "a number of 0 or more", |value| value.as_f64().filter(held))
    }

    /// A list of numbers above 0.
    pub(crate) fn factors(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let factor = |value: &Value| value.as_f64().map(|n| n as f32).filter(|n| *n > 0.0 && n.is_finite());
        self.typed(key, "a list of numbers above 0", |value| value.as_array()?.iter().map(factor).collect())
    }

    /// The number of a token.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.tokens(key)?.and_then(|tokens| tokens.first().copied()))
    }

    /// The number of a token, or a list of them.
    pub(crate) fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let token = |value: &Value| whole(value).and_then(|n| u32::try_from(n).ok());
        self.typed(key, "the number of a token, or a list of them", |value| match value {
            Value::Array(many) => many.iter().map(token).collect(),
            // What some writers put for "none".
            one if one.as_i64() == Some(-1) => Some(Vec::new()),
            one => token(one).map(|one| vec![one]),
        })
    }

    /// An object.
    pub(crate) fn inner(&self, key: &str) -> Result<Option<Settings<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| {
            self.asked.note(self.full(&format!("{key}.")));
            Settings { map, at: self.full(&format!("{key}.")), ..self.clone() }
        }))
    }

    /// Its keys and values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }
}

/// A whole number, also where it is written as `8.0`.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e15).contains(n)).map(|n| n as u64))
}

/// A value for messages.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
