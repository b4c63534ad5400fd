#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| attar_fuzz::litert_lm(bytes));
