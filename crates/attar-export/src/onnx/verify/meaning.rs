//! What the nodes that read a tensor say it holds, by the texts of the operators.

use onnx_protobuf::{NodeProto, TensorProto};

use super::{
    codes::{Codes, Scale, Values, Zero},
    file::{Opened, Place, int},
    grid::{Grid, float},
};
use crate::{Error, Result};

/// What a tensor holds.
pub(super) enum Meaning<'f> {
    /// The weight itself.
    Values(&'f Place),
    /// Codes of it.
    Codes(Codes<'f>),
}

/// What the nodes that read tensor `name` say it holds.
pub(super) fn meaning<'f>(opened: &'f Opened, name: &str, [rows, columns]: [usize; 2]) -> Result<Meaning<'f>> {
    let place = opened.place(name)?;
    for node in opened.readers(name) {
        let reads_as = |input: usize| node.input.get(input).is_some_and(|i| i == name);
        let codes = match node.op_type.as_str() {
            "DequantizeLinear" if reads_as(0) => linear_codes(opened, node, place, [rows, columns])?,
            "MatMulNBits" if reads_as(1) => block_codes(opened, node, place, [2, 3], [rows, columns])?,
            "GatherBlockQuantized" if reads_as(0) => block_codes(opened, node, place, [2, 3], [rows, columns])?,
            "Cast" if reads_as(0) && int(node, "to") == Some(6) => looked_up(opened, node, place, [rows, columns])?,
            "Gather" if reads_as(0) && int(node, "axis").is_none() && matches!(place.code, 2 | 3) => {
                gathered_codes(opened, node, place, [rows, columns])?
            }
            _ => continue,
        };
        return Ok(Meaning::Codes(codes));
    }
    Ok(Meaning::Values(place))
}

/// DequantizeLinear of codes `[columns, rows]`: one scale, one per row (axis 1), or one per group and row (axis 0).
fn linear_codes<'f>(opened: &'f Opened, node: &NodeProto, place: &'f Place, [rows, columns]: [usize; 2]) -> Result<Codes<'f>> {
    expect(opened, &node.name, &place.dims, &[columns, rows])?;
    let (scale, over) = scales(opened, &node.input[1], rows)?;
    let (group, shared) = match (scale.dims.as_slice(), int(node, "axis"), int(node, "block_size")) {
        ([], _, None | Some(0)) => (columns, [0, 0]),
        ([n], Some(1), None | Some(0)) if *n == rows => (columns, [1, 0]),
        ([groups, n], Some(0), Some(size)) if *n == rows && size > 0 && columns.div_ceil(size as usize) == *groups => {
            (size as usize, [1, rows])
        }
        other => {
            return Err(Error::unexpected(
                &opened.path,
                format!("the scale of `{}`", node.name),
                format!("{other:?}"),
                "a known form",
            ));
        }
    };
    let zero = match node.input.get(2) {
        None => Zero::Code(0),
        Some(name) if opened.tensor(name).is_some_and(is_zero) => {
            let dims: Vec<usize> =
                opened.tensor(name).into_iter().flat_map(|tensor| &tensor.dims).map(|dim| *dim as usize).collect();
            expect(opened, name, &dims, &scale.dims)?;
            Zero::Code(0)
        }
        Some(name) => {
            let place = opened.place(name)?;
            expect(opened, name, &place.dims, &scale.dims)?;
            Zero::Codes(Grid::new(place, shared))
        }
    };
    let codes = Grid::new(place, [1, rows]);
    let values = match place.code {
        17 => Values::Table((0..=255).map(|code| float(code, 4, 3)).collect()),
        19 => Values::Table((0..=255).map(|code| float(code, 5, 2)).collect()),
        _ => Values::Even(zero),
    };
    let scale = Scale { grid: Some(Grid::new(scale, shared)), over };
    Ok(Codes { columns, codes, scale, values, group }.normal())
}

/// Whether a tensor of the model file has nothing but zeros.
fn is_zero(tensor: &TensorProto) -> bool {
    !tensor.raw_data.is_empty() && tensor.raw_data.iter().all(|byte| *byte == 0)
}

