//! Texts as editors write them.

use std::{fs, io, path::Path};

/// The text of a file of UTF-8. A byte-order mark in front of it is none of the text.
///
/// # Errors
/// If the file cannot be read, or is no UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the text is UTF-16; UTF-8 is expected"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("byte {at} is no UTF-8, which is expected"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

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
