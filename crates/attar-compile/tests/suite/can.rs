//! What a device cannot do is not planned: blocks for devices that lack something, scheduled and proven.

use attar_compile::{
    Element, Error, Kernel, Memory, Program,
    device::{Can, Device, Products, Softmax},
    lower::Tiles,
    schedule::{Freedom, Goal, Schedule, Target, schedule},
    simulate::{Elementwise, prove, time},
};

use crate::{
    cases::target,
    support::{Block, Builder},
};

const BLOCK: Block = Block {
    rows: 40,
    past: 5,
    width: 64,
    inner: 96,
    heads: 4,
    key_heads: 2,
    head: 16,
    window: None,
    weight: Element::INT8,
    normed_heads: false,
};

fn block() -> (Program, Memory) {
    let mut builder = Builder::new(3);
    builder.blocks(1, &BLOCK);
    builder.memory()
}

/// Proves the block on a device with these abilities and so much SRAM.
fn planned(can: Can, sram: u64) -> Result<Schedule, Error> {
    let (program, memory) = block();
    let target = Target { can, ..target(sram, 16) };
    let schedule = schedule(&program, &target, Goal::Dram, Freedom::ALL, "test")?;
    prove(&program, &schedule.plan, &target.rates, &memory)?;
    Ok(schedule)
}

#[test]
fn without_partial_sums_every_tile_has_all_of_k() {
    let splits = |schedule: &Schedule| {
        let split = |tiles: &Tiles| match tiles {
            Tiles::Linear(linear) => linear.tiling.tile[1] < linear.product.k,
            Tiles::GatedMlp(_) => true,
            _ => false,
        };
        schedule.choices.iter().filter(|choice| split(&choice.tiles)).count()
    };
    assert!(splits(&planned(Can::default(), 9_000).unwrap()) > 0);
    assert_eq!(splits(&planned(Can { splits: false, ..Can::default() }, 9_000).unwrap()), 0);
}

#[test]
fn norms_stay_apart_where_products_cannot_hold_them() {
    let within = |can| {
        let sizes = [6_000, 12_000, 24_000, 48_000].map(|sram| planned(can, sram).unwrap());
        sizes.iter().flat_map(|schedule| &schedule.choices).filter(|choice| matches!(choice.kernel, Kernel::Normed(_))).count()
    };
    assert!(within(Can::default()) > 0);
    assert_eq!(within(Can { norm_inside: false, ..Can::default() }), 0);
}

#[test]
fn whole_softmax_has_all_keys_in_one_tile() {
    let whole = Can { softmax: Softmax::Whole, ..Can::default() };
    for sram in [16_000, 32_000, 64_000] {
        let schedule = planned(whole, sram).unwrap();
        let keys = schedule.choices.iter().find_map(|choice| match &choice.tiles {
            Tiles::Attention(tiles) => Some(tiles.keys),
            _ => None,
        });
        assert!(keys.unwrap() >= BLOCK.rows + BLOCK.past);
    }
    let error = planned(whole, 2_200).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "kernel `blocks.0.attention` does not fit on `test` as its `can.softmax` demands");
    assert!(error.hint().is_some());
}

#[test]
fn a_device_without_products_of_activations_refuses_attention_by_name() {
    let error = planned(Can { products: Products::None, ..Can::default() }, 60_000).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "`test` cannot run `blocks.0.attention` (`can.products` of its device file)");
}

#[test]
fn products_of_activations_cost_what_the_elementwise_unit_takes() {
    let (program, _) = block();
    let plan = planned(Can::default(), 60_000).unwrap().plan;
    let rates = target(60_000, 16).rates;
    let product = Some(100.0);
    let slow = attar_compile::simulate::Rates { elementwise: Elementwise { product, ..Elementwise::default() }, ..rates.clone() };
    let compute = |rates| {
        let run = time(&plan, rates).unwrap();
        run.calls.iter().find(|call| call.name.ends_with("attention")).unwrap().compute
    };
    let Some((_, Kernel::Attention(attention))) = program.kernels.iter().find(|(name, _)| name.ends_with("attention")) else {
        panic!("there is one")
    };
    // All keys are seen by somebody, so that no tile is skipped by all rows: at least the products that count are paid for.
    assert!(compute(&slow) >= 100 * program.macs(&Kernel::Attention(attention.clone())));
    assert!(compute(&rates) < compute(&slow) / 10);
}

/// Setup is paid once for a stream of transfers, and for each of them where requests wait for each other.
#[test]
fn requests_in_flight_hide_setup() {
    let plan = planned(Can::default(), 9_000).unwrap().plan;
    let cycles = |outstanding| {
        let mut rates = target(9_000, 16).rates;
        (rates.tile.setup, rates.tile.burst, rates.tile.outstanding) = (500.0, 16, outstanding);
        time(&plan, &rates).unwrap().cycles
    };
    let all = [1, 4, 64].map(cycles);
    assert!(all[0] > all[1] && all[1] > all[2], "{all:?}");
    let alone = { time(&plan, &target(9_000, 16).rates).unwrap().cycles };
    assert!(all[2] > alone, "the first load of a call waits in any case: {all:?}, {alone}");
}

#[test]
fn a_compressed_stream_shortens_loads_of_int8_weights() {
    let mut device = Device::named("generic-npu").unwrap();
    device.set("can.weights", "4").unwrap();
    let (program, _) = block();
    let cycles = |device: &Device, weights| {
        let target = Target::new(device, weights).unwrap();
        time(&schedule(&program, &target, Goal::Dram, Freedom::NONE, "test").unwrap().plan, &target.rates).unwrap().cycles
    };
    assert!(cycles(&device, 8) < cycles(&Device::named("generic-npu").unwrap(), 8));
}

#[test]
fn words_of_a_device_file_are_checked() {
    let mut device = Device::named("generic-npu").unwrap();
    let mut set = |key: &str, value: &str| device.set(key, value).map_err(|error| error.to_string());
    assert_eq!(set("can.splits", "never").unwrap_err(), "--set: `can.splits` is `never`; expected `yes` or `no`");
    assert_eq!(set("can.products", "elementwise").unwrap_err(), "the device `generic-npu` has no `elementwise.product`");
    set("elementwise.product", "0.5").unwrap();
    set("can.products", "elementwise").unwrap();
    assert_eq!(device.can.products, Products::Elementwise);
}
