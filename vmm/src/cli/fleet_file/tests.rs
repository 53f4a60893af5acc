//! Fleet files good and bad.

use super::*;

fn parse(text: &str) -> Result<FleetFile, FleetFileError> {
    FleetFile::parse(Path::new("/fleets/f.toml"), text)
}

#[test]
fn a_fleet_becomes_guests_with_everything_that_was_written() {
    let fleet = parse(
        r#"
        deadline = "90s"
        [host]
        budget = "1G"
        tax = 50
        rebalance = "5s"
        [groups.busy]
        shares = "high"
        min = "128M"
        max = "400M"
        [guest.web]
        group = "busy"
        count = 2
        size = "256M"
        min = "64M"
        shares = "high"
        cpus = 2
        domain = "front"
        no_disk = true
        kaslr = true
        workload = "churn,mib=64,seconds=10"
        [guest.db]
        size = 268435456
        sharing = false
        on_reboot = "exit"
        kernel = "bzImage"
        disks = ["path=db.img"]
        "#,
    )
    .unwrap();
    let names: Vec<_> = fleet.guests.iter().map(|guest| guest.name.as_str()).collect();
    assert_eq!(names, ["db", "web-1", "web-2"]);
    let (settings, _) = fleet.policy.settings().unwrap();
    assert_eq!(
        (settings.budget, settings.tax.part(), settings.rebalance),
        (allocator::Pages::from_mib(1024), 0.5, Duration::from_secs(5))
    );
    let [db, web, _] = &fleet.guests[..] else { panic!() };
    assert_eq!(web.args.memory, "size=256M,min=64M,shares=2000".parse().unwrap());
    assert_eq!(web.args.sharing.with, SharingConfig::Domain("front".into()));
    let option = web.args.group.as_ref().unwrap();
    let group = &option.0;
    assert_eq!((group.name.as_str(), group.shares), ("busy", 2000));
    assert_eq!((group.min, group.max), (128 << 20, Some(400 << 20)));
    assert_eq!(
        option.to_string().parse(),
        Ok(option.clone()),
        "as levy vmm reads it"
    );
    assert_eq!(db.args.group, None);
    assert_eq!((web.on_reboot, db.on_reboot), (OnReboot::Restart, OnReboot::Exit));
    assert_eq!((web.images.kaslr, db.images.kaslr), (Kaslr::On, Kaslr::Off));
    assert_eq!((web.images.no_disk, db.images.no_disk), (true, false));
    assert!(web.workload.is_some() && db.workload.is_none());
    assert_eq!(db.args.memory, "size=256M".parse().unwrap());
    assert_eq!(
        (&db.args.sharing.with, db.args.cpus.count),
        (&SharingConfig::Off, 1)
    );
    let args = db.to_args(fleet.deadline, &fleet.id);
    for expected in [
        "/fleets/bzImage",
        "path=/fleets/db.img,latency=0us",
        "90000ms",
        "/fleets/f.toml",
    ] {
        assert!(args.iter().any(|arg| arg == expected), "{expected}: {args:?}");
    }
}

