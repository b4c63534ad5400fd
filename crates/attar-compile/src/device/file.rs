//! Device files: TOML tables of numbers, each with its source.
//!
//! ```toml
//! name = "example"
//! inherit = "generic-npu"                       # a shipped device, or a file in the same folder: "other.toml"
//! summary = "one line"
//! strategies = ["latency", "throughput", "energy"]
//!
//! [sources]
//! sheet = { confidence = "read", text = "the vendor's data sheet, revision 3" }
//!
//! [dram]
//! bytes = ["2 GiB", "sheet"]                    # a value, and the source it was taken from
//! read = "12 GB/s"                              # without a source: assumed
//! ```

use super::keys::KEYS;
use super::{Confidence, Origin, Strategy};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value as written, with its source.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) text: String,
    pub(super) origin: Origin,
    /// File and line, or what else said so.
    pub(super) place: String,
}

/// A device file, with what it inherits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) summary: String,
    pub(super) strategies: Vec<Strategy>,
    pub(super) entries: BTreeMap<String, Setting>,
    /// The files that were read, of those that are not shipped.
    pub(super) paths: Vec<PathBuf>,
}

/// Where a file's text stands.
#[derive(Clone)]
pub(super) enum Location {
    Shipped(&'static str),
    Path(PathBuf),
}

impl Location {
    fn title(&self) -> String {
        match self {
            Location::Shipped(name) => (*name).into(),
            Location::Path(path) => path.display().to_string(),
        }
    }

    fn text(&self) -> Result<String> {
        match self {
            Location::Shipped(name) => super::shipped(name).map(str::to_owned),
            Location::Path(path) => {
                std::fs::read_to_string(path).map_err(|source| Error::DeviceRead { path: path.clone(), source })
            }
        }
    }

