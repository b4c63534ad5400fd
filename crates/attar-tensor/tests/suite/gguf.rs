//! The GGUF reader against gguf-py (`testdata/gguf/make.py`), and against files that lie.

use std::{fs, io::Write, path::Path};

use attar_tensor::{
    BlockFormat, Defect, Digest, Dtype, Encoding, Error, Result, Source,
    gguf::{File, Value},
};
use proptest::{prelude::*, test_runner::RngSeed};
use tempfile::NamedTempFile;

use crate::memory::peak_of;

const F32: u32 = 0;
const Q8_0: u32 = 8;
const Q4_K: u32 = 12;

fn testdata(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/gguf").join(name);
    fs::read(path).expect("the file is checked in")
}

fn open(bytes: &[u8]) -> Result<File> {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    File::open(file.path())
}

fn every_type() -> File {
    open(&testdata("every-type.gguf")).expect("gguf-py wrote it")
}

fn defect(bytes: &[u8]) -> Defect {
    match open(bytes) {
        Err(Error::Malformed { format: "GGUF", defect, .. }) => defect,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opened"),
    }
}

fn read_all(file: &File, name: &str) -> Result<Vec<f32>> {
    let info = file.info(name)?;
    let mut values = vec![0.0; info.elements()];
    file.read(name, 0..info.matrix()[0], &mut values)?;
    Ok(values)
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), kind.to_le_bytes().as_slice(), value].concat()
}

/// `dims` as in the file: innermost first.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    [&text(name), (dims.len() as u32).to_le_bytes().as_slice(), &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// A file with that many bytes of data.
fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = header(tensors.len() as u64, entries.len() as u64);
    bytes.extend(entries.iter().chain(tensors).flatten());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend((0..data).map(|i| (i * i / 7) as u8 & 0x3f));
    bytes
}

fn header(tensors: u64, entries: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
}

#[test]
fn every_type_means_what_gguf_py_says() {
    let file = every_type();
    let expected: Vec<u32> = testdata("every-type.f32").as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let mut expected = expected.as_slice();
    for name in file.tensors().keys() {
        let values = read_all(&file, name).expect(name);
        let (wanted, rest) = expected.split_at(values.len());
        assert_eq!(values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>(), wanted, "{name}");
        expected = rest;
    }
    assert!(expected.is_empty());
}

#[test]
fn every_type_is_found() {
    let file = every_type();
    let found = |encoding| file.tensors().values().any(|info| info.encoding == encoding);
    for dtype in Dtype::ALL.iter().filter(|dtype| **dtype != Dtype::U8) {
        assert!(found(Encoding::Plain(*dtype)), "{dtype}");
    }
    for format in BlockFormat::ALL {
        assert!(found(Encoding::Blocks(*format)), "{format}");
    }
}

#[test]
fn rows_read_alone_are_the_rows_of_the_whole() {
    let file = every_type();
    for (name, info) in file.tensors() {
        let [rows, columns] = info.matrix();
        let whole = read_all(&file, name).expect(name);
        for row in 0..rows {
            let mut values = vec![0.0; columns];
            file.read(name, row..row + 1, &mut values).expect(name);
            assert_eq!(values, whole[row * columns..][..columns], "{name}");
        }
    }
}

#[test]
fn dimensions_are_outermost_first() {
    let file = every_type();
    assert_eq!(file.tensors()["convolution"].dims, [2, 3, 4, 5]);
    assert_eq!(file.tensors()["q4_k.weight"].dims, [3, 512]);
    assert_eq!(file.tensors()["bias"].matrix(), [1, 7]);
}

