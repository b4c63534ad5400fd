//! The container of LiteRT-LM (`.litertlm`, version 1): a header that says where sections lie, and the sections, each from a multiple of 16 KiB on.
//!
//! ```text
//! 0   LITERTLM   8   version: three u32   20  zero   24  u64 end of the header   32  header, a FlatBuffer
//! ```

use std::ops::Range;

use super::flat::{Field, Place, Table, Writer};

const MAGIC: &[u8; 8] = b"LITERTLM";

/// The version of the container that LiteRT-LM 0.18 writes.
const VERSION: [u32; 3] = [1, 7, 0];

/// Where the header begins.
const BEGIN: usize = 32;

/// What sections begin at multiples of.
const BLOCK: u64 = 16 << 10;

/// The header is in the first block, or at most in so many.
const LONGEST_HEADER: u64 = 1 << 20;

/// What is in a section: its code in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content(u8);

pub(super) const MODEL: Content = Content(3);
pub(super) const METADATA: Content = Content(5);
/// A zlib stream of `tokenizer.json` behind its length.
pub(super) const TOKENIZER: Content = Content(6);

/// The code of a value that is a text.
const TEXT: u8 = 9;

/// Everything before the first section, and where the sections lie, given what they are and how long.
pub(super) fn header(sections: &[(Content, u64)]) -> (Vec<u8>, Vec<Range<u64>>) {
    // Offsets take the same room whatever they are.
    let none: Vec<Range<u64>> = sections.iter().map(|_| 0..0).collect();
    let mut at = (BEGIN + table(sections, &none).len()) as u64;
    let mut places = Vec::new();
    for (_, length) in sections {
        let begin = at.next_multiple_of(BLOCK);
        at = begin + length;
        places.push(begin..at);
    }
    let table = table(sections, &places);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([0; 4]);
    bytes.extend(((BEGIN + table.len()) as u64).to_le_bytes());
    bytes.extend(table);
    (bytes, places)
}

fn table(sections: &[(Content, u64)], places: &[Range<u64>]) -> Vec<u8> {
    let mut to = Writer::new();
    let entry = |to: &mut Writer<'_>, key: &str, text: &str| {
        let (key, text) = (to.text(key), to.text(text));
        let value = to.table(&[(0, Field::At(text))]);
        to.table(&[(0, Field::At(key)), (1, Field::U8(TEXT)), (2, Field::At(value))])
    };
    let authors = entry(&mut to, "Authors", "attar");
    let system = to.list(&[authors]);
    let system = to.table(&[(0, Field::At(system))]);
    let objects: Vec<Place> = sections
        .iter()
        .zip(places)
        .map(|((content, _), place)| {
            let items = if *content == MODEL { vec![entry(&mut to, "model_type", "tf_lite_prefill_decode")] } else { vec![] };
            let items = to.list(&items);
            to.table(&[
                (0, Field::At(items)),
                (1, Field::U64(place.start)),
                (2, Field::U64(place.end)),
                (3, Field::U8(content.0)),
            ])
        })
        .collect();
    let objects = to.list(&objects);
    let sections = to.table(&[(0, Field::At(objects))]);
    let root = to.table(&[(0, Field::At(system)), (1, Field::At(sections))]);
    to.finish(root, None)
}

/// Where the first section with such a content lies in a file that begins with `head` and has `length` bytes; why it cannot be found, otherwise.
pub(super) fn section(head: &[u8], length: u64, content: Content) -> Result<Range<u64>, &'static str> {
    if !head.starts_with(MAGIC) {
        return Err("it does not begin with LITERTLM");
    }
    let end = head.get(24..BEGIN).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or(0);
    let header = usize::try_from(end).ok().and_then(|end| head.get(BEGIN..end)).ok_or("its header is cut off")?;
    let sections = Table::root(header).and_then(|root| root.table(1)?.vector(0)).ok_or("its header has no sections")?;
    let found = sections.tables().flatten().find(|section| section.u8(3) == Some(content.0));
    let found = found.ok_or("it has no model")?;
    let place = found.u64(1).unwrap_or(0)..found.u64(2).unwrap_or(0);
    if place.start < end || place.start > place.end || place.end > length {
        return Err("a section is outside of the file");
    }
    Ok(place)
}

/// How much of a file [`section`] has to see.
pub(super) fn head(length: u64) -> u64 {
    length.min(LONGEST_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_again() {
        let (bytes, places) = header(&[(METADATA, 10), (TOKENIZER, 20_000), (MODEL, 5)]);
        assert_eq!(places, [16384..16394, 32768..52768, 65536..65541]);
        for (content, place) in [(METADATA, &places[0]), (TOKENIZER, &places[1]), (MODEL, &places[2])] {
            assert_eq!(section(&bytes, 65541, content), Ok(place.clone()));
        }
        assert_eq!(section(&bytes, 65540, MODEL), Err("a section is outside of the file"));
        assert_eq!(section(&bytes[..100], 65541, MODEL), Err("its header is cut off"));
        assert_eq!(section(b"TFL3", 4, MODEL), Err("it does not begin with LITERTLM"));
    }
}