/// Codes `[rows, groups, group]` or `[rows * groups, group]` that say where in a table a value is: Gather and
/// GatherElements of ONNX. One table is the same for all and has scales, or each group has its own and has none.
fn looked_up<'f>(opened: &'f Opened, cast: &NodeProto, place: &'f Place, [rows, columns]: [usize; 2]) -> Result<Codes<'f>> {
    let index = &cast.output[0];
    let missing = |what, wanted| Error::unexpected(&opened.path, format!("the {what} of `{index}`"), "missing", wanted);
    let gather = opened.readers(index).find(|n| n.op_type.starts_with("Gather") && n.input[1] == *index);
    let gather = gather.ok_or_else(|| missing("reader", "a Gather"))?;
    let group = place.dims.last().copied().unwrap_or(0).max(1);
    let groups = columns.div_ceil(group);
    expect(opened, &cast.name, &[place.dims.iter().product::<usize>()], &[rows * groups * group])?;
    let codes = Grid { stride: [groups * group, 1], ..Grid::new(place, [0, 0]) };
    if let Some(table) = opened.tensor(&gather.input[0]).filter(|t| !t.raw_data.is_empty()) {
        let table = table.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
        let product = opened.readers(&gather.output[0]).find(|n| n.op_type == "Mul");
        let product = product.ok_or_else(|| missing("scale", "a Mul"))?;
        let (scale, over) = scales(opened, &product.input[1], rows)?;
        let shared = if scale.dims.is_empty() { [0, 0] } else { [groups, 1] };
        let wanted: &[usize] = if scale.dims.is_empty() { &[] } else { &[rows, groups, 1] };
        expect(opened, &product.name, &scale.dims, wanted)?;
        let scale = Scale { grid: Some(Grid::new(scale, shared)), over };
        return Ok(Codes { columns, codes, scale, values: Values::Table(table), group });
    }
    let tables = opened.place(origin(opened, &gather.input[0]))?;
    let (stride, entries) = match (tables.dims.as_slice(), gather.op_type.as_str()) {
        ([entries], "Gather") => (0, *entries),
        ([all, entries], "GatherElements") if *all == rows * groups && int(gather, "axis") == Some(1) => {
            (groups * entries, *entries)
        }
        (dims, _) => {
            return Err(Error::unexpected(&opened.path, format!("the tables of `{index}`"), format!("{dims:?}"), "one a group"));
        }
    };
    let values = Values::Tables(Grid::new(tables, [stride, 1]), entries);
    Ok(Codes { columns, codes, scale: Scale { grid: None, over: None }, values, group })
}

/// Scales, and their super scales if a DequantizeLinear of their own multiplies them.
fn scales<'f>(opened: &'f Opened, name: &str, rows: usize) -> Result<(&'f Place, Option<Grid<'f>>)> {
    let name = origin(opened, name);
    let Some(maker) = opened.maker(name).filter(|m| m.op_type == "DequantizeLinear") else {
        return Ok((opened.place(name)?, None));
    };
    if maker.input.get(2).is_some_and(|zero| !opened.tensor(zero).is_some_and(is_zero)) {
        return Err(Error::unexpected(&opened.path, format!("the zeros of `{name}`"), "others", "zeros"));
    }
    let (scale, over) = (opened.place(&maker.input[0])?, opened.place(origin(opened, &maker.input[1]))?);
    let along_rows = int(maker, "axis").and_then(|axis| scale.dims.get(usize::try_from(axis).ok()?)) == Some(&rows);
    match over.dims.as_slice() {
        [] => Ok((scale, Some(Grid::new(over, [0, 0])))),
        [n] if *n == rows && along_rows => Ok((scale, Some(Grid::new(over, [1, 0])))),
        dims => Err(Error::unexpected(
            &opened.path,
            format!("the super scales of `{name}`"),
            format!("{dims:?}"),
            "one, or one a row",
        )),
    }
}

