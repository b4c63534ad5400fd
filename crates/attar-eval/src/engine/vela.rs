//! Arm's compiler for Ethos-U, through its Python package: it compiles integer-only models, without a device.

use super::kind::{Engine, Home, Opens, Package, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "vela",
    title: "Arm's Vela",
    home: Home::Wheel(Package {
        name: "ethos-u-vela",
        module: "ethosu",
        folder: "",
        library: "regor",
        needs: &[],
        installer: None,
    }),
    pins: include_str!("../../engines/vela.txt"),
    opens: &[Opens { target: "tflite", file: "model.tflite" }, Opens { target: "tflite", file: "decode.tflite" }],
    modes: &[],
    devices: &[
        "ethos-u85-1024",
        "ethos-u85-128",
        "ethos-u85-256",
        "ethos-u85-512",
        "ethos-u85-2048",
        "ethos-u65-512",
        "ethos-u65-256",
        "ethos-u55-256",
        "ethos-u55-128",
        "ethos-u55-64",
        "ethos-u55-32",
    ],
    worker: Worker::Python(include_str!("vela.py")),
};
