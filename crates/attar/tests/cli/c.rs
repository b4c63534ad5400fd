//! `--target c`: what a C compiler makes of plans computes what the simulator does, number by number and byte by byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use attar_compile::{
    Data, Index, Manifest, Memory, Plan, TensorId,
    plan::{Space, VERSION},
    program::Role,
    simulate::{Simulation, simulate},
};
use serde_json::Value;

use crate::{
    compile::{QUANTIZE, compile, recipe},
    room::{Room, skip},
};

/// Embedding, head and the input of the head in integers.
const HEAD: &str = "[[step]]\nkind = \"quantize\"\nselect = [\"lm_head\"]\ngrid = \"int8\"\ngroup = \"row\"\n\n";
const ACTIVATIONS: &str =
    "[[step]]\nkind = \"activations\"\nmode = \"static\"\nselect = [\"blocks.*.{attention,mlp}.*\", \"lm_head\"]\n\n";

/// Prompts that are read behind each other; an empty one begins again.
const PROMPTS: [&[u32]; 6] = [&[5, 61, 7], &[9], &[], &[64, 1, 2, 3, 4], &[17, 18], &[60]];

/// A compiled model in its folder.
struct Folder {
    path: PathBuf,
    manifest: Manifest,
    plans: Vec<Plan>,
}

/// What a model in use holds: its caches by name, and how many tokens it has read.
#[derive(Default)]
struct State {
    caches: BTreeMap<String, Vec<i32>>,
    position: u64,
    logits: Vec<i32>,
    moved: [u64; 3],
}

impl Folder {
    fn open(path: PathBuf) -> Folder {
        let manifest: Manifest = serde_json::from_slice(&fs::read(path.join("model.json")).unwrap()).unwrap();
        let plan = |name: &str| Plan::from_bytes(&fs::read(path.join(format!("{name}.plan"))).unwrap()).unwrap();
        let plans = manifest.runs.iter().map(|run| plan(&run.name)).collect();
        Folder { path, manifest, plans }
    }

    fn batch(&self) -> usize {
        self.manifest.batch as usize
    }

    /// Reads a prompt, of a batch the prompts of all sequences side by side: the plans of most tokens first, and one with logits for the last.
    fn prompt(&self, state: &mut State, mut tokens: &[u32]) {
        while !tokens.is_empty() {
            let fits = |(_, run): &(usize, &attar_compile::Entry)| {
                let (rows, left) = (run.rows as usize, tokens.len() / self.batch());
                rows <= left && run.past >= state.position && (rows < left || run.head)
            };
            let runs = self.manifest.runs.iter().enumerate().filter(fits);
            let (at, run) = runs
                .fold(None, |best: Option<(usize, &attar_compile::Entry)>, next| match best {
                    Some(best) if best.1.rows >= next.1.rows => Some(best),
                    _ => Some(next),
                })
                .expect("some plan fits");
            let rows = run.rows as usize * self.batch();
            self.run(state, at, &tokens[..rows], run.head);
            tokens = &tokens[rows..];
        }
    }

