//! Problems as text: the comma-separated form of the minimalloc benchmarks, `id,lower,upper,size`, with lifetimes half
//! open. Columns come in any order; columns of other names are read over, so that what [`write_csv`] writes can be read
//! again. Nothing is quoted.

use std::{collections::HashMap, fmt::Write};

use super::problem::{Buffer, MAX_BYTES, Placement};
use crate::{Error, Result};

/// Bytes of a file, rows of it, and bytes of an id, at most.
const MAX_TEXT: usize = 16 << 20;
const MAX_ROWS: usize = 1 << 16;
const MAX_ID: usize = 256;

/// The columns that there must be.
const COLUMNS: [&str; 4] = ["id", "lower", "upper", "size"];

/// Buffers and what they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Distinct.
    pub ids: Vec<String>,
    /// In the order of the rows.
    pub buffers: Vec<Buffer>,
}

/// Reads a problem; mistakes are told with their line.
pub fn read_csv(bytes: &[u8]) -> Result<Entries> {
    if bytes.len() > MAX_TEXT {
        return Err(Error::CsvLarge { found: bytes.len(), most: MAX_TEXT, what: "bytes" });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| Error::CsvText { at: error.valid_up_to() })?;
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.is_empty());
    let (line, header) = lines.next().ok_or(Error::CsvEmpty)?;
    let header = Header::read(line, header.trim_start_matches('\u{feff}'))?;
    let mut entries = Entries { ids: Vec::new(), buffers: Vec::new() };
    let (mut seen, mut total) = (HashMap::new(), 0);
    for (line, row) in lines {
        if entries.ids.len() == MAX_ROWS {
            return Err(Error::CsvLarge { found: MAX_ROWS + 1, most: MAX_ROWS, what: "rows" });
        }
        let (id, buffer) = header.row(line, row)?;
        if let Some(first) = seen.insert(id.to_owned(), line) {
            return Err(Error::CsvTwice { line, id: id.to_owned(), first });
        }
        total += buffer.size;
        if total > MAX_BYTES {
            return Err(Error::CsvTotal { line, most: MAX_BYTES });
        }
        entries.ids.push(id.to_owned());
        entries.buffers.push(buffer);
    }
    if entries.ids.is_empty() { Err(Error::CsvEmpty) } else { Ok(entries) }
}

/// Writes the problem with the offsets of its solution, in the order it was read.
pub fn write_csv(entries: &Entries, placement: &Placement) -> String {
    let mut text = "id,lower,upper,size,offset\n".to_owned();
    for ((id, buffer), offset) in entries.ids.iter().zip(&entries.buffers).zip(&placement.offsets) {
        let Buffer { lower, upper, size, .. } = buffer;
        writeln!(text, "{id},{lower},{upper},{size},{offset}").expect("a string takes everything");
    }
    text
}

/// Where the columns stand.
struct Header {
    at: [usize; COLUMNS.len()],
    count: usize,
}

impl Header {
    fn read(line: usize, text: &str) -> Result<Header> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        let mut at = [0; COLUMNS.len()];
        for (at, column) in at.iter_mut().zip(COLUMNS) {
            let mut places = (0..names.len()).filter(|&i| names[i] == column);
            *at = places.next().ok_or(Error::CsvColumn { line, column })?;
            if places.next().is_some() {
                return Err(Error::CsvColumnTwice { line, column });
            }
        }
        Ok(Header { at, count: names.len() })
    }

    fn row<'a>(&self, line: usize, text: &'a str) -> Result<(&'a str, Buffer)> {
        let fields: Vec<&str> = text.splitn(self.count + 1, ',').map(str::trim).collect();
        if fields.len() != self.count || text.matches(',').count() + 1 != self.count {
            return Err(Error::CsvFields { line, found: text.matches(',').count() + 1, wanted: self.count });
        }
        let [id, lower, upper, size] = self.at.map(|at| fields[at]);
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Error::CsvId { line, length: id.len(), most: MAX_ID });
        }
        let number = |column: &'static str, text: &str| match text.parse::<u64>() {
            Ok(number) => Ok(number),
            Err(_) => Err(Error::CsvNumber { line, column, found: text.chars().take(40).collect() }),
        };
        let (lower, upper, size) = (number("lower", lower)?, number("upper", upper)?, number("size", size)?);
        if lower >= upper {
            return Err(Error::CsvLifetime { line, id: id.to_owned(), lower, upper });
        }
        if size == 0 || size > MAX_BYTES {
            return Err(Error::CsvSize { line, id: id.to_owned(), size, most: MAX_BYTES });
        }
        Ok((id, Buffer::new(lower, upper, size)))
    }
}
