//! The rewriter on small programs: what it finds, and that each change does what it says.

use std::collections::BTreeMap;
use std::process::Command;

use super::finder::{Found, find};
use super::point::{Kind, Point};
use super::rewrite::rewrite;

fn points(source: &str) -> Vec<Point> {
    find(source).unwrap().points
}

/// Kind, original and mutated text of each point.
fn told(source: &str) -> Vec<(Kind, String, String)> {
    let told = |point: Point| (point.kind, point.original, point.mutated);
    points(source).into_iter().map(told).collect()
}

fn row(kind: Kind, original: &str, mutated: &str) -> (Kind, String, String) {
    (kind, original.into(), mutated.into())
}

#[test]
fn every_kind_of_change_is_found() {
    use Kind::{Comparison, Condition, Number, Operand, Some, Statement};
    let source =
        "fn f(a: u32, b: bool) -> Option<u32> {\n    if a < 3 && b {\n        g(a);\n    }\n    Some(a)\n}";
    assert_eq!(
        told(source),
        [
            row(Condition, "a < 3 && b", "!(a < 3 && b)"),
            row(Operand, "a < 3 && b", "b"),
            row(Operand, "a < 3 && b", "a < 3"),
            row(Comparison, "a < 3", "a <= 3"),
            row(Number, "3", "4"),
            row(Number, "3", "2"),
            row(Statement, "g(a);", ""),
            row(Some, "Some(a)", "None"),
        ]
    );
    assert_eq!(points(source)[6].line, 3);
}

#[test]
fn what_must_not_or_cannot_change_is_left_alone() {
    for source in [
        "const A: u32 = 1 + 2;",
        "static A: [u8; 3] = [1; 3];",
        "const fn f() -> u32 { 3 }",
        "enum E { A = 1 }",
        "#[test] fn f() { assert!(g(1)); g(2); }",
        "#[cfg(test)] mod tests { fn f() { g(1); } }",
        "#[cfg(all(loom, feature = \"x\"))] fn f() { g(1); }",
        "fn f(x: [u8; 4]) -> Wide<8> { match x { [0, ..] => a(), _ => b::<7>() } }",
        "fn f() { debug_assert!(a < 1); println!(\"{}\", 5); }",
        "fn f() { unsafe { g(1); } }",
        "unsafe fn f() { g(1); }",
        "impl std::fmt::Debug for A { fn fmt(&self) { g(1); } }",
        "fn f() { let _ = [a; 16]; }",
        "fn f() { drop(a); }",
        "fn f() { if let Some(a) = b {} while let Some(a) = b {} }",
        "#[derive(A)] #[b(c = 1)] struct D;",
        "macro_rules! m { () => { f(1); } }",
    ] {
        assert_eq!(told(source), [], "{source}");
    }
    assert_eq!(told("#[cfg(not(test))] fn f() { g(); }").len(), 1);
    assert_eq!(
        told("fn f() { if a && let Some(b) = c {} }").len(),
        1,
        "only the side that binds nothing"
    );
}

#[test]
fn modules_for_tests_are_named() {
    let Found { left_out, .. } = find("#[cfg(test)] mod tests; mod a; #[cfg(loom)] mod model;").unwrap();
    assert_eq!(left_out, ["tests", "model"]);
}

#[test]
fn without_points_a_source_stays_as_it_is_to_the_byte() {
    let source = "// ä comment\nfn f() { g(1) ; /* ö */ }\n";
    assert_eq!(rewrite(source, &[]).text, source);
}

#[test]
fn the_compiler_s_complaint_leads_to_the_innermost_point() {
    let source = "fn ü() { if a < 30 { } }";
    let points = points(source);
    let numbered: Vec<(u32, &Point)> = (40..).zip(&points).collect();
    let rewritten = rewrite(source, &numbered);
    let literal = rewritten.text.find("30").unwrap();
    assert_eq!(
        rewritten.blamed(&(literal..literal + 2)),
        [43],
        "the inner of the two around the number"
    );
    let comparison = rewritten.text.find("lt(41").unwrap();
    assert_eq!(rewritten.blamed(&(comparison..comparison + 2)), [41]);
    assert_eq!(rewritten.blamed(&(0..4)), [] as [u32; 0]);
    assert_eq!(rewritten.blamed(&(0..rewritten.text.len())), [40, 41, 42, 43]);
}

/// A program with every kind of change, nested in each other; it prints what its functions return.
const PROGRAM: &str = r#"
fn within(a: i64, low: i64, high: i64) -> bool {
    low <= a && a < high || a == 1000
}

fn pick(values: &[u64], at: usize) -> Option<u64> {
    let mut index = at + 0x1;
    index += 2;
    while index > 5 { index -= 1; }
    match values.get(index) {
        Some(value) if *value != 9u64 => Some(*value << 1),
        _ => None,
    }
}

