//! FlatBuffers by field numbers: tables are written without generated code, and read back with every offset checked.
//!
//! The schemas of LiteRT are large and only a few of their tables are written here, so the numbers of the fields stand in the code that writes and
//! reads them, beside their names in the schema. A field that is written is in the file, whatever its default.

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, UnionWIPOffset, VOffsetT, WIPOffset};

/// The value of a field.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Bool(bool),
    U8(u8),
    I8(i8),
    I32(i32),
    U32(u32),
    U64(u64),
    F32(f32),
    /// A string, a vector, a table.
    At(Place),
}

/// Something that is written already.
pub(super) type Place = WIPOffset<UnionWIPOffset>;

/// Where a field is found in a table's list of offsets.
fn slot(number: u16) -> VOffsetT {
    4 + 2 * number
}

/// Writes one buffer.
pub(super) struct Writer<'b>(FlatBufferBuilder<'b>);

impl<'b> Writer<'b> {
    pub(super) fn new() -> Writer<'b> {
        Writer(FlatBufferBuilder::new())
    }

    pub(super) fn table(&mut self, fields: &[(u16, Field)]) -> Place {
        let start = self.0.start_table();
        for (number, field) in fields {
            let slot = slot(*number);
            match *field {
                Field::Bool(value) => self.0.push_slot_always(slot, value),
                Field::U8(value) => self.0.push_slot_always(slot, value),
                Field::I8(value) => self.0.push_slot_always(slot, value),
                Field::I32(value) => self.0.push_slot_always(slot, value),
                Field::U32(value) => self.0.push_slot_always(slot, value),
                Field::U64(value) => self.0.push_slot_always(slot, value),
                Field::F32(value) => self.0.push_slot_always(slot, value),
                Field::At(value) => self.0.push_slot_always(slot, value),
            }
        }
        let end: WIPOffset<TableFinishedWIPOffset> = self.0.end_table(start);
        WIPOffset::new(end.value())
    }

    pub(super) fn text(&mut self, text: &str) -> Place {
        self.0.create_string(text).as_union_value()
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Place {
        self.0.create_vector(bytes).as_union_value()
    }

    pub(super) fn i32s(&mut self, values: &[i32]) -> Place {
        self.0.create_vector(values).as_union_value()
    }

    pub(super) fn i64s(&mut self, values: &[i64]) -> Place {
        self.0.create_vector(values).as_union_value()
    }

    pub(super) fn f32s(&mut self, values: &[f32]) -> Place {
        self.0.create_vector(values).as_union_value()
    }

    pub(super) fn list(&mut self, places: &[Place]) -> Place {
        self.0.create_vector(places).as_union_value()
    }

    pub(super) fn finish(mut self, root: Place, identifier: Option<&str>) -> Vec<u8> {
        self.0.finish(root, identifier);
        self.0.finished_data().to_vec()
    }
}

/// A table of a buffer that may be anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'d> {
    data: &'d [u8],
    at: usize,
}

/// A vector of such a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vector<'d> {
    data: &'d [u8],
    at: usize,
    pub(super) len: usize,
}

fn number<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Where the offset at `at` leads, forwards.
fn follow(data: &[u8], at: usize) -> Option<usize> {
    at.checked_add(u32::from_le_bytes(number(data, at)?) as usize)
}

impl<'d> Table<'d> {
    /// The root of a buffer.
    pub(super) fn root(data: &'d [u8]) -> Option<Table<'d>> {
        Some(Table { data, at: follow(data, 0)? })
    }

    /// Where a field is; `None` if the table lacks it.
    fn field(&self, number_of: u16) -> Option<usize> {
        let back = i32::from_le_bytes(number(self.data, self.at)?);
        let list = usize::try_from(self.at as i64 - i64::from(back)).ok()?;
        let length = u16::from_le_bytes(number(self.data, list)?);
        let slot = slot(number_of);
        if slot + 2 > length {
            return None;
        }
        let offset = u16::from_le_bytes(number(self.data, list + usize::from(slot))?);
        (offset > 0).then(|| self.at + usize::from(offset))
    }

    pub(super) fn u8(&self, field: u16) -> Option<u8> {
        self.data.get(self.field(field)?).copied()
    }

    pub(super) fn i32(&self, field: u16) -> Option<i32> {
        number(self.data, self.field(field)?).map(i32::from_le_bytes)
    }

    pub(super) fn u32(&self, field: u16) -> Option<u32> {
        number(self.data, self.field(field)?).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, field: u16) -> Option<u64> {
        number(self.data, self.field(field)?).map(u64::from_le_bytes)
    }

    pub(super) fn table(&self, field: u16) -> Option<Table<'d>> {
        Some(Table { data: self.data, at: follow(self.data, self.field(field)?)? })
    }

