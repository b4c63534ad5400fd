//! Every shipped device, and what is said of a wrong one.

use attar_compile::device::{Confidence, Device, Products, Softmax};
use attar_compile::tile::{Objective, Product, search};
use attar_compile::{Element, Error};
use std::path::Path;

#[test]
fn every_device_is_complete_and_every_number_has_a_source() {
    let names: Vec<_> = Device::names().collect();
    assert_eq!(names.len(), 10);
    for name in names {
        let device = Device::named(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(device.name, name);
        assert!(!device.summary.is_empty() && !device.strategies.is_empty());
        assert!(device.numbers().count() > 25);
        for (key, text, origin) in device.numbers() {
            assert!(origin.text.len() > 10 && !origin.text.contains("no source is given"), "{name} {key} = {text}: {origin:?}");
        }
        let macs = device.engine.array.iter().product::<u64>() * device.engine.cores;
        assert_eq!(macs as f64, device.engine.pairs[0].macs, "{name}: the array is what w8a8 says");
        assert!(device.core.is_none_or(|(bytes, usable)| usable <= bytes && bytes <= device.sram.bytes));
    }
}

#[test]
fn every_file_is_shipped() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../devices");
    let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
    files.sort();
    let mut names: Vec<_> = Device::names().collect();
    names.sort();
    let stems: Vec<_> = files.iter().map(|f| f.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(stems, names);
}

#[test]
fn every_device_tiles_a_projection() {
    let product = Product::new(512, 576, 1536, Element::INT8, Element::INT4);
    for name in Device::names() {
        let device = Device::named(name).unwrap();
        let product = product.aligned(device.unit);
        for pair in &device.engine.pairs {
            let rates = device.rates(pair.weights, pair.activations).unwrap();
            let macs = rates.array.iter().product::<u64>() as f64;
            assert!((macs / pair.macs - 1.0).abs() < 0.01, "{name} {pair:?} {rates:?}");
        }
        let rates = device.rates(4, 8).unwrap();
        let tiling = search(&product, &device.limits(), &Objective::Latency(rates)).unwrap();
        let cost = tiling.cost(&product, &device.limits(), &rates);
        assert!(tiling.sram <= device.sram.usable && cost.cycles >= cost.compute && cost.energy > 0.0, "{name} {cost:?}");
    }
}

#[test]
fn a_source_stands_beside_its_number() {
    let device = Device::named("ethos-u85-1024").unwrap();
    let (_, text, origin) = device.numbers().find(|(key, ..)| *key == "dram.read").unwrap();
    assert_eq!((text, origin.confidence), ("12 GB/s", Confidence::Derived));
    assert!(origin.text.contains("Vela"));
    assert_eq!((device.dram.read, device.dram.write, device.dram.latency), (12e9, 12e9, 500.0));
    assert_eq!(device.flash.unwrap().read, 0.5e9, "inherited");
}

/// As Vela's configurations have it, from which none of these may be inherited by accident.
#[test]
fn ethos_files_have_what_ethos_has() {
    let names = ["ethos-u55-256", "ethos-u65-512", "ethos-u85-256", "ethos-u85-1024"];
    let devices = names.map(|name| Device::named(name).unwrap());
    assert!(devices.iter().all(|device| device.dispatch == 0.0 && device.engine.fill == 0.0 && device.dma.setup == 0.0));
    assert!(devices.iter().all(|device| !device.can.splits && !device.can.norm_inside && device.can.softmax == Softmax::Whole));
    let [elementwise, array] = [Products::Elementwise, Products::Array];
    assert_eq!(devices.each_ref().map(|device| device.can.products), [elementwise, elementwise, array, array]);
    assert_eq!(devices.each_ref().map(|device| device.dma.outstanding), [2, 24, 64, 64]);
    assert_eq!(devices.each_ref().map(|device| device.engine.cores), [1, 2, 1, 1]);
    assert_eq!([0, 1].map(|at: usize| devices[at].engine.array), [[4, 8, 8]; 2], "micro-blocks of 2 x 2 x 8");
    assert_eq!([2, 3].map(|at: usize| devices[at].engine.array), [[4, 8, 8], [4, 8, 32]]);
    let rates = devices[2].rates(8, 8).unwrap();
    assert!(rates.coded < 1.0 && Device::named("generic-npu").unwrap().rates(8, 8).unwrap().coded == 1.0);
}

#[test]
fn numbers_are_set_by_key_and_for_short() {
    let mut device = Device::named("generic-npu").unwrap();
    device.set("sram", "256KiB").unwrap();
    device.set("dram.bandwidth", "12GB/s").unwrap();
    device.set("array", "1x16x64").unwrap();
    device.set("cores", "2").unwrap();
    assert_eq!((device.sram.bytes, device.sram.usable), (256 << 10, 256 << 10));
    assert_eq!((device.dram.read, device.dram.write), (12e9, 12e9));
    assert_eq!((device.engine.array, device.engine.pairs[0].macs), ([1, 16, 64], 2048.0));
    let (.., origin) = device.numbers().find(|(key, ..)| *key == "sram.bytes").unwrap();
    assert_eq!((origin.confidence, origin.text.as_str()), (Confidence::Assumed, "chosen with --set"));
    let mut hexagon = Device::named("hexagon-v79").unwrap();
    hexagon.set("sram", "4MiB").unwrap();
    assert_eq!(hexagon.sram.usable, 4 << 20, "usable follows what there is");
}

fn message(result: Result<Device, Error>) -> String {
    result.expect_err("the test is of an error").to_string()
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    assert_eq!(message(Device::named("ethos-u55")), "no device is named `ethos-u55`; did you mean `ethos-u55-256`?");
    assert_eq!(message(Device::named("zzz")), "no device is named `zzz`");
}

#[test]
fn wrong_settings_leave_the_device_as_it_was() {
    let before = Device::named("generic-npu").unwrap();
    let mut device = before.clone();
    let mut set = |key: &str, value: &str| device.set(key, value).unwrap_err().to_string();
    assert_eq!(set("dram.bandwidth", "0 GB/s"), "--set: `dram.read` is `0 GB/s`; expected more than zero");
    assert_eq!(set("dram.raed", "1 GB/s"), "--set: unknown device key `dram.raed`; did you mean `dram.read`?");
    assert_eq!(set("sram", "lots"), "--set: `sram.bytes` is `lots`; expected a size such as `256 KiB`");
    assert_eq!(set("sram", "1 KiB"), "one tile [1, 32, 32] of `generic-npu` needs 1280 bytes of SRAM; 1024 are usable");
    assert_eq!(set("sram.usable", "1 GiB"), "`generic-npu` has 2097152 bytes of sram, but 1073741824 usable ones");
    assert_eq!(device, before);
    assert_eq!(
        before.rates(3, 8).unwrap_err().to_string(),
        "`generic-npu` does not multiply 3-bit weights with 8-bit activations"
    );
}

/// The message for a file of this text, with the folder left out.
fn complaint(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder can be written");
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, text).expect("a temporary folder can be written");
    message(Device::load(&path)).replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn files_of_ones_own_inherit_and_may_leave_sources_out() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("base.toml"), "name = \"base\"\ninherit = \"generic-npu\"\n[sram]\nbytes = \"1 MiB\"\n")
        .unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "name = \"mine\"\ninherit = \"base.toml\"\n[dma]\nsetup = 12\n").unwrap();
    let device = Device::load(&path).unwrap();
    assert_eq!((device.name.as_str(), device.sram.bytes, device.dma.setup), ("mine", 1 << 20, 12.0));
    let (.., origin) = device.numbers().find(|(key, ..)| *key == "dma.setup").unwrap();
    assert_eq!(origin.confidence, Confidence::Assumed);
}