/// MatMulNBits and GatherBlockQuantized: rows of groups of equal size, zeros packed by rows, the middle without any.
fn block_codes<'f>(
    opened: &'f Opened,
    node: &NodeProto,
    place: &'f Place,
    [scale, zero]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Result<Codes<'f>> {
    let attribute = |name: &str| int(node, name).and_then(|i| usize::try_from(i).ok()).unwrap_or(0);
    let (bits, group) = (attribute("bits"), attribute("block_size"));
    let groups = columns.div_ceil(group.max(1));
    if !matches!(bits, 4 | 8) || place.dims.iter().product::<usize>() != rows * groups * group * bits / 8 {
        return Err(Error::unexpected(
            &opened.path,
            format!("the codes of `{}`", node.name),
            format!("{:?}", place.dims),
            "rows of groups",
        ));
    }
    if node.op_type == "MatMulNBits" {
        expect(opened, &node.name, &[attribute("N"), attribute("K")], &[rows, columns])?;
    }
    let (scale, over) = scales(opened, &node.input[scale], rows)?;
    expect(opened, &node.name, &scale.dims, &[rows, groups])?;
    let packed = |place, stride: usize| Grid { place, bits: bits as u64, signed: false, stride: [stride, 1] };
    let zero = match node.input.get(zero) {
        None => Zero::Code(1 << (bits - 1)),
        Some(name) => {
            let place = opened.place(name)?;
            let row_bytes = (groups * bits).div_ceil(8);
            expect(opened, name, &place.dims, &[rows, row_bytes])?;
            Zero::Codes(packed(place, row_bytes * 8 / bits))
        }
    };
    let codes = packed(place, groups * group);
    let scale = Scale { grid: Some(Grid::new(scale, [groups, 1])), over };
    Ok(Codes { columns, codes, scale, values: Values::Even(zero), group })
}

/// Gathered rows of `[rows, columns]`, one or two codes per byte: cast to f32, perhaps less a zero, times a scale.
fn gathered_codes<'f>(
    opened: &'f Opened,
    gather: &'f NodeProto,
    place: &'f Place,
    [rows, columns]: [usize; 2],
) -> Result<Codes<'f>> {
    let missing = |what: &str| Error::unexpected(&opened.path, format!("the {what} of `{}`", gather.name), "missing", "one");
    let bits: usize = if place.dims == [rows, columns] { 8 } else { 4 };
    let row_bytes = (columns * bits).div_ceil(8);
    expect(opened, &gather.name, &place.dims, &[rows, row_bytes])?;
    let numbers = numbers(opened, gather).ok_or_else(|| missing("cast to f32"))?;
    let reader = |of: &str, op: &str| opened.readers(of).find(|node| node.op_type == op && node.input[0] == of);
    let distances = reader(&numbers.output[0], "Sub");
    let product = reader(&distances.unwrap_or(numbers).output[0], "Mul").ok_or_else(|| missing("scale"))?;
    let (name, group) = shared(opened, &product.input[1], columns)?;
    let (scale, over) = gathered_scales(opened, name, rows)?;
    let groups = columns.div_ceil(group);
    let strides = match scale.dims.as_slice() {
        [] => [0, 0],
        dims => {
            expect(opened, name, dims, &[rows, groups])?;
            [groups, 1]
        }
    };
    let zero = match distances {
        None => Zero::Code(0),
        Some(node) => gathered_zero(opened, &node.input[1], [group, columns], &scale.dims, strides)?,
    };
    let codes = Grid { bits: bits as u64, stride: [row_bytes * 8 / bits, 1], ..Grid::new(place, [0, 0]) };
    let scale = Scale { grid: Some(Grid::new(scale, strides)), over };
    Ok(Codes { columns, codes, scale, values: Values::Even(zero), group }.normal())
}

/// Scales, perhaps multiplied by super scales.
fn gathered_scales<'f>(opened: &'f Opened, name: &str, rows: usize) -> Result<(&'f Place, Option<Grid<'f>>)> {
    let Some(product) = opened.maker(name).filter(|maker| maker.op_type == "Mul") else { return scales(opened, name, rows) };
    let over = opened.maker(&product.input[1]).filter(|maker| maker.op_type == "Unsqueeze");
    let over = opened.place(origin(opened, over.map_or(product.input[1].as_str(), |maker| &maker.input[0])))?;
    Ok((opened.place(origin(opened, &product.input[0]))?, Some(supers(opened, over, rows)?)))
}