    pub(super) fn vector(&self, field: u16) -> Option<Vector<'d>> {
        let at = follow(self.data, self.field(field)?)?;
        let len = u32::from_le_bytes(number(self.data, at)?) as usize;
        // Elements have a byte at least.
        (len <= self.data.len() - at).then_some(Vector { data: self.data, at: at + 4, len })
    }

    pub(super) fn text(&self, field: u16) -> Option<&'d str> {
        let Vector { data, at, len } = self.vector(field)?;
        std::str::from_utf8(data.get(at..at + len)?).ok()
    }
}

impl<'d> Vector<'d> {
    pub(super) fn table(&self, index: usize) -> Option<Table<'d>> {
        (index < self.len).then_some(())?;
        Some(Table { data: self.data, at: follow(self.data, self.at + 4 * index)? })
    }

    pub(super) fn tables(self) -> impl Iterator<Item = Option<Table<'d>>> {
        (0..self.len).map(move |index| self.table(index))
    }

    pub(super) fn i32(&self, index: usize) -> Option<i32> {
        (index < self.len).then_some(())?;
        number(self.data, self.at + 4 * index).map(i32::from_le_bytes)
    }

    pub(super) fn f32(&self, index: usize) -> Option<f32> {
        (index < self.len).then_some(())?;
        number(self.data, self.at + 4 * index).map(f32::from_le_bytes)
    }

    pub(super) fn i64(&self, index: usize) -> Option<i64> {
        (index < self.len).then_some(())?;
        number(self.data, self.at + 8 * index).map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer() -> Vec<u8> {
        let mut writer = Writer::new();
        let (name, numbers) = (writer.text("name"), writer.i32s(&[1, -2, 3]));
        let inner = writer.table(&[(0, Field::F32(0.5)), (2, Field::U64(7))]);
        let list = writer.list(&[inner, inner]);
        let root = writer.table(&[
            (0, Field::At(name)),
            (1, Field::At(numbers)),
            (3, Field::At(list)),
            (4, Field::U8(9)),
            (6, Field::U32(0)),
        ]);
        writer.finish(root, Some("TEST"))
    }

    #[test]
    fn what_is_written_is_read() {
        let data = buffer();
        let root = Table::root(&data).unwrap();
        assert_eq!((root.text(0), root.u8(4), root.u32(6), root.u32(7)), (Some("name"), Some(9), Some(0), None));
        let numbers = root.vector(1).unwrap();
        assert_eq!((0..4).map(|i| numbers.i32(i)).collect::<Vec<_>>(), [Some(1), Some(-2), Some(3), None]);
        let inner: Vec<Option<u64>> = root.vector(3).unwrap().tables().map(|table| table.unwrap().u64(2)).collect();
        assert_eq!(inner, [Some(7), Some(7)]);
        assert_eq!(&data[4..8], b"TEST");
    }

    #[test]
    fn a_damaged_buffer_is_read_within_its_bounds() {
        let data = buffer();
        for at in 0..data.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = data.clone();
                damaged[at] = value;
                for damaged in [&damaged[..], &damaged[..at]] {
                    let Some(root) = Table::root(damaged) else { continue };
                    let _ = (root.text(0), root.vector(1).map(|v| (0..v.len).filter_map(|i| v.i32(i)).count()));
                    let _ = root.vector(3).map(|v| v.tables().flatten().filter_map(|table| table.u64(2)).count());
                }
            }
        }
    }
}
