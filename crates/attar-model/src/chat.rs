//! Chat templates: a dialogue as the text that a model was trained on.
//!
//! A template is Jinja, in the dialect of transformers' `apply_chat_template`: blocks leave no line behind, strings have Python's methods,
//! `tojson` writes as Python's `json.dumps`, and `raise_exception` refuses a dialogue. There is no clock (`strftime_now`): the same dialogue is
//! always the same text, and templates have a date of their own for that case.
//!
//! ```
//! use attar_model::ChatTemplate;
//! let template = ChatTemplate::new("{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}", [("eos_token", "</s>")]);
//! let messages = serde_json::json!([{ "role": "user", "content": " hi " }]);
//! assert_eq!(template.render(&messages).unwrap(), "<|user|>hi</s>");
//! ```

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use minijinja::{Environment, ErrorKind, Value as Any, value::Kwargs};
use regex::Regex;
use serde::Serialize;
use serde_json::{Value, ser::Formatter};

use crate::{Error, Model, Result, tokenizer};

/// A model's chat template, with the texts of its special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    /// By the names that a template knows them by: `bos_token`.
    tokens: BTreeMap<String, String>,
}

/// Instructions that a template may take for a dialogue: a real one takes some thousands, and a hostile one would never end.
const FUEL: u64 = 10_000_000;

/// Where a template is beside a checkpoint, the first that has one, and where special tokens are, the last that has them.
const FILES: [&str; 4] = ["chat_template.jinja", "chat_template.json", "special_tokens_map.json", "tokenizer_config.json"];

impl ChatTemplate {
    /// A template, and the special tokens that it may name.
    pub fn new<'t>(source: &str, tokens: impl IntoIterator<Item = (&'t str, &'t str)>) -> ChatTemplate {
        let tokens = tokens.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        ChatTemplate { source: source.to_owned(), tokens }
    }

    /// That of a model; nothing, if it has none. Of several, the one called `default`.
    ///
    /// # Errors
    /// If a file beside the checkpoint cannot be read, or is no JSON.
    pub fn of(model: &Model) -> Result<Option<ChatTemplate>> {
        if let tokenizer::Origin::Gguf(_, metadata) = &model.tokenizer {
            let Some(source) = model.chat_template() else { return Ok(None) };
            return Ok(Some(ChatTemplate { source: source.to_owned(), tokens: tokenizer::special_tokens(metadata) }));
        }
        ChatTemplate::beside(|name| {
            let Some(path) = model.side_file(name)? else { return Ok(None) };
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
            Ok(Some((path, text)))
        })
    }

    /// That of the files beside a checkpoint: `read` gives one of a name, and its path for messages, if it is there.
    ///
    /// # Errors
    /// Those of `read`, or if a file that should be JSON is not.
    pub fn beside(mut read: impl FnMut(&'static str) -> Result<Option<(PathBuf, String)>>) -> Result<Option<ChatTemplate>> {
        let mut tokens = BTreeMap::new();
        let mut found: Option<String> = None;
        for name in FILES {
            let Some((path, text)) = read(name)? else { continue };
            let template = if name.ends_with(".jinja") {
                Some(text)
            } else {
                let config = parsed(&path, &text)?;
                tokens.extend(named(&config));
                default_of(&config["chat_template"])
            };
            found = found.or(template);
        }
        Ok(found.map(|source| ChatTemplate { source, tokens }))
    }

    /// The template itself, in Jinja.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The texts of special tokens, by the names that a template knows them by.
    pub fn tokens(&self) -> &BTreeMap<String, String> {
        &self.tokens
    }

    /// The text of a dialogue: a list of messages, each with its `role` and `content`.
    ///
    /// # Errors
    /// What the template raises, or what is wrong with it.
    pub fn render(&self, messages: &Value) -> std::result::Result<String, String> {
        self.rendered(messages, false)
    }

    /// The same up to where the assistant answers: `add_generation_prompt` of transformers.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_for_answer(&self, messages: &Value) -> std::result::Result<String, String> {
        self.rendered(messages, true)
    }

    fn rendered(&self, messages: &Value, for_answer: bool) -> std::result::Result<String, String> {
        let mut jinja = Environment::new();
        jinja.set_trim_blocks(true);
        jinja.set_lstrip_blocks(true);
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_filter("tojson", to_json);
        jinja.add_function("raise_exception", |message: String| -> std::result::Result<Any, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let none = Any::from(());
        let dialogue = [
            ("messages", Any::from_serialize(messages)),
            ("add_generation_prompt", for_answer.into()),
            ("tools", none.clone()),
            ("documents", none),
        ];
        let dialogue = dialogue.map(|(name, value)| (name.to_owned(), value));
        let tokens = self.tokens.iter().map(|(name, text)| (name.clone(), Any::from(text)));
        let all: Any = tokens.chain(dialogue).collect();
        let told = |error: minijinja::Error| error.detail().map_or_else(|| error.to_string(), str::to_owned);
        jinja.render_str(&without_marks(&self.source), all).map_err(told)
    }
}