    fn run(&self, state: &mut State, at: usize, tokens: &[u32], head: bool) {
        let plan = self.plans[at].at(state.position);
        let mut memory = self.memory(&plan);
        let input = self.first_values(tokens, state.position as usize);
        let ids = |role: Role| (0..).zip(&plan.tensors).filter(move |(_, tensor)| tensor.role == role);
        memory.set(TensorId(ids(Role::Input).next().unwrap().0), Data::Numbers(input));
        for (id, tensor) in ids(Role::State) {
            if let Some(cache) = state.caches.get(&tensor.name) {
                memory.set(TensorId(id), Data::Numbers(cache.clone()));
            }
        }
        let Simulation { calls, .. } = simulate(&plan, &plan.rates, &mut memory).unwrap();
        for call in calls {
            let counts = [call.read[0], call.read[1], call.written];
            state.moved.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for (id, tensor) in ids(Role::State) {
            state.caches.insert(tensor.name.clone(), memory.get(TensorId(id)).numbers().to_vec());
        }
        state.position += (tokens.len() / self.batch()) as u64;
        if head {
            // Where every token has its logits, the last ones count.
            let logits = memory.get(TensorId(ids(Role::Output).next().unwrap().0)).numbers();
            state.logits = logits[logits.len() - self.vocabulary()..].to_vec();
        }
    }

    /// Logits of all sequences.
    fn vocabulary(&self) -> usize {
        self.manifest.vocabulary.unwrap() as usize * self.batch()
    }

    /// Rows of tokens, with those of their positions from `first` on and of the first type of tokens where there are such.
    fn first_values(&self, tokens: &[u32], first: usize) -> Vec<i32> {
        let width = self.manifest.width as usize;
        let row = |of: Index, row: usize| {
            let Ok(table) = fs::read(self.path.join(of.file())) else { return vec![0; width] };
            let bytes = &table[2 * row * width..][..2 * width];
            bytes.chunks(2).map(|pair| i32::from(i16::from_le_bytes([pair[0], pair[1]]))).collect()
        };
        let add = |sum: Vec<i32>, other: Vec<i32>| sum.iter().zip(other).map(|(a, b)| (a + b).clamp(-32768, 32767)).collect();
        let values = |(at, token): (usize, &u32)| {
            let placed: Vec<i32> = add(row(Index::Token, *token as usize), row(Index::Position, first + at / self.batch()));
            add(placed, row(Index::TokenType, 0))
        };
        tokens.iter().enumerate().flat_map(values).collect()
    }

    /// The rows of an encoder for a text.
    fn encode(&self, tokens: &[u32], moved: &mut [u64; 3]) -> Vec<i32> {
        let plan = self.plans[0].at(tokens.len() as u64);
        let mut memory = self.memory(&plan);
        let ids = |role: Role| TensorId((0..).zip(&plan.tensors).find(|(_, tensor)| tensor.role == role).unwrap().0);
        // Rows behind the text hold its first token again.
        let rows = self.manifest.positions as usize;
        let mut input = self.first_values(tokens, 0);
        let first = input[..self.manifest.width as usize].to_vec();
        (tokens.len()..rows).for_each(|_| input.extend(&first));
        memory.set(ids(Role::Input), Data::Numbers(input));
        let Simulation { calls, .. } = simulate(&plan, &plan.rates, &mut memory).unwrap();
        for call in calls {
            let counts = [call.read[0], call.read[1], call.written];
            moved.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        memory.get(ids(Role::Output)).numbers()[..tokens.len() * first.len()].to_vec()
    }

    fn memory(&self, plan: &Plan) -> Memory {
        let images = [self.path.join("dram.bin"), self.path.join("flash.bin")].map(|path| fs::read(path).unwrap_or_default());
        let image = |space: Space, from: u64, length: u64| {
            let bytes = &images[usize::from(space == Space::Flash)];
            Ok::<_, std::convert::Infallible>(bytes[from as usize..(from + length) as usize].to_vec())
        };
        plan.memory(&mut { image }).unwrap()
    }
}

/// A prompt of each sequence of a batch, side by side: the first sequence reads the prompt itself.
fn side_by_side(prompt: &[u32], batch: usize) -> Vec<u32> {
    prompt
        .iter()
        .flat_map(|token| (0..batch as u32).map(move |of| if of == 0 { *token } else { (token + 29 * of) % 100 }))
        .collect()
}

/// What the simulator makes of the prompts: the logits behind each, then the state.
fn simulated(folder: &Folder, prompts: &[&[u32]]) -> (Vec<Vec<i32>>, State) {
    let (mut state, mut logits) = (State::default(), Vec::new());
    for prompt in prompts {
        match prompt {
            [] => state.position = 0,
            tokens => {
                folder.prompt(&mut state, &side_by_side(tokens, folder.batch()));
                logits.push(state.logits.clone());
            }
        }
    }
    (logits, state)
}

/// What is in the binary that `dump.c` writes.
struct Dump {
    logits: Vec<Vec<i32>>,
    arena: Vec<u8>,
    moved: [u64; 3],
}

impl Dump {
    fn of(bytes: &[u8], count: usize, vocabulary: usize) -> Dump {
        let (logits, rest) = bytes.split_at(2 * count * vocabulary);
        let (arena, moved) = rest.split_at(rest.len() - 24);
        let number = |pair: &[u8]| i32::from(i16::from_le_bytes([pair[0], pair[1]]));
        let logits = logits.chunks(2 * vocabulary).map(|one| one.chunks(2).map(number).collect()).collect();
        let moved = [0, 1, 2].map(|at| u64::from_le_bytes(moved[8 * at..8 * at + 8].try_into().unwrap()));
        Dump { logits, arena: arena.to_vec(), moved }
    }
}

/// Where a tensor lies in the arena, as the table of the first plan says.
fn offset(source: &str, tensor: &str) -> usize {
    let line = source.lines().find(|line| line.ends_with(&format!("/* {tensor} */")) && line.contains("ATTAR_DRAM")).unwrap();
    line.trim_start_matches([' ', '{']).split('u').next().unwrap().parse().unwrap()
}

fn same(folder: &Folder, exported: &Path, found: &Dump, what: &str) {
    let (logits, state) = simulated(folder, &PROMPTS);
    assert_eq!(found.logits.len(), logits.len(), "{what}");
    for (at, (found, wanted)) in found.logits.iter().zip(&logits).enumerate() {
        assert!(found.iter().any(|x| *x != 0), "{what}: prompt {at} has logits");
        assert_eq!(found, wanted, "{what}: logits of prompt {at}");
    }
    let source = fs::read_to_string(exported.join("attar_model.c")).unwrap();
    assert!(!state.caches.is_empty());
    for (name, cache) in &state.caches {
        let from = offset(&source, name);
        let found: Vec<i32> = found.arena[from..from + cache.len()].iter().map(|byte| i32::from(*byte as i8)).collect();
        assert_eq!(&found, cache, "{what}: {name}");
    }
    // Queues are loads of activations, loads of weights, stores.
    assert_eq!(found.moved, state.moved, "{what}: bytes");
}

fn script(batch: usize) -> String {
    let prompt = |prompt: &&[u32]| {
        let tokens: String = side_by_side(prompt, batch).iter().map(|token| format!(", {token}")).collect();
        format!("{}{tokens}", prompt.len())
    };
    let all: Vec<String> = PROMPTS.iter().map(prompt).collect();
    format!("static const uint32_t script[] = {{{}}};\n", all.join(", "))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn found(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether a compiler is there, with the libraries that its flags need.
fn links(compiler: &str, flags: &[&str]) -> bool {
    let program = tempfile::tempdir().unwrap();
    let source = program.path().join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let mut command = Command::new(compiler);
    command.args(flags).arg(&source).arg("-o").arg(program.path().join("empty"));
    command.output().is_ok_and(|output| output.status.success())
}

/// Builds the sources of an export with files of `testdata/c`.
fn build(compiler: &str, flags: &[&str], exported: &Path, port: &str, mains: [&str; 2], program: &Path) {
    let harness = root().join("testdata/c");
    let own = ["attar_api.c", "attar_model.c", "attar_runtime.c", port, "attar_weights.S"].map(|name| exported.join(name));
    // A model without a tokenizer has none.
    let tokens = Some(exported.join("attar_tokens.c")).filter(|tokens| tokens.exists());
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-fno-strict-aliasing"]).args(flags);
    command
        .arg("-I")
        .arg(&harness)
        .arg("-I")
        .arg(exported)
        .arg("-I")
        .arg(program.parent().unwrap())
        .arg(format!("-Wa,-I{}", exported.display()));
    command.args(mains.map(|main| harness.join(main))).args(own).args(tokens).arg("-o").arg(program);
    command.args(if compiler.starts_with("arm") { &["-lgcc"][..] } else { &[] });
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{compiler} says: {said}");
}

/// `testdata/oracle/plan.py`, written from `docs/formats.md`, prints every plan as attar does.
fn read_by_python(folder: &Folder) {
    for entry in fs::read_dir(&folder.path).unwrap() {
        let path = entry.unwrap().path();
        let text = path.with_extension("txt");
        if path.extension().is_some_and(|end| end == "plan") && text.exists() {
            let output = Command::new("python3").arg(root().join("testdata/oracle/plan.py")).arg(&path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout == fs::read(text).unwrap(), "{}", path.display());
        }
    }
}

/// Runs an export with a file of `testdata/c` on an emulated board with a Cortex-M55; what it writes is then in `board.out`. `false` if
/// there is no board here.
fn on_board(room: &Room, exported: &Path, main: &str) -> bool {
    let board = ["arm-none-eabi-gcc", "qemu-system-arm"];
    if let Some(missing) = board.into_iter().find(|program| !found(program)) {
        assert!(std::env::var_os("ATTAR_BOARD").is_none(), "`{missing}` is missing, and ATTAR_BOARD wants the board");
        skip(&format!("the emulated board needs `{missing}`"));
        return false;
    }
    let script = root().join("testdata/c/m55/board.ld");
    let linker = format!("-Wl,-T,{}", script.display());
    let flags = ["-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard", "-O2", "-ffreestanding", "-nostdlib", &linker];
    let program = room.path("board.elf");
    build(board[0], &flags, exported, "attar_port_check.c", [main, "m55/board.c"], &program);
    let machine =
        "-M mps3-an547 -cpu cortex-m55 -m 2G -nographic -monitor none -serial none -semihosting-config enable=on,target=native";
    let mut emulator = Command::new(board[1]);
    let output = emulator.args(machine.split(' ')).arg("-kernel").arg(&program).current_dir(room.path("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// A model writes text on the board, a token a call, with the table of its tokens in flash: what the engine `c` writes here.
fn speaks(room: &Room, exported: &Path) {
    let tokenizer = attar_model::Tokenizer::open(&exported.join("tokenizer.json")).unwrap();
    let tokens: Vec<String> = tokenizer.encode("KING HENRY:\n").unwrap().iter().map(u32::to_string).collect();
    room.write("prompt.h", &format!("#define MORE 20\nstatic const uint32_t prompt[] = {{{}}};\n", tokens.join(", ")));
    if !on_board(room, exported, "speak.c") {
        return;
    }
    let here = ["generate", "out", "--runner", "compiled", "--prompt", "KING HENRY:\\n", "--tokens", "20", "--quiet"];
    let here = room.attar(&here).exits(0).stdout;
    let board = room.read("board.out");
    assert!(board.trim().len() > 20 && board.trim_end() == here.trim_end(), "{board:?}, {here:?}");
}

/// Compiles the model of a room, exports it, and holds every compiler's program against the simulator.
fn proven(room: &Room) {
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let folder = Folder::open(room.path("out/compiled"));
    read_by_python(&folder);
    let count = PROMPTS.iter().filter(|prompt| !prompt.is_empty()).count();
    let vocabulary = folder.vocabulary();
    let exported = room.path("out/c");
    compare(room, "dump.c", &|written, what| same(&folder, &exported, &Dump::of(written, count, vocabulary), what));
}

/// Builds `main` with the export of a room by every compiler that is here and for the board, and shows what each program writes.
fn compare(room: &Room, main: &str, show: &dyn Fn(&[u8], &str)) {
    let exported = room.path("out/c");
    room.write("script.h", &script(Folder::open(room.path("out/compiled")).batch()));
    let sanitized = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let native: [(&str, &[&str], &str); 4] = [
        ("cc", &sanitized, "attar_port_check.c"),
        ("cc", &["-O3", "-march=native"], "attar_port.c"),
        ("clang", &sanitized, "attar_port_check.c"),
        ("clang", &["-O3"], "attar_port.c"),
    ];
    for (compiler, flags, port) in native {
        if !links(compiler, flags) {
            assert!(compiler != "cc" || std::env::var_os("ATTAR_BOARD").is_none(), "ATTAR_BOARD wants `cc` with sanitizers");
            skip(&format!("`{compiler}` with {} links nothing here", flags.join(" ")));
            continue;
        }
        let (program, what) = (room.path("dump"), format!("{compiler} {}", flags.join(" ")));
        build(compiler, flags, &exported, port, [main, "host.c"], &program);
        let output = Command::new(&program).output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        show(&output.stdout, &what);
    }
    if on_board(room, &exported, main) {
        show(&fs::read(room.path("board.out")).unwrap(), "Cortex-M55");
    }
}

#[test]
fn c_computes_what_the_simulator_does() {
    let room = Room::new();
    let export = "[[export]]\ntarget = \"c\"\n";
    room.write("recipe.toml", &recipe(&[QUANTIZE, HEAD, ACTIVATIONS, &compile("prove = 1"), export]));
    proven(&room);
    speaks(&room, &room.path("out/c"));
    // The verb writes the same files from the folder of plans, whole or within the output.
    room.attar(&["export", "out", "--target", "c", "--out", "again", "--quiet"]).exits(0);
    room.attar(&["export", "out/compiled", "--target", "c", "--out", "once-more", "--quiet"]).exits(0);
    let names = [
        "Makefile",
        "attar_tokens.c",
        "config.json",
        "attar_model.c",
        "attar_model.h",
        "attar_weights.S",
        "attar_weights.bin",
        "main.c",
    ];
    for (name, other) in names.iter().flat_map(|name| [(name, "again"), (name, "once-more")]) {
        let read = |folder: &str| fs::read(room.path(folder).join(name)).unwrap();
        assert!(read("out/c") == read(other), "{other}/{name}");
    }
    let told = room.attar(&["export", "out", "--target", "c", "--out", "again", "--json"]).exits(0);
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert!(told["verified_weights"].as_u64().is_some_and(|count| count > 500_000), "{told}");
    // What a user does next.
    if !found("make") {
        return skip("there is no `make`");
    }
    let make = Command::new("make").arg("-C").arg(room.path("again")).output().unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let example = |arguments: &[&str]| Command::new(room.path("again/example")).args(arguments).output().unwrap();
    let folder = Folder::open(room.path("out/compiled"));
    let (logits, _) = simulated(&folder, &[&[5, 61, 7]]);
    let best = (0..).zip(&logits[0]).max_by_key(|(at, logit)| (**logit, -at)).unwrap().0;
    assert_eq!(String::from_utf8(example(&["5", "61", "7"]).stdout).unwrap(), format!("{best}\n"));
    let tokenizer = attar_model::Tokenizer::open(&room.path("again/tokenizer.json")).unwrap();
    let text = tokenizer.texts().unwrap()[best as usize].clone();
    assert_eq!(example(&["-t", "5", "61", "7"]).stdout, text);
    for (arguments, said) in
        [(&["4096"][..], "no such token"), (&["x"], "`x` is no token id"), (&["1"; 42], "too many tokens (41 wanted, 42 found)")]
    {
        let output = example(arguments);
        let said_really = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said_really.contains(said), "{arguments:?}: {said_really}");
    }
    // Weights that were cut are found when they are linked.
    let weights = room.path("again/attar_weights.bin");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..1000]).unwrap();
    let make = Command::new("make").arg("-B").arg("-C").arg(room.path("again")).output().unwrap();
    let said = String::from_utf8_lossy(&make.stderr).into_owned();
    assert!(!make.status.success() && said.contains("another size than the weights of this program"), "{said}");
    // What was changed since is found, in the images and in what is said of the runs.
    let export = || room.attar(&["export", "out", "--target", "c", "--out", "damaged"]);
    let (dump, manifest) = (fs::read(room.path("out/compiled/dram.bin")).unwrap(), room.read("out/compiled/model.json"));
    let mut damaged = dump.clone();
    damaged[1000] ^= 1;
    fs::write(room.path("out/compiled/dram.bin"), damaged).unwrap();
    export().exits(3).says("`dram.bin` is not what was written");
    fs::write(room.path("out/compiled/dram.bin"), dump).unwrap();
    let decode = fs::read(room.path("out/compiled/decode.plan")).unwrap();
    let mut foreign = Plan::from_bytes(&decode).unwrap();
    foreign.title.push('!');
    fs::write(room.path("out/compiled/decode.plan"), foreign.to_bytes()).unwrap();
    export().exits(3).says("`decode.plan` is not the plan that was written");
    fs::write(room.path("out/compiled/decode.plan"), decode).unwrap();
    room.write("out/compiled/model.json", &manifest.replace("\"dram.bin\"", "\"other.bin\""));
    export().exits(3).says("`dram.bin` is not what was written");
    for (from, to) in
        [("\"positions\": 41", "\"positions\": 100000"), ("\"rows\": 1", "\"rows\": 0"), ("\"past\": 40", "\"past\": 39")]
    {
        assert!(manifest.contains(from), "{manifest}");
        room.write("out/compiled/model.json", &manifest.replace(from, to));
        export().exits(3).says("do not agree");
    }
    assert!(!room.path("damaged/attar_model.c").exists());
    let taken = room.path("out/compiled/decode.plan").display().to_string();
    room.attar(&["simulate", &taken, "--csv", &taken]).exits(2).says("would be written over something else");
    room.attar(&["simulate", &taken, "--csv", "t.csv", "--trace", "t.csv"]).exits(2).says("would be written over something else");
    std::os::unix::fs::symlink(&taken, room.path("link.csv")).unwrap();
    room.attar(&["simulate", &taken, "--csv", "link.csv"]).exits(2).says("would be written over something else");
    room.attar(&["simulate", &taken, "--csv", "nowhere/t.csv"]).exits(3).says("cannot write `nowhere/t.csv`");
    room.attar(&["simulate", &taken, "--csv", "t.csv", "--trace", "t.json"]).exits(0);
    let trace: Value = serde_json::from_str(&room.read("t.json")).unwrap();
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 20));
    assert!(room.read("t.csv").lines().count() > 10);
}

/// int16 where int8 costs most: what `down` reads, what norms make, and what the head reads.
#[test]
fn int16_becomes_c_too() {
    let room = Room::new();
    let static_of = |select: &str, bits: u32| {
        format!("[[step]]\nkind = \"activations\"\nmode = \"static\"\nbits = {bits}\nselect = [{select}]\n\n")
    };
    let wide = static_of("\"blocks.*.mlp.*\", \"blocks.*.attention.{query,key,value}\", \"lm_head\"", 16);
    let rest = static_of("\"blocks.*.attention.output\"", 8);
    let export = "\n[[export]]\ntarget = \"c\"\n";
    room.write("recipe.toml", &recipe(&[QUANTIZE, HEAD, &wide, &rest, &compile("prove = 4\nverify = 3"), export]));
    proven(&room);
    verified(&room);
    let plan = room.read("out/compiled/prefill.txt");
    assert!(plan.contains("64 bits") && plan.contains(" >> "), "sums of int16 have 64 bits:\n{plan}");
}

/// A draft is verified in one run, and what does not stand leaves no trace: the text is the same, in fewer runs.
fn verified(room: &Room) {
    let report = room.json("out/report.json");
    let compiled = &report["variants"][0]["compilations"][0];
    let names: Vec<&str> = compiled["phases"].as_array().unwrap().iter().filter_map(|phase| phase["name"].as_str()).collect();
    assert_eq!(names, ["prefill", "decode", "verify"]);
    assert!(compiled["verify_head"]["macs"].as_u64() == compiled["head"]["macs"].as_u64().map(|macs| 3 * macs), "{compiled}");
    if !found("make") {
        return skip("there is no `make`");
    }
    let exported = room.path("out/c");
    let make = Command::new("make").arg("-C").arg(&exported).output().unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let example = |drafts: &[&str]| {
        let prompt = ["-n", "30", "1", "403", "407", "1", "403", "407", "1"];
        let output = Command::new(exported.join("example")).args(drafts).args(prompt).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let ([alone, _], [drafted, runs]) = (example(&[]), example(&["-d"]));
    assert_eq!(alone.lines().count(), 30);
    assert_eq!(alone, drafted);
    let runs: u32 = runs.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{runs}"));
    assert!(runs < 29, "some of the drafts stand: {runs} runs");
}

/// Several sequences side by side: each has the logits, and says the tokens, that it has alone.
#[test]
fn a_batch_becomes_c_too() {
    let room = Room::new();
    let compiled = |batch: u32| {
        let settings = format!("prove = 2\nbatch = {batch}");
        let export = "[[export]]\ntarget = \"c\"\n";
        room.write("recipe.toml", &recipe(&[QUANTIZE, HEAD, ACTIVATIONS, &compile(&settings), export]));
    };
    compiled(1);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    fs::rename(room.path("out"), room.path("alone")).unwrap();
    compiled(3);
    proven(&room);
    let [one, three] = ["alone", "out"].map(|output| Folder::open(room.path(&format!("{output}/compiled"))));
    let batch = three.batch();
    assert_eq!((one.batch(), batch), (1, 3));
    let own =
        |of: usize| PROMPTS.map(|prompt| side_by_side(prompt, batch).into_iter().skip(of).step_by(batch).collect::<Vec<_>>());
    let (together, _) = simulated(&three, &PROMPTS);
    for of in 0..batch {
        let prompts = own(of);
        let (alone, _) = simulated(&one, &prompts.each_ref().map(Vec::as_slice));
        let vocabulary = one.vocabulary();
        for (at, (together, alone)) in together.iter().zip(&alone).enumerate() {
            assert_eq!(&together[of * vocabulary..][..vocabulary], alone, "prompt {at} of sequence {of}");
        }
    }
    // Weights are loaded once for all: three tokens cost less than twice as much traffic as one.
    let report = |output: &str| room.json(&format!("{output}/report.json"))["variants"][0]["compilations"][0]["phases"].clone();
    let bytes = |phases: &Value| phases[1]["dram_bytes"].as_u64().unwrap();
    let (alone, together) = (report("alone"), report("out"));
    assert_eq!((&together[1]["name"], &together[1]["batch"]), (&"decode".into(), &3.into()));
    assert!(bytes(&together) < 2 * bytes(&alone), "{together}");
    // The engine reads the same text in all sequences.
    let eval = ["--data", "testdata/evals/shakespeare-valid.txt", "--window", "32", "--tokens", "64", "--json"];
    let [one, three] =
        ["alone", "out"].map(|subject| room.attar(&[&["eval", subject, "--runner", "compiled"], &eval[..]].concat()));
    assert_eq!(one.exits(0).json(), three.exits(0).json());
    if !found("make") {
        return skip("there is no `make`");
    }
    let example = |output: &str, arguments: &[&str]| {
        let make = Command::new("make").arg("-C").arg(room.path(output).join("c")).output().unwrap();
        assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
        Command::new(room.path(output).join("c/example")).args(arguments).output().unwrap()
    };
    let prompts = [["5", "61", "7"], ["9", "1", "2"], ["64", "1", "17"]];
    let alone = prompts.map(|prompt| example("alone", &[&["-n", "4"], &prompt[..]].concat()).stdout);
    let lines: Vec<Vec<String>> =
        alone.iter().map(|said| String::from_utf8_lossy(said).lines().map(str::to_owned).collect()).collect();
    let wanted: String =
        (0..4).map(|step| lines.iter().map(|said| said[step].clone()).collect::<Vec<_>>().join(" ") + "\n").collect();
    let all = ["-n", "4", "5", "61", "7", "/", "9", "1", "2", "/", "64", "1", "17"];
    assert_eq!(String::from_utf8_lossy(&example("out", &all).stdout), wanted);
    for wrong in [&["5", "/", "6"][..], &["5", "/", "6", "/", "7", "8"], &["5", "/", "/", "6"], &["x"], &["-n", "0"]] {
        let output = example("out", wrong);
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{wrong:?}");
    }
}

#[test]
fn chunks_and_flash_become_c_too() {
    let room = Room::new();
    let device =
        "set = [\"sram=48KiB\", \"dram=400KiB\", \"flash=4MiB\", \"flash.read=1GB/s\"]\nseq = 40\nchunk = 4\nprove = 0\n";
    let compile = format!("[[step]]\nkind = \"compile\"\n{device}");
    room.write("recipe.toml", &recipe(&[QUANTIZE, HEAD, ACTIVATIONS, &compile, "\n[[export]]\ntarget = \"c\"\n"]));
    proven(&room);
}

/// A tiny checkpoint in a room, with a tokenizer of as many tokens.
fn tiny(room: &Room, name: &str) {
    let (models, folder) = (root().join("testdata/models"), room.path(name));
    fs::create_dir_all(&folder).unwrap();
    let own = ["config.json", "model.safetensors"].map(|file| models.join(format!("tiny-{name}")).join(file));
    for file in own.into_iter().chain([models.join("tiny-bert/tokenizer.json")]) {
        fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
}

/// Compiles a tiny model of a room with all of it on the device: the integers lose next to nothing, and C computes them.
fn proven_and_near(room: &Room, model: &str) {
    let quantize = "[[step]]\nkind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"\n\n";
    let rest = "\n[[gate]]\nmetric = \"device/kl\"\nat_most = 0.01\n\n[[export]]\ntarget = \"c\"\n";
    let text = recipe(&[quantize, HEAD, ACTIVATIONS, &compile("quality = 256"), rest]);
    room.write("recipe.toml", &text.replace("testdata/models/shakespeare-1m", model).replace("length = 96", "length = 32"));
    proven(room);
    let gate = &room.json("out/report.json")["gates"][0];
    assert_eq!(gate["status"], "passed", "{model}: {gate}");
}

/// Norms of what differs from the mean, positions in a table, an activation without a gate (GPT-2); norms of what layers add, a gate by GELU (Gemma 3).
#[test]
fn other_decoders_become_c_too() {
    for model in ["gpt2", "gemma3"] {
        let room = Room::new();
        tiny(&room, model);
        proven_and_near(&room, model);
    }
}

/// An encoder reads texts of any length up to that of its plan: its rows are those of the simulator, and its embeddings near those of floats. The
/// engine that runs it is measured like others.
#[test]
fn an_encoder_becomes_c_too() {
    let room = Room::new();
    tiny(&room, "bert");
    fs::create_dir_all(room.path("bert/1_Pooling")).unwrap();
    fs::copy(root().join("testdata/models/tiny-bert/1_Pooling/config.json"), room.path("bert/1_Pooling/config.json")).unwrap();
    let quantize = "[[step]]\nkind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"\n\n";
    let activations = "[[step]]\nkind = \"activations\"\nmode = \"static\"\nbits = 16\n\n";
    let compile = "[[step]]\nkind = \"compile\"\nset = [\"sram=16KiB\"]\nseq = 40\n";
    let rest = "\n[[gate]]\nmetric = \"device/snr\"\nat_least = 25\n\n[[export]]\ntarget = \"c\"\n";
    let text = recipe(&[quantize, activations, compile, rest]);
    room.write("recipe.toml", &text.replace("testdata/models/shakespeare-1m", "bert").replace("length = 96", "length = 32"));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    let compiled = &report["variants"][0]["compilations"][0];
    assert_eq!(compiled["phases"][0]["name"], "encode");
    assert_eq!(compiled["phases"][0]["proof"]["blocks"], 2, "{compiled}");
    assert!(compiled["quality"]["cosine"].as_f64().is_some_and(|cosine| cosine > 0.999), "{compiled}");
    let folder = Folder::open(room.path("out/compiled"));
    read_by_python(&folder);
    let (mut wanted, mut moved) = (Vec::new(), [0; 3]);
    for tokens in PROMPTS.iter().filter(|tokens| !tokens.is_empty()) {
        wanted.extend(folder.encode(tokens, &mut moved));
    }
    compare(&room, "encode.c", &|written, what| {
        let (rows, counts) = written.split_at(written.len() - 24);
        let found: Vec<i32> = rows.chunks(2).map(|pair| i32::from(i16::from_le_bytes([pair[0], pair[1]]))).collect();
        assert!(found == wanted && found.iter().any(|x| *x != 0), "{what}: rows");
        let counts = [0, 1, 2].map(|at| u64::from_le_bytes(counts[8 * at..][..8].try_into().unwrap()));
        assert_eq!(counts, moved, "{what}: bytes");
    });
    let drift =
        ["eval", "out/c", "--baseline", "bert", "--task", "embedding-drift", "--data", "testdata/evals/sts.tsv", "--json"];
    let told = room.attar(&drift).exits(0).json();
    let mean = told.pointer("/against_base/drift_mean/value").and_then(Value::as_f64);
    assert!(mean.is_some_and(|mean| (1e-9..0.002).contains(&mean)), "{told}");
}

/// Heads of queries and keys that are normed before they are turned (Qwen3); and, as in Gemma 3, with a window, another base of positions and another
/// scale in the second block.
#[test]
fn normed_heads_become_c_too() {
    let room = Room::new();
    tiny(&room, "qwen3");
    room.attar(&["export", "qwen3", "--target", "checkpoint", "--out", "windowed", "--quiet"]).exits(0);
    let graph = room.read("windowed/graph.ir");
    let (plain, windowed) = ("b1.values {scale = 0.25}", "b1.values {scale = 0.4, window = 8}");
    let (turned, local) =
        ("rope b1.query_normed, positions {theta = 1000000}", "rope b1.query_normed, positions {theta = 10000}");
    let keys = [turned, local].map(|line| line.replace("query", "key"));
    assert!(graph.contains(plain) && graph.contains(turned) && graph.contains(&keys[0]), "{graph}");
    room.write("windowed/graph.ir", &graph.replace(plain, windowed).replace(turned, local).replace(&keys[0], &keys[1]));
    for model in ["qwen3", "windowed"] {
        proven_and_near(&room, model);
        let plan = room.read("out/compiled/prefill.txt");
        assert!(plan.contains("columns in heads of 16, 96 normed"), "{plan}");
        assert_eq!(plan.contains("window 8"), model == "windowed", "{plan}");
    }
}

/// Perplexity of windows of `length` tokens, by the simulator's logits.
fn perplexity(folder: &Folder, tokens: &[u32], length: usize) -> f64 {
    let step = folder.manifest.logits.unwrap();
    let mut losses = Vec::new();
    for window in tokens.chunks(length) {
        let each: Vec<&[u32]> = window.chunks(1).collect();
        for (logits, next) in simulated(folder, &each).0.iter().zip(&window[1..]) {
            let largest = f64::from(*logits.iter().max().unwrap());
            let sum: f64 = logits.iter().map(|logit| ((f64::from(*logit) - largest) * step).exp()).sum();
            losses.push(sum.ln() - (f64::from(logits[*next as usize]) - largest) * step);
        }
    }
    (losses.iter().sum::<f64>() / losses.len() as f64).exp()
}

/// The engine `c` is a compiler: what it makes of plans is measured, judged, asked and timed like any artifact in its engine.
#[test]
fn evals_and_gates_run_the_compiled_c() {
    let room = Room::new();
    if !found("cc") {
        assert!(std::env::var_os("ATTAR_BOARD").is_none(), "ATTAR_BOARD wants `cc`");
        return skip("there is no `cc`");
    }
    let rest = "[[export]]\ntarget = \"c\"\n\n[[eval]]\nname = \"text\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 32\ntokens = 64\nrunners = [\"reference\", \"c\"]\n\n[[gate]]\nmetric = \"text/perplexity\"\nrunner = \"c\"\nat_most = 20\n";
    let integers = [("kl", "at_most = 0.2"), ("perplexity-ratio", "at_most = 1.2"), ("snr", "at_least = 10")];
    let gates: String =
        integers.iter().map(|(metric, bound)| format!("[[gate]]\nmetric = \"device/{metric}\"\n{bound}\n\n")).collect();
    let rest = &format!("{rest}\n{gates}");
    room.write("recipe.toml", &recipe(&[QUANTIZE, HEAD, ACTIVATIONS, &compile("prove = 0\nverify = 5"), rest]));
    // What was compiled is not compiled again.
    let compiles = |said: &crate::room::Said| said.stderr.contains("compile for generic-npu");
    assert!(compiles(&room.attar(&["run", "recipe.toml"]).exits(0)));
    let again = room.attar(&["run", "recipe.toml"]).exits(0);
    assert!(!compiles(&again), "{}", again.stderr);
    let report = room.json("out/report.json");
    // What the integers lose is computed, on some tokens, and no part of it is assumed.
    for (verdict, (metric, _)) in report["gates"].as_array().unwrap()[1..].iter().zip(integers) {
        assert_eq!(verdict["gate"]["metric"], format!("device/{metric}"));
        let reason = verdict["reason"].as_str().unwrap();
        assert!(reason.ends_with(", computed with the program's integers on 1040 tokens"), "{reason}");
    }
    let evaluations = report["evals"].as_array().unwrap();
    let of = |runner: &str| evaluations.iter().find(|found| found["runner"] == runner).unwrap();
    let measured =
        of("c").pointer("/outcome/measured/perplexity/value").and_then(Value::as_f64).unwrap_or_else(|| panic!("{}", of("c")));
    let folder = Folder::open(room.path("out/compiled"));
    let tokenizer = attar_model::Tokenizer::open(&room.path("out/compiled/tokenizer.json")).unwrap();
    let text = fs::read_to_string(root().join("testdata/evals/shakespeare-valid.txt")).unwrap();
    let tokens = tokenizer.encode(&text).unwrap();
    let wanted = perplexity(&folder, &tokens[..64], 32);
    assert!((measured / wanted - 1.0).abs() < 1e-5, "{measured}, {wanted} by the simulator");
    assert_eq!(report["gates"][0]["status"], "passed", "{}", report["gates"]);
    // The verbs run the folder of plans as well as the C.
    let eval = ["--data", "testdata/evals/shakespeare-valid.txt", "--window", "32", "--tokens", "64", "--json"];
    for (subject, runner) in [("out", &["--runner", "compiled"][..]), ("out/compiled", &["--runner", "c"]), ("out/c", &[])] {
        let said = room.attar(&[&["eval", subject], runner, &eval[..]].concat()).exits(0).json();
        assert_eq!(said.pointer("/perplexity/value").and_then(Value::as_f64), Some(measured), "{subject}: {said}");
    }
    let words = ["generate", "out/c", "--prompt", "KING HENRY:\\n", "--tokens", "20"];
    let said = room.attar(&words).exits(0).stdout;
    let mut tokens = tokenizer.encode("KING HENRY:\n").unwrap();
    for _ in 0..20 {
        let (logits, _) = simulated(&folder, &[&tokens]);
        tokens.push((0..).zip(&logits[0]).max_by_key(|(at, logit)| (**logit, -at)).unwrap().0 as u32);
    }
    assert_eq!(said.trim_end(), tokenizer.decode(&tokens[tokens.len() - 20..]).unwrap().trim_end());
    let lengths = ["--prompt-tokens", "6", "--answer-tokens", "3", "--requests", "2", "--warm-up", "0", "--json"];
    let timed = room.attar(&[&["bench", "out", "--runner", "compiled"], &lengths[..]].concat()).exits(0).json();
    assert_eq!((&timed["engine"], &timed["failed"]), (&"c".into(), &0.into()), "{timed}");
    // What does not fit, and what does not compile.
    let long = ["eval", "out", "--runner", "compiled", "--data", "testdata/evals/shakespeare-valid.txt", "--window", "64"];
    room.attar(&long).exits(2).says("41");
    room.attar(&["eval", "out/c", "--c", "/nowhere", "--data", "testdata/evals/shakespeare-valid.txt", "--window", "32"])
        .exits(3)
        .says("C compiler is not installed");
    let mut command = room.command(&["generate", "out/c", "--prompt", "x"]);
    command.env("ATTAR_C", "/nowhere");
    room.finish(command).exits(3).says("C compiler is not installed");
    // A checkpoint beside plans is what it was.
    room.attar(&["eval", "out", "--data", "testdata/evals/shakespeare-valid.txt", "--window", "32"]).exits(3);
    fs::remove_file(room.path("out/c/attar_runtime.h")).unwrap();
    room.attar(&["generate", "out/c", "--prompt", "x"]).exits(3).says("is missing");
    fs::remove_file(room.path("out/c/artifact.json")).unwrap();
    let said = room.attar(&["generate", "out/c", "--prompt", "x"]).exits(3);
    assert!(
        said.stderr.contains("C compiler failed at loading the model") && said.stderr.contains("attar_runtime.h"),
        "{}",
        said.stderr
    );
}

#[test]
fn what_cannot_become_c_is_said() {
    let room = Room::new();
    let export = "[[export]]\ntarget = \"c\"\n";
    room.write("recipe.toml", &recipe(&[QUANTIZE, crate::compile::ACTIVATIONS, export]));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("writes the plans of a step `compile`, and there is none");
    room.write("recipe.toml", &recipe(&[QUANTIZE, crate::compile::ACTIVATIONS, &compile("prove = 0"), export]));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("the plans of `compile` end before the logits");
    room.write("recipe.toml", &recipe(&[QUANTIZE, crate::compile::ACTIVATIONS, &compile("prove = 0")]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let export = |room: &Room| room.attar(&["export", "out", "--target", "c", "--out", "c"]);
    export(&room).exits(3).says("end before the logits");
    assert!(!room.path("c/attar_model.c").exists());
    room.attar(&["export", "testdata/models/shakespeare-1m", "--target", "c", "--out", "c"])
        .exits(3)
        .says("holds no compiled model");
    let manifest = room.read("out/compiled/model.json");
    room.write("out/compiled/model.json", &manifest.replace(&format!("\"version\": {VERSION}"), "\"version\": 4"));
    export(&room).exits(3).says("version 4");
    room.write(
        "out/compiled/model.json",
        &manifest.replace("\"logits\": null", "\"logits\": 0.1").replace("\"head\": false", "\"head\": true"),
    );
    let plan = fs::read(room.path("out/compiled/decode.plan")).unwrap();
    fs::write(room.path("out/compiled/decode.plan"), &plan[..plan.len() - 1]).unwrap();
    export(&room).exits(3).says("`decode.plan`");
    fs::remove_file(room.path("out/compiled/decode.plan")).unwrap();
    export(&room).exits(3).says("there is no `decode.plan`");
    assert!(!room.path("c/attar_model.c").exists());
}
