//! Recipes are foreign text: whatever is in them, the answer is a recipe or an error that can be shown.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use attar_recipe::Recipe;
use proptest::prelude::*;

const WHOLE: &str = include_str!("../../../recipes/quickstart.toml");

/// A recipe that is wrong in one way, in its second step.
fn second_step(line: &str) -> String {
    format!(
        "recipe = 1\nmodel = \"m\"\noutput = \"o\"\n\n[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n\n[[step]]\nkind = \"quantize\"\ngrid = \"int8\"\n{line}\n"
    )
}

fn failure(text: &str) -> (String, usize, usize) {
    let error = Recipe::parse(Path::new("r.toml"), text).unwrap_err();
    let json = error.to_json();
    let number = |key: &str| json["place"][key].as_u64().unwrap() as usize;
    (error.render(false), number("line"), number("column"))
}

#[test]
fn a_mistake_in_the_second_step_is_found_there() {
    for (line, column, words) in [
        ("gruop = 64", 1, "did you mean `group`?"),
        ("group = true", 9, "found `true`, expected a whole number"),
        ("group = 0", 9, "at least 1"),
        ("asymmetric = \"yes\"", 14, "expected `true` or `false`"),
        ("algorithm = \"rtm\"", 13, "did you mean `rtn`?"),
        ("keep = [\"a{\"]", 8, "not a pattern"),
    ] {
        let (text, at_line, at_column) = failure(&second_step(line));
        assert_eq!((at_line, at_column), (12, column), "{line}\n{text}");
        assert!(text.contains(words), "{line}\n{text}");
    }
}

#[test]
fn the_recipes_of_the_repository_parse() {
    Recipe::parse(Path::new("quickstart.toml"), WHOLE).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut, doubled, overwritten: no panic, and every error renders.
    #[test]
    fn a_damaged_recipe_is_an_error_that_renders(at in 0..WHOLE.len(), length in 0..40usize, with in "[ -~\n\u{e9}]{0,6}") {
        let end = (at + length).min(WHOLE.len());
        prop_assume!(WHOLE.is_char_boundary(at) && WHOLE.is_char_boundary(end));
        let text = format!("{}{with}{}", &WHOLE[..at], &WHOLE[end..]);
        if let Err(error) = Recipe::parse(Path::new("r.toml"), &text) {
            prop_assert!(!error.render(false).is_empty());
            prop_assert!(error.exit_code() == 2, "{error}");
        }
    }
}

/// The seeds of the fuzz target `recipe`, and what it found once.
#[test]
fn seeds_of_the_fuzzer_parse_or_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz/recipe");
    let mut parsed = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        match Recipe::parse(Path::new("r.toml"), text) {
            Ok(recipe) => parsed += usize::from(recipe.settings().is_object()),
            Err(error) => assert!(!error.render(false).is_empty()),
        }
    }
    assert!(parsed > 0);
}
