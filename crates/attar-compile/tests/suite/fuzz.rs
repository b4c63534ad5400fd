//! The seeds of the fuzz targets, once each: every file is read or refused. Plans and proofs are seeds without their header, so
//! that a fuzzer need not find a digest; `BLESS=1` writes two small ones of each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attar_compile::{
    Element, Plan,
    device::Device,
    memory::read_csv,
    plan::{MAGIC, Proof, VERSION},
    program::{Destination, Epilogue, Role},
    schedule::{Freedom, Goal, schedule},
    simulate::simulate,
};

use crate::{
    cases::target,
    support::{Block, Builder},
};

/// Magic bytes, version and digest.
const HEADER: usize = 8 + 4 + 32;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz").join(target)
}

/// The seeds of a fuzz target, and what it found once.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files: Vec<PathBuf> =
        fs::read_dir(folder(target)).expect("a folder of seeds").map(|entry| entry.expect("it can be listed").path()).collect();
    assert!(!files.is_empty(), "no seeds of {target}");
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("it can be read"))).collect()
}

/// A file with that magic, whose digest is right.
fn sealed(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    [magic.as_slice(), &VERSION.to_le_bytes(), blake3::hash(body).as_bytes(), body].concat()
}

/// One product, its plan, and its numbers.
fn small() -> (Plan, Proof) {
    let mut builder = Builder::new(1);
    let x = builder.numbers("x", [3, 8], Element::INT8, Role::Input);
    let out = builder.program.tensor("out", [3, 5], Element::INT8, Role::Output);
    builder.linear("product", x, 5, Element::INT4, 90.0, vec![Destination { tensor: out, row: 0 }], Epilogue::Rescale);
    planned(builder, 4_000)
}

/// The same of a block of a decoder, with norms of heads.
fn block() -> (Plan, Proof) {
    let mut builder = Builder::new(1);
    let (weight, window) = (Element::INT8, Some(3));
    let block =
        Block { rows: 2, past: 2, width: 8, inner: 8, heads: 2, key_heads: 1, head: 4, window, weight, normed_heads: true };
    builder.blocks(1, &block);
    planned(builder, 30_000)
}

fn planned(builder: Builder, sram: u64) -> (Plan, Proof) {
    let (program, memory) = builder.memory();
    let plan = schedule(&program, &target(sram, 8), Goal::Dram, Freedom::ALL, "small").expect("it fits").plan;
    let mut after = memory.clone();
    simulate(&plan, &plan.rates, &mut after).expect("it runs");
    (plan, Proof::new(program, memory, &after))
}

#[test]
fn plans_and_proofs() {
    for (name, (plan, proof)) in [("small", small()), ("block", block())] {
        if std::env::var_os("BLESS").is_some() {
            for (target, bytes) in [("plan", plan.to_bytes()), ("proof", proof.to_bytes())] {
                fs::create_dir_all(folder(target)).unwrap();
                fs::write(folder(target).join(name), &bytes[HEADER..]).unwrap();
            }
        }
        let plans = seeds("plan").into_iter().filter_map(|(_, body)| Plan::from_bytes(&sealed(MAGIC, &body)).ok());
        assert!(plans.map(|plan| plan.to_string()).any(|text| text == plan.to_string()), "{name}");
        let proofs = seeds("proof").into_iter().filter_map(|(_, body)| Proof::from_bytes(&sealed(b"attarprf", &body)).ok());
        assert!(proofs.into_iter().any(|found| found == proof), "{name}");
    }
}

#[test]
fn devices_and_buffers() {
    assert!(seeds("device").into_iter().filter(|(path, _)| Device::load(path).is_ok()).count() > 0);
    assert!(seeds("memory").into_iter().filter(|(_, bytes)| read_csv(bytes).is_ok()).count() > 1);
}

#[test]
fn a_proof_knows_its_results() {
    let (plan, proof) = small();
    assert!(proof.prove(&plan).is_ok() && proof.results.len() == 1);
    let mut other = proof.clone();
    other.results[0].1[7] += 1;
    let error = other.prove(&plan).unwrap_err().to_string();
    assert!(error.contains("the result of the file") && error.contains("out"), "{error}");
    let mut short = proof.clone();
    short.results[0].1.pop();
    assert!(short.prove(&plan).unwrap_err().to_string().contains("14 numbers"));
    let mut none = proof;
    none.results[0].0 = attar_compile::TensorId(77);
    assert!(none.prove(&plan).is_err());
}
