//! The planner against enumeration.

use proptest::prelude::*;

use super::{
    decide::{Decision, decide},
    *,
};

/// Whether the buffers from `next` on fit together with those before, by trying every offset.
fn fits(buffers: &[Buffer], capacity: u64, offsets: &mut Vec<u64>) -> bool {
    let Some(buffer) = buffers.get(offsets.len()) else { return true };
    let free = |at: u64, offsets: &[u64]| {
        buffers.iter().zip(offsets).all(|(other, &offset)| {
            other.upper <= buffer.lower || buffer.upper <= other.lower || offset + other.size <= at || at + buffer.size <= offset
        })
    };
    let places = 0..(capacity + 1).saturating_sub(buffer.size);
    for at in places.filter(|at| at % buffer.align == 0 && buffer.fixed.is_none_or(|fixed| fixed == *at)) {
        if free(at, offsets) {
            offsets.push(at);
            if fits(buffers, capacity, offsets) {
                return true;
            }
            offsets.pop();
        }
    }
    false
}

fn enumerated(buffers: &[Buffer], capacity: u64) -> bool {
    fits(buffers, capacity, &mut Vec::new())
}

fn buffer() -> impl Strategy<Value = Buffer> {
    (0..8u64, 1..6u64, 1..6u64).prop_map(|(lower, width, size)| Buffer::new(lower, lower + width, size))
}

