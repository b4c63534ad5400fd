//! Ways out where a gate failed: recipes that a plan accepts, of which the first lets the gate pass.

use crate::room::Room;

const RECIPE: &str = r#"
# Too few bits.
recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[[step]]
kind = "quantize"
grid = "GRID"
group = 64

[[export]]
target = "onnx"

[[eval]]
name = "plays"
data = "testdata/evals/shakespeare-valid.txt"
window = 256
tokens = 2048

[[gate]]
metric = "plays/METRIC"
"#;

/// The ways of a recipe whose gate fails.
fn ways(room: &Room, grid: &str, gate: &str) -> Vec<serde_json::Value> {
    room.write("recipe.toml", &RECIPE.replace("GRID", grid).replace("METRIC\"", gate));
    let report: serde_json::Value =
        serde_json::from_str(&room.attar(&["run", "recipe.toml", "--json"]).exits(1).stdout).expect("JSON");
    report["ways"].as_array().cloned().unwrap_or_default()
}

#[test]
fn the_first_way_out_lets_the_gate_pass() {
    for (grid, gate) in [("int3", "kl\"\nat_most = 0.09"), ("int3", "top1\"\nat_least = 0.85")] {
        let room = Room::new();
        let ways = ways(&room, grid, gate);
        assert_eq!(ways.len(), 3, "{gate}: {ways:?}");
        for way in &ways {
            let recipe = format!("out/{}", way["recipe"].as_str().expect("a name"));
            room.attar(&["plan", &recipe]).exits(0);
            assert!(room.read(&recipe).contains("# Too few bits."), "comments stay");
            assert!(way["snippet"].as_str().is_some_and(|text| text.starts_with("[[step]]")), "{way}");
        }
        assert_eq!(ways[0]["passes"], true, "{gate}: {ways:?}");
        room.attar(&["run", "out/advice-1.toml"]).exits(0);
        let text = room.read("out/report.md");
        assert!(text.contains("## Ways out, by prediction") && text.contains("```toml\n[[step]]"), "{text}");
    }
}

#[test]
fn no_way_leads_beyond_the_base() {
    let room = Room::new();
    // Nor does less noise raise a perplexity.
    for bound in ["at_least = 100", "at_most = 10"] {
        assert_eq!(ways(&room, "int4", &format!("perplexity\"\n{bound}")), Vec::<serde_json::Value>::new());
        assert!(room.read("out/report.md").contains("- no way out is known: "));
    }
    assert!(!room.path("out/advice-1.toml").exists());
}

#[test]
fn ways_of_an_earlier_run_do_not_stay() {
    let room = Room::new();
    assert!(!ways(&room, "int3", "kl\"\nat_most = 0.09").is_empty());
    room.write("recipe.toml", &RECIPE.replace("GRID", "int8").replace("METRIC\"", "kl\"\nat_most = 0.09"));
    room.attar(&["run", "recipe.toml"]).exits(0);
    assert!(!room.path("out/advice-1.toml").exists());
}

/// Of a model that was pruned: leave more of it, or fewer zeros; and what is predicted to pass, passes.
#[test]
fn pruned_models_have_ways_out() {
    for (prune, bound, first) in
        [("mlp = 192", "0.25", "`mlp = "), ("sparsity = 0.6", "0.16", "`sparsity = 0.45` in place of 0.6")]
    {
        let room = Room::new();
        let calibration = "\n[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 32\nlength = 128\n";
        let prune = format!(
            "{calibration}\n[[step]]\nkind = \"prune\"\n{prune}\n\n[[step]]\nkind = \"quantize\"\nselect = [\"embedding\", \"lm_head\"]\ngrid = \"int8\"\n\n[[step]]"
        );
        let text = RECIPE.replace("METRIC\"", &format!("kl\"\nat_most = {bound}")).replacen("\n[[step]]", &prune, 1);
        room.write("recipe.toml", &text.replace("GRID", "int4"));
        let report = room.attar(&["run", "recipe.toml", "--json"]).exits(1).json();
        let way = &report["ways"][0];
        assert_eq!(way["passes"], true, "{report}");
        assert!(way["what"].as_str().is_some_and(|what| what.starts_with(first)), "{way}");
        room.attar(&["run", "out/advice-1.toml", "--quiet"]).exits(0);
    }
}
