//! The safetensors reader against files that lie.

use std::{collections::BTreeMap, io::Write};

use attar_tensor::{
    Defect, Dtype, Encoding, Error, Result, Scheme, Source,
    safetensors::{Entry, File, PartLayout, Shards, Writer},
};
use proptest::{prelude::*, test_runner::RngSeed};
use tempfile::NamedTempFile;

use crate::memory::peak_of;

type Quantized = BTreeMap<String, (Scheme, [usize; 2])>;

fn stored(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    file
}

fn open(bytes: &[u8], quantized: &Quantized) -> Result<Shards> {
    Shards::open(&[stored(bytes).path().into()], quantized)
}

fn defect(bytes: &[u8]) -> Defect {
    match File::open(stored(bytes).path()) {
        Err(Error::Malformed { format: "safetensors", defect, .. }) => defect,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opened"),
    }
}

fn quantized() -> Quantized {
    let scheme = |text: &str| text.parse::<Scheme>().expect("it is a scheme");
    [("q", (scheme("int4/g16/asymmetric"), [4, 32])), ("r", (scheme("int8/tensor/f32"), [2, 8]))]
        .map(|(name, entry)| (name.to_string(), entry))
        .into()
}

/// Plain tensors, an empty one, and those of [`quantized`].
fn whole() -> Vec<u8> {
    let plain = |name: &str, dtype, dims: &[usize]| Entry { name: name.into(), dtype, dims: dims.to_vec() };
    let mut entries = vec![
        plain("a", Dtype::F32, &[3, 5]),
        plain("b", Dtype::BF16, &[2, 3, 4]),
        plain("c", Dtype::I64, &[2]),
        plain("d", Dtype::F16, &[0, 4]),
    ];
    entries.extend(quantized().iter().flat_map(|(name, (scheme, dims))| PartLayout::new(name, *scheme, *dims).entries()));
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let mut writer = Writer::new(Vec::new(), &entries, &metadata).expect("memory takes everything");
    for entry in &entries {
        let bytes = vec![0x31; entry.dims.iter().product::<usize>() * entry.dtype.bytes()];
        writer.append(&bytes).expect("memory takes everything");
    }
    writer.finish()
}

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

fn read_everything(shards: &Shards) -> Result<()> {
    for (name, info) in shards.tensors() {
        let rows = info.matrix()[0];
        shards.read(name, 0..rows, &mut vec![0.0; info.elements()])?;
        shards.digest(name)?;
        if matches!(info.encoding, Encoding::Quantized(_)) {
            shards.read_quantized(name, 0..rows)?;
        }
    }
    Ok(())
}

#[test]
fn a_whole_file_can_be_read() {
    let shards = open(&whole(), &quantized()).expect("it is whole");
    assert_eq!(shards.tensors().len(), 6);
    read_everything(&shards).expect("it is whole");
}

#[test]
fn a_file_cut_short_is_an_error() {
    let bytes = whole();
    assert!(matches!(defect(&bytes[..5]), Defect::TooShort { length: 5, .. }));
    assert!(matches!(defect(&bytes[..bytes.len() - 1]), Defect::Length { covered, present } if present + 1 == covered));
    for length in 0..bytes.len() {
        assert!(open(&bytes[..length], &quantized()).is_err(), "{length}");
    }
}

#[test]
fn a_file_with_more_than_its_tensors_is_an_error() {
    assert!(matches!(defect(&[whole(), vec![0]].concat()), Defect::Length { covered, present } if present == covered + 1));
}

#[test]
fn a_header_longer_than_the_file_is_an_error() {
    for size in [1 << 20, 1 << 40, u64::MAX] {
        let mut bytes = whole();
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        let (defect, peak) = peak_of(|| defect(&bytes));
        assert!(matches!(defect, Defect::HeaderTooLong { declared, .. } if declared == size));
        assert!(peak < 100_000, "{peak}");
    }
}

#[test]
fn ranges_that_overlap_or_leave_holes_are_an_error() {
    for second in ["[4, 12]", "[12, 20]", "[8, 20]", "[16, 8]"] {
        let header = format!(
            r#"{{"a": {{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
                "b": {{"dtype": "F32", "shape": [2], "data_offsets": {second}}}}}"#
        );
        assert!(matches!(defect(&file(&header, 16)), Defect::Header(_)), "{second}");
    }
}

#[test]
fn a_shape_that_overflows_is_an_error() {
    let header = r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4], "data_offsets": [0, 0]}}"#;
    assert!(matches!(defect(&file(header, 0)), Defect::Header(_)));
}

#[test]
fn a_dtype_that_cannot_be_read_is_an_error_of_its_tensor_only() {
    let header = r#"{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
    let shards = open(&file(header, 8), &Quantized::new()).expect("one tensor can be read");
    read_everything(&shards).expect("one tensor can be read");
    let Err(Error::Malformed { defect: Defect::Dtype { dtype, .. }, .. }) = shards.info("a") else { panic!("it was read") };
    assert_eq!(dtype, "F8_E4M3");
}

#[test]
fn a_name_in_two_shards_is_an_error() {
    let (first, second) = (stored(&whole()), stored(&whole()));
    let opened = Shards::open(&[first.path().into(), second.path().into()], &quantized());
    assert!(matches!(opened, Err(Error::Malformed { defect: Defect::Twice { .. }, .. })));
}

#[test]
fn a_quantized_tensor_with_another_shape_is_an_error() {
    let mut quantized = quantized();
    if let Some((_, dims)) = quantized.get_mut("q") {
        *dims = [4, 64];
    }
    let opened = open(&whole(), &quantized);
    assert!(matches!(opened, Err(Error::Malformed { defect: Defect::Part { tensor, .. }, .. }) if tensor == "q.codes"));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_damaged_file_can_be_read_or_is_an_error(damages in crate::damage::damages(1000)) {
        let bytes = crate::damage::apply(&damages, &whole(), 700);
        let (opened, peak) = peak_of(|| open(&bytes, &quantized()));
        prop_assert!(peak <= 40 * bytes.len() + 20_000, "{peak} bytes held for a file of {}", bytes.len());
        match opened {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(shards) => read_everything(&shards)?,
        }
    }

    #[test]
    fn a_damaged_byte_of_the_header_can_be_read_or_is_an_error(at in 0..700usize, bits in 1..=u8::MAX) {
        let mut bytes = whole();
        bytes[at] ^= bits;
        if let Ok(shards) = open(&bytes, &quantized()) {
            read_everything(&shards)?;
        }
    }
}