#[test]
fn metadata_of_every_type_is_read() {
    let file = every_type();
    let texts = |values: &[&str]| Value::Array(values.iter().map(|text| Value::Text(text.to_string())).collect());
    let signed = |values: &[i64]| Value::Array(values.iter().copied().map(Value::Signed).collect());
    let expected = [
        ("general.alignment", Value::Unsigned(64)),
        ("general.architecture", Value::Text("test".into())),
        ("test.u8", Value::Unsigned(200)),
        ("test.i8", Value::Signed(-100)),
        ("test.u16", Value::Unsigned(60000)),
        ("test.i16", Value::Signed(-30000)),
        ("test.u32", Value::Unsigned(4000000000)),
        ("test.i32", Value::Signed(-2000000000)),
        ("test.f32", Value::Float(0.1f32.into())),
        ("test.u64", Value::Unsigned((1 << 63) + 1)),
        ("test.i64", Value::Signed(-(1 << 62))),
        ("test.f64", Value::Float(0.1)),
        ("test.bool", Value::Bool(true)),
        ("test.text", Value::Text("عطر".into())),
        ("test.texts", texts(&["a", "", "bc"])),
        ("test.floats", Value::Array(vec![Value::Float(0.5), Value::Float(-1.0)])),
        ("test.bools", Value::Array(vec![Value::Bool(true), Value::Bool(false)])),
        ("test.bytes", Value::Array([1, 2, 255].map(Value::Unsigned).to_vec())),
        ("test.nested", Value::Array(vec![signed(&[1, -2]), signed(&[3])])),
    ];
    assert_eq!(file.metadata(), &expected.map(|(key, value)| (key.to_string(), value)).into());
}

#[test]
fn version_2_is_read_like_version_3() {
    let mut bytes = testdata("every-type.gguf");
    bytes[4] = 2;
    let file = open(&bytes).expect("the versions differ in nothing that we read");
    assert_eq!(file.tensors(), every_type().tensors());
}

#[test]
fn a_type_that_cannot_be_read_is_an_error_of_its_tensor_only() {
    let file = every_type();
    assert!(!file.tensors().contains_key("mxfp4.weight"));
    let errors =
        [file.info("mxfp4.weight").err(), file.digest("mxfp4.weight").err(), file.read("mxfp4.weight", 0..1, &mut []).err()];
    for error in errors {
        let Some(Error::Malformed { defect: Defect::Dtype { tensor, dtype }, .. }) = error else { panic!("{error:?}") };
        assert_eq!((tensor.as_str(), dtype.as_str()), ("mxfp4.weight", "MXFP4"));
    }
}

#[test]
fn an_unknown_name_suggests_a_known_one() {
    let Err(Error::UnknownTensor { nearest, .. }) = every_type().info("q4_1.wieght").cloned() else { panic!("it exists") };
    assert_eq!(nearest.as_deref(), Some("q4_1.weight"));
}

#[test]
fn blocks_are_not_codes_and_scales() {
    let Err(Error::WrongEncoding { encoding, .. }) = every_type().read_quantized("q4_1.weight", 0..1) else {
        panic!("it was read")
    };
    assert_eq!(encoding, "q4_1");
}

#[test]
fn a_digest_is_of_encoding_shape_and_bytes() {
    let file = every_type();
    let values = read_all(&file, "bias").expect("it is plain");
    let mut bytes = b"f32 [7]\n".to_vec();
    Dtype::F32.encode(&values, &mut bytes);
    assert_eq!(file.digest("bias").expect("it is plain"), Digest::of(&bytes));
}

#[test]
fn a_tensor_larger_than_a_piece_is_read_in_little_memory() {
    let file = open(&file(&[], &[tensor("a", &[2048, 300], Q8_0, 0)], 300 * 2176)).expect("it is whole");
    let mut whole = vec![0.0; 300 * 2048];
    let (read, peak) = peak_of(|| file.read("a", 0..300, &mut whole));
    read.expect("it is whole");
    assert!(peak < 300_000, "{peak}");
    for (row, wanted) in whole.chunks(2048).enumerate() {
        let mut values = vec![0.0; 2048];
        file.read("a", row..row + 1, &mut values).expect("it is whole");
        assert_eq!(values, wanted, "{row}");
    }
    assert!(file.digest("a").is_ok());
}

