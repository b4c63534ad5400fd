//! Patterns over names of tensors and keys, for what is left out on purpose: `*` matches anything within one part of a name,
//! `**` any number of parts. Keys of `config.json` are named `config.KEY`.

/// One pattern.
///
/// ```
/// # use attar_model::Pattern;
/// assert!(Pattern::new("model.layers.*.self_attn.*.bias").matches("model.layers.3.self_attn.q_proj.bias"));
/// assert!(Pattern::new("vision.**").matches("vision.blocks.0.mlp.weight"));
/// assert!(!Pattern::new("vision.*").matches("vision.blocks.0.mlp.weight"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// From text.
    pub fn new(text: impl Into<String>) -> Pattern {
        Pattern(text.into())
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether it matches `name`.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name): (Vec<&str>, Vec<&str>) = (self.0.split('.').collect(), name.split('.').collect());
        parts(&pattern, &name)
    }
}

fn parts(pattern: &[&str], name: &[&str]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (["**"], _) => true,
        (["**", rest @ ..], _) => (0..=name.len()).any(|skipped| parts(rest, &name[skipped..])),
        ([first, rest @ ..], [part, others @ ..]) => within(first.as_bytes(), part.as_bytes()) && parts(rest, others),
        _ => false,
    }
}

/// Within one part.
fn within(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| within(rest, &text[skipped..])),
        ([first, rest @ ..], [byte, others @ ..]) => first == byte && within(rest, others),
        _ => false,
    }
}
