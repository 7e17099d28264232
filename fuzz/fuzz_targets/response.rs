#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| storytellr_relay::fuzzing::response(input));
