//! Every observer, unasked; and which values of a graph become integers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use attar_compress::{Activations, Codes, Distribution, Error, OBSERVERS, Observer, insert};
use attar_graph::Graph;

fn uniform(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Bell-shaped values with one outlier in a thousand, and others that an observer must survive.
fn samples() -> Vec<(&'static str, Vec<f32>)> {
    let bell: Vec<f32> = uniform(1, 40_000).chunks(4).map(|four| four.iter().sum()).collect();
    let tailed = bell.iter().enumerate().map(|(i, x)| if i % 1000 == 0 { x * 12.0 } else { *x }).collect();
    let one_sided = bell.iter().map(|x| x.abs()).collect();
    vec![
        ("bell", bell),
        ("tailed", tailed),
        ("one-sided", one_sided),
        ("zeros", vec![0.0; 100]),
        ("tiny", vec![1e-39; 3]),
        ("huge", vec![-1e37, 1e37]),
        ("one", vec![-2.5]),
        ("none", vec![]),
    ]
}

fn codes() -> Vec<Codes> {
    [4, 8, 16].into_iter().flat_map(|bits| [false, true].map(|asymmetric| Codes { bits, asymmetric })).collect()
}

fn range(observer: &dyn Observer, seen: &Distribution, codes: Codes) -> [f32; 2] {
    observer.range(seen, codes, observer.default_number().unwrap_or_default())
}

/// Mean squared error between values and what their codes mean.
fn error(values: &[f32], codes: Codes, range: [f32; 2]) -> f64 {
    let mut rounded = vec![0.0; values.len()];
    codes.rounding(range).round(values, values.len(), &mut rounded);
    values.iter().zip(&rounded).map(|(x, q)| f64::from(x - q).powi(2)).sum::<f64>() / values.len().max(1) as f64
}

#[test]
fn every_observer_stays_within_what_was_seen_and_gives_finite_codes() {
    for observer in OBSERVERS {
        for (name, values) in samples() {
            let seen = Distribution::of(values.clone());
            let [low, high] = seen.bounds();
            for codes in codes() {
                let what = format!("{}, {name}, {codes:?}", observer.name());
                let found = range(*observer, &seen, codes);
                assert!(found[0] >= low.min(0.0) && found[1] <= high.max(0.0), "{what}: {found:?} of {low}, {high}");
                assert_eq!(found, range(*observer, &Distribution::of(values.clone()), codes), "{what}: twice the same");
                let (scale, zero) = codes.cover(found);
                let half = f32::powi(2.0, codes.bits as i32 - 1);
                assert!(scale > 0.0 && scale.is_finite() && (-half..half).contains(&zero), "{what}: {scale}, {zero}");
                assert!(error(&values, codes, found).is_finite(), "{what}");
            }
        }
    }
}

/// Where nothing lies far out, no observer throws away more than half a bit against the whole range.
#[test]
fn no_observer_spoils_values_without_outliers() {
    let bell = &samples()[0].1;
    let seen = Distribution::of(bell.clone());
    for observer in OBSERVERS {
        let codes = Codes { bits: 8, asymmetric: false };
        let (found, whole) = (error(bell, codes, range(*observer, &seen, codes)), error(bell, codes, seen.bounds()));
        assert!(found <= 2.0 * whole, "{}: {found}, {whole}", observer.name());
    }
}

fn observer(name: &str) -> &'static dyn Observer {
    OBSERVERS.iter().copied().find(|observer| observer.name() == name).unwrap()
}

#[test]
fn mse_has_the_least_error_of_all() {
    for (name, values) in samples().into_iter().take(3) {
        let seen = Distribution::of(values.clone());
        for codes in codes().into_iter().filter(|codes| codes.bits < 16) {
            let of = |observer: &dyn Observer| error(&values, codes, range(observer, &seen, codes));
            let mse = of(observer("mse"));
            // Bins stand for their middles, which is worth a thousandth here.
            assert!(OBSERVERS.iter().all(|other| mse <= 1.05 * of(*other)), "{name}, {codes:?}");
        }
    }
    let tailed = &samples()[1].1;
    let codes = Codes { bits: 4, asymmetric: false };
    let of = |name| error(tailed, codes, range(observer(name), &Distribution::of(tailed.clone()), codes));
    assert!(of("mse") < 0.5 * of("minmax"), "{}, {}", of("mse"), of("minmax"));
}

#[test]
fn a_percentile_clips_what_it_says() {
    let values: Vec<f32> = (1..=1000).map(|i| i as f32).collect();
    let [low, high] = observer("percentile").range(&Distribution::of(values), Codes { bits: 8, asymmetric: true }, 99.0);
    // Ten of the thousand values lie on either side, give or take the one at the edge.
    assert!((low - 10.5).abs() < 1.0 && (high - 990.0).abs() < 1.0, "{low}, {high}");
}

