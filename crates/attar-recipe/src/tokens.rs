//! Whether two tokenizers are the same.

use attar_model::Tokenizer;

/// Texts that tell tokenizers apart: words, numbers, code, white space, other scripts.
const PROBES: [&str; 4] = [
    "The tokenizer's words, again.",
    "In 1984 they'd paid $12,345.67",
    "for (int i = 0; i < n; i++) {\n\t\tx[i] *= 2;\n}\n",
    "naïve café, 東京と日本語, привет мир",
];

/// A text that another tokenizer cuts in another way than one's own.
pub(crate) fn difference(own: &Tokenizer, other: &Tokenizer) -> Option<String> {
    PROBES.iter().find_map(|text| {
        let (Ok(own), Ok(other)) = (own.encode(text), other.encode(text)) else { return None };
        let first = text.lines().next().unwrap_or_default();
        (own != other).then(|| format!("the text `{first}` becomes {other:?}, not {own:?}"))
    })
}

/// How the tokens of another tokenizer differ from one's own.
pub(crate) fn other_tokens(own: &Tokenizer, other: &Tokenizer) -> Option<String> {
    let [own, other] = [own, other].map(|tokenizer| tokenizer.to_json().ok());
    let tokens = |json: &Option<String>| -> Option<serde_json::Value> {
        let mut json: serde_json::Value = serde_json::from_str(json.as_deref()?).ok()?;
        Some(json["model"]["vocab"].take())
    };
    (own != other && tokens(&own) != tokens(&other)).then(|| "their vocabularies differ".to_owned())
}