#[test]
fn wrong_files_are_clear_errors() {
    for (text, wanted) in [
        ("inherit = \"mine.toml\"", "devices inherit from each other in a cycle: mine.toml -> mine.toml"),
        ("inherit = \"generic\"", "no device is named `generic`; did you mean `generic-npu`?"),
        ("name = \"x\"", "the device `x` has no `dram.bytes`"),
        ("inherit = \"generic-npu\"\n[dram]\nbandwith = 3", "mine.toml:3: unknown device key `dram.bandwith`"),
        ("inherit = \"generic-npu\"\n[dram]\nraed = 3", "mine.toml:3: unknown device key `dram.raed`; did you mean `dram.read`?"),
        (
            "inherit = \"generic-npu\"\n\n[dram]\nread = \"0 GB/s\"",
            "mine.toml:4: `dram.read` is `0 GB/s`; expected more than zero",
        ),
        (
            "inherit = \"generic-npu\"\n[dram]\nread = [\"1 GB/s\", \"sheet\"]",
            "mine.toml:3: `dram.read` is `\"sheet\"`; expected the name of an entry of `[sources]`",
        ),
        (
            "[sources]\nsheet = { confidence = \"sure\", text = \"a\" }",
            "mine.toml:2: `sources.sheet` is `\"sure\"`; expected one of `measured`, `read`, `derived`, `assumed`",
        ),
        (
            "strategies = [\"fast\"]",
            "mine.toml:1: `strategies` is `\"fast\"`; expected some of `latency`, `throughput`, `energy`",
        ),
        ("colour = 3", "mine.toml:1: unknown device key `colour`"),
        ("inherit = \"generic-npu\"\n[flash]\nbytes = \"1 GiB\"", "the device `generic-npu` has no `flash.read`"),
    ] {
        let found = complaint(text);
        assert!(found.ends_with(wanted) || found.starts_with(wanted), "{text}: {found}");
    }
    assert!(complaint("name = ").starts_with("mine.toml:1: "));
    assert!(message(Device::load(Path::new("nowhere.toml"))).contains("nowhere.toml"));
}

proptest::proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "(\\[[a-z]{0,6}\\]\n|[a-z0-9]{0,6} ?= ?[\\[\"0-9a-zA-Z/ x.,\\]]{0,14}\n){0,6}", cut in 0usize..2000) {
        let _ = complaint_of_any(&text);
        let whole = include_str!("../../../../devices/generic-npu.toml");
        // What comes after this number need not be there.
        let cut = cut % whole.find("dispatch").expect("it says so");
        proptest::prop_assert!(complaint_of_any(&whole[..cut]).is_some(), "a truncated file is no device");
        let _ = complaint_of_any(&format!("{}{text}", &whole[..cut]));
    }
}

fn complaint_of_any(text: &str) -> Option<String> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, text).expect("a temporary file can be written");
    Device::load(&path).err().map(|error| error.to_string())
}
