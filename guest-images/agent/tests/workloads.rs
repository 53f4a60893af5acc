//! Workloads run on this machine as they run in a guest: a process that reports one-line JSON.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

use levy_agent::{Event, Report};

fn agent(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_levy-agent"));
    command
        .arg("run")
        .args(words.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a workload to its end and returns its reports.
fn run(words: &str) -> (Vec<Report>, ExitStatus) {
    let output = agent(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let reports = text
        .lines()
        .map(|line| Event::parse(line).unwrap().report)
        .collect();
    (reports, output.status)
}

/// The verdict, which must come last: whether it is good, how many operations, and its detail.
fn verdict(reports: &[Report]) -> (bool, u64, String) {
    match reports.last() {
        Some(Report::Verdict(verdict)) => (verdict.ok, verdict.ops, verdict.detail.clone()),
        other => panic!("no verdict at the end but {other:?}"),
    }
}

#[test]
fn memory_workloads_come_to_a_good_verdict() {
    for words in [
        "idle seconds=1",
        "toucher phases=4@1+2@1 rate=5000",
        "fill mib=4 seconds=1 distinct=10 zero_percent=50 check_every=1",
        "churn mib=4 seconds=1 threads=2",
        "file mib=2 seconds=1 hold=1 dir=/tmp",
    ] {
        let (reports, status) = run(words);
        assert!(
            matches!(reports[0], Report::Started { .. }),
            "{words}: {reports:?}"
        );
        let (ok, ops, detail) = verdict(&reports);
        assert!(ok && status.success(), "{words}: {detail}");
        assert!(ops > 0 || words.starts_with("idle"), "{words} did nothing");
    }
}

#[test]
fn a_reader_finds_the_file_of_the_run_before() {
    let folder = std::env::temp_dir().join(format!("levy-reader-test-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let words = |rest: &str| format!("reader mib=2 seconds=1 dir={}{rest}", folder.display());
    let (reports, _) = run(&words(" passes=2"));
    assert_eq!(
        verdict(&reports),
        (true, 64, "a word of every sector checked".to_owned())
    );
    let file = std::fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let written = || std::fs::metadata(&file).unwrap().modified().unwrap();
    let first = written();
    let (reports, _) = run(&words(""));
    assert!(verdict(&reports).0 && verdict(&reports).1 > 64 && written() == first);
    // A sector that is lost is found.
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1 << 20..][..512].fill(0);
    std::fs::write(&file, bytes).unwrap();
    let (reports, _) = run(&words(" passes=1"));
    std::fs::remove_dir_all(&folder).unwrap();
    let (ok, _, detail) = verdict(&reports);
    assert!(!ok && detail.contains("block 16, sector 0"), "{detail}");
}

#[test]
fn a_rate_is_kept() {
    let (reports, _) = run("toucher mib=4 seconds=2 rate=1000");
    let (_, ops, _) = verdict(&reports);
    assert!((1500..=2100).contains(&ops), "{ops} touches instead of 2000");
    let progress = reports
        .iter()
        .filter(|report| matches!(report, Report::Progress { .. }))
        .count();
    assert!((1..=2).contains(&progress), "{progress} lines of progress in 2 s");
}

#[test]
fn a_stop_still_gets_a_verdict() {
    let mut child = agent("churn mib=4 seconds=600")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    // Its first progress: it is under way.
    let under_way = lines.any(|line| matches!(Event::parse(&line).unwrap().report, Report::Progress { .. }));
    assert!(under_way);
    child.stdin.take().unwrap().write_all(b"stop\n").unwrap();
    let reports: Vec<_> = lines.map(|line| Event::parse(&line).unwrap().report).collect();
    assert!(verdict(&reports).0, "{reports:?}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_done_is_a_bad_verdict() {
    for (words, names) in [
        ("fill mib=4194304 seconds=1", "do not fit"),
        (
            "file mib=1 seconds=1 dir=/levy/no/such/directory",
            "/levy/no/such/directory",
        ),
    ] {
        let (reports, status) = run(words);
        let (ok, _, detail) = verdict(&reports);
        assert!(
            !ok && !status.success() && detail.contains(names),
            "{words}: {detail}"
        );
    }
}

#[test]
fn bad_words_are_refused_before_anything_runs() {
    for words in ["nothing", "fill mib=0", "fill size=3"] {
        let output = agent(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{words}");
    }
}