fn parsed(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::Io { path: path.into(), source: io::Error::new(io::ErrorKind::InvalidData, e) })
}

/// Without the marks around what the assistant says, `{% generation %}`: transformers' own, for masks. A comment trims white space as they do.
fn without_marks(template: &str) -> Cow<'_, str> {
    static MARK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}").expect("a constant that the tests use"));
    MARK.replace_all(template, "{#$1 $2#}")
}

/// A template, or that of several that is called `default`.
fn default_of(template: &Value) -> Option<String> {
    let named = |one: &&Value| one["name"] == "default";
    let text = template.as_str().or_else(|| template.as_array()?.iter().find(named)?["template"].as_str());
    text.map(str::to_owned)
}

/// The special tokens in a `tokenizer_config.json`: texts, or objects with a `content`.
fn named(config: &Value) -> impl Iterator<Item = (String, String)> {
    let tokens = config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
    tokens.filter_map(|(name, value)| Some((name.clone(), value.as_str().or_else(|| value["content"].as_str())?.to_owned())))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Any, options: Kwargs) -> std::result::Result<Any, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Transformers writes other letters as they are by default, too.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut written = Vec::new();
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut written, pretty)).map_err(failed)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut written, Spaced)).map_err(failed)?,
    }
    let text = String::from_utf8(written).expect("JSON is UTF-8");
    Ok(Any::from_safe_string(text))
}

/// A space after every comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

/// A dialogue for models without a template and for people: the only message, or all with who says them. `None` if it is no list of messages, each with a
/// `role` and a text as its `content`.
pub fn dialogue(messages: &Value) -> Option<String> {
    let said = |message: &Value| Some((message["role"].as_str()?.to_owned(), message["content"].as_str()?.to_owned()));
    let all: Vec<(String, String)> = messages.as_array()?.iter().map(said).collect::<Option<_>>()?;
    match &all[..] {
        [] => None,
        [(_, only)] => Some(only.clone()),
        all => Some(all.iter().map(|(role, content)| format!("{role}: {content}")).collect::<Vec<_>>().join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Against transformers (`testdata/oracle/chat.py`).
    #[test]
    fn dialogues_are_the_texts_of_transformers() {
        let oracle: Value = serde_json::from_str(include_str!("../../../testdata/oracle/chat.json")).unwrap();
        let tokens = oracle["tokens"].as_object().unwrap();
        let cases = oracle["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let tokens = tokens.iter().map(|(name, text)| (name.as_str(), text.as_str().unwrap()));
            let found = ChatTemplate::new(case["template"].as_str().unwrap(), tokens).render(&case["messages"]);
            assert_eq!(found.as_deref().ok(), case["text"].as_str(), "{case}, {found:?}");
        }
    }

    #[test]
    fn what_a_template_raises_is_the_error() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", []);
        assert_eq!(template.render(&json!([])), Err("roles must alternate".into()));
    }

    #[test]
    fn a_template_without_end_is_refused() {
        let template = ChatTemplate::new("{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}", []);
        assert!(template.render(&json!([])).is_err());
    }

    #[test]
    fn json_is_written_as_python_does() {
        let template = ChatTemplate::new("{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}", []);
        let found = template.render(&json!([{ "a": [1, "<é>"], "b": null }]));
        let pretty = "{\n  \"a\": [\n    1,\n    \"<é>\"\n  ],\n  \"b\": null\n}";
        assert_eq!(found, Ok(format!("[{{\"a\": [1, \"<é>\"], \"b\": null}}]|{pretty}")));
    }
}
