//! Changes of a recipe's text that leave the rest of it as it is, comments included.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

/// The step of a key such as `step[1]` or `variant[0].step[2]`, if it is written as a table with a header.
pub(super) fn step<'d>(document: &'d mut DocumentMut, key: &str) -> Option<&'d mut Table> {
    let (steps, at) = steps(document, key)?;
    steps.get_mut(at)
}

/// The list of the step, and its place there.
fn steps<'d>(document: &'d mut DocumentMut, key: &str) -> Option<(&'d mut ArrayOfTables, usize)> {
    let (mut table, mut key) = (document.as_table_mut(), key);
    loop {
        let (name, rest) = key.split_once('[')?;
        let (at, rest) = rest.split_once(']')?;
        let (list, at) = (table.get_mut(name)?.as_array_of_tables_mut()?, at.parse().ok()?);
        match rest.strip_prefix('.') {
            None => return Some((list, at)),
            Some(rest) => (table, key) = (list.get_mut(at)?, rest),
        }
    }
}

/// Puts a step of that kind behind the one of a key.
pub(super) fn insert_behind(document: &mut DocumentMut, key: &str, kind: &str) -> Option<()> {
    let (steps, at) = steps(document, key)?;
    let mut table = Table::new();
    table.insert("kind", Item::Value(kind.into()));
    table.decor_mut().set_prefix("\n");
    let mut all: Vec<Table> = std::mem::take(steps).into_iter().collect();
    all.insert(at + 1, table);
    // Tables are printed by where they stood in the text.
    all.iter_mut().for_each(|table| table.set_position(None));
    *steps = all.into_iter().collect();
    Some(())
}

/// Another grid for some of the weights of a step.
pub(super) fn override_grid(step: &mut Table, select: &[String], grid: &str) -> Option<()> {
    let mut patterns: Array = select.iter().map(String::as_str).collect();
    if select.len() > 2 {
        patterns.iter_mut().for_each(|pattern| pattern.decor_mut().set_prefix("\n    "));
        patterns.set_trailing("\n");
        patterns.set_trailing_comma(true);
    }
    let entry = step.entry("override").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    match entry {
        Item::ArrayOfTables(list) => {
            let mut table = Table::new();
            table.insert("select", Item::Value(patterns.into()));
            table.insert("grid", Item::Value(grid.into()));
            table.decor_mut().set_prefix("\n");
            list.push(table);
        }
        Item::Value(Value::Array(list)) => {
            let mut table = InlineTable::new();
            table.insert("select", patterns.into());
            table.insert("grid", grid.into());
            list.push(table);
        }
        _ => return None,
    }
    Some(())
}

/// A step as text.
pub(super) fn told(document: &mut DocumentMut, key: &str) -> Option<String> {
    let mut table = step(document, key)?.clone();
    table.decor_mut().clear();
    let mut alone = DocumentMut::new();
    let mut list = ArrayOfTables::new();
    table.set_position(None);
    list.push(table);
    alone.insert("step", Item::ArrayOfTables(list));
    let text = alone.to_string();
    // A step of a variant has the header of one.
    Some(if key.starts_with("variant") { text.replace("[[step", "[[variant.step") } else { text })
}

/// The recipe with another output folder.
pub(super) fn with_output(text: &str, output: &str) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    document.insert("output", Item::Value(output.into()));
    Some(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "recipe = 1 # first\noutput = \"o\"\n\n# Weights.\n[[step]]\nkind = \"quantize\" # here\n\n[[step.override]]\nselect = [\"a\"]\n\n[[step]]\nkind = \"fuse\"\n\n[[variant]]\nname = \"v\"\n\n[[variant.step]]\nkind = \"tile\"\n";

    fn document() -> DocumentMut {
        TEXT.parse().expect("it is TOML")
    }

    #[test]
    fn steps_are_found_where_they_are_written() {
        let kind = |key: &str| step(&mut document(), key).map(|table| table["kind"].as_str().unwrap_or_default().to_owned());
        assert_eq!(kind("step[1]").as_deref(), Some("fuse"));
        assert_eq!(kind("variant[0].step[0]").as_deref(), Some("tile"));
        assert_eq!(kind("step[2]"), None);
    }

    #[test]
    fn changes_leave_everything_else() {
        let mut changed = document();
        override_grid(step(&mut changed, "step[0]").expect("it is there"), &["b".into()], "int5").expect("a list");
        insert_behind(&mut changed, "step[0]", "recover").expect("a list");
        let text = changed.to_string();
        assert!(text.contains("# first") && text.contains("# Weights.") && text.contains("# here"), "{text}");
        let parsed: toml::Table = text.parse().expect("it is TOML");
        let steps = parsed["step"].as_array().expect("a list");
        let kinds: Vec<&str> = steps.iter().filter_map(|step| step["kind"].as_str()).collect();
        assert_eq!(kinds, ["quantize", "recover", "fuse"], "{text}");
        assert_eq!(steps[0]["override"][1]["grid"].as_str(), Some("int5"));
        assert_eq!(parsed["variant"][0]["step"][0]["kind"].as_str(), Some("tile"));
        let told = told(&mut changed, "step[0]").expect("it is there");
        assert!(told.starts_with("[[step]]\nkind = \"quantize\" # here\n") && told.contains("[[step.override]]"), "{told}");
    }
}
