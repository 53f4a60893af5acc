//! The simulator, run as a user runs it, on the fleets it comes with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::Value;

fn simulate(args: &[&str]) -> Output {
    Command::new(simulator())
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the simulator starts")
}

/// The example's program. Cargo builds it together with this test, unless it was asked for this test alone: then it is
/// built here.
fn simulator() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("this test has a path");
        let profile = test.ancestors().nth(2).expect("cargo's folder for a profile");
        let program = profile.join("examples/simulate");
        if modified(&program).is_none_or(|built| built < last_change()) {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args([
                "build",
                "--quiet",
                "--package",
                "levy-allocator",
                "--example",
                "simulate",
            ]);
            if !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            assert!(cargo.status().expect("cargo starts").success());
        }
        program
    })
}

/// When a file of the library or of the example was changed last.
fn last_change() -> SystemTime {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![package.join("src"), package.join("examples/simulate")];
    let mut latest = SystemTime::UNIX_EPOCH;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                latest = latest.max(modified(&path).expect("a file's time"));
            }
        }
    }
    latest
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// A file of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("simulate-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a temporary directory in UTF-8")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn fleet(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/fleets")
        .join(name);
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// The JSON of a run of the fleet called `name`, as text.
fn json_of(name: &str, options: &[&str]) -> String {
    let json = Scratch::new(&format!("{name}-{}.json", options.join("").replace('/', "-")));
    let fleet = fleet(name);
    let args: Vec<&str> = [fleet.as_str(), "--json", json.path()]
        .into_iter()
        .chain(options.iter().copied())
        .collect();
    let output = simulate(&args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read_to_string(&json.0).expect("the JSON was written")
}

fn run(name: &str, options: &[&str]) -> Value {
    serde_json::from_str(&json_of(name, options)).expect("JSON")
}

fn targets(run: &Value) -> Vec<f64> {
    let kinds = run["run"]["kinds"].as_array().expect("kinds");
    kinds
        .iter()
        .map(|kind| kind["last"]["target"].as_f64().expect("a target").round())
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn figure_6_is_followed_within_two_periods() {
    let rises = &run("figure-6.toml", &["--seeds", "100"])["rises_over_seeds"];
    assert_eq!(rises["rises"], 300);
    assert!(number(&rises["within_10_points"]) >= 0.95 * 300.0, "{rises}");
    assert!(number(&rises["seeds_within_10_points"]) >= 95.0, "{rises}");
}

#[test]
fn figure_7_gives_the_closed_form() {
    assert_eq!(targets(&run("figure-7.toml", &[])), [104.0, 256.0]);
    assert_eq!(targets(&run("figure-7.toml", &["--tax", "0"])), [180.0, 180.0]);
    let [taxed, untaxed] = [&[][..], &["--tax", "0"]].map(|options| {
        let run = run("figure-7.toml", options);
        assert!(run["run"]["fairness"]["converged_after_s"].is_number());
        number(&run["run"]["kinds"][1]["throughput"])
    });
    assert!(
        taxed > 1.15 * untaxed,
        "the busy guest at {taxed} taxed and {untaxed} untaxed"
    );
}

#[test]
fn figure_8_shares_before_it_swaps() {
    let run = run("figure-8.toml", &[]);
    let total = |moment: &Value, what: &str| -> f64 {
        let kinds = moment["kinds"].as_array().expect("kinds").iter();
        let summaries = run["run"]["kinds"].as_array().expect("kinds").iter();
        kinds
            .zip(summaries)
            .map(|(point, kind)| number(&point[what]) * number(&kind["guests"]))
            .sum()
    };
    let moments = run["run"]["moments"].as_array().expect("moments");
    let boot = moments.iter().filter(|moment| number(&moment["at_s"]) < 240.0);
    let shared = boot.map(|moment| total(moment, "shared")).fold(0.0, f64::max);
    let swapped = moments
        .iter()
        .map(|moment| total(moment, "swapped"))
        .fold(0.0, f64::max);
    assert!(
        (250.0..400.0).contains(&shared),
        "{shared} MiB of boot's zero pages shared"
    );
    assert!(swapped <= 35.0, "{swapped} MiB swapped");
    assert!(number(&run["run"]["fairness"]["jain_index"]) > 0.99);
}

#[test]
fn cheats_gain_little_but_by_touching_everything() {
    let gains = &run("adversarial.toml", &[])["gains"];
    let [liar, holder, sweeper] = [3, 4, 5].map(|kind| number(&gains[kind]["held"]));
    assert!(liar <= 0.05, "a lie gains {liar}");
    assert!(holder <= 0.05, "holding gains {holder}");
    // Documented: it is active by definition, and wins back the tax.
    assert!((0.5..3.0).contains(&sweeper), "sweeping gains {sweeper}");
}

#[test]
fn a_thousand_guests_are_managed() {
    let svg = Scratch::new("mixed.svg");
    let run = run("mixed-1000.toml", &["--svg", svg.path()]);
    assert_eq!(number(&run["run"]["tally"]["strained_s"]), 0.0);
    assert!(number(&run["run"]["fairness"]["jain_index"]) > 0.9);
    let picture = std::fs::read_to_string(&svg.0).expect("the SVG was written");
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(!picture.contains("NaN"));
}

#[test]
fn a_seed_decides_the_run() {
    let first = json_of("figure-8.toml", &["--seed", "7"]);
    assert_eq!(first, json_of("figure-8.toml", &["--seed", "7"]));
    assert_ne!(first, json_of("figure-8.toml", &["--seed", "8"]));
}

#[test]
fn bad_fleets_are_refused_and_nothing_is_left_behind() {
    let good = std::fs::read_to_string(fleet("figure-7.toml")).expect("a fleet");
    let cases = [
        (
            "guests_mib = 360",
            "guests_mib = 360\ntax = 1.0",
            "a tax of 1 is not between 0 and 0.999999",
        ),
        ("guests_mib = 360", "guests_mib = 360\ntax = nan", "a tax of NaN"),
        ("guests_mib = 360", "", "exactly one of guests_mib and total_mib"),
        ("swap_mib = 512", "", "idle (guest 0): guest 0 does not fit"),
        (
            "max_mib = 256",
            "max_mib = 256\nmin_mib = 300",
            "min of 76800 pages (300.0 MiB)",
        ),
        ("max_mib = 256", "max_mib = 256\nshares = 0", "guest 0: 0 shares"),
        (
            "max_mib = 256",
            "max_mib = 256\ngroup = \"x\"",
            "no group is called \"x\"",
        ),
        ("at_s = 300", "at_s = 0", "phases must be in the order of at_s"),
        ("max_mib", "maximum", "unknown field `maximum`"),
    ];
    for (index, (from, to, words)) in cases.into_iter().enumerate() {
        let (file, json) = (
            Scratch::new(&format!("{index}.toml")),
            Scratch::new(&format!("{index}.json")),
        );
        std::fs::write(&file.0, good.replacen(from, to, 1)).expect("a fleet is written");
        let output = simulate(&[file.path(), "--json", json.path()]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(words),
            "{words}: {error}"
        );
        assert!(!json.0.exists(), "{words}: a report was left behind");
    }
}
