//! Names that a person knows for those that a graph gives to its values: `b3.attention_in.int8 + b3.qkv` is
//! `block 3 / attention / norm + query, key, value`.

/// Values of a block, and the layers that make them.
const LAYERS: [(&str, &str); 16] = [
    ("attention_in", "attention / norm"),
    ("qkv", "attention / query, key, value"),
    ("query", "attention / query"),
    ("key", "attention / key"),
    ("value", "attention / value"),
    ("merged", "attention / scaled dot product"),
    ("attention_out", "attention / output"),
    ("attended", "attention / output"),
    ("mlp_in", "MLP / norm"),
    ("gate", "MLP / gate"),
    ("up", "MLP / up"),
    ("gated", "MLP / gate and up"),
    ("mlp_out", "MLP / down"),
    ("x", "MLP / down"),
    ("columns", "rescaling"),
    ("state", "keys and values"),
];

/// The same of values of no block.
const OUTSIDE: [(&str, &str); 4] = [("x", "embedding"), ("normed", "final norm"), ("logits", "head"), ("columns", "rescaling")];

/// Between the parts of a name.
const SLASH: &str = " / ";

/// A name that a person reads: `b3.attention.query.int8` is `block 3 / attention / query`.
pub fn named(name: &str) -> String {
    let parts: Vec<Vec<String>> = name.split(" + ").map(words).collect();
    let shared = shared(&parts);
    let (first, rest) = parts.split_first().expect("a name has a part");
    let rest = rest.iter().map(|part| part[shared..].join(SLASH));
    std::iter::once(first.join(SLASH)).chain(rest).collect::<Vec<_>>().join(" + ")
}

/// The same without its block: `attention / query`.
pub(super) fn within_block(name: &str) -> String {
    let name = named(name);
    match name.split_once(SLASH) {
        Some((first, rest)) if is_block(first) => rest.into(),
        _ => name,
    }
}

/// The block that a name belongs to, if all its parts belong to the same: `block 3`.
pub(super) fn block(name: &str) -> Option<String> {
    let mut blocks = name.split(" + ").map(|part| words(part).swap_remove(0));
    let first = blocks.next().filter(|first| is_block(first))?;
    blocks.all(|other| other == first).then_some(first)
}

fn is_block(word: &str) -> bool {
    word.starts_with("block ")
}

/// How many words the beginnings of all parts share; every part keeps its last one.
fn shared(parts: &[Vec<String>]) -> usize {
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(1);
    (0..shortest - 1).take_while(|at| parts.iter().all(|part| part[*at] == parts[0][*at])).count()
}

/// The words of a name without `+`, the block in front.
fn words(name: &str) -> Vec<String> {
    let pieces: Vec<&str> = name.split('.').filter(|piece| *piece != "int8" && *piece != "int16").collect();
    let full = pieces.iter().any(|piece| matches!(*piece, "attention" | "mlp"));
    let mut words: Vec<String> = Vec::new();
    let mut pieces = pieces.into_iter().peekable();
    while let Some(piece) = pieces.next() {
        // `blocks.3` is a block, too.
        let number = if piece == "blocks" { pieces.next_if(|next| is_number(next)) } else { piece.strip_prefix('b') };
        let table: &[(&str, &str)] = if words.first().is_some_and(|word| is_block(word)) { &LAYERS } else { &OUTSIDE };
        let known = table.iter().find(|(word, _)| *word == piece).map(|(_, layer)| *layer);
        match (number.filter(|number| is_number(number)), known.filter(|_| !full)) {
            (Some(number), _) => words.push(format!("block {number}")),
            (None, Some(layer)) => words.extend(layer.split(SLASH).map(String::from)),
            (None, None) if piece == "rotary" && words.is_empty() => return vec!["rotary table".into()],
            (None, None) => words.push(piece.replace('_', " ").replace("mlp", "MLP")),
        }
    }
    // A name of nothing but encodings stays.
    if words.is_empty() { vec![name.to_owned()] } else { words }
}

/// Digits, or the star of a pattern.
fn is_number(text: &str) -> bool {
    text == "*" || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_person_knows() {
        for (name, wanted) in [
            ("b3.attention.query.int8", "block 3 / attention / query"),
            ("blocks.3.mlp.gate + blocks.3.mlp.down", "block 3 / MLP / gate + down"),
            ("b0.attention_in.int8 + b0.qkv", "block 0 / attention / norm + query, key, value"),
            ("b0.mlp_in.int8 + b0.gated.int8 + b0.x", "block 0 / MLP / norm + gate and up + down"),
            ("b0.qkv.state", "block 0 / attention / query, key, value / keys and values"),
            ("b*.attended", "block * / attention / output"),
            ("b1.x + b2.mlp_in", "block 1 / MLP / down + block 2 / MLP / norm"),
            ("final_norm", "final norm"),
            ("logits", "head"),
            ("x", "embedding"),
            ("rotary.77aecf70", "rotary table"),
            ("int8", "int8"),
            ("", ""),
        ] {
            assert_eq!(named(name), wanted, "{name}");
        }
    }

    #[test]
    fn blocks_are_told_from_what_is_in_them() {
        assert_eq!(block("b0.attention_in.int8 + b0.qkv").as_deref(), Some("block 0"));
        assert_eq!([block("logits"), block("b1.x + b2.mlp_in")], [None, None]);
        assert_eq!(within_block("b0.attention_in.int8 + b0.qkv"), "attention / norm + query, key, value");
        assert_eq!(within_block("logits"), "head");
    }
}
