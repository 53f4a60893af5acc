//! Options as people write them, right and wrong.

use super::*;

fn message<T: FromStr<Err = OptionError> + fmt::Debug>(text: &str) -> String {
    text.parse::<T>().expect_err(text).to_string()
}

#[test]
fn groups_read_as_written() {
    let memory = |bytes, min, shares| {
        Ok(MemoryConfig {
            bytes,
            min,
            shares,
            mergeable: false,
        })
    };
    assert_eq!("size=512M".parse(), memory(512 << 20, 128 << 20, 1000));
    assert_eq!("1G,min=0,shares=high".parse(), memory(1 << 30, 0, 2000));
    assert_eq!("size=64M,shares=7".parse(), memory(64 << 20, 16 << 20, 7));
    assert_eq!("mode=on".parse(), Ok(SharingConfig::Launch));
    assert_eq!("domain=web".parse(), Ok(SharingConfig::Domain("web".into())));
    assert_eq!("off".parse(), Ok(SharingConfig::Off));
    let quiet: SharingOption = "domain=web,hints=off".parse().unwrap();
    assert_eq!(
        (&quiet.with, quiet.hints),
        (&SharingConfig::Domain("web".into()), Hints::Off)
    );
    assert_eq!(quiet.to_string().parse(), Ok(quiet));
    assert_eq!("mode=on".parse(), Ok(SharingOption::default()));
    assert!(message::<SharingOption>("hints=perhaps").contains("write on or off"));
    assert_eq!("2".parse(), Ok(CpusConfig { count: 2 }));
    let disk: DiskConfig = "path=/a b.img,overlay=on,latency=5ms".parse().unwrap();
    assert_eq!(disk.mode, DiskMode::Overlay);
    assert_eq!(disk.latency, Duration::from_millis(5));
    let net: NetConfig = "tap=t0,create=on,host=10.0.3.1/24,guest=10.0.3.2/24"
        .parse()
        .unwrap();
    assert_eq!(
        net.kernel_words(0).unwrap(),
        "ip=10.0.3.2::10.0.3.1:255.255.255.0::eth0:off levy.ip=10.0.3.2/24 levy.gateway=10.0.3.1"
    );
    assert_eq!(
        net.kernel_words(1).unwrap(),
        "ip=10.0.3.2::10.0.3.1:255.255.255.0::eth1:off"
    );
    let balloon: BalloonConfig = "size=64M,deflate_on_oom=on,stats_polling_interval=1s"
        .parse()
        .unwrap();
    assert!(balloon.deflate_on_oom && balloon.free_page_reporting);
    let bare: BalloonConfig = "free_page_reporting=off,deflate_on_oom=off".parse().unwrap();
    assert!(!bare.deflate_on_oom && !bare.free_page_reporting && !bare.stats_polling_interval.is_zero());
    assert_eq!("file=x.log".parse(), Ok(SerialConfig::File("x.log".into())));
}

#[test]
fn errors_name_the_key_the_value_and_the_cure() {
    assert_eq!(
        message::<MemoryConfig>("siez=512M"),
        "unknown key \"siez\" (did you mean size?); the keys are size, min, shares, mergeable"
    );
    assert!(message::<MemoryConfig>("size=64M,min=65M").contains("more than the guest's size"));
    assert!(message::<MemoryConfig>("size=64M,shares=0").contains("above 0"));
    assert!(message::<SharingConfig>("mode=off,domain=web").contains("shares with nobody"));
    assert!(message::<SharingConfig>("domain=").contains("name a domain"));
    let rule = "1 to 64 of the characters a-z A-Z 0-9 . _ -";
    let long = "n".repeat(65);
    for name in ["a b", "a/b", "\n", "ü", ".", "..", "-", "_.-", &long] {
        assert!(
            message::<SharingConfig>(&format!("domain={name}")).contains(rule),
            "{name}"
        );
        assert!(
            message::<GroupOption>(&format!("name={name}")).contains(rule),
            "{name}"
        );
        assert!(guest_name(name).unwrap_err().contains(rule), "{name}");
    }
    assert!(guest_name("").unwrap_err().contains(rule));
    assert_eq!(guest_name(&long[1..]).as_deref(), Ok(&long[1..]));
    let most = "size=16776191M,min=0";
    assert!(most.parse::<MemoryConfig>().is_ok());
    assert!(message::<MemoryConfig>("size=16776192M").contains("16776191M at most"));
    assert!(message::<MemoryConfig>("size=16777215M").contains("16776191M at most"));
    assert!(message::<MemoryConfig>("size=5x").contains("size=5x: not a size"));
    assert!(message::<MemoryConfig>("size=0").contains("positive number"));
    assert!(message::<MemoryConfig>("size=4095").contains("whole MiB"));
    assert!(message::<CpusConfig>("two").contains("number of vCPUs"));
    assert!(message::<DiskConfig>("readonly=on").contains("path= is missing"));
    assert!(message::<DiskConfig>("path=a,readonly=on,overlay=on").contains("nothing to overlay"));
    assert!(message::<DiskConfig>("path=a,path=b").contains("given twice"));
    assert!(message::<DiskConfig>("path=a,b").contains("not a key=value pair"));
    assert!(message::<DiskConfig>("path=a,readonly=yes").contains("write on or off"));
    assert!(message::<NetConfig>("tap=t,host=10.0.0.1/24").contains("create=on"));
    assert!(message::<NetConfig>("tap=t,mac=01:02:03:04:05:06").contains("group address"));
    assert!(message::<NetConfig>("tap=t,create=on,host=10.0.0.1").contains("prefix length"));
    assert!(message::<BalloonConfig>("deflate_on_omm=on").contains("did you mean deflate_on_oom?"));
    assert!(message::<SerialConfig>("tty").contains("stdio or null"));
}

#[test]
fn what_is_printed_reads_the_same() {
    fn same<T: FromStr<Err = OptionError> + fmt::Display + fmt::Debug + PartialEq>(text: &str) {
        let read: T = text.parse().unwrap();
        assert_eq!(read.to_string().parse(), Ok(read));
    }
    same::<MemoryConfig>("size=512M");
    same::<DiskConfig>("path=/a b.img,overlay=on,latency=5ms");
    same::<DiskConfig>("path=a,readonly=on");
    same::<NetConfig>("tap=t0,create=on,mac=52:54:00:0a:0b:0c,host=10.0.3.1/24,guest=10.0.3.2/24");
    same::<NetConfig>("t0");
    same::<BalloonConfig>("size=64M,deflate_on_oom=on,free_page_reporting=on,stats_polling_interval=1s");
}
