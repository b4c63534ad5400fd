# A short index of verbs. Each calls cargo; the logic is in `xtask/`.

# lints, as strict as CI
check:
    cargo clippy --workspace --all-targets --release -- -D warnings

# all tests, with the real engines in reach: `just test gptq` for some
test *ARGS:
    cargo xtask test {{ARGS}}

# rewrite the golden files; read the diff before you commit it
bless *ARGS:
    cargo xtask bless {{ARGS}}

# the benchmarks, or those named
bench *NAME:
    cargo xtask bench {{NAME}}

# the API documentation, in target/doc
docs:
    cargo doc --workspace --no-deps --release

# everything that must hold before a merge
ci:
    cargo xtask ci

# the README's first recipe
quickstart:
    cargo run --release -- run recipes/quickstart.toml