#[test]
fn an_asymmetric_zero_is_a_code_and_means_zero() {
    let codes = Codes { bits: 8, asymmetric: true };
    let (scale, zero) = codes.cover([-0.28, 0.72]);
    assert!((scale - 1.0 / 255.0).abs() < 1e-7 && zero == (-128.0f32 + 0.28 * 255.0).round(), "{scale}, {zero}");
    let mut out = [9.0; 3];
    codes.rounding([-0.28, 0.72]).round(&[0.0, -5.0, 5.0], 3, &mut out);
    assert_eq!(out[0], 0.0);
    assert!((out[1] + 0.28).abs() < scale && (out[2] - 0.72).abs() < scale, "{out:?}");
}

fn shakespeare() -> Graph {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/ir/shakespeare-1m.ir");
    Graph::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn activations(text: &str) -> Activations {
    toml::from_str(text).unwrap()
}

#[test]
fn query_key_and_value_share_what_they_read() {
    let graph = shakespeare();
    let sites = activations("kv = \"int4\"").sites(&graph).unwrap();
    let described: Vec<String> = sites
        .iter()
        .take(6)
        .map(|site| {
            let feeds: Vec<String> = site.feeds.iter().map(ToString::to_string).collect();
            format!("{} {} <- {}", site.value, site.encoding(), feeds.join(", "))
        })
        .collect();
    let wanted = [
        "b0.attention_in int8/token <- blocks.0.attention.query, blocks.0.attention.key, blocks.0.attention.value",
        "b0.key_turned int4/token <- cache of blocks.0.attention.key",
        "b0.value_heads int4/token <- cache of blocks.0.attention.value",
        "b0.merged int8/token <- blocks.0.attention.output",
        "b0.mlp_in int8/token <- blocks.0.mlp.gate, blocks.0.mlp.up",
        "b0.gated int8/token <- blocks.0.mlp.down",
    ];
    assert_eq!(described, wanted);
    let quantized = insert(&graph, &sites).unwrap();
    assert_eq!(quantized.nodes().len(), graph.nodes().len() + sites.len());
    assert_eq!(Graph::parse(&quantized.to_string()).unwrap().to_string(), quantized.to_string());
}

/// A layer that is not selected goes on reading what it read.
#[test]
fn a_layer_that_is_not_selected_reads_floats() {
    let graph = shakespeare();
    let settings = activations("mode = \"static\"\nasymmetric = true\nselect = [\"blocks.1.attention.query\"]");
    let text = insert(&graph, &settings.sites(&graph).unwrap()).unwrap().to_string();
    assert!(text.contains("b1.query = linear b1.attention_in.int8,"), "{text}");
    assert!(text.contains("b1.key = linear b1.attention_in,"), "{text}");
    let constants = "weight(\"b1.attention_in.scale\": [1] f32), weight(\"b1.attention_in.zero\": [1] i8) {bits = 8}";
    assert!(text.contains(constants), "{text}");
    assert_eq!(text.matches("= quantize ").count(), 1);
}

#[test]
fn what_cannot_be_is_refused_with_its_key() {
    let graph = shakespeare();
    let refused = |text: &str| activations(text).sites(&graph).expect_err(text);
    for (text, key) in [
        ("observer = \"mse\"", "observer"),
        ("granularity = \"channel\"", "granularity"),
        ("asymmetric = true", "asymmetric"),
        ("mode = \"static\"\npercentile = 99.0", "percentile"),
        ("mode = \"static\"\nobserver = \"percentile\"\npercentile = 50.0", "percentile"),
        ("select = []", "select"),
        ("select = [\"blocks.*.mlp.gate\", \"blocks.7.mlp.gaet\"]", "select[1]"),
    ] {
        let error = refused(text);
        assert_eq!(error.key(), Some(key), "{text}: {error}");
        assert!(error.hint().is_some(), "{text}: {error}");
    }
    let once = insert(&graph, &activations("").sites(&graph).unwrap()).unwrap();
    assert!(matches!(activations("").sites(&once), Err(Error::AlreadyIntegers { key: "select", .. })));
    let cacheless =
        Graph::parse("graph g(x: [seq, 4] f32) { y = linear x, weight(\"blocks.0.mlp.up\": [4, 4] f32) return y }").unwrap();
    assert!(matches!(activations("kv = \"int8\"").sites(&cacheless), Err(Error::NoCache)));
    for text in ["bits = 7", "observer = \"mxe\"", "kv = \"int2\"", "mode = \"lazy\""] {
        assert!(toml::from_str::<Activations>(text).is_err(), "{text}");
    }
}
