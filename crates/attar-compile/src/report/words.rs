//! Shapes, tiles and quantities as people read them.

use crate::{
    Program,
    lower::Tiles,
    program::{Kernel, Norm, Normed},
    schedule::Choice,
    tile::{Order, Tiling},
};

/// See [`super::CallReport::shape`].
pub(super) fn shape(program: &Program, kernel: &Kernel) -> [u64; 3] {
    match kernel.core() {
        Kernel::Norm(Norm { x, .. }) | Kernel::Normed(Normed { norm: Norm { x, .. }, .. }) => {
            let x = program.get(*x);
            [x.rows, x.columns, x.columns]
        }
        Kernel::Linear(linear) => program.product(linear),
        Kernel::Attention(attention) => {
            let query = program.get(attention.query);
            [query.rows, attention.total(program.queries(attention)), query.columns]
        }
        Kernel::GatedMlp(mlp) => {
            let [m, d, pairs] = program.product(&mlp.gated);
            [m, d, pairs / mlp.gated.epilogue.pairs()]
        }
    }
}

/// Of what size.
pub(super) fn tile(tiles: &Tiles) -> String {
    match tiles {
        Tiles::Norm(norm) => format!("{} rows", norm.rows),
        Tiles::Linear(linear) => shape_text(linear.tiling.tile),
        Tiles::Attention(attention) => format!("{} tokens, {} keys", attention.tokens, attention.keys),
        Tiles::GatedMlp(mlp) => format!("{} rows, {} inner", mlp.rows, mlp.inner),
    }
}

/// In what order, what stays, and how many times rows are normed.
pub(super) fn order(program: &Program, choice: &Choice) -> String {
    let [_, _, n] = shape(program, &choice.kernel);
    let norms = choice.kernel.entry().map_or(String::new(), |_| format!("; norm x{}", choice.norms));
    let text = match &choice.tiles {
        Tiles::Norm(_) => "rows".into(),
        Tiles::Linear(linear) => {
            let [m, k, n] = linear.tiling.counts(&linear.product);
            let text = loops(linear.tiling.order).to_string();
            let panel = if linear.tiling.order.columns_first() { [m * k, k] } else { [k, k * n] };
            let stays = stays(&linear.tiling, panel, linear.on_chip[0]);
            [Some(text), stays, strips(&linear.tiling)].into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
        Tiles::Attention(attention) => {
            let stays = if attention.resident { "; keys and values of a head stay" } else { "" };
            format!("heads, rows, keys{stays}")
        }
        Tiles::GatedMlp(mlp) => {
            let all = n.div_ceil(mlp.inner);
            format!("rows, inner{}", kept_text(mlp.kept, all, "weights").map_or(String::new(), |text| format!("; {text}")))
        }
    };
    text + &norms
}

fn loops(order: Order) -> &'static str {
    match order {
        Order::Mnk => "rows, columns, depth",
        Order::Nmk => "columns, rows, depth",
        Order::Mkn => "rows, depth, columns",
        Order::Nkm => "columns, depth, rows",
    }
}

/// What a tiling keeps of both operands, of `all` tiles that each could.
fn stays(tiling: &Tiling, all: [u64; 2], x_on_chip: bool) -> Option<String> {
    let x = if x_on_chip { Some("x is on the chip".into()) } else { kept_text(tiling.kept[0], all[0], "x") };
    let both: Vec<String> = [x, kept_text(tiling.kept[1], all[1], "weights")].into_iter().flatten().collect();
    (!both.is_empty()).then(|| both.join("; "))
}

/// How many rows of a tile of outputs are stored at once, if not all.
fn strips(tiling: &Tiling) -> Option<String> {
    let rows = if tiling.strip == 1 { "row" } else { "rows" };
    tiling.has_strips().then(|| format!("outputs in strips of {} {rows}", tiling.strip))
}

fn kept_text(kept: u64, all: u64, what: &str) -> Option<String> {
    match kept {
        0 => None,
        kept if kept >= all => Some(format!("{what} stay{}", if what == "x" { "s" } else { "" })),
        kept => Some(format!("{kept} of {all} tiles of {what} stay")),
    }
}

/// `128 x 576 x 960`.
pub(super) fn shape_text(shape: [u64; 3]) -> String {
    shape.map(|n| n.to_string()).join(" x ")
}

/// `1.50 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", units[unit])
}

/// With a prefix of the SI and a unit: `1.500 mJ`.
pub(super) fn quantity(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 8] =
        [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")];
    let (scale, prefix) = PREFIXES.into_iter().find(|(scale, _)| value.abs() >= *scale).unwrap_or((1e-12, "p"));
    if value == 0.0 {
        return format!("0 {unit}").trim_end().into();
    }
    format!("{:.3} {prefix}{unit}", value / scale).trim_end().into()
}

/// The same of a round number: `20 µs`.
pub(super) fn round(value: f64, unit: &str) -> String {
    let text = quantity(value, unit);
    let (number, prefix) = text.split_once(' ').unwrap_or((&text, ""));
    let number = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    format!("{number} {prefix}").trim_end().into()
}

/// `12.3%`.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1}%", 100.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_the_prefix_that_fits() {
        let found = [0.0, 1.0, 999.0, 1000.0, 2.5e-3, 3e-6, 4e-12].map(|value| quantity(value, "J"));
        assert_eq!(found, ["0 J", "1.000 J", "999.000 J", "1.000 kJ", "2.500 mJ", "3.000 µJ", "4.000 pJ"]);
        assert_eq!([2e-5, 1500.0, 0.0].map(|value| round(value, "s")), ["20 µs", "1.5 ks", "0 s"]);
        assert_eq!(round(1e12, ""), "1 T");
        assert_eq!([1023, 1024, 3 << 19].map(bytes), ["1023 B", "1.00 KiB", "1.50 MiB"]);
    }
}