/// Some aligned, some fixed.
fn bound_buffer() -> impl Strategy<Value = Buffer> {
    let align = prop_oneof![3 => Just(1), 1 => Just(2), 1 => Just(3)];
    (buffer(), align, proptest::option::weighted(0.2, 0..4u64)).prop_map(|(buffer, align, fixed)| Buffer {
        align,
        fixed: fixed.map(|at| at * align),
        ..buffer
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Without greedy before it: greedy answers most small problems.
    #[test]
    fn the_search_agrees_with_enumeration(buffers in prop::collection::vec(buffer(), 1..9)) {
        let total: u64 = buffers.iter().map(|buffer| buffer.size).sum();
        for capacity in 1..=total.min(14) {
            let problem = Problem { buffers: buffers.clone(), capacity };
            match decide(&buffers, capacity, 1_000_000).0 {
                Decision::Placed(offsets, _) => prop_assert_eq!(validate(&problem, &problem.placement(offsets)), Ok(())),
                Decision::Failed(subset) => {
                    let subset: Vec<Buffer> = subset.into_iter().map(|b| buffers[b].clone()).collect();
                    prop_assert!(!enumerated(&subset, capacity), "capacity {}", capacity);
                }
                Decision::Limit => prop_assert!(false, "a million nodes"),
            }
        }
    }

    #[test]
    fn solving_agrees_with_enumeration(buffers in prop::collection::vec(bound_buffer(), 1..7), capacity in 4..14u64) {
        let problem = Problem { buffers: buffers.clone(), capacity };
        match solve(&problem, Effort::default()).unwrap().outcome {
            Outcome::Placed(placement, _) => prop_assert_eq!(validate(&problem, &placement), Ok(())),
            Outcome::Infeasible(reason) => {
                prop_assert!(!enumerated(&buffers, capacity));
                if let Reason::Exhausted { subset, irreducible } = reason {
                    let all_but = |left: Option<usize>| -> Vec<Buffer> {
                        subset.iter().filter(|&&b| Some(b) != left).map(|&b| buffers[b].clone()).collect()
                    };
                    prop_assert!(irreducible && !enumerated(&all_but(None), capacity));
                    prop_assert!(subset.iter().all(|&b| enumerated(&all_but(Some(b)), capacity)));
                }
            }
            Outcome::Undecided => prop_assert!(false, "it is small"),
        }
    }

    #[test]
    fn the_least_height_agrees_with_enumeration(buffers in prop::collection::vec(bound_buffer(), 1..7)) {
        let problem = Problem { buffers: buffers.clone(), capacity: 0 };
        if let Ok(Heights { placement, at_least, .. }) = minimise(&problem, Effort::default()).unwrap() {
            let capacity = placement.height;
            prop_assert_eq!(validate(&Problem { capacity, ..problem }, &placement), Ok(()));
            prop_assert_eq!(at_least, capacity);
            prop_assert!(!enumerated(&buffers, capacity - 1));
        }
    }

    #[test]
    fn the_validator_agrees_with_a_picture(
        buffers in prop::collection::vec(bound_buffer(), 1..6),
        offsets in prop::collection::vec(0..8u64, 6),
    ) {
        let problem = Problem { buffers, capacity: 12 };
        let placement = problem.placement(offsets[..problem.buffers.len()].to_vec());
        let mut cells = std::collections::HashSet::new();
        let good = problem.buffers.iter().zip(&placement.offsets).all(|(buffer, &offset)| {
            let bytes = offset..offset + buffer.size;
            let apart = (buffer.lower..buffer.upper).all(|time| bytes.clone().all(|byte| cells.insert((time, byte))));
            apart && bytes.end <= 12 && offset % buffer.align == 0 && buffer.fixed.is_none_or(|fixed| fixed == offset)
        });
        prop_assert_eq!(validate(&problem, &placement).is_ok(), good);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_csv(&bytes);
    }

    #[test]
    fn almost_a_file_is_read_or_refused(text in "(id|lower|upper|size|offset|,|\n|\r|[0-9]{1,22}|-| |é){0,40}") {
        let _ = read_csv(text.as_bytes());
        let _ = read_csv(format!("id,lower,upper,size\n{text}").as_bytes());
    }

    #[test]
    fn what_is_written_is_read(buffers in prop::collection::vec(buffer(), 1..9)) {
        let ids = (0..buffers.len()).map(|i| format!("b{i}")).collect();
        let entries = Entries { ids, buffers };
        let placement = Placement { offsets: vec![7; entries.ids.len()], height: 7 };
        prop_assert_eq!(read_csv(write_csv(&entries, &placement).as_bytes()).unwrap(), entries);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// So many that skylines come first.
    #[test]
    fn many_buffers_lie_no_higher_than_greedy_places_them(buffers in prop::collection::vec(bound_buffer(), 512..600)) {
        let mut problem = Problem { buffers, capacity: 0 };
        problem.buffers.iter_mut().for_each(|buffer| buffer.fixed = None);
        let lowest = minimise(&problem, Effort { nodes: 5000 }).unwrap().unwrap();
        prop_assert!(lowest.placement.height <= greedy(&problem).unwrap().0.height && lowest.nodes <= 6250);
        problem.capacity = lowest.placement.height;
        prop_assert_eq!(validate(&problem, &lowest.placement), Ok(()));
        prop_assert_eq!(minimise(&problem, Effort { nodes: 5000 }).unwrap().unwrap(), lowest);
    }
}

#[test]
fn too_many_live_bytes_name_the_moment() {
    let buffers = vec![Buffer::new(0, 4, 3), Buffer::new(3, 9, 4), Buffer::new(4, 6, 5)];
    let solution = solve(&Problem { buffers, capacity: 8 }, Effort::default()).unwrap();
    let peak = Peak { time: 4, bytes: 9, buffers: vec![1, 2] };
    assert_eq!(solution.outcome, Outcome::Infeasible(Reason::MaxLive(peak)));
}

/// At no moment do more than 10 bytes live, and yet 10 are too few: the smallest such problem of some million drawn.
#[test]
fn what_does_not_fit_is_cut_down_to_what_is_to_blame() {
    let tangle: [(u64, u64, u64); 9] =
        [(7, 11, 4), (1, 7, 2), (1, 2, 4), (6, 7, 3), (2, 6, 1), (1, 3, 1), (1, 5, 3), (5, 8, 2), (4, 9, 3)];
    let others = [(0, 1, 1), (20, 30, 9), (9, 12, 1)];
    let all = others[..2].iter().chain(&tangle).chain(&others[2..]);
    let buffers: Vec<Buffer> = all.map(|&(lower, upper, size)| Buffer::new(lower, upper, size)).collect();
    assert!(!enumerated(&buffers[2..11], 10));
    let problem = Problem { buffers, capacity: 10 };
    assert_eq!(problem.max_live(), 10);
    let Outcome::Infeasible(Reason::Exhausted { subset, irreducible: true }) =
        solve(&problem, Effort::default()).unwrap().outcome
    else {
        panic!("it does not fit")
    };
    assert_eq!(subset, (2..11).collect::<Vec<_>>());
    assert_eq!(minimise(&problem, Effort::default()).unwrap().unwrap().at_least, 11);
}

#[test]
fn an_effort_that_ends_is_told() {
    let text = include_str!("../../../../testdata/memory/pieces.csv");
    let problem = Problem { buffers: read_csv(text.as_bytes()).unwrap().buffers, capacity: HARD };
    let solution = solve(&problem, Effort { nodes: 10 }).unwrap();
    assert_eq!((solution.outcome, solution.nodes), (Outcome::Undecided, 10));
    assert!(matches!(solve(&problem, Effort::default()).unwrap().outcome, Outcome::Placed(..)));
}

/// The capacity of `testdata/memory/pieces.csv`, which greedy does not reach.
const HARD: u64 = 64;

#[test]
fn mistakes_in_files_are_told_with_their_line() {
    let said = |text: &str| read_csv(text.as_bytes()).unwrap_err().to_string();
    let header = "id,lower,upper,size\n";
    let row = |row: &str| said(&format!("{header}a,0,3,4\n{row}\n"));
    assert!(said("").contains("no buffers"));
    assert!(said(header).contains("no buffers"));
    assert!(said("id,lower,size\n").contains("line 1: the header has no column `upper`"));
    assert!(said("id,lower,upper,size,size\n").contains("`size` twice"));
    assert!(said("a,0,3,4\n").contains("no column `id`"));
    assert!(row("b,1,2").contains("line 3 has 3 fields; expected 4"));
    assert!(row("b,1,2,3,4").contains("line 3 has 5 fields"));
    assert!(row("b,2,2,3").contains("line 3: buffer `b` has the lifetime 2..2"));
    assert!(row("b,1,2,0").contains("line 3: buffer `b` has 0 bytes"));
    assert!(row("a,1,2,3").contains("line 3: the id `a` is used in line 2 already"));
    assert!(row("b,1,two,3").contains("line 3: `upper` is `two`"));
    assert!(row("b,1,99999999999999999999,3").contains("line 3: `upper` is `99999999999999999999`"));
    assert!(row("b,-1,2,3").contains("`lower` is `-1`"));
    assert!(row("b,1,2,1152921504606846977").contains("expected 1 to 1152921504606846976"));
    assert!(row("b,1,2,1152921504606846975").contains("the sizes up to here add up to more"));
    assert!(row(",1,2,3").contains("the `id` has 0 bytes"));
    assert!(read_csv(b"id,lower,upper,size\n\xff").unwrap_err().to_string().contains("byte 20"));
}

#[test]
fn columns_come_in_any_order_beside_others() {
    let entries = read_csv(b"\xef\xbb\xbfsize, offset ,upper,id,lower\r\n\r\n5,9,4, x ,1\r\n").unwrap();
    assert_eq!(entries, Entries { ids: vec!["x".into()], buffers: vec![Buffer::new(1, 4, 5)] });
}