/// One super scale, or one a row.
fn supers<'f>(opened: &Opened, over: &'f Place, rows: usize) -> Result<Grid<'f>> {
    match over.dims.as_slice() {
        [] => Ok(Grid::new(over, [0, 0])),
        dims => expect(opened, "super scales", dims, &[rows]).map(|()| Grid::new(over, [1, 0])),
    }
}

/// A number, or one for each of the groups that the scales have.
fn gathered_zero<'f>(
    opened: &'f Opened,
    name: &'f str,
    [group, columns]: [usize; 2],
    dims: &[usize],
    strides: [usize; 2],
) -> Result<Zero<'f>> {
    if let Some(tensor) = opened.tensor(name).filter(|tensor| tensor.data_type == 1) {
        let number = tensor.raw_data.as_slice().try_into().map(f32::from_le_bytes).ok();
        let code = (0..=u8::MAX).find(|code| Some(f32::from(*code)) == number);
        return code
            .map(Zero::Code)
            .ok_or_else(|| Error::unexpected(&opened.path, format!("`{name}`"), format!("{number:?}"), "a code"));
    }
    let (name, of_zeros) = shared(opened, name, columns)?;
    let place = opened.place(origin(opened, name))?;
    expect(opened, name, &[of_zeros], &[group])?;
    expect(opened, name, &place.dims, dims)?;
    Ok(Zero::Codes(Grid::new(place, strides)))
}

/// What a number for each column was made of, and how many columns share one.
fn shared<'n>(opened: &'n Opened, mut name: &'n str, columns: usize) -> Result<(&'n str, usize)> {
    let mut group = columns;
    while let Some(maker) = opened.maker(name) {
        match maker.op_type.as_str() {
            "Expand" => {
                let sizes = opened.tensor(&maker.input[1]).map(|tensor| tensor.raw_data.as_slice()).unwrap_or_default();
                let size = sizes.last_chunk::<8>().map_or(0, |bytes| i64::from_le_bytes(*bytes));
                group = usize::try_from(size).ok().filter(|size| (1..=columns).contains(size)).ok_or_else(|| {
                    Error::unexpected(&opened.path, format!("the groups of `{}`", maker.name), size, format!("1 to {columns}"))
                })?;
            }
            "Slice" | "Reshape" | "Unsqueeze" => (),
            _ => break,
        }
        name = &maker.input[0];
    }
    Ok((name, group))
}

/// The tensor that a value is made of by casts and gathers alone.
fn origin<'n>(opened: &'n Opened, mut name: &'n str) -> &'n str {
    while let Some(maker) = opened.maker(name).filter(|m| matches!(m.op_type.as_str(), "Cast" | "Gather")) {
        name = &maker.input[0];
    }
    name
}

/// The cast to f32 of what `gather` gives, directly or after bytes are taken apart.
fn numbers<'f>(opened: &'f Opened, gather: &'f NodeProto) -> Option<&'f NodeProto> {
    let mut open: Vec<&NodeProto> = vec![gather];
    while let Some(node) = open.pop() {
        for reader in opened.readers(&node.output[0]) {
            match reader.op_type.as_str() {
                "Cast" if int(reader, "to") == Some(1) => return Some(reader),
                "Cast" | "Mod" | "Div" | "Unsqueeze" | "Concat" | "Reshape" | "Slice" => open.push(reader),
                _ => (),
            }
        }
    }
    None
}

fn expect(opened: &Opened, name: &str, found: &[usize], wanted: &[usize]) -> Result<()> {
    match found == wanted {
        true => Ok(()),
        false => {
            Err(Error::unexpected(&opened.path, format!("the shape at `{name}`"), format!("{found:?}"), format!("{wanted:?}")))
        }
    }
}