    /// What `inherit = "name"` in this file means.
    fn parent(&self, name: &str) -> Result<Location> {
        if name.ends_with(".toml") {
            let folder = match self {
                Location::Path(path) => path.parent().unwrap_or(Path::new("")),
                Location::Shipped(_) => Path::new(""),
            };
            return Ok(Location::Path(folder.join(name)));
        }
        super::known(name).map(Location::Shipped)
    }
}

/// Reads a file and, below it, what it inherits. `chain` holds the files that led here.
pub(super) fn read(location: &Location, mut chain: Vec<String>) -> Result<File> {
    let title = location.title();
    let seen = chain.contains(&title);
    chain.push(title.clone());
    if seen {
        return Err(Error::DeviceCycle { chain });
    }
    let text = location.text()?;
    let reader = Reader { title: &title, text: &text };
    let root = DeTable::parse(&text).map_err(|error| Error::DeviceSyntax {
        place: reader.place(error.span().map_or(0, |span| span.start)),
        message: error.message().replace('\n', "; "),
    })?;
    let root = root.into_inner();
    let mut base = match root.get("inherit") {
        Some(value) => read(&location.parent(&reader.string(value, "inherit")?)?, chain)?,
        None => File::default(),
    };
    if let Location::Path(path) = location {
        base.paths.push(path.clone());
    }
    reader.apply(&root, base)
}

struct Reader<'a> {
    title: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, at: usize) -> String {
        let line = self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        format!("{}:{line}", self.title)
    }

    fn wrong(&self, value: &Spanned<DeValue<'_>>, key: &str, wanted: &'static str) -> Error {
        let found = self.text[value.span()].lines().next().unwrap_or_default().into();
        Error::DeviceValue { key: key.into(), found, wanted, place: self.place(value.span().start) }
    }

    fn string(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Result<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(self.wrong(value, key, "a string")),
        }
    }

    /// What this file says, over what it inherits.
    fn apply(&self, root: &DeTable<'_>, mut file: File) -> Result<File> {
        let sources = self.sources(root)?;
        for (key, value) in root {
            match (&**key.get_ref(), value.get_ref()) {
                ("name", _) => file.name = self.string(value, "name")?,
                ("summary", _) => file.summary = self.string(value, "summary")?,
                ("strategies", _) => file.strategies = self.strategies(value)?,
                ("inherit" | "sources", _) => {}
                (section, DeValue::Table(table)) => self.section(section, table, &sources, &mut file)?,
                (other, _) => return Err(self.unknown(other, key.span().start)),
            }
        }
        Ok(file)
    }

    fn sources(&self, root: &DeTable<'_>) -> Result<BTreeMap<String, Origin>> {
        let mut sources = BTreeMap::new();
        let Some(value) = root.get("sources") else { return Ok(sources) };
        let wanted = "sources such as `sheet = { confidence = \"read\", text = \"…\" }`";
        let DeValue::Table(table) = value.get_ref() else { return Err(self.wrong(value, "sources", wanted)) };
        for (tag, value) in table {
            let key = format!("sources.{}", tag.get_ref());
            let DeValue::Table(source) = value.get_ref() else { return Err(self.wrong(value, &key, wanted)) };
            let (Some(confidence), Some(text), 2) = (source.get("confidence"), source.get("text"), source.len()) else {
                return Err(self.wrong(value, &key, wanted));
            };
            let name = self.string(confidence, &key)?;
            let confidence = Confidence::named(&name)
                .ok_or_else(|| self.wrong(confidence, &key, "one of `measured`, `read`, `derived`, `assumed`"))?;
            sources.insert(tag.get_ref().to_string(), Origin { confidence, text: self.string(text, &key)? });
        }
        Ok(sources)
    }

    fn strategies(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<Strategy>> {
        let wanted = "some of `latency`, `throughput`, `energy`";
        let DeValue::Array(items) = value.get_ref() else { return Err(self.wrong(value, "strategies", wanted)) };
        let named =
            |item| Strategy::named(&self.string(item, "strategies")?).ok_or_else(|| self.wrong(item, "strategies", wanted));
        items.iter().map(named).collect()
    }

    fn section(&self, name: &str, table: &DeTable<'_>, sources: &BTreeMap<String, Origin>, file: &mut File) -> Result<()> {
        for (key, value) in table {
            let path = format!("{name}.{}", key.get_ref());
            if !KEYS.iter().any(|known| known.name == path) {
                return Err(self.unknown(&path, key.span().start));
            }
            let place = self.place(value.span().start);
            let entry = match value.get_ref() {
                DeValue::Array(items) => self.sourced(value, items.first(), items.get(1), items.len(), &path, sources)?,
                _ => {
                    let text = format!("no source is given in {}", self.title);
                    (self.written(value, &path)?, Origin { confidence: Confidence::Assumed, text })
                }
            };
            file.entries.insert(path, Setting { text: entry.0, origin: entry.1, place });
        }
        Ok(())
    }

    fn sourced(
        &self,
        value: &Spanned<DeValue<'_>>,
        first: Option<&Spanned<DeValue<'_>>>,
        tag: Option<&Spanned<DeValue<'_>>>,
        count: usize,
        key: &str,
        sources: &BTreeMap<String, Origin>,
    ) -> Result<(String, Origin)> {
        let (Some(first), Some(tag), 2) = (first, tag, count) else {
            return Err(self.wrong(value, key, "a value and its source, such as `[\"2 GiB\", \"sheet\"]`"));
        };
        let name = self.string(tag, key)?;
        let origin = sources.get(&name).ok_or_else(|| self.wrong(tag, key, "the name of an entry of `[sources]`"))?;
        Ok((self.written(first, key)?, origin.clone()))
    }

    /// A value as it is written: a string's content or a number.
    fn written(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Result<String> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Integer(_) | DeValue::Float(_) => Ok(self.text[value.span()].replace('_', "")),
            _ => Err(self.wrong(value, key, "a number or a string")),
        }
    }

    fn unknown(&self, key: &str, at: usize) -> Error {
        let nearest = super::nearest(key, KEYS.iter().map(|k| k.name).chain(["name", "summary", "strategies", "inherit"]));
        Error::DeviceKey { key: key.into(), nearest, place: self.place(at) }
    }
}
