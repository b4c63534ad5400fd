//! Settings of the quantize step from text: whatever it is, an answer and no panic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use attar_compress::{Pattern, Quantize};
use attar_graph::Graph;
use proptest::{prelude::*, test_runner::RngSeed};
use toml::Value;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(11), failure_persistence: None, ..Default::default() }
}

/// Words that mean something somewhere, and pieces of patterns.
fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "int4",
        "int8",
        "int3",
        "int6",
        "mxfp4",
        "nvfp4",
        "nf4",
        "ternary",
        "lut2",
        "fp8_e4m3",
        "e8m0",
        "e4m3",
        "row",
        "tensor",
        "absmax",
        "mse",
        "f16",
        "bf16",
        "f32",
        "error",
        "short",
        "rtn",
        "",
        "*",
        "**",
        "blocks.*.{attention,mlp}.*",
        "blocks.0.mlp.down",
        "lm_head",
        "embedding",
        "{",
        "[a-",
        "}",
        "\\",
        "blocks..",
        "***/[!]]",
    ]);
    prop_oneof![3 => known.prop_map(Into::into), 1 => "\\PC{0,8}", 1 => "[*{},a-z.\\[\\]!?/\\\\]{0,12}"]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => word().prop_map(Value::String),
        1 => any::<i64>().prop_map(Value::Integer),
        1 => (-2..200i64).prop_map(Value::Integer),
        1 => any::<f64>().prop_map(Value::Float),
        1 => any::<bool>().prop_map(Value::Boolean),
        1 => Just(Value::Datetime("1979-05-27T07:32:00Z".parse().expect("a date"))),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            2 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            1 => table(inner).prop_map(Value::Table),
        ]
    })
}

fn table(value: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = toml::Table> {
    let key = prop::sample::select(vec![
        "select",
        "keep",
        "grid",
        "group",
        "tail",
        "asymmetric",
        "scales",
        "scale_dtype",
        "algorithm",
        "override",
        "other",
    ]);
    prop::collection::btree_map(key.prop_map(String::from), value, 0..6).prop_map(|map| map.into_iter().collect())
}

fn graph() -> Graph {
    Graph::parse(
        r#"graph g(tokens: [batch, seq] i64) {
          x = embedding tokens, weight("embedding": [24, 192] bf16)
          block blocks.0 {
            a = linear x, weight("blocks.0.attention.query": [192, 192] bf16)
            b = linear a, weight("blocks.0.mlp.down": [192, 192] int4/g64)
            c = linear b, weight("blocks.0.mlp.up": [172, 192] bf16)
            d = linear c, weight("blocks.0.mlp.gate": [192, 172] bf16)
          }
          return d
        }"#,
    )
    .unwrap()
}

#[test]
fn any_settings_are_taken_or_refused() {
    let (graph, taken) = (graph(), std::cell::Cell::new(0));
    proptest!(config(20_000), |(mut settings in table(value()), grid in word())| {
        settings.entry("grid").or_insert(Value::String(grid));
        if let Ok(quantize) = settings.clone().try_into::<Quantize>() {
            taken.set(taken.get() + 1);
            let again = toml::Value::try_from(&quantize).unwrap();
            prop_assert_eq!(toml::Value::try_from(again.clone().try_into::<Quantize>().unwrap()).unwrap(), again);
            if let Err(error) = quantize.assign(&graph) {
                prop_assert!(!error.to_string().is_empty());
                let _ = (error.key().map(str::len), error.hint());
            }
        }
    });
    assert!(taken.get() > 200, "{} settings were taken", taken.get());
}

#[test]
fn any_pattern_is_taken_or_refused() {
    proptest!(config(20_000), |(text in prop_oneof![word(), "\\PC*"], name in prop_oneof![word(), "\\PC*"])| {
        if let Ok(pattern) = Pattern::new(&text) {
            prop_assert_eq!(pattern.text(), text.as_str());
            let _ = pattern.matches(&name);
        }
    });
}

/// A name without signs matches itself and nothing else.
#[test]
fn a_canonical_name_is_a_pattern_of_itself() {
    proptest!(config(2_000), |(name in "[a-z_]{1,8}(\\.[a-z0-9_]{1,8}){0,4}", other in "[a-z_]{1,8}(\\.[a-z0-9_]{1,8}){0,4}")| {
        let pattern = Pattern::new(&name).unwrap();
        prop_assert!(pattern.matches(&name));
        prop_assert_eq!(pattern.matches(&other), name == other);
    });
}

/// The first weight's scheme, or the key and the hint of the error.
fn assigned(settings: &str) -> Result<String, (String, String)> {
    let quantize: Quantize = toml::from_str(&format!("select = [\"blocks.0.attention.query\"]\n{settings}")).unwrap();
    match quantize.assign(&graph()) {
        Ok(assignments) => Ok(assignments[0].scheme.to_string()),
        Err(error) => Err((error.key().unwrap_or_default().into(), error.hint().unwrap_or_default())),
    }
}

#[test]
fn what_is_not_said_follows_from_the_grid() {
    for (settings, scheme) in [
        (r#"grid = "int4""#, "int4/g64"),
        (r#"grid = "mxfp4""#, "mxfp4/g32"),
        (r#"grid = "nvfp4""#, "nvfp4/g16"),
        (r#"grid = "lut3""#, "lut3/g64"),
        ("grid = \"nf4\"\ngroup = 32\nscale_dtype = \"int8\"", "nf4/g32/int8"),
    ] {
        assert_eq!(assigned(settings).unwrap(), scheme);
    }
}

#[test]
fn settings_that_contradict_the_grid_are_errors_at_their_key_that_say_what_is_possible() {
    for (settings, key, hint) in [
        ("grid = \"mxfp4\"\ngroup = 64", "group", "`group` can be 32"),
        ("grid = \"nvfp4\"\nscale_dtype = \"f16\"", "scale_dtype", "`scale_dtype` can be e4m3"),
        ("grid = \"nf4\"\nasymmetric = true", "asymmetric", "`asymmetric` can be false"),
        ("grid = \"lut2\"\nscale_dtype = \"int6\"", "scale_dtype", "f16, bf16 or f32"),
        ("grid = \"int4\"\nscale_dtype = \"int6\"\ngroup = \"row\"", "group", "a number of columns"),
        ("grid = \"int4\"\nscale_dtype = \"e8m0\"", "asymmetric", "symmetric scales have signs"),
        ("grid = \"int4\"\n[[override]]\nselect = [\"**\"]\ngrid = \"mxfp4\"\ngroup = 16", "override[0].group", "32"),
    ] {
        let (found, said) = assigned(settings).unwrap_err();
        assert!(found == key && said.contains(hint), "{settings}: {found}: {said}");
    }
}