#[test]
fn an_empty_file_list_and_an_empty_tensor_are_no_error() {
    assert!(open(&header(0, 0)).expect("nothing is wrong").tensors().is_empty());
    let file = open(&file(&[], &[tensor("a", &[4, 0], F32, 0), tensor("b", &[4], F32, 0)], 16)).expect("nothing is wrong");
    assert!(read_all(&file, "a").expect("nothing to read").is_empty());
}

#[test]
fn another_format_is_an_error() {
    assert!(matches!(defect(b"PK\x03\x04 and more"), Defect::Magic { found: [b'P', b'K', 3, 4] }));
    assert!(matches!(defect(b"GG"), Defect::TooShort { length: 2, .. }));
}

#[test]
fn other_versions_and_big_endian_files_are_an_error() {
    let of_version = |version: [u8; 4]| {
        let mut bytes = testdata("every-type.gguf");
        bytes[4..8].copy_from_slice(&version);
        defect(&bytes)
    };
    for number in [1, 4] {
        assert!(matches!(of_version([number, 0, 0, 0]), Defect::Version { found, .. } if found == u64::from(number)));
    }
    for number in [1, 2, 3] {
        assert!(matches!(of_version([0, 0, 0, number]), Defect::BigEndian));
    }
}

#[test]
fn a_lying_count_is_an_error() {
    for count in [8, 1 << 40, u64::MAX] {
        let (tensors, entries) = (defect(&header(count, 0)), defect(&header(0, count)));
        assert!(matches!(tensors, Defect::Count { what: "tensors", claimed, .. } if claimed == count));
        assert!(matches!(entries, Defect::Count { what: "metadata entries", claimed, .. } if claimed == count));
    }
}

#[test]
fn a_lying_length_of_text_or_array_is_an_error() {
    for count in [1 << 20, u64::MAX] {
        let number = count.to_le_bytes();
        let long_text = defect(&file(&[entry("a", 8, &number)], &[], 64));
        assert!(matches!(long_text, Defect::Count { what: "characters", claimed, .. } if claimed == count));
        for kind in 0..13u32 {
            let array = [kind.to_le_bytes().as_slice(), &number].concat();
            let long_array = defect(&file(&[entry("a", 9, &array)], &[], 64));
            assert!(matches!(long_array, Defect::Count { what: "array elements", claimed, .. } if claimed == count));
        }
    }
}

#[test]
fn a_header_that_would_fill_the_memory_is_an_error() {
    let count = 13_000_000u64;
    let array = [0u32.to_le_bytes().as_slice(), &count.to_le_bytes()].concat();
    let bytes = file(&[entry("a", 9, &array)], &[], count as usize);
    let (defect, peak) = peak_of(|| defect(&bytes));
    assert!(matches!(defect, Defect::HeaderTooLong { limit: 100_000_000, .. }));
    assert!(peak < 100_000, "{peak}");
}

#[test]
fn arrays_may_not_nest_without_end() {
    let level = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
    let deep = defect(&file(&[entry("a", 9, &level.repeat(10_000))], &[], 0));
    assert!(matches!(deep, Defect::Metadata { key, .. } if key == "a"));
}

#[test]
fn unknown_types_are_an_error() {
    assert!(matches!(defect(&file(&[entry("a", 13, &[])], &[], 64)), Defect::Tag { what: "value type", found: 13, offset: 33 }));
    assert!(matches!(defect(&file(&[entry("a", 7, &[2])], &[], 64)), Defect::Tag { what: "truth value", found: 2, .. }));
    let removed = file(&[], &[tensor("a", &[32], 4, 0)], 64);
    assert!(matches!(defect(&removed), Defect::Tag { what: "tensor type", found: 4, .. }));
}

