//! What serde and the TOML reader say of a value, in the words of a recipe's author.
//!
//! ```text
//! invalid type: boolean `true`, expected usize      found `true`, expected a whole number of 0 or more
//! missing field `grid`                              `grid` is missing
//! unknown variant `mse2`, expected one of `absmax`, `mse`
//! ```

use attar_tensor::nearest;

/// A message in plain words, and what to write instead, if that can be told.
pub(crate) fn plain(message: &str) -> (String, Option<String>) {
    let message = message.trim().replace('\n', "; ");
    if let Some(field) = message.strip_prefix("missing field ") {
        return (format!("{field} is missing"), None);
    }
    for kind in ["unknown variant `", "unknown field `"] {
        if let Some((word, rest)) = message.strip_prefix(kind).and_then(|rest| rest.split_once('`')) {
            return unknown(word, &ticked(rest));
        }
    }
    let wrong = ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|kind| message.strip_prefix(kind));
    match wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, wanted)) => (format!("found {}, expected {}", self::found(found), expected(wanted)), None),
        None => (message, None),
    }
}

/// A word that is none of those that are known.
pub(crate) fn unknown(word: &str, known: &[&str]) -> (String, Option<String>) {
    let all: Vec<String> = known.iter().map(|known| format!("`{known}`")).collect();
    let hint = nearest(word, known.iter().copied()).map(|nearest| format!("did you mean `{nearest}`?"));
    (format!("`{word}` is not known; known: {}", all.join(", ")), hint)
}

/// The words between backticks.
fn ticked(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `boolean `true`` without the word for its type.
fn found(text: &str) -> String {
    let value = |kind: &str| text.strip_prefix(kind);
    if let Some(quoted) = value("string ") {
        return format!("`{quoted}`");
    }
    let kinds = ["boolean ", "integer ", "floating point "];
    match (kinds.iter().find_map(|kind| value(kind)), text) {
        (Some(ticked), _) => ticked.into(),
        (None, "sequence") => "a list".into(),
        (None, "map") => "a table".into(),
        (None, other) => other.into(),
    }
}

/// What a type of Rust holds.
fn expected(text: &str) -> String {
    let of = |kind: &str| text.strip_prefix(kind);
    match text {
        "usize" | "u8" | "u16" | "u32" | "u64" => "a whole number of 0 or more".into(),
        "a nonzero usize" | "a nonzero u32" | "a nonzero u64" => "a whole number of 1 or more".into(),
        "isize" | "i8" | "i16" | "i32" | "i64" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a string" | "str" | "string or map" => "a text in quotes".into(),
        "path string" => "a path in quotes".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table".into(),
        _ if of("struct ").is_some() || of("internally tagged enum ").is_some() => "a table".into(),
        _ if of("enum ").is_some() || of("variant ").is_some() => "one of its words, in quotes".into(),
        _ if of("tuple of ").is_some() || of("an array of length ").is_some() => "a list".into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_rust_become_words() {
        for (said, wanted) in [
            ("invalid type: boolean `true`, expected usize", "found `true`, expected a whole number of 0 or more"),
            ("invalid type: string \"x\", expected a boolean", "found `\"x\"`, expected `true` or `false`"),
            ("invalid value: integer `0`, expected a nonzero usize", "found `0`, expected a whole number of 1 or more"),
            ("invalid type: map, expected path string", "found a table, expected a path in quotes"),
            ("missing field `grid`", "`grid` is missing"),
            ("a group has at least 1 weight", "a group has at least 1 weight"),
        ] {
            assert_eq!(plain(said), (wanted.to_owned(), None), "{said}");
        }
    }

    #[test]
    fn an_unknown_word_is_answered_with_the_nearest_one() {
        let (said, hint) = plain("unknown variant `msee`, expected one of `absmax`, `mse`");
        assert_eq!(said, "`msee` is not known; known: `absmax`, `mse`");
        assert_eq!(hint.as_deref(), Some("did you mean `mse`?"));
        assert_eq!(plain("unknown variant `zebra`, expected `exact` or `default`").1, None);
    }
}
