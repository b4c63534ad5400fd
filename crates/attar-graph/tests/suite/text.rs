//! Property tests of the text form: no text panics, and what parses prints and parses back to the same text.

use attar_graph::Graph;
use proptest::{prelude::*, sample::Index, test_runner::RngSeed};

use crate::texts::valid_texts;

/// One change of a text.
#[derive(Clone, Debug)]
enum Edit {
    Remove(Index, usize),
    Insert(Index, String),
    /// A token becomes one of another text.
    Swap(Index, Index),
    Repeat(Index, usize),
    Truncate(Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let hostile = prop_oneof![
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just("+".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("1099511627775".to_owned()),
        Just("NaN".to_owned()),
        Just("-1e309".to_owned()),
        Just("; ".to_owned()),
        Just("é\u{200b}".to_owned()),
        "\\PC{1,3}",
        "[a-z0-9_+.{}()\\[\\]=,:\" ]{1,4}",
    ];
    let edit = prop_oneof![
        2 => (any::<Index>(), 1..4usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        3 => (any::<Index>(), hostile).prop_map(|(at, text)| Edit::Insert(at, text)),
        6 => (any::<Index>(), any::<Index>()).prop_map(|(at, with)| Edit::Swap(at, with)),
        1 => (any::<Index>(), 1..30usize).prop_map(|(at, count)| Edit::Repeat(at, count)),
        1 => any::<Index>().prop_map(Edit::Truncate),
    ];
    prop::collection::vec(edit, 1..5)
}

/// Runs of letters, and single signs.
fn tokens(text: &str) -> Vec<std::ops::Range<usize>> {
    let word = |c: char| c.is_alphanumeric() || "_.+-/".contains(c);
    let mut all: Vec<std::ops::Range<usize>> = Vec::new();
    let mut last = None;
    for (at, c) in text.char_indices() {
        match (last, all.last_mut()) {
            (Some(true), Some(token)) if word(c) => token.end = at + c.len_utf8(),
            _ if !c.is_whitespace() => all.push(at..at + c.len_utf8()),
            _ => {}
        }
        last = Some(word(c));
    }
    all
}

impl Edit {
    fn apply(&self, text: &mut String, vocabulary: &[String]) {
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let span = |at: &Index, count: usize| {
            let first = at.index(places.len());
            places[first]..places[(first + count).min(places.len() - 1)]
        };
        match self {
            Edit::Remove(at, count) => text.replace_range(span(at, *count), ""),
            Edit::Insert(at, more) => text.insert_str(span(at, 0).start, more),
            Edit::Swap(at, with) => {
                let all = tokens(text);
                if !all.is_empty() {
                    text.replace_range(all[at.index(all.len())].clone(), &vocabulary[with.index(vocabulary.len())]);
                }
            }
            Edit::Repeat(at, count) => {
                let range = span(at, *count);
                let again = text[range.clone()].to_owned();
                text.insert_str(range.end, &again);
            }
            Edit::Truncate(at) => text.truncate(span(at, 0).start),
        }
    }
}

fn vocabulary(texts: &[String]) -> Vec<String> {
    let mut all: Vec<String> =
        texts.iter().flat_map(|text| tokens(text).into_iter().map(|token| text[token].to_owned())).collect();
    all.sort();
    all.dedup();
    all
}

fn check(text: &str) -> bool {
    let Ok(graph) = Graph::parse(text) else { return false };
    let printed = graph.to_string();
    let again = Graph::parse(&printed).unwrap_or_else(|error| panic!("{error}, in what was printed:\n{printed}"));
    assert_eq!(again.to_string(), printed, "from\n{text}");
    true
}

#[test]
fn any_change_of_a_graph_is_refused_or_prints_and_parses_back() {
    let texts = valid_texts();
    let vocabulary = vocabulary(&texts);
    let config = ProptestConfig { cases: 20_000, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Default::default() };
    let parsed = std::cell::Cell::new(0);
    proptest!(config, |(at in any::<Index>(), edits in edits())| {
        let mut text = at.get(&texts).clone();
        edits.iter().for_each(|edit| edit.apply(&mut text, &vocabulary));
        parsed.set(parsed.get() + usize::from(check(&text)));
    });
    // An edit that always broke the text would test the error paths alone.
    assert!(parsed.get() > 1_000, "{} of the changed texts are graphs", parsed.get());
}

#[test]
fn any_text_is_refused_or_prints_and_parses_back() {
    let config = ProptestConfig { cases: 2_000, rng_seed: RngSeed::Fixed(8), failure_persistence: None, ..Default::default() };
    proptest!(config, |(text in "\\PC*")| {
        check(&text);
        check(&format!("graph {text}"));
        check(&format!("graph g(x: {text}"));
    });
}

#[test]
fn a_graph_cut_anywhere_is_refused() {
    for text in valid_texts() {
        let end = text.trim_end().len();
        for at in (0..end).filter(|at| text.is_char_boundary(*at)).step_by(1 + end / 500) {
            assert!(Graph::parse(&text[..at]).is_err(), "{}", &text[..at]);
        }
    }
}
