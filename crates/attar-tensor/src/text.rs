//! Texts as editors write them.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Bytes of a text that are read at a time.
const PIECE: usize = 64 << 10;

/// The text of a file of UTF-8. A byte-order mark in front of it is none of the text.
///
/// # Errors
/// If the file cannot be read, or is no UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    text_pieces(path)?.collect()
}

/// The same, a piece at a time. No piece is empty, and none ends within a character.
///
/// # Errors
/// If the file cannot be opened. Its pieces are errors as those of [`read_text`].
pub fn text_pieces(path: &Path) -> io::Result<TextPieces> {
    // A pipe would make us wait for a writer, and its text is gone after the first reading.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(TextPieces { file: File::open(path)?, left: Vec::new(), read: 0 })
}

/// The pieces of a text.
#[derive(Debug)]
pub struct TextPieces {
    file: File,
    /// The first bytes of a character whose rest was not read yet.
    left: Vec<u8>,
    /// Bytes of the file in front of `left`.
    read: u64,
}

impl Iterator for TextPieces {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<io::Result<String>> {
        self.piece().transpose()
    }
}

impl TextPieces {
    fn piece(&mut self) -> io::Result<Option<String>> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let mut bytes = std::mem::take(&mut self.left);
        (&mut self.file).take(PIECE as u64).read_to_end(&mut bytes)?;
        if self.read == 0 && (bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")) {
            return Err(invalid("the text is UTF-16; UTF-8 is expected".into()));
        }
        let ended = bytes.len() < PIECE;
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() && !ended => error.valid_up_to(),
            Err(error) => {
                let at = self.read + error.valid_up_to() as u64;
                return Err(invalid(format!("byte {at} is no UTF-8, which is expected")));
            }
        };
        self.left = bytes.split_off(valid);
        let text = String::from_utf8(bytes).expect("checked above");
        let start = self.read == 0;
        self.read += valid as u64;
        let text = text.strip_prefix('\u{feff}').filter(|_| start).map(str::to_owned).unwrap_or(text);
        Ok((!text.is_empty()).then_some(text))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pieces_end_between_characters_and_are_the_whole() {
        let file = tempfile::NamedTempFile::new().expect("a place for it");
        for shift in 0..4 {
            let text = format!("\u{feff}{}{}", "x".repeat(shift), "日本語☃e".repeat(20_000));
            fs::write(file.path(), &text).expect("it can be written");
            let pieces: Vec<String> = text_pieces(file.path()).and_then(Iterator::collect).expect("it is UTF-8");
            assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.len() < PIECE + 4));
            assert_eq!(pieces.concat(), text[3..]);
        }
        let late = ["x".repeat(PIECE * 2 + 5).as_bytes(), b"\xe9"].concat();
        fs::write(file.path(), late).expect("it can be written");
        let error = text_pieces(file.path()).and_then(Iterator::collect::<io::Result<String>>).expect_err("no UTF-8");
        assert!(error.to_string().contains(&format!("byte {}", PIECE * 2 + 5)), "{error}");
    }

    #[test]
    fn a_mark_is_no_text_and_another_encoding_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a place for it");
        let read = |bytes: &[u8]| {
            fs::write(file.path(), bytes).expect("it can be written");
            read_text(file.path()).map_err(|error| error.to_string())
        };
        assert_eq!(read("\u{feff}a\u{feff}".as_bytes()).as_deref(), Ok("a\u{feff}"));
        assert_eq!(read(b"").as_deref(), Ok(""));
        assert!(read(b"\xff\xfea\0").is_err_and(|message| message.contains("UTF-16")));
        assert!(read(b"ab\xe9").is_err_and(|message| message.contains("byte 2")));
    }
}
