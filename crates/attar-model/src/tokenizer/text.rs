//! The bytes of each token's text, where a text is those of its tokens one after the other: for devices, which have no library.

use serde_json::Value;

use super::Tokenizer;

impl Tokenizer {
    /// The bytes that each token of the vocabulary stands for, by its number; tokens that do not exist have none.
    ///
    /// `None` where a token's text depends on its neighbours, as with WordPiece. The space that some tokenizers drop from the
    /// beginning of a text is in it.
    pub fn texts(&self) -> Option<Vec<Vec<u8>>> {
        let steps = steps(&serde_json::to_value(self.inner.get_decoder()?).ok()?)?;
        let count = self.inner.get_vocab(true).values().max().map_or(0, |last| *last as usize + 1);
        let added = self.inner.get_added_tokens_decoder();
        let text = |token: u32| match (added.get(&token), self.inner.id_to_token(token)) {
            (Some(special), _) => special.content.clone().into_bytes(),
            (None, Some(piece)) => bytes(&piece, &steps),
            (None, None) => Vec::new(),
        };
        // Numbers without a token are few, whatever a file says.
        (count <= self.limit.unwrap_or(0).max(2 * self.vocabulary())).then(|| (0..count as u32).map(text).collect())
    }
}

/// What a decoder does with one token.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Characters stand for bytes, as in GPT-2.
    Bytes,
    /// `<0x0A>` is a byte.
    Fallback,
    Replace(String, String),
}

/// The steps of a decoder, if all of them look at one token at a time or at the beginning of the text only.
fn steps(decoder: &Value) -> Option<Vec<Step>> {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    match decoder["type"].as_str()? {
        "Sequence" => Some(decoder["decoders"].as_array()?.iter().map(steps).collect::<Option<Vec<_>>>()?.concat()),
        "ByteLevel" => Some(vec![Step::Bytes]),
        "ByteFallback" => Some(vec![Step::Fallback]),
        "Replace" => Some(vec![Step::Replace(word(&decoder["pattern"]["String"])?, word(&decoder["content"])?)]),
        "Metaspace" => Some(vec![Step::Replace(word(&decoder["replacement"])?, " ".into())]),
        "Fuse" | "Strip" => Some(Vec::new()),
        _ => None,
    }
}

fn bytes(piece: &str, steps: &[Step]) -> Vec<u8> {
    let mut text = piece.to_owned();
    for step in steps {
        match step {
            Step::Replace(from, to) => text = text.replace(from, to),
            Step::Fallback => {
                let byte = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|rest| rest.len() == 2);
                if let Some(byte) = byte.and_then(|rest| u8::from_str_radix(rest, 16).ok()) {
                    return vec![byte];
                }
            }
            Step::Bytes => {
                // A token with a character that stands for no byte is taken as it is.
                if let Some(bytes) = text.chars().map(byte_of).collect() {
                    return bytes;
                }
            }
        }
    }
    text.into_bytes()
}

/// The byte that a character stands for in GPT-2's vocabulary: printable ones stand for themselves, the others follow from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..0x100 => Some(code as u8).filter(|byte| printable(*byte)),
        code => (0..=255u8).filter(|byte| !printable(*byte)).nth(code as usize - 0x100),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn all_bytes_have_a_character_and_no_character_two() {
        let mut all: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 256);
        assert_eq!(['Ġ', 'Ċ', 'a'].map(byte_of), [Some(b' '), Some(b'\n'), Some(b'a')]);
    }

    #[test]
    fn pieces_have_spaces_and_bytes() {
        let decoder = serde_json::json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] });
        let steps = steps(&decoder).unwrap();
        assert_eq!(bytes("\u{2581}the", &steps), b" the");
        assert_eq!(bytes("<0xE9>", &steps), [0xe9]);
        assert_eq!(bytes("<0xEG>", &steps), b"<0xEG>");
        assert_eq!(super::steps(&serde_json::json!({ "type": "WordPiece", "prefix": "##" })), None);
    }

    #[test]
    fn the_bytes_of_tokens_are_the_text() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folders = ["testdata/models", "../shared/models"].map(|folder| here.join(folder));
        let text = "To be, or not to be:\n\tthat is the question 12345 \u{e9}\u{1f642} \u{201c}quoted\u{201d}  end.\n";
        let mut compared = 0;
        for folder in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
            let path = folder.path().join("tokenizer.json");
            let Some(tokenizer) = path.exists().then(|| Tokenizer::open(&path).unwrap()) else { continue };
            let (Some(texts), Ok(tokens)) = (tokenizer.texts(), tokenizer.encode(text)) else { continue };
            let all: Vec<u8> = tokens.iter().flat_map(|token| texts[*token as usize].clone()).collect();
            let (all, decoded) = (String::from_utf8_lossy(&all).into_owned(), tokenizer.decode(&tokens).unwrap());
            assert!(all == decoded || all.strip_prefix(' ') == Some(&*decoded), "{}: {all:?}, {decoded:?}", path.display());
            compared += 1;
        }
        assert!(compared > 0);
    }
}