struct Seen(Vec<String>);

impl Seen {
    fn note(&mut self, text: &str) -> usize {
        self.0.push(text.to_owned());
        if !self.0.is_empty() { self.0.len() } else { 77 }
    }
}

fn main() {
    let mut seen = Seen(Vec::new());
    seen.note("a");
    let values = [1, 2, 3, 4, 5, 9];
    print!("{:?}", (0i64..4).map(|a| within(a, 1, 3)).collect::<Vec<_>>());
    print!("{:?}", [0usize, 1, 2, 4].map(|at| pick(&values, at)));
    println!("{:?} {}", seen.0, within(1000, 1, 3));
}
"#;

/// Builds the program with all its points and returns what it prints for each, `None` for none.
fn outputs(points: &[Point]) -> BTreeMap<Option<u32>, String> {
    let dir = tempfile::tempdir().unwrap();
    let numbered: Vec<(u32, &Point)> = (0..).zip(points).collect();
    let text = rewrite(PROGRAM, &numbered).text + "\nmod levy_mutants;\n";
    let injected = include_str!("injected/levy_mutants.rs");
    std::fs::write(dir.path().join("main.rs"), text).unwrap();
    let module = format!("{injected}\nconst POINTS: usize = {};\n", points.len());
    std::fs::write(dir.path().join("levy_mutants.rs"), module).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .current_dir(dir.path())
        .args([
            "--edition",
            "2024",
            "-Awarnings",
            "-Coverflow-checks=on",
            "main.rs",
        ])
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let run = |mutant: String| {
        let ran = Command::new("timeout")
            .args(["2", "./main"])
            .current_dir(dir.path())
            .env("LEVY_MUTANT", mutant)
            .output()
            .unwrap();
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    let reached = dir.path().join("reached");
    let unchanged = run(format!("reached:{}", reached.display()));
    let reached = std::fs::read_to_string(reached).unwrap();
    let mut outputs: BTreeMap<Option<u32>, String> = numbered
        .iter()
        .map(|(number, _)| (Some(*number), run(number.to_string())))
        .collect();
    assert_eq!(run("none".into()), unchanged);
    for number in reached.lines() {
        let number = number.parse().unwrap();
        assert!(outputs.contains_key(&Some(number)), "{number} is no point");
    }
    // The one place that is never reached cannot change a thing.
    let unreached: Vec<u32> = (0..points.len() as u32)
        .filter(|number| !reached.lines().any(|line| line == number.to_string()))
        .collect();
    for number in unreached {
        assert_eq!(points[number as usize].original, "77");
        assert_eq!(outputs.remove(&Some(number)), Some(unchanged.clone()));
    }
    outputs.insert(None, unchanged);
    outputs
}

#[test]
fn every_change_does_what_it_says_and_none_does_nothing() {
    let points = points(PROGRAM);
    let outputs = outputs(&points);
    let unchanged = &outputs[&None];
    assert_eq!(
        unchanged,
        "[false, true, true, false][Some(8), Some(10), None, None][\"a\"] true\n"
    );
    let of = |kind: Kind, original: &str, mutated: &str| {
        let found = (0..).zip(&points).find(|(_, point)| {
            (point.kind, point.original.as_str(), point.mutated.as_str()) == (kind, original, mutated)
        });
        let number = found.unwrap_or_else(|| panic!("no {original} -> {mutated}")).0;
        outputs[&Some(number)].as_str()
    };
    let rest = "[Some(8), Some(10), None, None][\"a\"] true\n";
    let within = |values: &str| format!("{values}{rest}");
    assert_eq!(
        of(Kind::Comparison, "a < high", "a <= high"),
        within("[false, true, true, true]")
    );
    assert_eq!(
        of(Kind::Comparison, "low <= a", "low < a"),
        within("[false, false, true, false]")
    );
    assert_eq!(
        of(Kind::Operand, "low <= a && a < high", "a < high"),
        within("[true, true, true, false]")
    );
    assert_eq!(
        of(Kind::Statement, "self.0.push(text.to_owned());", ""),
        unchanged.replace("\"a\"", "")
    );
    assert_eq!(
        of(Kind::Some, "Some(*value << 1)", "None"),
        unchanged.replace("Some(8), Some(10)", "None, None")
    );
    assert_eq!(
        of(Kind::Number, "1000", "1001"),
        unchanged.replace("] true", "] false")
    );
    let same: Vec<&Point> = (0..)
        .zip(&points)
        .filter(|(number, _)| {
            outputs
                .get(&Some(*number))
                .is_some_and(|output| output == unchanged)
        })
        .map(|(_, point)| point)
        .collect();
    // What really makes no difference here: `is_empty` the other way round returns a length that is not printed, and so on.
    assert!(same.len() < points.len() / 3, "{same:?}");
}
