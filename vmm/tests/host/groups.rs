//! Groups of guests: who is in one, what it gets, and how it is changed.

use levy_launcher::api_client::ClientError;
use levy_member::{ConnectError, Introduction};
use levy_protocol::api::GroupChange;
use levy_protocol::link::{GroupLimits, Hello};

use crate::harness::{MIB, Managed, hello, until};

fn grouped(name: &str, mib: u64, group: &str) -> Hello {
    Hello {
        group: Some(GroupLimits {
            name: group.into(),
            shares: 1000,
            min: 0,
            max: None,
        }),
        ..hello(name, mib)
    }
}

fn limited(name: &str, mib: u64, limits: (u64, Option<u64>)) -> Hello {
    let group = GroupLimits {
        name: "web".into(),
        shares: 1000,
        min: limits.0,
        max: limits.1,
    };
    Hello {
        group: Some(group),
        ..hello(name, mib)
    }
}

#[test]
fn a_group_is_there_while_it_has_members_and_is_seen_everywhere() {
    let managed = Managed::new(256);
    let a = managed.introduce(grouped("web-1", 64, "web"));
    let b = managed.introduce(grouped("web-2", 64, "web"));
    let _c = managed.introduce(hello("db", 64));
    let groups = managed.client().host().unwrap().groups;
    assert_eq!(groups["web"].guests, ["web-1", "web-2"]);
    assert_eq!(
        managed.client().guest("web-1").unwrap().group.as_deref(),
        Some("web")
    );
    assert_eq!(managed.client().guest("db").unwrap().group, None);
    let listed = String::from_utf8(managed.levy(&["ls"]).stdout).unwrap();
    let row = |name: &str| {
        let row = listed.lines().find(|line| line.starts_with(name)).unwrap();
        row.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (row("NAME"), row("web-2"), row("db")),
        ("GROUP".into(), "web".into(), "-".into())
    );
    until("a plan", || {
        managed.client().guest("web-1").unwrap().target.is_some()
    });
    drop((a, b));
}

#[test]
fn a_groups_shares_and_limits_decide_and_can_be_changed() {
    // Too little for three guests that touch nothing: shares alone decide.
    let managed = Managed::new(1600);
    let humble = |hello: Hello| {
        managed.introduce(Hello {
            min: 8 * MIB,
            ..hello
        })
    };
    let kept = [
        humble(grouped("web-1", 1000, "web")),
        humble(grouped("web-2", 1000, "web")),
        humble(hello("db", 1000)),
    ];
    let sizes = || {
        let guests = managed.client().guests().unwrap();
        let sizes: Vec<_> = guests
            .iter()
            .filter_map(|guest| guest.target.as_ref().map(|target| target.size_bytes / MIB))
            .collect();
        <[u64; 3]>::try_from(sizes).ok()
    };
    until("a plan", || sizes().is_some());
    let [one, two, db] = sizes().unwrap();
    assert!(
        one.abs_diff(two) <= 1 && (one + two).abs_diff(db) <= 2,
        "{one} {two} {db}"
    );

    let set = managed.levy_json(&["set", "--group", "web", "shares=500"]);
    assert_eq!(set["shares"], 500);
    let none = managed.request("PATCH", "/groups/web", "{\"shares\": 0}");
    assert_eq!(none.0, 400, "{}", none.1);
    until("another plan", || {
        sizes().is_some_and(|[one, _, db]| one * 3 < db)
    });
    let least = GroupChange {
        min_bytes: Some(900 * MIB),
        ..GroupChange::default()
    };
    assert_eq!(
        managed.client().change_group("web", &least).unwrap().min_bytes,
        900 * MIB
    );
    until("the group's minimum", || {
        sizes().is_some_and(|[one, two, _]| one + two >= 898)
    });
    drop(kept);
}

#[test]
fn what_a_group_cannot_be_is_refused() {
    let managed = Managed::new(256);
    let refusal = |hello: Hello| match Introduction::make(managed.dir.path(), hello) {
        Err(ConnectError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refusal(grouped("a", 16, "no spaces")).contains("not a group name"));
    assert!(refusal(limited("a", 16, (2 * MIB, Some(MIB)))).contains("its max"));
    assert!(
        refusal(limited("a", 16, (1024 * MIB, None))).contains("MiB"),
        "beyond the budget"
    );
    assert!(
        managed.client().host().unwrap().groups.is_empty(),
        "a refused guest leaves no group"
    );

    let _kept = managed.introduce(limited("a", 64, (0, Some(24 * MIB))));
    assert!(refusal(limited("b", 64, (0, None))).contains("members' minimums"));
    let refused = |change| match managed.client().change_group("web", &change) {
        Err(ClientError::Refused { status: 409, error }) => error,
        other => panic!("{other:?}"),
    };
    let change = GroupChange {
        max_bytes: Some(8 * MIB),
        ..GroupChange::default()
    };
    assert!(refused(change).contains("group web"));
    let change = GroupChange {
        min_bytes: Some(1024 * MIB),
        max_bytes: Some(2048 * MIB),
        ..GroupChange::default()
    };
    assert!(refused(change).contains("promise"));
    let group = &managed.client().host().unwrap().groups["web"];
    assert_eq!(
        (group.min_bytes, group.max_bytes),
        (0, Some(24 * MIB)),
        "nothing was changed"
    );
    let (status, _) = managed.request("PATCH", "/groups/none", "{}");
    assert_eq!(status, 404);
}