#[test]
fn text_that_is_not_utf8_is_an_error() {
    let bytes = file(&[entry("a", 8, &[text("b"), vec![0; 4]].concat())], &[], 0);
    let at = bytes.iter().position(|byte| *byte == b'b').expect("it is there");
    let mut broken = bytes;
    broken[at] = 0xff;
    assert!(matches!(defect(&broken), Defect::Text { offset } if offset == at as u64));
}

#[test]
fn a_key_or_a_name_given_twice_is_an_error() {
    let key = entry("a", 0, &[1]);
    assert!(matches!(defect(&file(&[key.clone(), key], &[], 0)), Defect::Metadata { key, .. } if key == "a"));
    let tensors = [tensor("a", &[8], F32, 0), tensor("a", &[8], F32, 32)];
    assert!(matches!(defect(&file(&[], &tensors, 64)), Defect::Overlap { first, second } if first == "a" && second == "a"));
}

#[test]
fn alignment_must_be_a_power_of_two() {
    for alignment in [0u32, 4, 12, 48] {
        let entry = entry("general.alignment", 4, &alignment.to_le_bytes());
        assert!(matches!(defect(&file(&[entry], &[], 64)), Defect::Metadata { key, .. } if key == "general.alignment"));
    }
    let text = entry("general.alignment", 8, &text("32"));
    assert!(matches!(defect(&file(&[text], &[], 64)), Defect::Metadata { .. }));
}

#[test]
fn tensors_that_are_misplaced_are_an_error() {
    let extent = |tensors: &[Vec<u8>]| match defect(&file(&[], tensors, 96)) {
        Defect::Extent { tensor, start, end, length: 96, alignment: 32 } => (tensor, start, end),
        other => panic!("{other}"),
    };
    assert_eq!(extent(&[tensor("a", &[8], F32, 16)]), ("a".into(), 16, 48));
    assert_eq!(extent(&[tensor("a", &[8], F32, 96)]), ("a".into(), 96, 128));
    assert_eq!(extent(&[tensor("a", &[8], F32, u64::MAX - 31)]), ("a".into(), u64::MAX - 31, u64::MAX));
}

#[test]
fn tensors_that_overlap_are_an_error() {
    let tensors = [tensor("a", &[8], F32, 32), tensor("b", &[9], F32, 0)];
    assert!(matches!(defect(&file(&[], &tensors, 96)), Defect::Overlap { first, second } if first == "b" && second == "a"));
}

#[test]
fn a_file_cut_short_is_an_error() {
    let bytes = testdata("every-type.gguf");
    let cut = defect(&bytes[..bytes.len() - 100]);
    assert!(matches!(cut, Defect::Length { covered, present } if present < covered));
    for length in 0..2000 {
        assert!(open(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn shapes_that_cannot_be_are_an_error() {
    for dims in [&[1, 1, 1, 1, 1][..], &[1 << 32, 1 << 32], &[1 << 32, 1 << 31, 0], &[u64::MAX]] {
        assert!(matches!(defect(&file(&[], &[tensor("a", dims, F32, 0)], 64)), Defect::Shape { .. }), "{dims:?}");
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_an_error() {
    let skewed = defect(&file(&[], &[tensor("a", &[128, 2], Q4_K, 0)], 144));
    assert!(matches!(skewed, Defect::Block { columns: 128, block: 256, dtype: "Q4_K", .. }));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_damaged_file_can_be_read_or_is_an_error(damages in crate::damage::damages(8576)) {
        let bytes = crate::damage::apply(&damages, &testdata("every-type.gguf"), 2600);
        let (opened, peak) = peak_of(|| open(&bytes));
        prop_assert!(peak <= 40 * bytes.len() + 20_000, "{peak} bytes held for a file of {}", bytes.len());
        match opened {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(file) => for (name, info) in file.tensors() {
                prop_assert!(info.elements() <= 4 * bytes.len());
                prop_assert_eq!(read_all(&file, name)?.len(), info.elements());
                file.digest(name)?;
            },
        }
    }
}