/// A file, and the line, the key and some words of the message.
const WRONG: &[(&str, usize, &str, &str)] = &[
    ("", 1, "guest", "no guests"),
    ("x = 1", 1, "x", "unknown field `x`"),
    ("[guest.a]\nsiez = \"1G\"", 2, "siez", "unknown field `siez`"),
    ("[guest.a]\ncount = 2", 1, "[guest.a]", "missing field `size`"),
    ("[guest.a]\nsize = \"lots\"", 2, "guest.a.size", "as in 512M"),
    (
        "[guest.a]\nsize = 5\ngroup = \"x\"",
        2,
        "guest.a.size",
        "whole MiB",
    ),
    (
        "[guest.a]\nsize = \"1M\"\ngroup = \"x\"",
        3,
        "guest.a.group",
        "no [groups.x]",
    ),
    (
        "[groups.x]\nmin = \"2G\"\nmax = \"1G\"\n[guest.a]\nsize = \"1M\"",
        2,
        "groups.x.min",
        "more than its max",
    ),
    (
        "[groups.x]\nshares = 0\n[guest.a]\nsize = \"1M\"",
        2,
        "groups.x.shares",
        "above 0",
    ),
    (
        "[guest.a]\nsize = \"1M\"\non_reboot = \"halt\"",
        3,
        "guest.a.on_reboot",
        "restart or exit",
    ),
    (
        "[guest.a]\nsize = \"1M\"\nkernel = \"k\"\nkaslr = true",
        4,
        "guest.a.kaslr",
        "only the Debian kernel",
    ),
    ("[guest.a]\nsize = [1]", 2, "guest.a.size", "text or a number"),
    (
        "[guest.a]\nsize = \"1M,min=0\"",
        2,
        "guest.a.size",
        "text or a number",
    ),
    (
        "[guest.a]\nsize = \"64M\"\nmin = \"1G\"",
        3,
        "guest.a.min",
        "more than the guest's size",
    ),
    (
        "[guest.a]\nsize = \"64M\"\nshares = 0",
        3,
        "guest.a.shares",
        "above 0",
    ),
    (
        "[guest.a]\nsize = \"64M\"\ncount = 0",
        3,
        "guest.a.count",
        "1 to 1024",
    ),
    (
        "[guest.a]\nsize = \"64M\"\ncount = \"2\"",
        3,
        "count",
        "invalid type",
    ),
    (
        "[guest.a]\nsize = \"64M\"\nworkload = \"dance\"",
        3,
        "guest.a.workload",
        "dance",
    ),
    (
        "[guest.a]\nsize = \"64M\"\nballoon = \"sice=1\"",
        3,
        "guest.a.balloon",
        "did you mean size?",
    ),
    (
        "[guest.a]\nsize = \"64M\"\ndomain = \"a b\"",
        3,
        "guest.a.domain",
        "not a domain name",
    ),
    (
        "[guest.a]\nsize = \"64M\"\ncount = 2\ndisks = [\"path=x\"]",
        4,
        "guest.a.disks",
        "overlay=on",
    ),
    (
        "[guest.\"a b\"]\nsize = \"64M\"",
        2,
        "guest.a b",
        "not a guest name",
    ),
    (
        "[host]\ntax = 100\n[guest.a]\nsize = \"64M\"",
        2,
        "host.tax",
        "below 100",
    ),
    (
        "[host]\nrebalance = \"25h\"\n[guest.a]\nsize = \"64M\"",
        2,
        "host.rebalance",
        "from 0.1 to 86400 s",
    ),
    (
        "[guest.a]\nsize = \"64M\"\nshares = 1e308",
        3,
        "guest.a.shares",
        "\"1e308\" is not low",
    ),
    (
        "[host]\nbudget = true\n[guest.a]\nsize = \"64M\"",
        2,
        "host.budget",
        "text or a number",
    ),
    (
        "deadline = \"soon\"\n[guest.a]\nsize = \"64M\"",
        1,
        "deadline",
        "not a duration",
    ),
    (
        "[guest.a-1]\nsize = \"64M\"\n[guest.a]\nsize = \"64M\"\ncount = 2",
        1,
        "guest.a-1",
        "twice",
    ),
    (
        "[guest.a]\nsize = \"64M\"\ncount = 1000\n[guest.b]\nsize = \"64M\"\ncount = 25",
        4,
        "guest.b",
        "more than 1024 guests",
    ),
    ("[guest.a", 1, "[guest.a", ""),
];

#[test]
fn the_file_does_not_decide_how_long_an_error_is() {
    let error = parse(&format!("{}a = 1", "a.".repeat(100_000)))
        .unwrap_err()
        .to_string();
    assert!(error.len() < 3000, "{} bytes", error.len());
}

#[test]
fn what_is_wrong_is_said_with_its_line_and_its_key() {
    for (text, line, key, words) in WRONG {
        let error = parse(text).unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(words), "{text:?}: {words:?} is not in {shown}");
        let FleetFileError::Wrong {
            line: got,
            key: found,
            ..
        } = error
        else {
            panic!("{shown}")
        };
        assert_eq!((got, found.as_str()), (*line, *key), "{text:?}: {shown}");
    }
}

#[test]
fn only_a_regular_file_is_read() {
    for path in ["/dev/zero", "/"] {
        let error = FleetFile::read(Path::new(path)).unwrap_err();
        let text = levy_protocol::error_chain(&error);
        assert!(text.contains("not a regular file"), "{text}");
    }
}
